"""The case study's own parts: which recordings clips share, the planted LayerNorms, its runs."""

import copy
import io
import json
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from benchmarks.case_study import runs
from benchmarks.case_study.__main__ import RESULTS, main, rows
from benchmarks.case_study.figure import draw
from benchmarks.case_study.layer_norms import plant
from benchmarks.case_study.recordings import THRESHOLD, HoldOut, choose, digest, layout, peaks
from benchmarks.case_study.result import row_of
from benchmarks.case_study.runs import Pieces, configured, train
from benchmarks.case_study.table import table
from benchmarks.case_study.variants import FIXES, VARIANTS
from configs.follow_up import flat
from configs.model_configs import get_config
from safe.models.backbones import load_backbone
from safe.models.safe_model import SAFEModel
from safe.plan import plan_run

RATE = 8000


def recording(seed: int, seconds: float = 1.0) -> torch.Tensor:
    """Noise with a spectrum and an envelope of its own."""
    rng = np.random.default_rng(seed)
    noise = np.convolve(rng.normal(size=int(RATE * seconds)), rng.normal(size=40), "same")
    return torch.from_numpy((noise * np.abs(np.sin(np.arange(len(noise)) / 900))).astype("f4"))


def clip(*parts: tuple[int, float, float], seconds: float = 3.0) -> torch.Tensor:
    """(recording, start in seconds, loudness), mixed over soft noise."""
    wave = 0.01 * torch.randn(int(RATE * seconds))
    for seed, start, loudness in parts:
        sound = loudness * recording(seed)
        wave[int(start * RATE) :][: len(sound)] += sound[: len(wave) - int(start * RATE)]
    return wave


def test_clips_that_share_a_recording_are_told_by_ear() -> None:
    first = [clip((1, 0.2, 1.0)), clip((2, 1.5, 0.5), (3, 0.1, 1.0)), clip((4, 0.0, 1.0))]
    second = [clip((1, 1.7, 0.3), (5, 0.5, 1.0)), clip((6, 0.3, 1.0)), clip((3, 1.0, 0.6))]
    found = peaks(first, second, lambda *_: None) >= THRESHOLD
    assert found.tolist() == [[True, False, False], [False, False, True], [False, False, False]]


def test_silence_shares_nothing() -> None:
    silence = [torch.zeros(RATE)]
    assert peaks(silence, [clip((1, 0.0, 1.0))], lambda *_: None).tolist() == [[0.0]]


@given(
    st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=8),
    st.integers(1, 8),
)
def test_nothing_that_is_kept_shares_with_what_is_held_out(table: list, count: int) -> None:
    shared = np.array(table)
    chosen, left_out = choose(shared, count)
    assert not shared[chosen][:, ~left_out].any()
    assert len(chosen) == len(set(chosen)) == min(count, int(shared.any(1).sum()))
    assert (shared[chosen].any(0) == left_out).all()  # and no clip is left out in vain


def test_layout_leaves_out_what_it_says_and_stays(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safe.data.manifests import load_split

    train = load_split(tiny_data, "train")
    split = HoldOut(("x",), (train[0].id, train[5].id))
    monkeypatch.setattr("benchmarks.case_study.recordings.hold_out", lambda *_: split)
    found, folder = layout(tiny_data, tmp_path / "data", lambda *_: None)
    kept = load_split(folder, "train")
    assert found == split
    assert [c.id for c in kept] == [c.id for c in train if c.id not in split.left_out]
    assert [c.captions for c in kept] == [c.captions for c in train if c.id not in split.left_out]
    assert all(c.path is not None and c.path.is_file() for c in kept)
    for name in ("val", "test"):
        before, after = load_split(tiny_data, name), load_split(folder, name)
        assert [(c.id, c.captions) for c in before] == [(c.id, c.captions) for c in after]
    monkeypatch.undo()  # the second call must not listen again
    assert layout(tmp_path / "gone", tmp_path / "data", lambda *_: None)[0] == split


def test_the_digest_of_the_data_knows_names_and_contents(tiny_data: Path, tmp_path: Path) -> None:
    twin = Path(shutil.copytree(tiny_data, tmp_path / "twin"))
    assert digest(twin) == digest(tiny_data)
    sound = next(file for file in (twin / "audio").rglob("*") if file.is_file())
    sound.rename(sound.with_name("another"))
    renamed = digest(twin)
    (twin / "val.csv").write_bytes((twin / "val.csv").read_bytes() + b"\n")
    assert len({digest(tiny_data), renamed, digest(twin)}) == 3


# ---- the variants


def test_the_five_fixes_are_all_that_lies_between_the_two_configurations() -> None:
    phase1, full = flat(get_config("phase1")), flat(get_config("full"))
    differ = {k for k in phase1 if phase1[k] != full[k]} - {"name", "description"}
    fixed = {key for keys in FIXES.values() for key in keys}
    # clips per step are the same in the case study; both have 128
    assert differ - {"optim.batch_size", "optim.accumulation"} == fixed


def test_without_a_fix_and_with_it_are_what_they_say() -> None:
    phase1, full = flat(get_config("phase1")), flat(get_config("full"))
    for fix, keys in FIXES.items():
        slug = fix.replace(" ", "-")
        without = flat(VARIANTS[f"phase1-without-{slug}"].config)
        added = flat(VARIANTS[f"full-with-{slug}"].config)
        for key in phase1:
            assert without[key] == (full if key in keys else phase1)[key]
            assert added[key] == (phase1 if key in keys else full)[key]


def test_the_short_warm_up_is_to_scale() -> None:
    """As large a share of these runs as the seed's is of 20 epochs of AudioCaps."""
    steps = 4 * math.ceil((1200 - 307) / 16)  # clips that are left, 16 to a step
    share = flat(get_config("full"))["model.fusion.gate_warmup_steps"] / plan_run("full").steps
    short = {n: flat(v.config) for n, v in VARIANTS.items() if n.endswith("-short-warm-up")}
    assert len(short) == 6 and steps == 224
    for name, config in short.items():
        assert config["model.fusion.gate_warmup_steps"] == round(share * steps)
        base = flat(VARIANTS[name.removesuffix("-short-warm-up")].config)
        assert {k for k in base if base[k] != config[k]} == {"model.fusion.gate_warmup_steps"}


# ---- the LayerNorms


def heard(scale: float, gate: float, norms: bool) -> tuple[torch.Tensor, torch.Tensor]:
    backbone = load_backbone("embedded", dtype="float32")
    config = get_config("demo").model
    config = replace(
        config,
        projector=replace(config.projector, scale=scale),
        fusion=replace(config.fusion, gate_init=gate),
    )
    torch.manual_seed(0)
    model = SAFEModel(backbone, config)
    if norms:
        plant(model)
    audio = torch.nn.functional.normalize(torch.randn(2, config.audio_dim), dim=-1)
    with torch.no_grad():
        return model.audio_tokens(audio)[0], model(torch.arange(20, 40)[None].repeat(2, 1),
                                                   audio=audio).logits  # fmt: skip


def test_layer_norms_cancel_the_scale_and_the_gate() -> None:
    tokens, logits = heard(10.0, 0.3, norms=True)
    smaller, small_logits = heard(2.0, 0.05, norms=True)
    plain, plain_logits = heard(10.0, 0.3, norms=False)
    small_plain, small_plain_logits = heard(2.0, 0.05, norms=False)
    # LayerNorm's epsilon is all that tells scales and gates apart: 1.0e-5 and 7e-5 here
    torch.testing.assert_close(tokens, smaller, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(logits, small_logits, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(plain, 5 * small_plain)
    assert (plain_logits - small_plain_logits).abs().max() > 0.1


# ---- a run, on the built-in pieces


@pytest.fixture
def pieces(
    tiny_data: Path, in_small_world: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Pieces]:
    monkeypatch.setattr(runs, "EPOCHS", 1)
    return Pieces(tiny_data, "embedded", "embedded")


def test_a_run_and_its_row(pieces: Pieces, tmp_path: Path) -> None:
    variant = VARIANTS["layer-norms"]
    console = Console(file=io.StringIO())
    folder = train(variant, 0, pieces, tmp_path, console)
    evaluation = json.loads((folder / "evaluation.json").read_text())
    clips = evaluation["scores"]["per_clip_cider"]
    unheard = list(clips)[:2]
    row = row_of("layer-norms", 0, folder, unheard)
    assert row["cider"]["value"] == evaluation["scores"]["cider"]
    assert row["unheard"]["clips"] == 2 and row["heard"]["clips"] == len(clips) - 2
    assert math.isclose(row["unheard"]["value"], sum(clips[c] for c in unheard) / 2)
    rates = row["heard"]["value"] * row["heard"]["clips"] + row["unheard"]["value"] * 2
    assert math.isclose(rates / len(clips), row["cider"]["value"], abs_tol=1e-9)
    first = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    assert (row["first_loss"], row["first_gradient"]) == (first["loss"], first["grad_norm/total"])
    assert len(row["before"]["contribution"]) == len(row["after"]["contribution"]) == 4
    assert {"SP413", "SP404"} <= set(row["before"]["findings"])  # normalised behind the scale
    text = table([row])
    assert (
        f"| phase1 with both LayerNorms | 1 | {row['dtype']} |" in text
        and f"| {row['verdict']} |" in text
    )
    assert (row["scale"], row["gate"]) == (10.0, 0.3)
    row["after"]["influence"], row["before"]["contribution"] = None, {}
    assert table([row]).count("not measured") == 2
    # an interrupted run goes on with its LayerNorms, a finished one is only scored again
    assert train(variant, 0, pieces, tmp_path, console) == folder
    assert json.loads((folder / "evaluation.json").read_text()) == evaluation


def test_seeds_of_one_variant_share_a_line() -> None:
    first = next(row for row in rows(RESULTS) if row["variant"] == "phase1")
    second = copy.deepcopy(first) | {"seed": 1}
    first["before"] |= {"root": "SP105", "findings": ["SP104", "SP105"]}
    second["before"] |= {"root": "SP105", "findings": ["SP105"]}
    first["after"] |= {"root": None, "findings": [], "influence": 1.0}
    second["after"] |= {"root": None, "findings": [], "influence": 3.0}
    line = table([first, second]).splitlines()[-1]
    assert "| **SP105**, SP104 (1 of 2) | fine |" in line
    assert line.endswith("| 2.00 (1.00 to 3.00) |")


def test_the_figure_is_drawn_of_what_there_is(tmp_path: Path) -> None:
    from matplotlib.image import imread

    draw(rows(RESULTS), tmp_path / "all.png")
    draw(rows(RESULTS)[:2], tmp_path / "two.png")
    heights = [imread(tmp_path / name).shape[0] for name in ("all.png", "two.png")]
    assert heights[0] > 2 * heights[1]


def test_a_calibrated_run_takes_what_was_proposed(pieces: Pieces, tmp_path: Path) -> None:
    text = "base: phase1\nmodel:\n  fusion:\n    gate_init: 0.2\n  projector:\n    scale: 3.0\n"
    (tmp_path / "calibrated.yaml").write_text(text)
    config, explicit = configured(VARIANTS["calibrated"], 7, pieces, tmp_path)
    assert (config.model.projector.scale, config.model.fusion.gate_init) == (3.0, 0.2)
    assert {"model.projector.scale", "model.fusion.gate_init", "optim.seed"} <= explicit
    assert (config.optim.seed, config.optim.effective_batch) == (7, runs.EFFECTIVE_BATCH)
    assert "model.fusion.layers" not in explicit  # those keep their relative depth


# ---- what is kept


_SETTINGS = {"0.05", "0.3", "0.408", "1.9", "1.37", "2,000", "224"}
_ROUNDED = {"0.02", "0.04", "0.8", "5.3"}  # 0.023, 0.036, 0.81, 5.25 in the table
_COUNTED = {"1.3", "19.5", "1,145", "1,532"}  # trainable parameters and first gradient norms
_PROTOTYPE = {"112", "15.4", "183", "200", "286", "300", "800"}


def numbers(text: str) -> set[str]:
    """Whole and decimal numbers of a text, codes of findings left out."""
    return set(re.findall(r"(?<![\w.,-])\d+(?:[.,]\d+)*", re.sub(r"SP\d+", "", text)))


def test_the_numbers_of_the_conclusions_are_those_of_the_rows() -> None:
    document = (RESULTS.parents[2] / "docs" / "case-study.md").read_text(encoding="utf-8")
    prose = document.partition("## What it says")[2].partition("## What it was made with")[0]
    kept = rows(RESULTS)
    known = numbers(table(kept)) | _SETTINGS | _ROUNDED | _COUNTED | _PROTOTYPE
    assert numbers(prose) - known == set()
    first = [round(r["first_gradient"]) for r in kept if r["variant"].startswith("phase1")]
    drowned = [gradient for gradient in first if gradient > 1000]
    assert (min(drowned), max(drowned)) == (1145, 1532)
    trained = {r["variant"]: r["trainable"] / 1e6 for r in kept}
    assert (round(trained["resampler"], 1), round(trained["calibrated"], 1)) == (1.3, 19.5)


def test_the_kept_rows_are_those_of_the_documents(capsys: pytest.CaptureFixture[str]) -> None:
    document = (RESULTS.parents[2] / "docs" / "case-study.md").read_text(encoding="utf-8")
    kept = rows(RESULTS)
    assert main([]) == 0
    assert capsys.readouterr().out.strip() in document
    wanted = {(v.name, seed) for v in VARIANTS.values() for seed in v.seeds}
    done = {(row["variant"], row["seed"]) for row in kept}
    missing = [f"{VARIANTS[name].title}, seed {seed}" for name, seed in sorted(wanted - done)]
    said = re.findall(r"^Missing: (.*)\.$", document, re.MULTILINE)
    assert done <= wanted and said == (["; ".join(missing)] if missing else [])

"""The controls are what they say they are, and a saved run scores what the run itself scored."""

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from configs.errors import CheckpointError, MetricError
from configs.schema import EvalConfig
from safe.data.splits import Split
from safe.evaluation import evaluate
from safe.evaluation.bootstrap import paired_difference
from safe.evaluation.evaluate import COMMONEST, GATE_OFF, NEIGHBOUR, SHUFFLED, SILENCE, Evaluator
from safe.evaluation.metrics import score
from safe.evaluation.saved import evaluate_saved, find_adapter
from safe.models.safe_model import SAFEModel
from safe.training.batches import CaptionTokens

pytestmark = pytest.mark.usefixtures("in_small_world")
ModelMaker = Callable[..., SAFEModel]

SOUNDS = ("dog barks", "bell rings", "rain falls", "car passes", "baby cries", "wind blows")


def split(name: str, count: int = 6, seed: int = 0, width: int = 12) -> Split:
    rng = np.random.default_rng(seed)
    sounds = [SOUNDS[i % len(SOUNDS)] for i in range(count)]
    return Split(
        name, tuple(f"{name}{i}" for i in range(count)),
        tuple((f"a {s} {name} {i}", f"the {s} loudly {i}") for i, s in enumerate(sounds)),
        tuple(f"{name}-hash{i}" for i in range(count)),
        (3 * rng.normal(size=(count, width))).astype(np.float32), np.full(count, 4.0),
        (None,) * count,
    )  # fmt: skip


@pytest.fixture(scope="module")
def world(make_model: ModelMaker, in_small_world: None) -> Any:
    """A model, an evaluator, its evaluation, and every call of the generation in between."""
    model = make_model()
    evaluator = Evaluator(CaptionTokens(model.tokenizer, model.prompt), split("test"),
                          EvalConfig(max_new_tokens=6, bootstrap=40), seed=3)  # fmt: skip
    silence = np.random.default_rng(9).normal(size=12).astype(np.float32)
    heard: list[np.ndarray | None] = []
    generate = evaluate.generate_captions

    def listening(model: Any, tokens: Any, embeddings: Any, *args: Any, **kwargs: Any) -> list[str]:
        heard.append(embeddings)
        return generate(model, tokens, embeddings, *args, **kwargs)

    progress: list[tuple[str, int, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "generate_captions", listening)
        result = evaluator.full(model, split("train", 9, 1), silence,
                                lambda *call: progress.append(call))  # fmt: skip
    return model, evaluator, result, heard, silence, progress


def test_controls_hear_what_they_are_named_after(world: Any) -> None:
    _, evaluator, _, heard, silence, progress = world
    own, shuffled, silent, off = heard
    embeddings = evaluator.split.embeddings
    assert np.array_equal(own, embeddings) and off is None
    assert np.array_equal(shuffled, embeddings[evaluator.pairing])
    assert np.array_equal(silent, silence[None])  # once, for all clips are of one length
    assert progress == [*((name, 6, 6) for name in ("own audio", SHUFFLED)),
                        *((name, 1, 1) for name in (SILENCE, GATE_OFF))]  # fmt: skip


def test_one_caption_for_each_length_is_what_each_clip_would_get(make_model: ModelMaker) -> None:
    model = make_model(projector={"kind": "adaptive"})
    clips = replace(split("test"), seconds=np.array([4.0, 0.5, 4.0, 9.0, 0.5, 0.5]))
    tokens = CaptionTokens(model.tokenizer, model.prompt)
    evaluator = Evaluator(tokens, clips, EvalConfig(max_new_tokens=6, batch_size=4), seed=3)
    silence = np.random.default_rng(9).normal(size=12).astype(np.float32)
    for audio in (silence, None):
        every = None if audio is None else np.stack([audio] * 6)
        alike = evaluator._same_for_all(model, audio, "", None)
        assert alike == evaluator._captions(model, every, "", None)
        assert list(alike) == list(clips.clip_ids)


def test_shuffled_audio_is_a_derangement_without_look_alikes() -> None:
    clips = split("test")
    twin = replace(clips, audio_keys=("same", "same", *clips.audio_keys[2:]))  # 0 and 1 sound alike
    model_free = CaptionTokens.__new__(CaptionTokens)
    for seed in range(20):
        pairing = Evaluator(model_free, twin, EvalConfig(bootstrap=5), seed).pairing
        assert sorted(pairing) == list(range(6)) and all(pairing != np.arange(6))
        assert pairing[0] != 1 and pairing[1] != 0
    seeds = [tuple(Evaluator(model_free, clips, EvalConfig(), s).pairing) for s in (0, 0, 1)]
    assert seeds[0] == seeds[1] != seeds[2]


def test_gate_0_and_silence_are_the_same_for_every_clip_and_gate_0_is_the_bare_backbone(
    world: Any, make_backbone: Callable[..., Any]
) -> None:
    model, evaluator, result, *_ = world
    import torch

    bare = make_backbone("llava")
    prompt = torch.tensor([evaluator.tokens.prompt_ids])
    ids = bare.model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt),
                              max_new_tokens=6, do_sample=False)  # fmt: skip
    caption = evaluator.tokens.decode(ids[0, prompt.shape[1] :].tolist())
    assert set(result.captions[GATE_OFF].values()) == {caption}
    assert len(set(result.captions[SILENCE].values())) == 1
    assert len(set(result.captions["own audio"].values())) > 1
    model.set_gate(0.0)
    shut, _ = evaluator.quick(model)
    model.set_gate(1.0)
    assert shut.cider == result.controls[GATE_OFF].cider


def test_every_number_follows_from_the_captions(world: Any) -> None:
    _, evaluator, result, *_ = world
    references = evaluator.split.references
    for name, found in {"own audio": result.scores, **result.controls, **result.floors}.items():
        again = score(result.captions[name], references, metrics=("cider",))
        assert found.cider == again.cider and found.n_clips == 6 and found.n_references == 12
    own, shuffled = (score(result.captions[n], references, metrics=("cider",)).per_clip_cider
                     for n in ("own audio", SHUFFLED))  # fmt: skip
    assert result.versus_shuffled == paired_difference(
        [own[c] for c in references], [shuffled[c] for c in references], n_resamples=40
    )
    assert set(result.controls) == {SHUFFLED, SILENCE, GATE_OFF}
    assert set(result.floors) == {COMMONEST, NEIGHBOUR}
    assert len(set(result.captions[COMMONEST].values())) == 1
    assert json.loads(json.dumps(result.to_dict()))["verdict"]["outcome"] == result.verdict.outcome
    assert "captions" not in result.to_dict()


def test_quick_is_the_first_part_of_full(world: Any) -> None:
    model, evaluator, result, *_ = world
    scores, captions = evaluator.quick(model)
    assert captions == result.captions["own audio"] and scores.cider == result.scores.cider
    assert scores.bleu_4 is None and scores.meteor is None


def test_split_that_cannot_be_controlled_for_is_refused() -> None:
    tokens = CaptionTokens.__new__(CaptionTokens)
    clips = split("test", 4)
    alike = replace(clips, audio_keys=("same",) * 3 + ("other",))
    with pytest.raises(MetricError, match="cannot all hear another clip's audio"):
        Evaluator(tokens, alike, EvalConfig()).check(split("train"))
    dull = replace(clips, captions=tuple((f"word{i}", f"other{i}") for i in range(4)))
    with pytest.raises(MetricError, match="event-word recall is undefined"):
        Evaluator(tokens, dull, EvalConfig()).check(split("train"))
    deaf = replace(clips, embeddings=np.zeros_like(clips.embeddings))
    with pytest.raises(MetricError, match=r"test_embeddings\[0\] is zero"):
        Evaluator(tokens, deaf, EvalConfig()).check(split("train"))
    with pytest.raises(MetricError, match="undefined for a single clip"):
        Evaluator(tokens, split("test", 1), EvalConfig())
    Evaluator(tokens, clips, EvalConfig()).check(split("train"))


def console() -> Console:
    return Console(file=io.StringIO(), width=200)


@pytest.mark.parametrize("what", ["run", "checkpoint"])
def test_saved_run_scores_what_the_run_itself_scored(
    what: str, tiny_run: Any, tmp_path: Path
) -> None:
    newest = tiny_run.folder / "checkpoints" / "step-00000006"
    path = tiny_run.folder if what == "run" else newest
    evaluation, folder = evaluate_saved(path, console(), output=tmp_path / "out", device="cpu")
    assert evaluation == tiny_run.evaluation
    assert folder == tmp_path / "out"
    for name in ("evaluation.json", "captions/final.jsonl"):
        assert (folder / name).read_bytes() == (tiny_run.folder / name).read_bytes()


def test_other_split_and_the_place_of_its_results(tiny_run: Any, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run.folder, tmp_path / "run"))
    evaluation, folder = evaluate_saved(run, console(), split="val", device="cpu")
    assert evaluation.split == "val" and evaluation.scores.n_clips == 4
    assert folder == run / "evaluations" / "adapter-val"
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert evaluation.scores.cider == row["cider"]  # the last evaluation of the training
    assert (run / "evaluation.json").read_bytes() == (
        tiny_run.folder / "evaluation.json"
    ).read_bytes()


def test_find_adapter_prefers_the_finished_one_and_verifies(tiny_run: Any, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run.folder, tmp_path / "run"))
    (tmp_path / "latest").symlink_to("run")
    assert find_adapter(tmp_path / "latest") == (run, run / "adapter")
    weights = run / "adapter" / "safe_adapter.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x07")
    with pytest.raises(CheckpointError, match="safe_adapter.safetensors"):
        find_adapter(run)
    shutil.rmtree(run / "adapter")
    newest = run / "checkpoints" / "step-00000006"
    assert find_adapter(run) == (run, newest / "adapter")
    (newest / "trainer_state.json").unlink()
    assert find_adapter(run)[1] == run / "checkpoints" / "step-00000003" / "adapter"
    with pytest.raises(CheckpointError):
        find_adapter(newest)
    shutil.rmtree(run / "checkpoints" / "step-00000003")
    with pytest.raises(CheckpointError, match="neither a finished adapter nor a checkpoint.*damag"):
        find_adapter(run)
    with pytest.raises(CheckpointError, match="is no run folder"):
        find_adapter(tmp_path)


def test_run_on_other_backbone_weights_is_refused(
    tiny_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safe.training import experiment

    load = experiment.load_backbone

    def changed(*args: Any, **options: Any) -> Any:
        return replace(load(*args, **options), identity="embedded@other")

    monkeypatch.setattr(experiment, "load_backbone", changed)
    with pytest.raises(CheckpointError, match="backbone 'embedded'.*embedded@other"):
        evaluate_saved(tiny_run.folder, console(), output=tmp_path, device="cpu")


def test_evaluation_knows_its_settings(tiny_run: Any) -> None:
    saved = json.loads((tiny_run.folder / "evaluation.json").read_text())
    assert saved == json.loads(json.dumps(tiny_run.evaluation.to_dict()))
    assert saved["versus_shuffled"] == asdict(tiny_run.evaluation.versus_shuffled)

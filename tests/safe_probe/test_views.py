"""Tables of known numbers, as people see them."""

import io

import pytest
from rich.console import Console, RenderableType

from probes.findings.facts import Facts
from probes.record import Record
from safe_probe import views
from safe_probe.views.table import bar, number, size


def facts(probe: str, *rows: tuple[str, int | None, str, float]) -> Facts:
    return Facts(Record(0, probe, c, layer, s, value, "") for c, layer, s, value in rows)


def shown(view: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(view)
    file = console.file
    assert isinstance(file, io.StringIO)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def words(line: str) -> str:
    return " ".join(line.split())


FUSED = facts(
    "magnitude",
    ("text", None, "l2_median", 1.0), ("projector", None, "l2_to_text", 9.0),
    ("text", 6, "l2_median", 135.2), ("text", 6, "l2_p5", 101.0), ("text", 6, "l2_p95", 25090.0),
    ("text", 6, "sinks", 8), ("text", 6, "sink_inflation", 14.8),
    ("projector", 6, "l2_to_text", 0.0667),
    ("fusion", 6, "calls", 1), ("fusion", 6, "branch_ratio", 0.5),
    ("fusion", 6, "contribution_median", 0.25),
)  # fmt: skip
VISION = facts(
    "magnitude", ("signal", None, "l2_to_text", 37.0), ("signal", 6, "l2_to_text", 2.5)
)  # fmt: skip


def test_magnitude_shows_signal_to_text_and_contribution() -> None:
    text = shown(views.magnitude_view(FUSED))
    head = words(text.splitlines()[2])
    assert head == "layer text p5-p95 sinks audio branch contribution 0 .. 1"
    assert text.splitlines()[3].split() == ["input", "1", "---", "-", "9", "-", "-"]
    row = text.splitlines()[4].split()
    assert row == ["6", "135", "100-25000", "8", "x15", "0.0667", "0.5", "0.25", "█▌"]


def test_vision_stands_beside_audio_in_the_same_table_and_in_one_sentence() -> None:
    text = shown(views.magnitude_view(FUSED, VISION))
    assert "audio  vision" in text
    assert [line.split()[-4] for line in text.splitlines()[3:5]] == ["9", "2.5"]
    assert max(map(len, text.splitlines())) <= 80
    said = str(views.vision_view(FUSED, VISION, "a LLaVA", trained=True))
    assert said == "at the input, vision tokens are 37x text here, audio 9x"


@pytest.mark.parametrize("vision", [None, VISION])
def test_a_random_vision_tower_is_no_evidence(vision: Facts | None) -> None:
    said = str(views.vision_view(FUSED, vision, "smollm2", trained=False))
    assert "the vision tower of smollm2 is tiny and random" in said and "no evidence" in said
    assert ("37x" in said) == (vision is not None)


def test_influence_shows_thirds_of_the_caption_and_parity() -> None:
    rows = [("signal:own", None, "loss", 2.0), ("signal:swapped", None, "changed", 1.0)]
    thirds = {"first": 0.3, "middle": 0.1, "last": -0.02}
    rows += [("signal:swapped", None, f"loss_change_{t}", v) for t, v in thirds.items()]
    rows += [("gate:zero", None, "parity_changed", 0.0), ("gate:zero", None, "changed", 1.0)]
    rows += [("signal:none", None, "parity_changed", 0.25)]
    rows += [("signal:none", None, "parity_max_change", 0.125)]
    rows += [("gate:zero", None, "pictures_parity_changed", 0.0)]
    text = shown(views.VIEWS["influence"](facts("influence", *rows)))
    assert "signal:swapped   +0.3    +0.1  -0.02" in text
    parity = "gate:zero bit for bit; signal:none 25.0% of the logits differ, by up to 0.125; "
    assert parity + "gate:zero with pictures bit for bit" in words(text)


def test_sensitivity_names_what_follows_each_dial() -> None:
    dial = "projector:projector.amplitude.scale"
    rows = [(dial, None, "strength", 10.0), (dial, None, "elasticity_tokens", 1.0)]
    rows += [(dial, layer, "elasticity_branch", e) for layer, e in ((2, 0.0), (4, 1.2), (6, 1.3))]
    rows += [("gate", 2, "strength", 0.3), ("gate", 2, "elasticity_contribution", 0.01)]
    rows += [("gate", 2, "changed_logits", 0.125), ("gate", 4, "strength", 0.0)]
    lines = shown(views.VIEWS["sensitivity"](facts("sensitivity", *rows))).splitlines()
    assert words(lines[2]) == "amplitude.scale 10 tokens 1.00, branch 1.20 - -"
    assert words(lines[3]) == "gate 2 0.3 contribution 0.01 12.5% -"
    assert words(lines[4]) == "gate 4 0 - - -"


def test_attention_by_layer_with_the_spread_of_its_heads() -> None:
    rows = [("fusion", 2, "calls", 1.0), ("fusion", 2, "tokens", 32.0)]
    rows += [("fusion", 2, "entropy_relative", 0.5), ("fusion", 2, "one_hot", 0.25)]
    rows += [(f"fusion:head{i}", 2, "entropy_relative", e) for i, e in enumerate((0.4, 0.6))]
    row = shown(views.VIEWS["attention"](facts("attention", *rows))).splitlines()[2]
    assert row.split() == ["2", "32", "-", "0.50", "0.40-0.60", "-", "25.0%", "-", "█████"]


def test_data_leaves_out_what_was_not_measured() -> None:
    rows = [("text", None, "rows", 16.0), ("signal", None, "silent", 0.5)]
    lines = shown(views.VIEWS["data"](facts("data", *rows))).splitlines()
    assert [line.split()[-1] for line in lines[2:]] == ["batches", "zeros"]
    assert "silent clips  50.0%" in lines[3]


def test_parameters_say_in_words_what_the_optimizer_holds() -> None:
    rows = [
        (c, None, s, v)
        for c, values in {
            "projector": {"total": 10, "trainable": 10, "in_optimizer": 10, "lr_min": 1e-3},
            "fusion": {"total": 9, "trainable": 8, "in_optimizer": 4},
            "gate": {"total": 2, "trainable": 2, "in_optimizer": 0},
            "decoder": {"total": 12_688_184_320, "trainable": 0, "in_optimizer": 0},
            "model": {"total": 21, "trainable": 20},
        }.items()
        for s, v in values.items()
    ]
    lines = shown(views.parameters_view(facts("parameters", *rows))).splitlines()[2:]
    assert [line.split()[3] for line in lines] == ["all", "4", "none", "-", "-"]
    assert "12,688,184,320" in lines[3] and lines[0].split()[4] == "0.001"


def test_every_view_stands_empty_facts() -> None:
    for view in views.VIEWS.values():
        shown(view(Facts([])))


def test_numbers_bars_and_sizes() -> None:
    assert [number(v) for v in (None, 25_090.0, 135.2, 0.0667, 1e7)] == [
        "-", "25100", "135", "0.0667", "1e+07",
    ]  # fmt: skip
    assert number(float("nan")) == "nan" and number(float("inf")) == "inf"
    assert (bar(0.55), bar(2.0, 3), bar(-1.0), bar(float("nan"))) == ("█████▌", "███", "", "")
    assert [size(v) for v in (None, 16, 2.5e6)] == ["-", "16 B", "2.5 MB"]

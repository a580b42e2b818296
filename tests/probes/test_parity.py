"""A model that sees is the bare backbone with pictures too; what leaks only then is found."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from probes.diagnosis import Diagnosis, diagnose

Inputs = dict[str, Tensor]
MEASURED = {
    ("signal:repeat", "pictures_changed"),
    ("signal:repeat", "pictures_max_change"),
    ("gate:zero", "pictures_parity_changed"),
    ("gate:zero", "pictures_parity_max_change"),
    ("signal:none", "pictures_parity_changed"),
    ("signal:none", "pictures_parity_max_change"),
}


@pytest.fixture
def pictures(llava_inputs: Inputs, safe_inputs: Inputs) -> Inputs:
    """Two texts with an image and an audio embedding each, the second padded."""
    return llava_inputs | {"audio": safe_inputs["audio"]}


def heard_by_the_image_projector(model: Any) -> None:
    """The sound goes into the picture's tokens, past every gate; only silence keeps it out."""
    heard: list[Any] = []
    model.register_forward_pre_hook(
        lambda _model, _args, given: heard.append(given.get("audio")), with_kwargs=True
    )
    model.backbone.model.multi_modal_projector.register_forward_hook(
        lambda _module, _args, out: out if heard[-1] is None else out + 0.1 * heard[-1].mean()
    )


def past_the_gate_beside_a_picture(model: Any) -> None:
    """A part of the branch is added past the gate wherever there is a picture."""
    seen: list[bool] = []
    model.register_forward_pre_hook(
        lambda _model, _args, given: seen.append("pixel_values" in given), with_kwargs=True
    )
    residual = model.fusion["2"].residual
    whole = residual.forward
    residual.forward = lambda h, b, gate: whole(h, b, gate) + 1e-3 * seen[-1] * b


def differs_at_every_look(model: Any) -> None:
    """Noise on pictures, also in evaluation."""
    model.backbone.model.multi_modal_projector.register_forward_hook(
        lambda _module, _args, out: out + 0.01 * torch.randn_like(out)
    )


def measured(found: Diagnosis) -> dict[tuple[str, str], float]:
    rows = (r for r in found.log if r.statistic.startswith("pictures_"))
    return {(r.component, r.statistic): r.value for r in rows}


def parity(found: Diagnosis) -> list[str]:
    return [f.measured for f in found.findings if f.code == "SP410"]


def test_a_healthy_model_is_the_bare_backbone_with_pictures(
    make_safe: Callable[..., Any], safe_inputs: Inputs, pictures: Inputs
) -> None:
    model = make_safe()
    found = diagnose(model, [safe_inputs], probes=["influence"], pictures=pictures)
    assert measured(found) == dict.fromkeys(MEASURED, 0.0)
    assert parity(found) == [] and found.not_measured == {}
    with torch.no_grad():  # the pictures and the sounds were really there
        bare = {k: v for k, v in pictures.items() if k != "audio"}
        logits = [model(**inputs).logits for inputs in (pictures, bare)]
        blind = model(**bare | {"pixel_values": -bare["pixel_values"]}).logits
    assert not torch.equal(*logits) and not torch.equal(logits[1], blind)


@pytest.mark.parametrize(
    ("plant", "control", "words"),
    [
        (heard_by_the_image_projector, "signal:none", "no signal, with pictures: "),
        (past_the_gate_beside_a_picture, "gate:zero", "gates at 0, with pictures: "),
    ],
)
def test_a_way_in_that_shows_only_with_pictures(
    make_safe: Callable[..., Any], safe_inputs: Inputs, pictures: Inputs,
    plant: Callable[[Any], None], control: str, words: str,
) -> None:  # fmt: skip
    model = make_safe()
    plant(model)
    blind = diagnose(model, [safe_inputs], probes=["influence"])
    assert parity(blind) == [] and measured(blind) == {}
    found = diagnose(model, [safe_inputs], probes=["influence"], pictures=pictures)
    (said,) = parity(found)
    assert said.startswith(words) and "of the logits differ, by up to" in said
    share = measured(found)
    assert share[control, "pictures_parity_changed"] > 0
    (other,) = {"gate:zero", "signal:none"} - {control}
    assert share[other, "pictures_parity_changed"] == 0


def test_chance_is_not_taken_for_a_second_way_in(
    make_safe: Callable[..., Any], safe_inputs: Inputs, pictures: Inputs
) -> None:
    model = make_safe()
    differs_at_every_look(model)
    found = diagnose(model, [safe_inputs], probes=["influence"], pictures=pictures)
    assert measured(found)["signal:repeat", "pictures_changed"] > 0 and parity(found) == []


def test_pictures_belong_to_influence_and_cost_it_nothing_when_they_fail(
    make_safe: Callable[..., Any], safe_inputs: Inputs, pictures: Inputs
) -> None:
    model = make_safe()
    gates = diagnose(model, [safe_inputs], probes=["gates"], pictures=pictures)
    assert measured(gates) == {}
    lost = {k: v for k, v in pictures.items() if k != "audio"}
    found = diagnose(model, [safe_inputs], probes=["influence"], pictures=lost)
    assert "has no 'audio'" in found.not_measured["influence with pictures"]
    assert any(r.statistic == "parity_changed" for r in found.log)


def test_without_a_switch_there_is_no_bare_backbone(llava: Any, llava_inputs: Inputs) -> None:
    found = diagnose(
        llava, [llava_inputs], signal="vision", probes=["influence"], pictures=llava_inputs
    )
    assert measured(found) == {} and "influence with pictures" not in found.not_measured

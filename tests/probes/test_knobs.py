"""Turning a knob is undone bit for bit, also when the work inside breaks."""

from typing import Any

import pytest
import torch
from torch import nn

from probes.signal_path import SignalPath

PATH = {
    "projector": "adapter.projector",
    "layers": "lm.blocks.*",
    "fusion": "adapter.cross.{layer}",
}


def test_number_parameter_and_buffer(toy: Any) -> None:
    toy.lm.blocks[0].calls.fill_(3.0)
    knobs = ["adapter.gates.3", "lm.blocks.0.calls"]
    path = SignalPath.from_dict(PATH | {"scale": "adapter.projector.scale", "knobs": knobs})
    scale, gate, calls = path.resolve(toy).knobs
    before = toy.adapter.gates["3"].detach().clone()
    with scale.multiplied(3.0), gate.multiplied(1 / 3), calls.multiplied(2.0):
        assert toy.adapter.projector.scale == 6.0
        assert torch.equal(toy.adapter.gates["3"], before * (1 / 3))
        assert toy.lm.blocks[0].calls == 6.0
        assert path.resolve(toy).scale == 6.0
    assert toy.adapter.projector.scale == 2.0
    assert torch.equal(toy.adapter.gates["3"], before)
    assert toy.lm.blocks[0].calls == 3.0
    assert isinstance(toy.adapter.gates["3"], nn.Parameter)


@pytest.mark.parametrize("index", [0, 1])
def test_undone_after_ctrl_c(toy: Any, index: int) -> None:
    path = SignalPath.from_dict(PATH | {"knobs": ["adapter.projector.scale", "adapter.gates.1"]})
    knob = path.resolve(toy).knobs[index]
    before = torch.as_tensor(knob.raw).detach().item()
    with pytest.raises(KeyboardInterrupt), knob.multiplied(float("inf")):  # noqa: PT012
        assert torch.as_tensor(knob.raw).detach().item() == float("inf")
        raise KeyboardInterrupt
    assert torch.as_tensor(knob.raw).detach().item() == before


def test_scale_may_be_a_bare_number_or_a_tensor(toy: Any) -> None:
    assert SignalPath.from_dict(PATH | {"scale": 10.0}).resolve(toy).scale == 10.0
    assert SignalPath.from_dict(PATH).resolve(toy).scale is None
    toy.adapter.projector.scale = nn.Parameter(torch.tensor([-4.0, 1.0]))
    path = SignalPath.from_dict(PATH | {"scale": "adapter.projector.scale"})
    assert path.resolve(toy).scale == 4.0


def test_outer_gate_by_name_tensor_and_function(toy: Any) -> None:
    toy.strength = torch.tensor([0.5])
    assert SignalPath.from_dict(PATH | {"outer_gate": "strength"}).resolve(toy).outer_gate == 0.5
    path = SignalPath(**PATH, outer_gate=lambda model: model.strength.item() / 2)
    assert path.resolve(torch.compile(toy)).outer_gate == 0.25

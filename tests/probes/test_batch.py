"""Batches: which positions are text, and the loss of every token against plain recomputation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from probes import PROBES, get_probe
from probes.batch import Batch
from probes.errors import ProbeError
from probes.logits import counted
from probes.loss import OwnLoss, token_losses


@dataclass(frozen=True)
class Foreign:
    input_ids: Tensor
    sound: Tensor
    clip_ids: tuple[str, ...] = ("a",)


def test_of_mapping_and_dataclass(make_batch: Callable[..., dict[str, Tensor]]) -> None:
    inputs = make_batch()
    batch = Batch.of(Foreign(inputs["input_ids"], inputs["sound"]), "sound")
    assert set(batch.inputs) == {"input_ids", "sound"}
    assert batch.signal is inputs["sound"]
    assert Batch.of(batch, "sound") is batch
    assert "sound" not in batch.with_signal(None).inputs
    assert batch.with_signal(inputs["sound"] * 2).signal[0, 0] == 2 * inputs["sound"][0, 0]
    assert batch.supervised == 0
    assert Batch.of(inputs, "sound").supervised == 4 + 2 + 1


@pytest.mark.parametrize(
    ("raw", "message"),
    [([1], "a mapping .* got list"), ({"input_ids": 1}, "has no 'sound'; it has input_ids")],
)
def test_what_is_no_batch(raw: Any, message: str) -> None:
    with pytest.raises(ProbeError, match=message):
        Batch.of(raw, "sound")


def test_positions() -> None:
    ids = torch.tensor([[7, 3, 3, 8, 2], [7, 3, 3, 2, 2]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    batch = Batch({"input_ids": ids, "attention_mask": mask, "x": ids}, "x")
    shape = torch.Size([2, 5, 4])
    text, signal = batch.positions(shape)
    assert signal is None
    assert torch.equal(text, mask.bool())
    text, signal = batch.positions(shape, splice=3)
    assert text.tolist() == [[1, 0, 0, 1, 1], [1, 0, 0, 0, 0]]
    assert signal is not None
    assert signal.tolist() == [[0, 1, 1, 0, 0], [0, 1, 1, 0, 0]]
    text, signal = batch.positions(torch.Size([2, 7, 4]), splice="prefix")
    assert text.tolist() == [[0, 0, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 0, 0]]
    assert signal is not None
    assert signal.sum() == 4
    no_mask = Batch({"input_ids": ids, "x": ids}, "x").positions(shape)
    assert no_mask.text.all()


@pytest.mark.parametrize("shape", [(2, 6, 4), (1, 10, 4), (10, 4)])
def test_foreign_shapes_are_refused(shape: tuple[int, ...]) -> None:
    batch = Batch({"input_ids": torch.zeros(2, 5), "x": torch.zeros(2)}, "x")
    with pytest.raises(ProbeError, match=r"cannot tell which|needs attention_mask"):
        batch.positions(torch.Size(shape))


def test_token_losses_of_counted_logits(
    toy: Any, make_batch: Callable[..., dict[str, Tensor]]
) -> None:
    inputs = make_batch()
    batch = Batch.of(inputs, "sound")
    output = toy.eval()(**inputs)
    rows = counted(output, batch).logits
    found = token_losses(rows, batch)
    expected = [
        -torch.log_softmax(output["logits"][b, t - 1], -1)[inputs["labels"][b, t]].item()
        for b in range(3)
        for t in range(1, 6)
        if inputs["labels"][b, t] != -100
    ]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)
    assert found.mean().item() == pytest.approx(OwnLoss("mean")(output, batch).item(), rel=1e-5)
    picked = output["logits"][:, :-1][inputs["labels"][:, 1:] != -100]
    assert torch.equal(counted({"logits": picked}, batch).logits, rows)
    assert OwnLoss("sum")({"loss": found.sum()}, batch) == found.sum() / 7
    with pytest.raises(ProbeError, match="do not belong to labels"):
        token_losses(rows[:-1], batch)
    with pytest.raises(ProbeError, match="need labels"):
        token_losses(rows, batch.with_inputs(labels=None))
    with pytest.raises(ProbeError, match="returned no logits"):
        counted({}, batch)
    with pytest.raises(ProbeError, match="returned no loss"):
        OwnLoss("mean")({}, batch)


def test_every_probe_measures() -> None:
    assert all(callable(get_probe(name)) for name in PROBES)
    with pytest.raises(ProbeError, match="unknown probe 'gate'.*did you mean 'gates'"):
        get_probe("gate")

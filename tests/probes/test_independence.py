"""Exchanges that must not matter: recomputed by calling the model, silent where nothing leaks."""

from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from probes import independence
from probes.batch import Batch
from probes.context import Context
from probes.findings.judge import judge
from probes.independence import exchanged
from probes.logits import divergence
from probes.record import RecordLog
from probes.signal_path import SignalPath

Inputs = dict[str, Tensor]
CODES = {"SP422", "SP426", "SP427", "SP428"}


def _measure(model: nn.Module, batches: list[Any], path: Any = None, **options: Any) -> RecordLog:
    return RecordLog(independence.measure(Context.of(model, batches, path, **options)))


def _codes(log: RecordLog) -> set[str]:
    return {finding.code for finding in judge(log)}


def _kl(log: RecordLog, component: str) -> float | None:
    return log.value(component=component, statistic="kl")


@given(count=st.integers(1, 9), width=st.integers(1, 3))
@settings(max_examples=30)
def test_every_pair_of_texts_is_told_apart_in_both_directions(count: int, width: int) -> None:
    signal = torch.arange(count * width, dtype=torch.float32).view(count, width)
    batch = Batch({"sound": signal, "input_ids": torch.zeros(count, 2).long()}, "sound")
    seen = set()
    for changed, replaced in exchanged(batch):
        assert torch.equal(changed[~replaced], signal[~replaced])
        kept = {tuple(row) for row in signal[~replaced].tolist()}
        assert all(tuple(row) in kept for row in changed[replaced].tolist())
        seen |= {(i, j) for i in range(count) for j in range(count) if replaced[i] > replaced[j]}
    assert seen == {(i, j) for i in range(count) for j in range(count) if i != j}


def test_a_healthy_model_changes_only_where_it_was_exchanged(
    toy: Any, toy_path: SignalPath, make_batch: Callable[..., Inputs]
) -> None:
    inputs = make_batch((6, 4))
    log = _measure(toy.train(), [inputs], toy_path)
    assert toy.training and not _codes(log)
    for name in ("signal:others", "signal:repeat", "text:padding", "text:later"):
        assert log.value(component=name, statistic="changed") == 0
    toy.eval()
    chosen = (inputs["labels"] != -100).roll(-1, 1)
    own = toy(**inputs)["logits"]
    other = toy(**{**inputs, "sound": inputs["sound"].flip(0)})["logits"]
    expected = divergence(own[chosen], other[chosen]).mean()
    assert _kl(log, "signal:replaced") == pytest.approx(float(expected.detach()), rel=1e-6)
    assert log.value(component="text", statistic="unheard_front") == 0


def test_a_mean_over_the_batch_is_heard_by_the_others(
    toy: Any, toy_path: SignalPath, make_batch: Callable[..., Inputs]
) -> None:
    with torch.no_grad():
        for gate in toy.adapter.gates.values():
            gate.fill_(1.0)
    forward = toy.adapter.projector.forward
    toy.adapter.projector.forward = lambda sound: (
        forward(sound).mean(0, keepdim=True).expand(len(sound), -1, -1)
    )
    log = _measure(toy, [make_batch()], toy_path)
    assert "SP422" in _codes(log)
    finding = next(f for f in judge(log) if f.code == "SP422")
    assert f"{_kl(log, 'signal:others'):.2g}" in finding.measured


def test_one_text_says_nothing_of_others(
    toy: Any, toy_path: SignalPath, make_batch: Callable[..., Inputs]
) -> None:
    log = _measure(toy, [make_batch((5,))], toy_path)
    assert _kl(log, "signal:others") is None and not _codes(log)
    assert _kl(log, "text:later") == 0 and _kl(log, "text:padding") is None


def _look_ahead(toy: Any) -> None:
    def forward(_self: Any, hidden: Tensor) -> tuple[Tensor]:
        return (hidden + hidden.roll(-1, 1),)

    toy.lm.blocks[0].forward = MethodType(forward, toy.lm.blocks[0])


def test_a_look_ahead_is_found(
    toy: Any, toy_path: SignalPath, make_batch: Callable[..., Inputs]
) -> None:
    _look_ahead(toy)
    log = _measure(toy, [make_batch((6, 4, 3))], toy_path)
    assert _codes(log) & CODES == {"SP426"}


class Masked(nn.Module):
    """Left-padded texts; every token hears the mean of the tokens that the mask shows so far."""

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.shift = shift
        self.embed, self.mix, self.head = (
            nn.Embedding(9, 8), nn.ModuleList([nn.Linear(8, 8)]), nn.Linear(8, 9)
        )  # fmt: skip
        self.projector, self.gate = nn.Linear(4, 8), nn.Parameter(torch.ones(()))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, audio: Tensor, **_: Any) -> Any:
        shown = attention_mask.roll(self.shift, 1)[..., None]
        hidden = self.embed(input_ids) * shown
        hidden = hidden.cumsum(1) / shown.cumsum(1).clamp(min=1)
        hidden = self.mix[0](hidden) + self.gate * self.projector(audio)[:, None]
        return {"logits": self.head(hidden)}


@pytest.mark.parametrize(
    ("shift", "codes"), [(0, set()), (1, {"SP427", "SP428"}), (-1, {"SP427"}), (-2, {"SP427"})]
)
def test_a_shifted_mask_is_found(shift: int, codes: set[str]) -> None:
    torch.manual_seed(0)
    path = SignalPath(projector="projector", layers="mix.*", splice="prefix")
    ids = torch.randint(1, 9, (3, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :3] = mask[1, :2] = mask[2, :2] = 0
    audio = torch.randn(3, 4, generator=torch.Generator().manual_seed(2))
    batch = {"input_ids": ids, "attention_mask": mask, "audio": audio}
    log = _measure(Masked(shift), [batch], path)
    assert _codes(log) & CODES == codes


def test_pictures_in_the_sequence(llava: Any, llava_inputs: Inputs) -> None:
    log = _measure(llava, [llava_inputs], signal="vision")
    assert not _codes(log) & CODES
    assert (_kl(log, "signal:replaced") or 0) > 0 and _kl(log, "text:padding") == 0


def test_noise_in_evaluation_is_not_taken_for_a_leak(
    toy: Any, toy_path: SignalPath, make_batch: Callable[..., Inputs]
) -> None:
    forward = toy.lm.head.forward
    toy.lm.head.forward = lambda hidden: forward(hidden + 0.5 * torch.randn_like(hidden))
    assert not _codes(_measure(toy, [make_batch()], toy_path)) & CODES


def test_placeholders_that_are_masked_are_no_padding(llava: Any, llava_inputs: Inputs) -> None:
    """The model counts its placeholders: none may be exchanged."""
    masked = llava_inputs["attention_mask"] * (llava_inputs["input_ids"] != 3)
    log = _measure(llava, [{**llava_inputs, "attention_mask": masked}], signal="vision")
    assert log.value(component="text:padding", statistic="changed") == 0

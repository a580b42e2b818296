"""A tenfold mistake in what the probes cost is caught; nothing is timed against a clock.

Bounds are generous: ratios of CPU time inside one run, several times what is measured (see
docs/benchmarks.md), because the machine may be busy.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partialmethod
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.speed import layer_peers
from benchmarks.speed.__main__ import main
from benchmarks.speed.accuracy import errors, kept_bytes
from benchmarks.speed.gradients import gradient_ways, ledger
from benchmarks.speed.layer_norms import in_one_forward, of_states, states_of
from benchmarks.speed.pairs import Ratio, seconds, take_turns
from benchmarks.speed.subjects import Subject, subject
from benchmarks.speed.training import WAYS, Bench, same_losses
from benchmarks.speed.variations import (
    compiled,
    eager,
    entering,
    from_kept,
    looped_optimizer,
)
from probes.norms import PassNorms

PAIRS = 3


@pytest.fixture(scope="module")
def embedded() -> Subject:
    return subject("embedded")


@pytest.fixture(scope="module")
def inputs(embedded: Subject) -> dict[str, torch.Tensor]:
    ids = embedded.ids(8, 64)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_statistics_of_every_layer_hardly_show_in_a_forward_pass(
    embedded: Subject, inputs: dict[str, torch.Tensor]
) -> None:
    def bare() -> None:
        with torch.no_grad():
            embedded.lm(**inputs)

    ways = {"ours": lambda: in_one_forward(embedded, inputs)}
    _, ours = take_turns("bare", bare, ways, pairs=PAIRS)
    assert ours.ratio < 1.6, ours  # measured: below 1.15


def test_statistics_cost_a_few_plain_norms() -> None:
    states = [torch.randn(8, 64, 576) for _ in range(30)]
    inputs = {"input_ids": torch.ones(8, 64, dtype=torch.long)}
    out = torch.empty(8, 64)

    def plain() -> None:
        for state in states:
            torch.linalg.vector_norm(state, dim=-1, out=out)

    ways = {"ours": lambda: of_states(states, inputs).records()}
    _, ours = take_turns("norms", plain, ways, pairs=PAIRS)
    assert ours.ratio < 15.0, ours  # measured: 4; four statistics one by one: 40


def test_the_gradient_ledger_costs_as_much_as_the_gradients_it_looks_at() -> None:
    model = nn.Sequential(*(nn.Linear(512, 512) for _ in range(4)))
    batch = torch.randn(64, 512)

    def backward() -> torch.Tensor:
        model.zero_grad(set_to_none=True)
        loss = model(batch).square().sum()
        loss.backward()
        return loss

    ways, name = gradient_ways(model, backward)
    found = {ratio.name: ratio for ratio in take_turns("backward", backward, ways, pairs=PAIRS)}
    assert found[name].ratio < 3.0, found[name]
    expected = [float(p.grad.double().norm()) for p in model.parameters() if p.grad is not None]
    assert ledger(list(model.parameters())) == pytest.approx(expected, rel=1e-6)


def test_speed_costs_no_accuracy_and_no_memory() -> None:
    found = errors()
    assert found["token norms"] < 1e-6 and found["gradient norm, 28M elements"] < 1e-6
    small, large = kept_bytes().values()
    assert large < small + 30 * 448 * 100  # 100 bytes for each further token of a layer


def test_states_that_are_kept_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    add, hoard = PassNorms.add, []

    def hoarding(self: PassNorms, hidden: torch.Tensor) -> int:
        hoard.append(hidden.clone())
        return add(self, hidden)

    monkeypatch.setattr(PassNorms, "add", hoarding)
    assert list(kept_bytes().values())[-1] > 30 * 8 * 64 * 576 * 4


def test_everybody_measures_the_same(embedded: Subject, inputs: dict[str, torch.Tensor]) -> None:
    states = states_of(embedded, inputs)
    medians = [r.value for r in in_one_forward(embedded, inputs) if r.statistic == "l2_median"]
    true = [float(np.median(state.double().norm(dim=-1))) for state in states]
    assert medians == pytest.approx(true, rel=1e-5)
    ways = layer_peers.peers(embedded, inputs)
    for name in ("hooks with torch.norm", "output_hidden_states, then norms"):
        norms = ways[name]()
        last = -1 if "hidden" in name else None  # that one comes after the final norm
        for norm, state in zip(norms[:last], states[:last], strict=True):
            assert torch.allclose(norm, state.norm(dim=-1))


def test_every_way_to_train_has_the_same_loss_and_gradient(embedded: Subject) -> None:
    bench = Bench(embedded, "embedded")
    gradients = []
    for way in WAYS.values():
        bench.plain_backward(way)
        parameters = bench.trainer.parameters.values()
        gradients.append([p.grad.clone() for p in parameters if p.grad is not None])
        bench.trainer.optimizer.zero_grad()
    for other in gradients[1:]:
        for one, two in zip(gradients[0], other, strict=True):
            assert torch.allclose(one, two, rtol=1e-2, atol=1e-5)
    assert len(set(same_losses(bench))) == len(WAYS) + 1


def test_a_ratio_knows_whether_its_goal_is_reached() -> None:
    ratio = Ratio("base", "work", 1.2, 1.1, 1.3, 5.0, 9)
    assert ratio.reached is None and "goal" not in str(ratio)
    assert Ratio("base", "work", 1.2, 1.1, 1.3, 5.0, 9, 1.25).reached
    slow = Ratio("base", "work", 1.2, 1.1, 1.3, 5.0, 9, 3.0, at_least=True)
    assert slow.reached is False and "NOT REACHED" in str(slow)
    assert slow.to_json()["reached"] is False


def test_on_a_gpu_time_lies_between_two_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the GPU's clock: 2 ms pass with every call, nothing else takes time."""
    log: list[str] = []
    now = 0.0

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = now

        def elapsed_time(self, end: "Event") -> float:
            assert log[-1] == "synchronize"  # before that, the events may not have come
            return end.at - self.at

    def work(milliseconds: float) -> None:
        nonlocal now
        now += milliseconds
        log.append("work")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("synchronize"))
    gpu = torch.device("cuda")
    assert seconds(lambda: work(2.0), 5, gpu) == pytest.approx(0.002)
    log.clear()
    noise, slower = take_turns("t", lambda: work(2.0), {"s": lambda: work(6.0)}, device=gpu)
    assert log[:6] == ["work"] * 6  # each three times, before anything is timed
    assert noise.ratio == pytest.approx(1.0) and slower.ratio == pytest.approx(3.0)


def test_without_a_gpu_none_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        main(["probes", "--device", "cuda"])
    assert "torch sees no GPU here" in capsys.readouterr().err


# torch.compile asks a tensor inside the graph whether it has a gradient
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_variations_take_the_same_step_and_leave_no_trace(
    embedded: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    # traced, and not translated to C++, which takes half a minute
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))
    bench = Bench(embedded, "embedded")
    kept = entering(bench)
    settings = (eager, compiled, looped_optimizer, lambda b: from_kept(b, kept))
    start = {name: p.detach().clone() for name, p in bench.trainer.parameters.items()}

    def gradients(setting: Any) -> tuple[float, dict[str, torch.Tensor]]:
        with contextmanager(setting)(bench):
            loss = bench.trainer._backward(bench.window, bench.tokens).item()
        found = {n: p.grad.clone() for n, p in bench.trainer.parameters.items()}
        bench.trainer.optimizer.zero_grad()
        return loss, found

    def usual(_bench: Bench) -> Iterator[None]:
        yield

    loss, expected = gradients(usual)
    for setting in settings:
        other, found = gradients(setting)
        assert other == pytest.approx(loss, rel=1e-5)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6)
        assert gradients(usual)[0] == loss  # to the bit, so it is as it was
    groups = bench.trainer.optimizer.param_groups
    with contextmanager(looped_optimizer)(bench):
        assert not any(group["fused"] for group in groups)
    assert all(group["fused"] for group in groups)
    assert all(torch.equal(p, start[name]) for name, p in bench.trainer.parameters.items())
    assert all(layer._compiled_call_impl is None for layer in bench.model.layers.values())

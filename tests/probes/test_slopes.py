"""Finite differences against the gradients of autograd, and against wrong ones."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from probes import gradflow
from probes.context import Context
from probes.findings.judge import judge
from probes.record import RecordLog
from probes.signal_path import SignalPath
from probes.slopes import slopes


def _problem(sizes: list[int], double: bool, seed: int) -> tuple[nn.Sequential, Callable[..., Any]]:
    torch.manual_seed(seed)
    widths = [*sizes, 1]
    layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
    model = nn.Sequential(*(m for layer in layers for m in (layer, nn.Tanh())))
    model = model.double() if double else model
    x = torch.randn(5, sizes[0], dtype=next(model.parameters()).dtype)

    def loss(gradient: bool) -> float:
        value = (model(x) - 3).square().mean()
        if gradient:
            value.backward()
        return float(value.detach())

    return model, loss


@given(st.lists(st.integers(1, 6), min_size=1, max_size=3), st.booleans(), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_right_gradients_are_right_and_parameters_stay(
    sizes: list[int], double: bool, seed: int
) -> None:
    model, loss = _problem(sizes, double, seed)
    before = [p.detach().clone() for p in model.parameters()]
    found = slopes({"all": list(model.parameters())}, loss)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert all(p.grad is None for p in model.parameters())
    for slope in found.values():
        if slope.along_gradient is not None:
            assert slope.along_gradient == pytest.approx(1, abs=0.03)
        if slope.random_mismatch is not None:
            assert slope.random_mismatch < 0.1


def _wrong(change: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    model, loss = _problem([6, 8, 4], True, 1)
    handles = [p.register_hook(change) for p in model.parameters()]
    slope = slopes({"all": list(model.parameters())}, loss)["all"]
    for handle in handles:
        handle.remove()
    assert slope.along_gradient is not None and slope.random_mismatch is not None
    return slope.along_gradient, slope.random_mismatch


def test_wrong_gradients_by_arithmetic() -> None:
    assert _wrong(torch.neg)[0] == pytest.approx(-1, abs=0.03)
    assert _wrong(lambda g: g * 2)[0] == pytest.approx(0.5, abs=0.03)
    along, random = _wrong(lambda g: g * (torch.arange(g.numel()).view_as(g) % 2))
    assert along == pytest.approx(1, abs=0.03)  # what is there is right
    assert random > 0.2  # but half of it is missing


@pytest.mark.parametrize("times", [0.1, 1e-2, 1e-3, -1e-2, 10.0, 1e3])
def test_gradients_of_another_size(times: float) -> None:
    model, loss = _problem([6, 8, 4], False, 1)
    for p in model.parameters():
        p.register_hook(lambda g: g * times)
    slope = slopes({"all": list(model.parameters())}, loss)["all"]
    # what is far too large cannot be told from what is curved
    assert slope.along_gradient is None or abs(slope.along_gradient - 1) > 0.2
    if abs(times) < 1:
        assert slope.along_gradient == pytest.approx(1 / times, rel=0.1)


def test_a_tiny_gradient_that_is_right_has_no_steep_slope() -> None:
    """A loss with ripples too small to matter, and weights that hardly matter."""
    weight = nn.Parameter(torch.ones(8))

    def loss(gradient: bool) -> float:
        value = 3 + 1e-7 * weight.sum() + 1e-6 * (1e4 * weight).sin().sum().detach()
        if gradient:
            value.backward()
        return float(value.detach())

    assert slopes({"all": [weight]}, loss)["all"].along_gradient is None


def test_an_exception_leaves_the_parameters() -> None:
    model, loss = _problem([3], False, 0)
    before = [p.detach().clone() for p in model.parameters()]
    calls = iter([0.0, KeyboardInterrupt])

    def broken(gradient: bool) -> float:
        value = loss(gradient)
        if next(calls) is KeyboardInterrupt:
            raise KeyboardInterrupt
        return value

    with pytest.raises(KeyboardInterrupt):
        slopes({"all": list(model.parameters())}, broken)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_a_kink_and_dropout_say_nothing_wrong() -> None:
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def kink(gradient: bool) -> float:
        value = weight.clamp(0, 1).sum() + 1
        if gradient:
            value.backward()
        return float(value.detach())

    assert all(s.along_gradient is None for s in slopes({"gate": [weight]}, kink).values())
    model, _ = _problem([8, 8], True, 0)
    x = torch.ones(4, 8, dtype=torch.float64)

    def noisy(gradient: bool) -> float:
        value = nn.functional.dropout(model(x), 0.5).square().sum()
        if gradient:
            value.backward()
        return float(value.detach())

    state = torch.get_rng_state()
    slope = slopes({"all": list(model.parameters())}, noisy)["all"]
    assert slope.along_gradient == pytest.approx(1, abs=0.03)
    assert torch.equal(state, torch.get_rng_state())


def _codes(model: Any, inputs: Any, path: SignalPath) -> dict[str, str]:
    log = RecordLog(gradflow.measure(Context.of(model, [inputs], path)))
    assert all(math.isfinite(r.value) for r in log if r.statistic.startswith("slope"))
    return {f.code: f.component for f in judge(log)}


@pytest.mark.parametrize("change", [torch.neg, lambda g: torch.randn_like(g) * g.std()])
def test_a_wrong_gradient_of_the_projector_is_named(
    toy: Any, toy_path: SignalPath, make_batch: Any, change: Any
) -> None:
    assert not {"SP318", "SP319"} & _codes(toy, make_batch(), toy_path).keys()
    for parameter in toy.adapter.projector.parameters():
        parameter.register_hook(change)
    assert _codes(toy, make_batch(), toy_path).get("SP318") == "projector"


def test_bfloat16_is_not_judged(toy: Any, toy_path: SignalPath, make_batch: Any) -> None:
    toy.lm.to(torch.bfloat16)
    for parameter in toy.adapter.projector.parameters():
        parameter.register_hook(torch.neg)
    inputs = make_batch()
    toy.adapter.to(torch.bfloat16)
    inputs["sound"] = inputs["sound"].to(torch.bfloat16)
    assert not {"SP318", "SP319"} & _codes(toy, inputs, toy_path).keys()

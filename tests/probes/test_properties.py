"""Any shape, mask, dtype and gate: magnitude, gates and gradflow against NumPy and autograd."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from probes import gates, gradflow, magnitude
from probes.context import Context
from probes.record import RecordLog
from probes.signal_path import GatePath, SignalPath

Inputs = dict[str, Tensor]
LENGTHS = st.lists(st.integers(3, 8), min_size=1, max_size=4).map(tuple)
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16])
GATES = st.floats(-2, 2, width=32)
QUICK = settings(max_examples=25, deadline=None)


def _batch(make_batch: Any, lengths: tuple[int, ...], left: bool, dtype: torch.dtype) -> Inputs:
    inputs: Inputs = make_batch(lengths, seed=sum(lengths))
    inputs["sound"] = inputs["sound"].to(dtype)
    if left:
        width = max(lengths)
        for name in ("input_ids", "attention_mask", "labels"):
            rows = zip(inputs[name], lengths, strict=True)
            inputs[name] = torch.stack([row.roll(width - n) for row, n in rows])
    return inputs


def _set_gates(toy: Any, values: tuple[float, float]) -> None:
    with torch.no_grad():
        for gate, value in zip(toy.adapter.gates.values(), values, strict=True):
            gate.fill_(value)


def _l2(x: Tensor) -> np.ndarray:
    found: np.ndarray = np.linalg.norm(x.double().numpy(), axis=-1)
    return found


@given(LENGTHS, st.booleans(), DTYPES, st.tuples(GATES, GATES))
@QUICK
def test_magnitude(
    make_toy: Callable[..., Any], make_batch: Any, toy_path: SignalPath, lengths: tuple[int, ...],
    left: bool, dtype: torch.dtype, values: tuple[float, float],
) -> None:  # fmt: skip
    toy = make_toy(len(lengths)).to(dtype).eval()
    _set_gates(toy, values)
    inputs = _batch(make_batch, lengths, left, dtype)
    log = RecordLog(magnitude.measure(Context.of(toy, [inputs], toy_path)))
    mask = inputs["attention_mask"].bool()
    with torch.no_grad():
        tokens, hidden = toy.adapter.projector(inputs["sound"]), toy.lm.embed(inputs["input_ids"])
        for index, block in enumerate(toy.lm.blocks):
            (hidden,) = block(hidden)
            if index not in (1, 3):
                continue
            branch = toy.adapter.cross[str(index)](hidden, tokens=tokens)
            text, ratio = _l2(hidden[mask]), _l2(branch[mask]) / _l2(hidden[mask])
            gate = abs(np.tanh(float(toy.adapter.gates[str(index)])))
            expected = {
                ("text", "tokens"): sum(lengths),
                ("text", "l2_median"): np.median(text),
                ("text", "l2_p5"): np.percentile(text, 5),
                ("text", "l2_p95"): np.percentile(text, 95),
                ("text", "max_abs"): hidden[mask].double().abs().max().item(),
                ("fusion", "branch_ratio"): np.median(ratio),
                ("fusion", "contribution_median"): gate * np.median(ratio),
                ("fusion", "calls"): 1,
            }
            for (component, statistic), value in expected.items():
                found = log.value(component=component, statistic=statistic, layer=index)
                assert found == pytest.approx(value, rel=1e-5, abs=1e-9), statistic
            hidden = hidden + torch.tanh(toy.adapter.gates[str(index)]) * branch
    median = log.value(component="projector", statistic="l2_median", layer=None)
    assert median == pytest.approx(np.median(_l2(tokens.flatten(0, 1))), rel=1e-5)


def _by_hand(raw: float, transform: str, low: float | None, high: float | None) -> tuple[Any, ...]:
    """Value, slope, whether on or outside an end of the clamp, whether outside it."""
    inner, slope = {
        "none": (raw, 1.0),
        "tanh": (np.tanh(raw), 1 - np.tanh(raw) ** 2),
        "sigmoid": (1 / (1 + np.exp(-raw)), np.exp(-raw) / (1 + np.exp(-raw)) ** 2),
    }[transform]
    bottom, top = -np.inf if low is None else low, np.inf if high is None else high
    outside = inner < bottom or inner > top
    return np.clip(inner, bottom, top), slope, inner <= bottom or inner >= top, outside


@given(
    st.tuples(GATES, GATES), st.sampled_from(["none", "tanh", "sigmoid"]),
    st.sampled_from([None, -0.5, 0.0]), st.sampled_from([None, 0.25, 1.0]), LENGTHS,
)  # fmt: skip
@QUICK
def test_gates(
    make_toy: Callable[..., Any], make_batch: Any, toy_path: SignalPath,
    values: tuple[float, float], transform: Any, low: float | None, high: float | None,
    lengths: tuple[int, ...],
) -> None:  # fmt: skip
    toy = make_toy(0).eval()
    _set_gates(toy, values)
    path = replace(toy_path, gates=GatePath("adapter.gates.{layer}", low, high, transform))
    batches = [_batch(make_batch, lengths, False, torch.float32), make_batch((4, 5), seed=9)]
    log = RecordLog(gates.measure(Context.of(toy, batches, path)))
    parameters = list(toy.adapter.gates.values())
    rows = [torch.autograd.grad(toy(**inputs)["loss"], parameters) for inputs in batches]
    for number, layer in enumerate((1, 3)):
        found = {r.statistic: r.value for r in log.select(component="gate", layer=layer)}
        raw = float(parameters[number].detach())
        value, slope, at_edge, outside = _by_hand(raw, transform, low, high)
        assert found["raw"] == pytest.approx(raw)
        assert found["value"] == found["effective"] == pytest.approx(value, abs=1e-12)
        if not at_edge:
            assert found["slope"] == pytest.approx(slope, rel=1e-6, abs=1e-12)
        elif outside:
            assert found["slope"] == 0
        if low is not None or high is not None:
            assert (found["at_edge"], found["outside_clamp"]) == (at_edge, outside)
        mean = np.mean([float(row[number]) for row in rows])
        assert found["gradient"] == pytest.approx(mean, rel=1e-4, abs=1e-7)


@given(
    st.lists(LENGTHS, min_size=1, max_size=3), st.sampled_from([torch.float32, torch.float64]),
    st.tuples(GATES, GATES),
)  # fmt: skip
@settings(max_examples=15, deadline=None)
def test_gradflow(
    make_toy: Callable[..., Any], make_batch: Any, toy_path: SignalPath,
    shapes: list[tuple[int, ...]], dtype: torch.dtype, values: tuple[float, float],
) -> None:  # fmt: skip
    toy = make_toy(len(shapes)).to(dtype)
    _set_gates(toy, values)
    for block in toy.lm.blocks:
        block.drop.p = 0.0
    batches = [_batch(make_batch, lengths, False, dtype) for lengths in shapes]
    log = RecordLog(gradflow.measure(Context.of(toy, batches, toy_path)))
    named = {n: p for n, p in toy.named_parameters() if p.requires_grad}
    losses = [toy(**inputs)["loss"] for inputs in batches]
    rows = [torch.autograd.grad(loss, list(named.values())) for loss in losses]
    mean = {
        name: np.mean([row[i].double().numpy() for row in rows], axis=0)
        for i, name in enumerate(named)
    }
    parts = {"projector": "adapter.projector", "gate": "adapter.gates.1", "fusion": "adapter.cross"}
    for component, prefix in parts.items():
        layers = {"gate": (1,), "fusion": (1, 3)}.get(component, (None,))
        for layer in layers:
            start = prefix + (f".{layer}." if component == "fusion" else "")
            mine = [g for name, g in mean.items() if name.startswith(start)]
            norm = np.sqrt(sum((g**2).sum() for g in mine))
            found = log.value(component=component, statistic="norm", layer=layer)
            assert found == pytest.approx(norm, rel=1e-3, abs=1e-7)
    whole = np.sqrt(sum((g**2).sum() for g in mean.values()))
    assert log.value(component="model", statistic="norm") == pytest.approx(whole, rel=1e-3)
    loss = np.mean([float(x.detach()) for x in losses])
    assert log.value(component="model", statistic="loss") == pytest.approx(loss, rel=1e-5)
    for record in log:
        if record.statistic == "slope":
            assert record.value == pytest.approx(1, abs=0.1)
        if record.statistic == "slope_mismatch":
            assert record.value < 0.2

"""Gates: values by arithmetic, gradients by plain autograd."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from probes import gates
from probes.context import Context
from probes.record import RecordLog
from probes.signal_path import GatePath, SignalPath


def _measure(model: Any, batches: list[Any] | None = None, **options: Any) -> RecordLog:
    return RecordLog(gates.measure(Context.of(model, batches or [], **options)))


def _values(log: RecordLog, layer: int | None) -> dict[str, float]:
    return {r.statistic: r.value for r in log.select(component="gate", layer=layer)}


def test_all_there_is_to_say_about_a_gate(
    make_safe: Callable[..., Any], safe_inputs: dict[str, Tensor]
) -> None:
    model = make_safe(gate_init=0.3)
    model.set_gate(0.5)
    model.set_gate_warmup(1, 4)
    gate = model.fusion["1"].residual.residual_scale
    optimizer = torch.optim.AdamW([{"params": [gate], "lr": 3e-4, "weight_decay": 0.02}])
    model.fusion["2"].residual.residual_scale.requires_grad_(False)
    name = "fusion.1.residual.residual_scale"
    start = {name: torch.tensor(0.1)}
    log = _measure(model, [safe_inputs], optimizer=optimizer, start=start)
    out = model(**safe_inputs)
    (gradient,) = torch.autograd.grad(out.loss / (5 + 3), [gate])
    assert _values(log, None) == {"outer_gate": 0.125}
    assert _values(log, 1) == pytest.approx(
        {
            "raw": 0.3, "value": 0.3, "effective": 0.3 * 0.125, "slope": 1.0, "at_edge": 0.0,
            "outside_clamp": 0.0, "trainable": 1.0, "in_optimizer": 1.0, "lr": 3e-4,
            "weight_decay": 0.02, "moved": 0.2, "gradient_absent": 0.0,
            "gradient": gradient.item(),
        },
        rel=1e-5,
    )  # fmt: skip
    second = _values(log, 2)
    assert (second["trainable"], second["in_optimizer"], second["gradient_absent"]) == (0, 0, 1)
    assert "gradient" not in second
    assert "lr" not in second
    assert gate.grad is None


@pytest.mark.parametrize(
    ("raw", "at_edge", "outside"),
    [(0.0, 1, 0), (1.0, 1, 0), (-0.1, 1, 1), (1.5, 1, 1), (0.5, 0, 0)],
)
def test_edges_of_the_clamp(make_safe: Any, raw: float, at_edge: float, outside: float) -> None:
    model = make_safe()
    model.fusion["1"].residual.residual_scale.data.fill_(raw)
    found = _values(_measure(model), 1)
    assert (found["at_edge"], found["outside_clamp"]) == (at_edge, outside)
    # On an end exactly, the derivative depends on the version of torch (2.14: 0), so ask torch.
    at = torch.tensor(raw, requires_grad=True)
    at.clamp(0.0, 1.0).backward()
    assert found["slope"] == at.grad
    assert found["value"] == min(max(raw, 0.0), 1.0)
    assert "gradient_absent" not in found  # nothing was measured, so nothing is said


def test_gate_with_many_elements(toy: Any, toy_path: SignalPath) -> None:
    toy.adapter.gates["1"] = torch.nn.Parameter(torch.tensor([-1.0, 0.0, 2.5]))
    found = _values(_measure(toy, path=toy_path), 1)
    assert (found["raw"], found["raw_min"], found["raw_max"]) == (0.5, -1.0, 2.5)
    tanh = torch.tensor([-1.0, 0.0, 2.5], dtype=torch.float64).tanh()
    assert found["value"] == pytest.approx(tanh.mean().item())
    assert found["slope"] == pytest.approx((1 - tanh**2).mean().item())
    assert "outer_gate" not in _values(_measure(toy, path=toy_path), None)


def test_gradient_is_the_mean_over_batches(
    toy: Any, toy_path: SignalPath, make_batch: Callable[..., dict[str, Tensor]]
) -> None:
    toy.eval()
    batches = [make_batch(), make_batch((5, 2), seed=1)]
    log = _measure(toy, batches, path=toy_path)
    for layer in (1, 3):
        expected = [
            torch.autograd.grad(toy(**b)["loss"], [toy.adapter.gates[str(layer)]])[0].item()
            for b in batches
        ]
        assert _values(log, layer)["gradient"] == pytest.approx(sum(expected) / 2, rel=1e-5)


def test_batches_without_labels_have_no_gradient_but_a_loss_of_ones_own_has(
    toy: Any, toy_path: SignalPath, make_batch: Callable[..., dict[str, Tensor]]
) -> None:
    inputs = make_batch()
    del inputs["labels"]
    assert "gradient_absent" not in _values(_measure(toy, [inputs], path=toy_path), 1)
    log = _measure(
        toy, [inputs], path=toy_path, loss_fn=lambda out, _: out["logits"].square().mean()
    )
    assert _values(log, 1)["gradient"] != 0


def test_nothing_trainable_is_absent_everywhere(
    toy: Any, toy_path: SignalPath, make_batch: Callable[..., dict[str, Tensor]]
) -> None:
    toy.requires_grad_(False)
    assert _values(_measure(toy, [make_batch()], path=toy_path), 3)["gradient_absent"] == 1


def test_nan_gate_is_a_nan_record(toy: Any) -> None:
    toy.adapter.gates["1"].data.fill_(torch.nan)
    path = SignalPath(
        projector="adapter.projector", layers="lm.blocks.*", fusion="adapter.cross.{layer}",
        gates=GatePath("adapter.gates.{layer}", 0.0, 1.0),
    )  # fmt: skip
    found = _values(_measure(toy, path=path), 1)
    assert found["raw"] != found["raw"]
    assert found["effective"] != found["effective"]

"""The gradient ledger: every number by plain autograd, every reason by a planted zero."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from probes import gradflow
from probes.context import Context
from probes.errors import ProbeError
from probes.findings.judge import judge
from probes.ledger import Reason, State
from probes.record import RecordLog
from probes.signal_path import SignalPath

Inputs = dict[str, Tensor]
Batches = Callable[..., Inputs]


def _measure(
    model: nn.Module, batches: list[Any], path: Any = None, *,
    loss_scale: float = 1.0, clip_norm: float | None = None, **options: Any,
) -> RecordLog:  # fmt: skip
    context = Context.of(model, batches, path, **options)
    return RecordLog(gradflow.measure(context, loss_scale=loss_scale, clip_norm=clip_norm))


def _codes(log: RecordLog) -> set[str]:
    return {finding.code for finding in judge(log)}


def _of(log: RecordLog, component: str, layer: int | None = None) -> dict[str, float]:
    return {r.statistic: r.value for r in log.select(component=component, layer=layer)}


def _steady(toy: Any) -> Any:
    """The toy without its dropout, so that plain autograd needs no random numbers."""
    for block in toy.lm.blocks:
        block.drop.p = 0.0
    return toy


def _gradients(model: nn.Module, losses: list[Tensor]) -> dict[str, np.ndarray]:
    """Name to [batches, elements] float64 gradients of the trainable parameters."""
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    rows = [torch.autograd.grad(loss, list(named.values()), retain_graph=True) for loss in losses]
    return {
        name: np.stack([row[i].double().flatten().numpy() for row in rows])
        for i, name in enumerate(named)
    }


def _expected(gradients: np.ndarray, weight: np.ndarray) -> dict[str, float]:
    mean = gradients.mean(0)
    norms = np.linalg.norm(gradients, axis=1)
    return {
        "norm": np.linalg.norm(mean),
        "norm_mean": norms.mean(),
        "norm_std": norms.std(ddof=1),
        "snr": np.linalg.norm(mean) / np.sqrt(gradients.var(0, ddof=1).sum()),
        "weight_norm": np.linalg.norm(weight),
        "gradient_to_weight": np.linalg.norm(mean) / np.linalg.norm(weight),
    }


def test_every_number_of_a_foreign_model(
    toy: Any, toy_path: SignalPath, make_batch: Batches
) -> None:
    _steady(toy)
    batches = [make_batch(), make_batch((5, 2), seed=1), make_batch((4, 4), seed=2)]
    losses = [toy(**b)["loss"] for b in batches]
    gradients = _gradients(toy, losses)
    weights = {n: p.detach().double().flatten().numpy() for n, p in toy.named_parameters()}
    log = _measure(toy, batches, toy_path, step=5)
    assert {(r.step, r.probe) for r in log} == {(5, "gradflow")}
    for name, rows in gradients.items():
        (component,) = {r.component for r in log if r.component.endswith(f":{name}")}
        layer = log.select(component=component).records[0].layer
        found = _of(log, component, layer)
        wanted = _expected(rows, weights[name])
        assert {k: found[k] for k in wanted} == pytest.approx(wanted, rel=1e-5), name
        assert (found["state"], found["moved"], found["silent_batches"]) == (State.FINITE, 1, 0)
        assert "explained" not in found
    for component, layer, part in (("projector", None, "projector"), ("fusion", 3, "cross.3")):
        names = [n for n in gradients if part in n]
        rows = np.concatenate([gradients[n] for n in names], axis=1)
        wanted = _expected(rows, np.concatenate([weights[n] for n in names]))
        found = _of(log, component, layer)
        assert {k: found[k] for k in wanted} == pytest.approx(wanted, rel=1e-5)
        counts = {k: found[k] for k in ("trainable", "none", "zero", "finite", "nonfinite")}
        assert counts == {"trainable": 2, "none": 0, "zero": 0, "finite": 2, "nonfinite": 0}
        assert (found["moved_share"], found["deadlock"]) == (1, 0)
    whole = _of(log, "model")
    every = np.concatenate(list(gradients.values()), axis=1).mean(0)
    assert whole["norm"] == pytest.approx(np.linalg.norm(every), rel=1e-5)
    assert whole["loss"] == pytest.approx(np.mean([x.item() for x in losses]))
    assert (whole["batches"], whole["optimizer_given"], whole["frozen_moved"]) == (3, 0, 0)


def test_no_row_is_left_out(make_safe: Any, safe_inputs: Inputs) -> None:
    model = make_safe()
    log = _measure(model, [safe_inputs])
    states = log.select(statistic="state").records
    parameters = [r for r in states if r.detail]
    assert len(parameters) == len(list(model.parameters()))
    for row in parameters:
        trainable = log.value(component=row.component, layer=row.layer, statistic="trainable")
        assert (row.value == State.FINITE) == (trainable == 1), row.component
    declared = [(r.component, r.layer) for r in states if not r.detail]
    layers = [("decoder", i) for i in (None, 0, 1, 2, 3)]
    expected = [("projector", None), ("text_embeddings", None), ("lm_head", None), *layers]
    expected += [(word, i) for word in ("fusion", "gate") for i in (1, 2)]
    assert sorted(map(str, declared)) == sorted(map(str, [*expected, ("other", None)]))


def test_safe_type_model_against_autograd(make_safe: Any, safe_inputs: Inputs) -> None:
    model = make_safe()
    gradients = _gradients(model, [model(**safe_inputs).loss / (5 + 3)])
    log = _measure(model, [safe_inputs])
    for name, rows in gradients.items():
        (row,) = [r for r in log.select(statistic="norm") if r.detail == name]
        assert row.value == pytest.approx(np.linalg.norm(rows), rel=1e-5)
        assert "norm_std" not in _of(log, row.component, row.layer)  # one batch has no spread
        assert "snr" not in _of(log, row.component, row.layer)


def test_component_without_parameters_is_absent(make_batch: Batches, toy: Any) -> None:
    toy.adapter.projector = nn.Sequential(nn.Unflatten(-1, (1, 8)), nn.ConstantPad1d((0, 8), 0.0))
    path = SignalPath(
        projector="adapter.projector", layers="lm.blocks.*", fusion="adapter.cross.{layer}",
        signal_input="sound",
    )  # fmt: skip
    found = _of(_measure(_steady(toy), [make_batch()], path), "projector")
    assert found == {"state": State.ABSENT, "trainable": 0}


def test_tied_head_shows_its_owners_state(
    toy: Any, toy_path: SignalPath, make_batch: Batches
) -> None:
    toy.lm.head.weight = toy.lm.embed.weight
    toy.lm.embed.weight.requires_grad_(True)
    log = _measure(_steady(toy), [make_batch()], toy_path)
    own = _of(log, "text_embeddings")
    assert own.pop("slope") == pytest.approx(1, abs=0.02) and own.pop("slope_mismatch") < 0.02
    assert _of(log, "lm_head") == own
    assert len([r for r in log.select(statistic="state") if r.detail.endswith("weight")]) == 8


class _Cut(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


def test_states_after_a_cut(toy: Any, toy_path: SignalPath, make_batch: Batches) -> None:
    _steady(toy)
    toy.adapter.projector = nn.Sequential(toy.adapter.projector, _Cut())
    path = SignalPath(
        projector="adapter.projector", layers="lm.blocks.*", fusion="adapter.cross.{layer}",
        signal_input="sound",
    )  # fmt: skip
    log = _measure(toy, [make_batch()], path)
    found = _of(log, "projector")
    assert (found["state"], found["none"], found["moved_share"]) == (State.NONE, 2, 0)
    assert log.value(
        component="projector:adapter.projector.0.linear.bias", statistic="explained"
    ) == (Reason.UNKNOWN)
    assert _of(log, "fusion", 1)["state"] == State.FINITE


def test_zero_multiplied_in_is_zero_and_nothing_explains_it(
    toy: Any, toy_path: SignalPath, make_batch: Batches
) -> None:
    toy.adapter.projector.scale = 0.0
    log = _measure(_steady(toy), [make_batch()], toy_path)
    found = _of(log, "projector")
    assert (found["state"], found["zero"], found["deadlock"]) == (State.ZERO, 2, 0)
    bias = _of(log, "projector:adapter.projector.linear.bias")
    assert (bias["explained"], bias["silent_batches"], bias["moved"]) == (Reason.UNKNOWN, 1, 0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nonfinite_is_a_state_and_a_value(
    toy: Any, toy_path: SignalPath, make_batch: Batches, bad: float
) -> None:
    inputs = make_batch()
    inputs["sound"][1, 3] = bad
    before = [p.detach().clone() for p in toy.parameters()]
    log = _measure(_steady(toy), [make_batch(seed=1), inputs], toy_path)
    found = _of(log, "projector")
    assert found["state"] == State.NONFINITE
    assert not np.isfinite(found["norm"])
    assert all(torch.equal(p, v) for p, v in zip(toy.parameters(), before, strict=True))


# ---- why a gradient is zero ------------------------------------------------------------------


def _reasons(log: RecordLog) -> dict[str, Reason]:
    return {r.detail: Reason(int(r.value)) for r in log.select(statistic="explained")}


def test_lora_a_at_the_start_is_a_cold_start(make_safe: Any, safe_inputs: Inputs) -> None:
    model = make_safe()
    for name, parameter in model.fusion.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()
    log = _measure(model, [safe_inputs])
    expected = {f"fusion.{n}" for n, _ in model.fusion.named_parameters() if "lora_A" in n}
    assert _reasons(log) == dict.fromkeys(expected, Reason.ZERO_WEIGHT)
    assert not any(r.value for r in log.select(statistic="deadlock"))


def test_closed_gate_is_a_cold_start(make_safe: Any, safe_inputs: Inputs) -> None:
    model = make_safe(gate_init=0.0)
    log = _measure(model, [safe_inputs])
    assert set(_reasons(log).values()) == {Reason.GATE}
    assert _of(log, "projector")["zero"] == _of(log, "projector")["trainable"]
    for layer in (1, 2):
        assert _of(log, "gate", layer)["state"] == State.FINITE
        assert _of(log, "fusion", layer)["state"] == State.ZERO
        assert _of(log, "fusion", layer)["deadlock"] == 0


def test_closed_gate_and_zero_lora_b_start_cold_one_after_the_other(
    make_safe: Any, safe_inputs: Inputs
) -> None:
    model = make_safe(gate_init=0.0)
    for name, parameter in model.fusion.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()
    reasons = _reasons(_measure(model, [safe_inputs]))
    assert {r for n, r in reasons.items() if "lora_A" in n} == {Reason.ZERO_WEIGHT}
    assert {r for n, r in reasons.items() if "lora_A" not in n} == {Reason.GATE}


def _silence_branch(model: Any, layers: tuple[int, ...] = (1, 2)) -> None:
    """A branch of zero: an output projection whose base is zero and whose LoRA has B = 0."""
    for layer in layers:
        projection = model.fusion[str(layer)].o_proj
        projection.base_layer = nn.Linear(16, 16, bias=False).requires_grad_(False)
        projection.base_layer.weight.data.zero_()
        projection.lora_B["default"].weight.data.zero_()


def test_gate_and_branch_both_zero_deadlock(make_safe: Any, safe_inputs: Inputs) -> None:
    model = make_safe(gate_init=0.0)
    _silence_branch(model, (2,))
    log = _measure(model, [safe_inputs])
    assert _of(log, "gate", 2)["state"] == State.ZERO
    assert (_of(log, "gate", 2)["deadlock"], _of(log, "fusion", 2)["deadlock"]) == (1, 1)
    assert (_of(log, "gate", 1)["deadlock"], _of(log, "fusion", 1)["deadlock"]) == (0, 0)
    assert {r for n, r in _reasons(log).items() if n.startswith("fusion.2")} == {Reason.DEADLOCK}


@pytest.mark.parametrize("zero", ["gate", "branch"])
def test_one_zero_alone_does_not(make_safe: Any, safe_inputs: Inputs, zero: str) -> None:
    model = make_safe(gate_init=0.0 if zero == "gate" else 0.3)
    if zero == "branch":
        _silence_branch(model)
    log = _measure(model, [safe_inputs])
    assert not any(r.value for r in log.select(statistic="deadlock"))
    reason = Reason.GATE if zero == "gate" else Reason.ZERO_WEIGHT
    assert set(_reasons(log).values()) == {reason}


def test_lora_with_both_factors_zero_deadlocks(make_safe: Any, safe_inputs: Inputs) -> None:
    model = make_safe()
    projection = model.fusion["1"].v_proj
    for factor in (projection.lora_A, projection.lora_B):
        factor["default"].weight.data.zero_()
    log = _measure(model, [safe_inputs])
    assert _reasons(log) == {
        f"fusion.1.v_proj.lora_{x}.default.weight": Reason.DEADLOCK for x in "AB"
    }
    assert (_of(log, "fusion", 1)["deadlock"], _of(log, "fusion", 2)["deadlock"]) == (1, 0)


@pytest.mark.parametrize("zero", [True, False])
def test_frozen_lora_b(make_safe: Any, safe_inputs: Inputs, zero: bool) -> None:
    """Frozen at zero it explains the zeros of A; frozen elsewhere A learns."""
    model = make_safe()
    for name, parameter in model.fusion.named_parameters():
        if "lora_B" in name:
            parameter.requires_grad_(False)
            parameter.data *= not zero
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    log = _measure(model, [safe_inputs])
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    reasons = _reasons(log)
    assert set(reasons.values()) == ({Reason.FROZEN_ZERO} if zero else set())
    assert all("lora_A" in name for name in reasons)
    assert _codes(log) == ({"SP322"} if zero else set())


def test_frozen_zeros_do_not_explain_a_cut(make_safe: Any, safe_inputs: Inputs) -> None:
    model = make_safe()
    for name, parameter in model.fusion.named_parameters():
        if "lora_B" in name:
            parameter.requires_grad_(False)
            parameter.data.zero_()
        elif "lora_A" in name:
            parameter.register_hook(torch.zeros_like)
    assert set(_reasons(_measure(model, [safe_inputs])).values()) == {Reason.UNKNOWN}


def test_frozen_closed_gate_and_outer_gate(make_safe: Any, safe_inputs: Inputs) -> None:
    model = make_safe(gate_init=0.0)
    for layer in ("1", "2"):
        model.fusion[layer].residual.residual_scale.requires_grad_(False)
    assert set(_reasons(_measure(model, [safe_inputs])).values()) == {Reason.FROZEN_GATE}
    model = make_safe()
    model.set_gate_warmup(0, 10)
    log = _measure(model, [safe_inputs])
    assert set(_reasons(log).values()) == {Reason.OUTER_GATE}
    assert _of(log, "projector")["state"] == State.NONE  # the fusion is not even called
    assert _of(log, "model")["norm"] == 0


def test_clamp_without_gradient_on_its_edge_is_found(make_batch: Batches, toy: Any) -> None:
    class Clamped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Parameter(torch.tensor(-0.5))
            self.out = nn.Linear(16, 16)

        def forward(self, hidden: Tensor, *, tokens: Tensor) -> Tensor:
            return self.gate.clamp(0, 1) * self.out(tokens.mean(1, keepdim=True) + 0 * hidden)

    _steady(toy)
    for layer in ("1", "3"):
        toy.adapter.gates[layer].data.fill_(1.0)
        toy.adapter.cross[layer] = Clamped()
    path = SignalPath.from_dict(
        {
            "projector": "adapter.projector", "layers": "lm.blocks.*", "signal_input": "sound",
            "fusion": "adapter.cross.{layer}",
            "gates": {"name": "adapter.cross.{layer}.gate", "clamp": [0.0, 1.0]},
        }
    )  # fmt: skip
    log = _measure(toy, [make_batch()], path)
    reasons = _reasons(log)
    assert reasons["adapter.cross.1.gate"] == reasons["adapter.cross.1.out.weight"]
    assert reasons["adapter.cross.1.out.weight"] == Reason.DEADLOCK
    assert toy.adapter.cross["1"].gate.item() == -0.5


# ---- did it move -----------------------------------------------------------------------------


def test_update_is_that_of_the_given_optimizer(
    toy: Any, toy_path: SignalPath, make_batch: Batches
) -> None:
    _steady(toy)
    linear = toy.adapter.projector.linear
    optimizer = torch.optim.AdamW(
        [{"params": [linear.weight], "lr": 3e-3}, {"params": [linear.bias], "lr": 0.0}]
    )
    for seed in range(2):  # the optimizer has a past
        toy(**make_batch(seed=seed))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    batches = [make_batch(seed=5), make_batch(seed=6)]
    log = _measure(toy, batches, toy_path, optimizer=optimizer)
    twin = deepcopy((toy, optimizer))  # steps for real
    for inputs in batches:
        (twin[0](**inputs)["loss"] / 2).backward()
    twin[1].step()
    moved = (twin[0].adapter.projector.linear.weight - linear.weight).norm().item()
    weight = _of(log, "projector:adapter.projector.linear.weight")
    assert weight["update_norm"] == pytest.approx(moved, rel=1e-4)
    assert weight["update_to_weight"] == pytest.approx(
        moved / linear.weight.norm().item(), rel=1e-4
    )
    bias = _of(log, "projector:adapter.projector.linear.bias")
    assert (bias["update_norm"], bias["moved"]) == (0, 0)  # learning rate 0
    assert _of(log, "projector")["moved_share"] == 0.5
    assert _of(log, "fusion", 1)["moved_share"] == 0  # not in the optimizer
    assert _of(log, "fusion", 1)["state"] == State.FINITE
    assert _of(log, "model")["optimizer_given"] == 1


@pytest.mark.parametrize("kind", ["sgd", "adamw", "momentum"])
def test_downhill_is_the_cosine_of_a_step_without_memory(
    toy: Any, toy_path: SignalPath, make_batch: Batches, kind: str
) -> None:
    """Momentum that points uphill and weight decay change nothing; the state stays."""
    _steady(toy)
    trainable = {n: p for n, p in toy.named_parameters() if p.requires_grad}
    optimizer: torch.optim.Optimizer = (
        torch.optim.AdamW(trainable.values(), lr=1e-3, weight_decay=5.0)
        if kind == "adamw"
        else torch.optim.SGD(trainable.values(), lr=0.1, momentum=0.9 * (kind == "momentum"))
    )
    loss = toy(**make_batch())["loss"]
    gradients = dict(zip(trainable, torch.autograd.grad(loss, trainable.values()), strict=True))
    if kind == "momentum":
        for name, p in trainable.items():
            optimizer.state[p]["momentum_buffer"] = -5 * gradients[name]
    log = _measure(toy, [make_batch()], toy_path, optimizer=optimizer)
    value = log.value(component="projector", statistic="downhill")
    g = torch.cat([x.flatten() for n, x in gradients.items() if "projector" in n]).double()
    step = g / (g.abs() + 1e-8) if kind == "adamw" else g
    assert value == pytest.approx(float(torch.cosine_similarity(g, step, 0)), rel=1e-3)
    assert _codes(log) == set()


@pytest.mark.parametrize("fault", ["maximize", "negative rate"])
def test_uphill(toy: Any, toy_path: SignalPath, make_batch: Batches, fault: str) -> None:
    trainable = [p for p in toy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-3, weight_decay=0.0)
    toy(**make_batch())["loss"].backward()
    optimizer.step()
    group = optimizer.param_groups[0]
    group.update({"maximize": True} if fault == "maximize" else {"lr": -1e-3})
    log = _measure(toy, [make_batch()], toy_path, optimizer=optimizer)
    assert _codes(log) == {"SP320"}
    assert (log.value(component="projector", statistic="downhill") or 0) < -0.2


def test_an_average_that_is_nan(toy: Any, toy_path: SignalPath, make_batch: Batches) -> None:
    trainable = [p for p in toy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-3, weight_decay=0.0)
    toy(**make_batch())["loss"].backward()
    optimizer.step()
    state = optimizer.state[toy.adapter.projector.linear.weight]
    state["exp_avg"].fill_(torch.nan)
    log = _measure(toy, [make_batch()], toy_path, optimizer=optimizer)
    found = judge(log)
    assert [(f.code, f.component) for f in found] == [("SP321", "projector")]
    assert state["exp_avg"].isnan().all() and toy.adapter.projector.linear.weight.isfinite().all()


def test_an_optimizer_that_needs_its_memory_is_not_measured(
    toy: Any, toy_path: SignalPath, make_batch: Batches
) -> None:
    class Remembering(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            assert self.state
            super().step(closure)

    trainable = [p for p in toy.parameters() if p.requires_grad]
    optimizer = Remembering(trainable, lr=0.1)
    optimizer.state[trainable[0]]["seen"] = 1
    log = _measure(toy, [make_batch()], toy_path, optimizer=optimizer)
    assert log.value(component="projector", statistic="downhill") is None
    assert log.value(component="projector", statistic="moved_share") == 1


def test_frozen_tensor_that_moves_is_counted(
    toy: Any, toy_path: SignalPath, make_batch: Batches
) -> None:
    out = toy.adapter.cross["1"].out
    toy.lm.blocks[0].mix.weight.data = out.weight.data  # two parameters, one storage
    before = out.weight.detach().clone()
    log = _measure(_steady(toy), [make_batch()], toy_path)
    assert _of(log, "model")["frozen_moved"] == 1
    assert torch.equal(toy.lm.blocks[0].mix.weight, before)


def test_half_precision_weight_that_rounding_keeps_in_place(
    toy: Any, toy_path: SignalPath, make_batch: Batches
) -> None:
    weight = toy.adapter.projector.linear.weight
    toy.adapter.projector.linear.to(torch.bfloat16)
    weight.data.fill_(1.0)
    inputs = make_batch()
    inputs["sound"] = inputs["sound"].bfloat16()
    optimizer = torch.optim.AdamW(toy.adapter.projector.parameters(), lr=1e-4)
    log = _measure(_steady(toy), [inputs], toy_path, optimizer=optimizer)
    found = _of(log, "projector:adapter.projector.linear.weight")
    assert found["state"] == State.FINITE
    assert (found["update_norm"], found["moved"]) == (0, 0)


def test_clipping_changes_the_step_and_not_the_gradient(
    toy: Any, toy_path: SignalPath, make_batch: Batches
) -> None:
    optimizer = torch.optim.SGD(toy.adapter.parameters(), lr=0.1)
    plain, clipped = (
        _measure(_steady(toy), [make_batch()], toy_path, optimizer=optimizer, clip_norm=c)
        for c in (None, 1e-3)
    )
    total = _of(plain, "model")["norm"]
    assert _of(clipped, "model")["norm"] == total
    parts = [("projector", None), ("fusion", 1), ("fusion", 3), ("gate", 1), ("gate", 3)]
    for log, norm in ((plain, total), (clipped, 1e-3)):
        update = np.linalg.norm([_of(log, *part)["update_norm"] for part in parts])
        assert update == pytest.approx(0.1 * norm, rel=1e-2)


@pytest.mark.parametrize("scale", [1.0, 65536.0])
def test_unscaled(toy: Any, toy_path: SignalPath, make_batch: Batches, scale: float) -> None:
    plain = _of(_measure(_steady(toy), [make_batch()], toy_path), "projector")
    scaled = _of(_measure(toy, [make_batch()], toy_path, loss_scale=scale), "projector")
    assert scaled == pytest.approx(plain, rel=1e-6)


def test_half_precision_gradients_vanish_without_a_loss_scale(
    toy: Any, toy_path: SignalPath, make_batch: Batches
) -> None:
    def loss(out: Any, _: Any) -> Tensor:
        return out["logits"].half().float().square().mean() * 1e-7

    none, scaled = (
        _measure(_steady(toy), [make_batch()], toy_path, loss_fn=loss, loss_scale=s)
        for s in (1.0, 65536.0)
    )
    assert _of(none, "projector")["state"] == State.ZERO
    assert _of(scaled, "projector")["state"] == State.FINITE


def test_bf16_autocast_is_the_callers(make_safe: Any, safe_inputs: Inputs) -> None:
    model = make_safe()
    with torch.autocast("cpu", torch.bfloat16):
        gradients = _gradients(model, [model(**safe_inputs).loss / 8])
        log = _measure(model, [safe_inputs])
    for name, rows in gradients.items():
        (row,) = [r for r in log.select(statistic="norm") if r.detail == name]
        assert row.value == pytest.approx(np.linalg.norm(rows), rel=1e-5)


def test_checkpointed_gradients_are_counted_once(make_safe: Any, safe_inputs: Inputs) -> None:
    model = make_safe()
    plain = _measure(model, [safe_inputs])
    model.backbone.activation_checkpointing_enable({"use_reentrant": False})
    model.backbone.disable_input_require_grads()
    model.train()
    for layer in model.layers.values():
        layer.training = True  # where transformers looks whether to recompute
    again = _measure(model, [safe_inputs])
    for one, two in zip(plain, again, strict=True):
        assert one.value == pytest.approx(two.value, rel=1e-4, abs=1e-9), one


# ---- as found --------------------------------------------------------------------------------


def _state(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Any]:
    return [
        [(id(p), p.requires_grad, p.tolist()) for p in model.parameters()],
        [(id(p.grad), None if p.grad is None else p.grad.tolist()) for p in model.parameters()],
        [(m.training, *m._forward_hooks, *m._forward_pre_hooks) for m in model.modules()],
        [(id(b), b.tolist()) for b in model.buffers()],
        torch.get_rng_state().tolist(),
        id(optimizer.state),
        [(id(t), t.tolist()) for s in optimizer.state.values() for t in s.values()],
        [(id(g), *(id(p) for p in g["params"]), g["lr"]) for g in optimizer.param_groups],
        sorted(vars(optimizer)),
    ]


class _Boom(Exception):
    pass


class _Faulty(torch.optim.AdamW):
    """Breaks after having moved the parameters."""

    broken: type[BaseException] | None = None

    def step(self, closure: Any = None) -> Any:
        super().step()
        if self.broken is not None:
            raise self.broken


@pytest.mark.parametrize("error", [None, _Boom, KeyboardInterrupt])
@pytest.mark.parametrize("place", ["loss", "step", "reasons"])
def test_everything_is_as_found(
    toy: Any, toy_path: SignalPath, make_batch: Batches, place: str,
    error: type[BaseException] | None,
) -> None:  # fmt: skip
    stranger = nn.Parameter(torch.ones(3))
    optimizer = _Faulty([*toy.adapter.parameters(), stranger], lr=0.01)
    called: list[str] = []
    optimizer.register_step_post_hook(lambda *_: called.append("hook"))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    (toy(**make_batch())["loss"] + stranger.sum()).backward()
    optimizer.step()
    schedule.step()
    called.clear()
    toy.adapter.gates["1"].data.zero_()  # something to explain
    toy.adapter.cross["1"].out.weight.data.zero_()
    toy.adapter.cross["1"].out.bias.data.zero_()
    runs = []

    def loss(out: Any, _: Any) -> Tensor:
        runs.append(1)
        if error is not None and len(runs) == {"loss": 2, "step": 0, "reasons": 3}[place]:
            raise error
        return out["loss"]

    optimizer.broken = error if place == "step" else None
    before = _state(toy, optimizer), stranger.tolist(), stranger.grad
    batches = [make_batch(), make_batch(seed=1)]
    options = {"optimizer": optimizer, "loss_fn": loss}
    if error is None:
        log = _measure(toy, batches, toy_path, **options)
        assert _of(log, "fusion", 1)["deadlock"] == 1
    else:
        with pytest.raises(error):
            _measure(toy, batches, toy_path, **options)
    assert (_state(toy, optimizer), stranger.tolist(), stranger.grad) == before
    assert not called
    optimizer.broken = None
    optimizer.step()
    assert called  # the user's hook is in place again


def test_twice_gives_the_same(make_safe: Any, safe_inputs: Inputs) -> None:
    model = make_safe(gate_init=0.0)
    assert _measure(model, [safe_inputs]).records == _measure(model, [safe_inputs]).records


@pytest.mark.filterwarnings("ignore:`use_cpu`")
def test_accelerates_optimizer(toy: Any, toy_path: SignalPath, make_batch: Batches) -> None:
    from accelerate.optimizer import AcceleratedOptimizer

    plain = torch.optim.AdamW(toy.adapter.parameters(), lr=1e-3)
    expected = _measure(_steady(toy), [make_batch()], toy_path, optimizer=plain).records
    from accelerate import Accelerator

    Accelerator(cpu=True)
    wrapped = AcceleratedOptimizer(plain, device_placement=False)
    assert _measure(toy, [make_batch()], toy_path, optimizer=wrapped).records == expected


def test_what_it_refuses(toy: Any, toy_path: SignalPath, make_batch: Batches) -> None:
    with pytest.raises(ProbeError, match="gradflow probe needs at least one batch"):
        _measure(toy, [], toy_path)
    with pytest.raises(ProbeError, match="meta device"):
        _measure(toy.to("meta"), [make_batch()], toy_path)


def test_nothing_trainable(toy: Any, toy_path: SignalPath, make_batch: Batches) -> None:
    toy.requires_grad_(False)
    log = _measure(toy, [make_batch()], toy_path)
    assert _of(log, "projector") == {"state": State.NONE, "trainable": 0}
    assert _of(log, "model")["norm"] == 0


def test_wrapped_models_give_the_same(
    toy: Any, toy_path: SignalPath, make_batch: Batches, process_group: None
) -> None:
    batches = [make_batch(), make_batch(seed=1)]
    bare = _measure(_steady(toy), batches, toy_path).records
    wrapped = nn.parallel.DistributedDataParallel(toy)
    assert _measure(wrapped, batches, toy_path).records == bare
    wrapped(**make_batch())["loss"].backward()  # and still works
    assert _measure(torch.compile(toy, backend="eager"), batches, toy_path).records == bare

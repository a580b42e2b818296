"""Magnitudes against recomputation from captured tensors: foreign, SAFE-type, LLaVA models."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from probes import magnitude
from probes.context import Context
from probes.errors import ProbeError
from probes.record import RecordLog
from probes.signal_path import SignalPath

Inputs = dict[str, Tensor]


def _measure(model: nn.Module, batches: list[Any], path: Any = None, **options: Any) -> RecordLog:
    return RecordLog(magnitude.measure(Context.of(model, batches, path, **options)))


def _toy_by_hand(toy: Any, batches: list[Inputs]) -> dict[int, dict[str, np.ndarray]]:
    """Hidden states before each fusion, branch and tokens of the real text tokens, in float64."""
    found: dict[int, dict[str, list[np.ndarray]]] = {1: {}, 3: {}}
    toy = toy.double().eval()
    with torch.no_grad():
        for inputs in batches:
            mask = inputs["attention_mask"].bool()
            tokens = toy.adapter.projector(inputs["sound"].double())
            hidden = toy.lm.embed(inputs["input_ids"])
            for index, block in enumerate(toy.lm.blocks):
                (hidden,) = block(hidden)
                if index in found:
                    branch = toy.adapter.cross[str(index)](hidden, tokens=tokens)
                    for name, value in (("hidden", hidden[mask]), ("branch", branch[mask])):
                        found[index].setdefault(name, []).append(value.numpy())
                    found[index].setdefault("tokens", []).append(tokens.flatten(0, 1).numpy())
                    hidden = hidden + torch.tanh(toy.adapter.gates[str(index)]) * branch
    toy.float()
    return {i: {k: np.concatenate(v) for k, v in d.items()} for i, d in found.items()}


def _l2(x: np.ndarray) -> np.ndarray:
    return np.sqrt((x**2).sum(-1))


def test_foreign_model_through_yaml(
    toy: Any, toy_path: SignalPath, make_batch: Callable[..., Inputs]
) -> None:
    batches = [make_batch(), make_batch((5, 2), seed=1)]
    toy.train()  # dropout must not be in the numbers
    log = _measure(toy, batches, toy_path, step=7)
    assert toy.training
    assert {(r.step, r.probe) for r in log} == {(7, "magnitude")}
    for layer, plain in _toy_by_hand(toy, batches).items():
        text, tokens = _l2(plain["hidden"]), _l2(plain["tokens"])
        gate = np.tanh(0.1 * layer)
        expected = {
            ("text", "tokens"): 13 + 7,
            ("text", "excluded"): 5 + 3,
            ("text", "l2_median"): np.median(text),
            ("text", "max_abs"): np.abs(plain["hidden"]).max(),
            ("projector", "l2_to_text"): np.median(tokens) / np.median(text),
            ("fusion", "branch_ratio"): np.median(_l2(plain["branch"]) / text),
            ("fusion", "contribution_p95"): np.percentile(gate * _l2(plain["branch"]) / text, 95),
            ("fusion", "contribution_median"): np.median(gate * _l2(plain["branch"]) / text),
            ("fusion", "calls"): 1,
            ("fusion", "after_layer"): layer,
        }
        for (component, statistic), value in expected.items():
            found = log.value(component=component, statistic=statistic, layer=layer)
            assert found == pytest.approx(value, rel=1e-5), statistic
    assert log.value(component="projector", statistic="calls") == 1
    saturated = log.value(component="projector", statistic="saturated")
    assert saturated is not None


def test_padding_does_not_matter(
    toy: Any, toy_path: SignalPath, make_batch: Callable[..., Inputs]
) -> None:
    inputs = make_batch((6, 4))
    wide = {
        k: torch.nn.functional.pad(v, (0, 5), value={"labels": -100}.get(k, 0))
        if k != "sound" else v for k, v in inputs.items()
    }  # fmt: skip
    short, long = (
        [r for r in _measure(toy, [x], toy_path) if r.statistic != "excluded"]
        for x in (inputs, wide)
    )
    assert [r.value for r in short] == pytest.approx([r.value for r in long], rel=1e-6)


def test_branch_inside_the_layer_is_compared_with_its_input(make_batch: Any) -> None:
    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch = nn.Linear(4, 4)

        def forward(self, hidden: Tensor) -> Tensor:
            return 100 * (hidden + self.branch(hidden))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.projector = nn.Embedding(13, 4), nn.Linear(8, 4)
            self.layers = nn.ModuleList([Inside(), Inside()])

        def forward(self, input_ids: Tensor, sound: Tensor, **_: Any) -> Tensor:
            hidden = self.embed(input_ids) + self.projector(sound)[:, None]
            for layer in self.layers:
                hidden = layer(hidden)
            return hidden

    model, inputs = Model(), make_batch((3, 3))
    path = SignalPath(
        projector="projector", layers="layers.*", fusion="layers.{layer}",
        branch="layers.{layer}.branch", signal_input="sound",
    )  # fmt: skip
    log = _measure(model, [inputs], path)
    with torch.no_grad():
        start = model.embed(inputs["input_ids"]) + model.projector(inputs["sound"])[:, None]
        first = start
        expected = [_l2(model.layers[0].branch(first).numpy()) / _l2(first.numpy())]
        first = model.layers[0](first)
        expected += [_l2(model.layers[1].branch(first).numpy()) / _l2(first.numpy())]
    for layer in (0, 1):
        value = log.value(statistic="contribution_median", layer=layer)
        assert value == pytest.approx(np.median(expected[layer]), rel=1e-5)


@pytest.mark.parametrize("gate", [0.0, 0.05, 0.3, 1.0])
@pytest.mark.parametrize("outer", [1.0, 0.5])
def test_safe_type_model(
    make_safe: Callable[..., Any], safe_inputs: Inputs, gate: float, outer: float
) -> None:
    model = make_safe(gate_init=gate)
    model.set_gate(outer)
    log = _measure(model, [safe_inputs])
    seen: dict[int, list[Tensor]] = {}
    for layer, block in model.fusion.blocks().items():
        block.residual.register_forward_hook(
            lambda *call, i=layer: seen.update({i: [*call[1][:2], call[2]]})
        )
    with torch.no_grad():
        model(**safe_inputs)
    mask = safe_inputs["attention_mask"].bool()
    for layer, (hidden, branch, fused) in seen.items():
        text = _l2(hidden[mask].double().numpy())
        arrived = np.median(_l2((fused - hidden)[mask].double().numpy()) / text)
        raw = np.median(_l2(branch[mask].double().numpy()) / text)
        statistics = ("contribution_median", "gated_ratio", "branch_ratio", "after_layer")
        found = {s: log.value(component="fusion", layer=layer, statistic=s) for s in statistics}
        # the sum is rounded to float32 before the difference is taken: worst seen 2e-6
        assert found["contribution_median"] == pytest.approx(arrived, rel=1e-5, abs=1e-7)
        assert found["branch_ratio"] == pytest.approx(raw, rel=1e-5)
        assert found["gated_ratio"] == pytest.approx(gate * outer * raw, rel=1e-5)
        assert found["after_layer"] == layer


def test_the_text_of_a_layer_is_what_the_fusion_was_given(
    make_safe: Any, safe_inputs: Inputs
) -> None:
    model = make_safe()
    with torch.no_grad():
        model.fusion["2"].v_proj.lora_A["default"].weight[0, 0] = float("nan")
    log = _measure(model, [safe_inputs])
    found = {r.layer: r.value for r in log if (r.component, r.statistic) == ("text", "nonfinite")}
    assert found[1] == found[2] == 0


def test_outer_gate_at_zero_shows_as_no_calls(make_safe: Any, safe_inputs: Inputs) -> None:
    model = make_safe()
    model.set_gate(0.0)
    log = _measure(model, [safe_inputs])
    assert log.value(component="projector", statistic="calls") == 0
    assert log.value(component="fusion", statistic="calls", layer=1) == 0
    assert log.value(statistic="contribution_median", layer=1) is None
    assert log.value(component="text", statistic="l2_median", layer=1) is not None


def test_fusion_hooked_to_the_wrong_layer_shows(make_safe: Any, safe_inputs: Inputs) -> None:
    model = make_safe()
    model.layers[1], model.layers[3] = model.layers[3], model.layers[1]
    log = _measure(model, [safe_inputs])
    assert log.value(component="fusion", statistic="after_layer", layer=1) == 3


def test_normalisation_after_the_gate_shows(make_safe: Any, safe_inputs: Inputs) -> None:
    model = make_safe()
    residual = model.fusion["1"].residual
    residual.forward = lambda h, b, gate: (
        h + nn.functional.layer_norm(gate * residual.residual_scale * b, b.shape[-1:])
    )
    log = _measure(model, [safe_inputs])
    arrived = log.value(statistic="contribution_median", layer=1)
    promised = log.value(statistic="gated_ratio", layer=1)
    assert arrived is not None
    assert promised is not None
    assert arrived > 3 * promised


@pytest.mark.parametrize("inside_safe", [False, True])
def test_vision_tokens_beside_text(
    llava: Any, make_safe: Any, llava_inputs: Inputs, inside_safe: bool
) -> None:
    model = make_safe() if inside_safe else llava
    bare = model.backbone if inside_safe else llava
    log = _measure(model, [llava_inputs], signal="vision")
    with torch.no_grad():
        states = bare(**llava_inputs, output_hidden_states=True).hidden_states
    mask, ids = llava_inputs["attention_mask"].bool(), llava_inputs["input_ids"]
    for place, index in ((None, 0), (0, 1), (2, 3)):
        plain = states[index].double().numpy()
        text = np.median(_l2(plain[(mask & (ids != 3)).numpy()]))
        signal = np.median(_l2(plain[(ids == 3).numpy()]))
        found = {
            (c, s): log.value(component=c, statistic=s, layer=place)
            for c, s in (("text", "l2_median"), ("signal", "l2_median"), ("signal", "l2_to_text"))
        }
        assert found["text", "l2_median"] == pytest.approx(text, rel=1e-5)
        assert found["signal", "l2_median"] == pytest.approx(signal, rel=1e-5)
        assert found["signal", "l2_to_text"] == pytest.approx(signal / text, rel=1e-5)
    tokens = log.value(component="projector", statistic="l2_median")
    assert tokens == pytest.approx(log.value(component="signal", statistic="l2_median", layer=None))


@pytest.mark.parametrize("how", ["autocast", "bfloat16 weights"])
def test_half_precision(make_safe: Any, safe_inputs: Inputs, how: str) -> None:
    model = make_safe()
    exact = _measure(model, [safe_inputs])
    if how == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            rough = _measure(model, [safe_inputs])
    else:
        model.backbone.to(torch.bfloat16)
        rough = _measure(model, [safe_inputs])
    for statistic in ("contribution_median", "branch_ratio", "l2_median", "l2_to_text"):
        for row in exact.select(statistic=statistic):
            found = rough.value(component=row.component, layer=row.layer, statistic=statistic)
            # bfloat16 keeps 8 bits; worst seen over these few layers 3%
            assert found == pytest.approx(row.value, rel=0.1), row


def test_compiled_model_gives_the_same_numbers(
    toy: Any, toy_path: SignalPath, make_batch: Callable[..., Inputs]
) -> None:
    before = _measure(toy, [make_batch()], toy_path).records
    compiled = torch.compile(toy, backend="eager")
    compiled(**make_batch())
    assert _measure(compiled, [make_batch()], toy_path).records == before


def test_what_cannot_be_told_apart_says_so(
    toy: Any, toy_path: SignalPath, make_batch: Callable[..., Inputs]
) -> None:
    with pytest.raises(ProbeError, match="needs at least one batch"):
        _measure(toy, [], toy_path)
    inputs = make_batch()
    inputs["attention_mask"] = inputs["attention_mask"][:, :-1]
    with pytest.raises(ProbeError, match="cannot tell which tokens are text"):
        _measure(toy, [inputs], toy_path)
    wrong = SignalPath(
        projector="adapter.projector", layers="lm.blocks.*", fusion="adapter.cross.{layer}",
        branch="adapter.cross.{layer}.weights", signal_input="sound",
    )  # fmt: skip
    with pytest.raises(ProbeError, match=r"branch of layer 1 has \[3, 1, 6\] tokens"):
        _measure(toy, [make_batch()], wrong)


def test_residual_with_other_arguments_says_so(toy: Any, make_batch: Callable[..., Inputs]) -> None:
    wrong = SignalPath(
        projector="adapter.projector", layers="lm.blocks.*", fusion="adapter.cross.{layer}",
        residual="adapter.cross.{layer}", signal_input="sound",
    )  # fmt: skip
    with pytest.raises(ProbeError, match="must be called with hidden and branch"):
        _measure(toy, [make_batch()], wrong)

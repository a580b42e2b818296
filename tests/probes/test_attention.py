"""Attention statistics against weights recomputed by hand, and against their definitions."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from probes import attention
from probes.context import Context
from probes.errors import ProbeError
from probes.record import RecordLog
from probes.signal_path import SignalPath

Inputs = dict[str, Tensor]
PER_HEAD = {
    "entropy", "entropy_relative", "max_weight", "one_hot", "reach", "row_sum_error", "nonfinite"
}  # fmt: skip


def _measure(model: nn.Module, batches: list[Any], path: Any = None) -> RecordLog:
    return RecordLog(attention.measure(Context.of(model, batches, path)))


def _of(log: RecordLog, component: str, layer: int) -> dict[str, float]:
    return {r.statistic: r.value for r in log.select(component=component, layer=layer)}


def _by_hand(rows: list[np.ndarray], clips: list[np.ndarray]) -> dict[str, float]:
    """Statistics of weight rows [N], and of clips [rows, N]; all tokens may be attended to."""
    entropies = [-sum(p * np.log(p) for p in row if p > 0) for row in rows]
    return {
        "entropy": float(np.mean(entropies)),
        "entropy_relative": float(np.mean(entropies) / np.log(len(rows[0]))),
        "max_weight": float(np.mean([max(r) for r in rows])),
        "one_hot": float(np.mean([max(r) > 0.99 for r in rows])),
        "reach": float(np.mean([m > 1 / (10 * len(m)) for c in clips for m in [c.mean(0)]])),
        "row_sum_error": max(abs(sum(r) - 1) for r in rows),
        "nonfinite": 0.0,
    }


def _safe_weights(model: Any, inputs: Inputs) -> dict[int, np.ndarray]:
    """Layer to [B, heads, T, N] weights, recomputed from the projections."""
    hidden: dict[int, Tensor] = {}
    handles = [
        block.query_norm.register_forward_pre_hook(lambda _, args, i=i: hidden.update({i: args[0]}))
        for i, block in model.fusion.blocks().items()
    ]
    with torch.no_grad():
        model(**inputs)
        for handle in handles:
            handle.remove()
        tokens = model.projector(inputs["audio"])
        found = {}
        for i, block in model.fusion.blocks().items():
            query = block.q_proj(block.query_norm(hidden[i])).double()
            key = block.k_proj(tokens).double()
            heads = []
            for h in range(2):  # two query heads of width 8 share one key head
                scores = query[..., 8 * h : 8 * h + 8] @ key.mT / 8**0.5
                heads.append(torch.softmax(scores, -1))
            found[i] = torch.stack(heads, 1).numpy()
    return found


def test_safe_type_model_by_hand(make_safe: Any, safe_inputs: Inputs) -> None:
    model = make_safe()
    log = _measure(model, [safe_inputs])
    assert {(r.probe, r.step) for r in log} == {("attention", 0)}
    mask = safe_inputs["attention_mask"].bool().numpy()
    # the last time the norm ran is before the fusion, with the state that leaves the layer
    for layer, weights in _safe_weights(model, safe_inputs).items():
        for head in range(2):
            clips = [weights[b, head][mask[b]] for b in range(2)]
            rows = [row for clip in clips for row in clip]
            found = _of(log, f"fusion:head{head}", layer)
            assert found == pytest.approx(_by_hand(rows, clips), rel=1e-5, abs=1e-6)
        whole = _of(log, "fusion", layer)
        heads = [_of(log, f"fusion:head{h}", layer) for h in range(2)]
        assert whole["entropy"] == pytest.approx(np.mean([h["entropy"] for h in heads]))
        assert whole["reach"] == pytest.approx(np.mean([h["reach"] for h in heads]))
        assert (whole["calls"], whole["tokens"], whole["tokens_in_use"]) == (1, 3, 3)
        assert "masked_weight" not in whole


def test_foreign_model_over_batches(
    toy: Any, toy_path: SignalPath, make_batch: Callable[..., Inputs]
) -> None:
    seen: dict[str, list[np.ndarray]] = {"1": [], "3": []}
    handles = [
        toy.adapter.cross[k].weights.register_forward_hook(
            lambda *call, k=k: seen[k].append(call[2].detach().double().numpy())
        )
        for k in seen
    ]
    batches = [make_batch(), make_batch((2, 5), seed=1)]
    log = _measure(toy, batches, toy_path)
    for handle in handles:
        handle.remove()
    for key, parts in seen.items():
        clips = [
            part[b, 0][inputs["attention_mask"][b].bool().numpy()]
            for part, inputs in zip(parts, batches, strict=True)
            for b in range(len(part))
        ]
        rows = [row for clip in clips for row in clip]
        found = _of(log, "fusion:head0", int(key))
        assert found == pytest.approx(_by_hand(rows, clips), rel=1e-6, abs=1e-7)


class Weights(nn.Module):
    """Returns the weights that it was told to."""

    def forward(self, weights: Tensor, *masks: Tensor, **named: Tensor) -> Tensor:
        return weights


class Teller(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.projector, self.layers = nn.Identity(), nn.ModuleList([nn.Identity()])
        self.cross = nn.ModuleList([Weights()])

    def forward(
        self, input_ids: Tensor, sound: Tensor, attention_mask: Any = None, **_: Any
    ) -> Any:
        if _.get("mask") is not None:
            self.cross[0](sound, _["mask"])
        elif _.get("key_padding_mask") is not None:
            self.cross[0](sound, key_padding_mask=_["key_padding_mask"])
        else:
            self.cross[0](sound)


TELLER = SignalPath(
    projector="projector", layers="layers.*", fusion="cross.{layer}", attention="cross.{layer}",
    signal_input="sound",
)  # fmt: skip


def _tell(weights: Tensor, **inputs: Any) -> RecordLog:
    rows, width = inputs.pop("text", (weights.shape[0], weights.shape[-2]))
    ids = torch.zeros(rows, width, dtype=torch.long)
    return _measure(Teller(), [{"input_ids": ids, "sound": weights, **inputs}], TELLER)


@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 6),
    st.sampled_from([0.1, 1.0, 100.0]), st.randoms(use_true_random=False),
)  # fmt: skip
def test_statistics_of_any_masked_softmax(
    batch: int, heads: int, width: int, tokens: int, sharpness: float, random: Any
) -> None:
    generator = torch.Generator().manual_seed(random.randrange(2**31))
    mask = torch.rand(batch, tokens, generator=generator) < 0.7
    mask[:, 0] = True
    scores = torch.randn(batch, heads, width, tokens, generator=generator) * sharpness
    weights = torch.softmax(scores.masked_fill(~mask[:, None, None], -torch.inf), -1)
    text = torch.rand(batch, width, generator=generator) < 0.8
    text[:, 0] = False  # left padding, so that the two masks can never be confused
    text[:, -1] |= width > 1
    if not text.any():
        return
    log = _tell(weights, attention_mask=text.long(), mask=mask)
    whole = _of(log, "fusion", 0)
    assert whole["masked_weight"] == 0
    words = ["".join("x" if m else " " for m in row).strip() for row in mask.tolist()]
    runs = [(" " not in w, m[0] or m[-1]) for w, m in zip(words, mask.tolist(), strict=True)]
    assert whole["mask_displaced"] == pytest.approx(np.mean([not all(r) for r in runs]))
    assert whole["all_masked"] == 0
    assert whole["tokens_in_use"] <= mask.double().sum(-1).mean() + 1e-9
    for head in range(heads):
        found = _of(log, f"fusion:head{head}", 0)
        plain, used = weights[:, head].double().numpy(), mask.numpy()
        rows = [(plain[b, t][used[b]], b) for b, t in zip(*np.nonzero(text.numpy()), strict=True)]
        entropies = np.array([-(r[r > 0] * np.log(r[r > 0])).sum() for r, _ in rows])
        assert found["entropy"] == pytest.approx(entropies.mean(), abs=1e-9)
        relative = [
            e / np.log(len(r)) for e, (r, _) in zip(entropies, rows, strict=True) if len(r) > 1
        ]
        assert ("entropy_relative" in found) == bool(relative)
        if relative:
            assert found["entropy_relative"] == pytest.approx(np.mean(relative), abs=1e-9)
            assert -1e-6 <= found["entropy_relative"] <= 1 + 1e-6
        assert found["max_weight"] == pytest.approx(np.mean([r.max() for r, _ in rows]))
        assert found["one_hot"] == np.mean([r.max() > 0.99 for r, _ in rows])
        means = [
            np.mean([r for r, c in rows if c == b], axis=0)
            for b in range(batch) if any(c == b for _, c in rows)
        ]  # fmt: skip
        assert found["reach"] == pytest.approx(
            np.mean([x > 0.1 / len(m) for m in means for x in m])
        )


def test_one_hot_and_uniform() -> None:
    hot = _of(_tell(torch.eye(5)[[2, 2, 2]][None, None]), "fusion", 0)
    assert (hot["entropy"], hot["one_hot"], hot["reach"], hot["max_weight"]) == (0, 1, 0.2, 1)
    even = _of(_tell(torch.full((1, 1, 3, 5), 0.2)), "fusion", 0)
    assert even["entropy"] == pytest.approx(np.log(5))
    assert even["entropy_relative"] == pytest.approx(1)
    assert (even["one_hot"], even["reach"], even["row_sum_error"]) == (
        0,
        1,
        pytest.approx(0, abs=1e-6),
    )


def test_one_token_has_no_choice() -> None:
    found = _of(_tell(torch.ones(1, 1, 3, 1)), "fusion", 0)
    assert "entropy_relative" not in found
    assert (found["entropy"], found["reach"]) == (0, 1)


def test_masked_tokens_that_are_heard_all_the_same() -> None:
    weights = torch.tensor([0.5, 0.2, 0.3]).expand(2, 1, 4, 3)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    found = _of(_tell(weights, mask=mask), "fusion", 0)
    assert found["masked_weight"] == pytest.approx((0.3 + 0.5) / 2)
    turned = _of(_tell(weights, key_padding_mask=~mask), "fusion", 0)
    assert turned == found
    assert found["tokens_in_use"] == 3
    assert set(found) == {
        *PER_HEAD, "calls", "tokens", "tokens_in_use", "masked_weight", "all_masked",
        "mask_displaced",
    }  # fmt: skip


def test_all_masked_is_nan(make_safe: Any, safe_inputs: Inputs) -> None:
    mask = torch.tensor([[True, True, False], [False, False, False]])
    scores = torch.zeros(2, 1, 4, 3).masked_fill(~mask[:, None, None], -torch.inf)
    found = _of(_tell(torch.softmax(scores, -1), mask=mask), "fusion", 0)
    assert (found["nonfinite"], found["all_masked"]) == (0.5, 0.5)
    assert found["entropy"] == pytest.approx(np.log(2))  # of the clip that has tokens
    assert found["tokens_in_use"] == 1
    every = _of(_tell(torch.full((2, 1, 4, 3), torch.nan)), "fusion", 0)
    assert every["nonfinite"] == 1
    assert "entropy" not in every and "reach" not in every


def test_the_texts_own_mask_is_not_the_signals() -> None:
    text = torch.tensor([[True, True, True, False]])
    found = _of(
        _tell(torch.full((1, 1, 4, 4), 0.25), attention_mask=text.long(), mask=text), "fusion", 0
    )
    assert "masked_weight" not in found
    assert found["reach"] == 1


def test_three_dimensions_are_heads_of_a_text_or_their_mean() -> None:
    weights = torch.softmax(torch.randn(2, 3, 4, 5), -1)
    flat = _tell(weights.flatten(0, 1), text=(2, 4))
    assert flat.records == _tell(weights).records
    mean = _tell(weights.mean(1))
    assert {r.component for r in mean} == {"fusion", "fusion:head0"}


def test_rows_that_do_not_sum_to_one() -> None:
    found = _of(_tell(torch.full((1, 2, 3, 4), 0.5)), "fusion", 0)
    assert found["row_sum_error"] == pytest.approx(1.0)


def test_adaptive_projector_of_the_real_model() -> None:
    pytest.importorskip("transformers")
    from safe.models.projectors import AdaptiveAudioProjector

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            from safe.models.fusion_adapter import AudioAttention

            self.projector = AdaptiveAudioProjector(8, 4, 6, None, 1.0, min_tokens=2)
            self.layers, self.cross = (
                nn.ModuleList([nn.Identity()]),
                nn.ModuleList([AudioAttention()]),
            )

        def forward(self, input_ids: Tensor, sound: Tensor, seconds: Tensor) -> None:
            key = self.projector(sound)[:, None]
            query = torch.ones(2, 1, input_ids.shape[1], 4)
            self.cross[0](query, key, self.projector.token_mask(seconds))

    inputs = {
        "input_ids": torch.zeros(2, 3, dtype=torch.long), "sound": torch.randn(2, 8),
        "seconds": torch.tensor([10.0, 1.0]),
    }  # fmt: skip
    found = _of(_measure(Model(), [inputs], TELLER), "fusion", 0)
    assert (found["tokens"], found["tokens_in_use"], found["masked_weight"]) == (6, 4, 0)


def test_calls_and_missing_modules(
    toy: Any, toy_path: SignalPath, make_batch: Callable[..., Inputs]
) -> None:
    toy.adapter.cross["3"].forward = lambda hidden, **_: hidden
    log = _measure(toy, [make_batch(), make_batch(seed=1)], toy_path)
    assert _of(log, "fusion", 3) == {"calls": 0}
    assert _of(log, "fusion", 1)["calls"] == 1
    path = SignalPath(
        projector="adapter.projector", layers="lm.blocks.*", fusion="adapter.cross.{layer}",
        signal_input="sound",
    )  # fmt: skip
    assert not _measure(toy, [make_batch()], path).records


def test_what_it_refuses(toy: Any, toy_path: SignalPath, make_batch: Callable[..., Inputs]) -> None:
    with pytest.raises(ProbeError, match="attention probe needs at least one batch"):
        _measure(toy, [], toy_path)
    with pytest.raises(ProbeError, match=r"layer 0 returned shape \[3, 4, 5\].*B = 2"):
        _tell(torch.rand(3, 4, 5), text=(2, 4))
    hooks = [len(m._forward_hooks) for m in toy.modules()]
    path = SignalPath(
        projector="adapter.projector", layers="lm.blocks.*", fusion="adapter.cross.{layer}",
        attention="adapter.cross.{layer}.out", signal_input="sound",
    )  # fmt: skip
    log = _measure(toy, [make_batch()], path)  # a branch [B, T, H] looks like one head's weights
    assert _of(log, "fusion", 1)["row_sum_error"] > 0.1
    assert [len(m._forward_hooks) for m in toy.modules()] == hooks


def test_bf16_autocast_rounds_only(make_safe: Any, safe_inputs: Inputs) -> None:
    model = make_safe()
    plain = _measure(model, [safe_inputs])
    with torch.autocast("cpu", torch.bfloat16):
        rounded = _measure(model, [safe_inputs])
    for one, two in zip(plain, rounded, strict=True):
        assert (one.component, one.layer, one.statistic) == (
            two.component,
            two.layer,
            two.statistic,
        )
        if one.statistic in ("entropy", "entropy_relative", "max_weight"):
            assert two.value == pytest.approx(one.value, abs=5e-3)  # worst seen 4.4e-4
        if one.statistic == "row_sum_error":
            assert two.value < 0.01  # worst seen 0.003


def test_nothing_is_left_behind_when_the_model_breaks(
    toy: Any, toy_path: SignalPath, make_batch: Callable[..., Inputs]
) -> None:
    toy.train()
    toy.lm.head.register_forward_hook(lambda *_: 1 / 0)
    state = torch.get_rng_state()
    hooks = [len(m._forward_hooks) for m in toy.modules()]
    with pytest.raises(ZeroDivisionError):
        _measure(toy, [make_batch()], toy_path)
    assert [len(m._forward_hooks) for m in toy.modules()] == hooks
    assert all(m.training for m in toy.modules())
    assert torch.equal(torch.get_rng_state(), state)

"""Every control recomputed by calling the model directly; exact zeros where nothing can change."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from probes import influence
from probes.batch import Batch
from probes.context import Context
from probes.controls import silent, swapped
from probes.errors import ProbeError
from probes.logits import changes, divergence
from probes.record import RecordLog
from probes.signal_path import SignalPath

Inputs = dict[str, Tensor]
CONTROLS = ("signal:swapped", "signal:silence", "signal:none", "fusion:off", "gate:zero")


def _measure(model: nn.Module, batches: list[Any], path: Any = None, **options: Any) -> RecordLog:
    context = Context.of(model, batches, path, signal=options.pop("signal", "audio"))
    return RecordLog(influence.measure(context, **options))


def _plain(logits: Tensor, inputs: Inputs) -> tuple[np.ndarray, np.ndarray]:
    """Log probabilities [M, V] and losses [M] at supervised tokens, in NumPy."""
    wanted = inputs["labels"][:, 1:].numpy()
    chosen = wanted != -100
    if logits.dim() == 3:
        logits = logits[:, :-1][torch.from_numpy(chosen)]
    x = logits.double().numpy()
    log_p = x - x.max(-1, keepdims=True)
    log_p = log_p - np.log(np.exp(log_p).sum(-1, keepdims=True))
    return log_p, -log_p[np.arange(len(log_p)), wanted[chosen]]


def _toy_logits(toy: Any, inputs: Inputs, without: tuple[int, ...] = (), **change: Any) -> Tensor:
    """The toy model written out again, with fusion layers left out."""
    inputs = {**inputs, **change}
    sound = inputs["sound"]
    hidden = toy.lm.embed(inputs["input_ids"])
    for index, block in enumerate(toy.lm.blocks):
        (hidden,) = block(hidden)
        if sound is not None and index in (1, 3) and index not in without:
            tokens = toy.adapter.projector(sound)
            branch = toy.adapter.cross[str(index)](hidden, tokens=tokens)
            hidden = hidden + torch.tanh(toy.adapter.gates[str(index)]) * branch
    return toy.lm.head(hidden)


def test_every_control_against_the_model_itself(
    toy: Any, toy_path: SignalPath, make_batch: Callable[..., Inputs]
) -> None:
    batches = [make_batch(), make_batch((5, 4), seed=1)]
    log = _measure(toy.train(), batches, toy_path)
    assert toy.training
    toy.eval()
    changed: dict[tuple[str, int | None], dict[str, Any]] = {
        ("signal:swapped", None): {},
        ("signal:silence", None): {},
        ("signal:none", None): {"sound": None},
        ("fusion:off", None): {"sound": None},
        ("gate:zero", None): {"without": (1, 3)},
        ("fusion", 1): {"without": (1,)},
        ("fusion", 3): {"without": (3,)},
    }
    for (component, layer), change in changed.items():
        kl, losses, own_losses, largest, thirds = [], [], [], [], []
        for inputs in batches:
            sound = inputs["sound"]
            if component == "signal:swapped":
                change = {"sound": torch.cat([sound[-1:], sound[:-1]])}
            elif component == "signal:silence":
                change = {"sound": torch.zeros_like(sound)}
            with torch.no_grad():
                p, own = _plain(_toy_logits(toy, inputs), inputs)
                q, loss = _plain(_toy_logits(toy, inputs, **change), inputs)
            kl.append((np.exp(p) * (p - q)).sum(-1))
            losses.append(loss)
            own_losses.append(own)
            with torch.no_grad():
                gap = _toy_logits(toy, inputs) - _toy_logits(toy, inputs, **change)
            chosen = inputs["labels"][:, 1:] != -100
            largest.append(float(gap[:, :-1][chosen].abs().max()))
            for row in (inputs["labels"][:, 1:] != -100).numpy():
                thirds += [3 * k // row.sum() for k in range(row.sum())]
        difference = np.concatenate(losses) - np.concatenate(own_losses)
        expected = {
            "tokens": difference.size,
            "kl": np.concatenate(kl).mean(),
            "loss": np.concatenate(losses).mean(),
            "loss_change": difference.mean(),
            "loss_change_error": difference.std(ddof=1) / np.sqrt(difference.size),
            "loss_change_first": difference[np.array(thirds) == 0].mean(),
            "loss_change_middle": difference[np.array(thirds) == 1].mean(),
            "loss_change_last": difference[np.array(thirds) == 2].mean(),
            "max_change": max(largest),
        }
        for statistic, value in expected.items():
            found = log.value(component=component, layer=layer, statistic=statistic)
            # losses are float32 (worst seen 3e-7 apart), as are the logits under them
            assert found == pytest.approx(value, rel=1e-4, abs=1e-6), (component, statistic)
    own = log.value(component="signal:own", statistic="loss")
    assert own == pytest.approx(np.concatenate(own_losses).mean(), rel=1e-5)


def test_where_in_the_caption(
    toy: Any, toy_path: SignalPath, make_batch: Callable[..., Inputs]
) -> None:
    inputs = make_batch((6, 4))
    log = _measure(toy, [inputs], toy_path)
    toy.eval()
    with torch.no_grad():
        _, own = _plain(_toy_logits(toy, inputs), inputs)
        _, other = _plain(_toy_logits(toy, inputs, sound=inputs["sound"].flip(0)), inputs)
    gap = other - own  # four supervised tokens of the first text, then two of the second
    expected = [(gap[0] + gap[4]) / 2, (gap[1] + gap[5]) / 2, gap[2], gap[3]]
    found = [r for r in log if r.part == "text"]
    assert [r.detail for r in found] == [f"position{k}" for k in range(4)]
    assert [r.value for r in found] == pytest.approx(expected, abs=1e-6)


def test_safe_type_model_is_the_bare_backbone_when_closed(
    make_safe: Callable[..., Any], safe_inputs: Inputs
) -> None:
    model = make_safe()
    log = _measure(model, [safe_inputs])
    with torch.no_grad():
        texts = {k: safe_inputs[k] for k in ("input_ids", "attention_mask")}
        bare = model.backbone(**texts).logits
        heard = model(**safe_inputs).logits
    p, own = _plain(heard, safe_inputs)
    q, loss = _plain(bare, safe_inputs)
    for component in ("fusion:off", "gate:zero", "signal:none"):
        kl = log.value(component=component, statistic="kl")
        assert kl == pytest.approx((np.exp(p) * (p - q)).sum(-1).mean(), rel=1e-4)
        found = log.value(component=component, statistic="loss_change")
        assert found == pytest.approx((loss - own).mean(), rel=1e-4)
    for component in ("gate:zero", "signal:none"):
        assert log.value(component=component, statistic="parity_changed") == 0.0
        assert log.value(component=component, statistic="parity_max_change") == 0.0
    assert log.value(component="signal:swapped", statistic="changed") > 0.5
    assert log.value(component="signal:repeat", statistic="changed") == 0.0


def test_a_gate_that_does_not_close_breaks_parity(make_safe: Any, safe_inputs: Inputs) -> None:
    model = make_safe()
    residual = model.fusion["2"].residual
    whole = residual.forward
    residual.forward = lambda h, b, gate: whole(h, b, gate) + 1e-3 * b
    log = _measure(model, [safe_inputs])
    assert log.value(component="gate:zero", statistic="parity_changed") > 0
    assert log.value(component="gate:zero", statistic="parity_max_change") > 0
    assert log.value(component="signal:none", statistic="parity_changed") == 0


@pytest.mark.parametrize("how", ["outer gate", "constant projector"])
def test_a_disconnected_signal_changes_exactly_nothing(
    make_safe: Any, safe_inputs: Inputs, how: str
) -> None:
    model = make_safe()
    if how == "outer gate":
        model.set_gate(0.0)
    else:
        forward = model.projector.forward
        model.projector.forward = lambda audio: forward(torch.ones_like(audio))
    log = _measure(model, [safe_inputs])
    for component in ("signal:swapped", "signal:silence", "signal:noise"):
        for statistic in ("changed", "max_change", "kl", "loss_change"):
            assert log.value(component=component, statistic=statistic) == 0.0
    assert log.value(component="signal:swapped", statistic="distinct") == 1.0
    assert (log.value(component="fusion:off", statistic="changed") == 0) == (how == "outer gate")


def test_a_layer_that_adds_nothing_is_seen(make_safe: Any, safe_inputs: Inputs) -> None:
    model = make_safe()
    with torch.no_grad():
        model.fusion["1"].residual.residual_scale.zero_()
    log = _measure(model, [safe_inputs])
    assert log.value(component="fusion", layer=1, statistic="changed") == 0.0
    assert log.value(component="fusion", layer=2, statistic="changed") > 0.0


def test_given_silence_is_named(make_safe: Any, safe_inputs: Inputs) -> None:
    silence = torch.full((8,), 0.5)
    log = _measure(make_safe(), [safe_inputs], silence=silence)
    assert not log.select(component="signal:silence").records
    model = make_safe()
    with torch.no_grad():
        own = model(**safe_inputs).loss
        quiet = model(**{**safe_inputs, "audio": silence.expand(2, 8)}).loss
    tokens = int((safe_inputs["labels"][:, 1:] != -100).sum())
    found = log.value(component="signal:silence_given", statistic="loss_change")
    assert found == pytest.approx(float(quiet - own) / tokens, rel=1e-3)
    with pytest.raises(ProbeError, match=r"silence has shape \[3\], but .* one clip has \[8\]"):
        _measure(make_safe(), [safe_inputs], silence=torch.zeros(3))


def test_without_labels_all_text_tokens_count(make_safe: Any, safe_inputs: Inputs) -> None:
    unlabelled = {k: v for k, v in safe_inputs.items() if k != "labels"}
    ignored = {**safe_inputs, "labels": torch.full_like(safe_inputs["labels"], -100)}
    model = make_safe()
    with torch.no_grad():
        own = model(**unlabelled).logits
        bare = model(**{**unlabelled, "audio": None}).logits
    mask = unlabelled["attention_mask"].bool()
    expected = F.kl_div(
        bare.log_softmax(-1), own.log_softmax(-1), log_target=True, reduction="none"
    )
    for inputs in (unlabelled, ignored):
        log = _measure(model, [inputs])
        assert log.value(component="fusion:off", statistic="tokens") == 12
        kl = log.value(component="fusion:off", statistic="kl")
        assert kl == pytest.approx(float(expected.sum(-1)[mask].mean()), rel=1e-4)
        assert log.value(component="signal:own", statistic="loss") is None


def test_spliced_vision(llava: Any, llava_inputs: Inputs) -> None:
    log = _measure(llava, [llava_inputs], signal="vision")
    with torch.no_grad():
        own = llava(**llava_inputs).loss
        other = llava(**{**llava_inputs, "pixel_values": llava_inputs["pixel_values"].flip(0)}).loss
    found = log.value(component="signal:swapped", statistic="loss_change")
    assert found == pytest.approx(float(other - own), rel=1e-3, abs=1e-6)
    assert not [r for r in log if r.part in ("fusion", "gate")]


def test_a_model_that_answers_differently_each_time(
    toy: Any, toy_path: SignalPath, make_batch: Callable[..., Inputs]
) -> None:
    toy.lm.head.register_forward_hook(lambda *call: call[2] + torch.randn_like(call[2]))
    log = _measure(toy, [make_batch()], toy_path)
    assert log.value(component="signal:repeat", statistic="changed") > 0.9


def test_nan_is_a_row(make_safe: Any, safe_inputs: Inputs) -> None:
    model = make_safe()
    with torch.no_grad():
        model.fusion["1"].residual.residual_scale.fill_(float("nan"))
    log = _measure(model, [safe_inputs])
    assert np.isnan(log.value(component="fusion:off", statistic="kl"))
    assert np.isnan(log.value(component="signal:own", statistic="loss"))
    assert log.value(component="fusion:off", statistic="changed") == 1.0


def test_model_is_as_found_also_after_an_exception(make_safe: Any, safe_inputs: Inputs) -> None:
    model = make_safe()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    rng = torch.get_rng_state()

    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

    def same() -> bool:
        now = model.state_dict()
        return all(torch.equal(before[k], now[k]) for k in before) and hooks() == count

    count = hooks()
    _measure(model, [safe_inputs])
    assert same() and torch.equal(rng, torch.get_rng_state())

    for error in (RuntimeError, KeyboardInterrupt):

        def broken(*args: Any, error: type = error) -> None:
            if float(model.fusion["1"].residual.residual_scale.detach()) == 0:
                raise error("with the gates at zero")

        handle = model.projector.register_forward_hook(broken)
        count = hooks()
        with pytest.raises(error, match="gates at zero"):
            _measure(model, [safe_inputs])
        assert same()
        handle.remove()
        count = hooks()


def test_no_logits_and_no_batches_say_so(
    toy: Any, toy_path: SignalPath, make_batch: Callable[..., Inputs]
) -> None:
    with pytest.raises(ProbeError, match="needs at least one batch"):
        _measure(toy, [], toy_path)
    forward = toy.forward
    toy.forward = lambda **inputs: {"loss": forward(**inputs)["loss"]}
    with pytest.raises(ProbeError, match=r"returned no logits \(dict\)"):
        _measure(toy, [make_batch()], toy_path)
    toy.forward = lambda **inputs: {"logits": forward(**inputs)["logits"][:, :-1]}
    with pytest.raises(ProbeError, match=r"shape \[3, 5, 13\] do not belong to a batch of 3 texts"):
        _measure(toy, [make_batch()], toy_path)


def _batch(*signals: int) -> Batch:
    ids = torch.zeros(len(signals), 4, dtype=torch.long)
    return Batch({"input_ids": ids, "audio": torch.tensor(signals)[:, None].float()}, "audio")


@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=6), min_size=1, max_size=3))
def test_swapping_gives_another_clip_wherever_there_is_one(clips: list[list[int]]) -> None:
    batches = [_batch(*batch) for batch in clips]
    everything = {clip for batch in clips for clip in batch}
    for batch, found in zip(batches, swapped(batches), strict=True):
        if sum(map(len, clips)) == 1:
            assert found is None
            continue
        assert found is not None
        differs = (found.batch.signal != batch.signal)[:, 0]
        assert torch.equal(found.distinct, differs)
        assert differs.any() == (len(everything) > 1)
        assert set(found.batch.signal[:, 0].tolist()) <= everything
        assert found.batch.inputs["input_ids"] is batch.inputs["input_ids"]


def test_swapping_leaves_out_as_few_as_possible() -> None:
    (found,) = swapped([_batch(1, 1, 2, 2)])
    assert found is not None and found.distinct.all()  # by two places, not by one
    (alone,) = swapped([_batch(1)])
    assert alone is None
    (constant,) = swapped([_batch(1, 1, 1)])
    assert constant is not None and not constant.distinct.any()


def test_swapping_needs_one_row_per_text() -> None:
    patches = Batch({"input_ids": torch.zeros(2, 4), "audio": torch.randn(6, 3)}, "audio")
    assert swapped([patches]) == [None]
    assert torch.equal(silent(patches).signal, torch.zeros(6, 3))


@given(st.integers(0, 5), st.integers(1, 6), st.integers(0, 99))
def test_divergence_against_numpy(rows: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = (5 * torch.randn(rows, width, generator=generator) for _ in "ab")
    p, q = (np.exp(x.double().numpy()) for x in (a, b))
    p, q = (x / x.sum(-1, keepdims=True) for x in (p, q))
    expected = (p * np.log(p / q)).sum(-1)
    assert divergence(a, b).numpy() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert (divergence(a, a) == 0).all()


def test_divergence_with_tokens_ruled_out() -> None:
    own = torch.tensor([[0.0, -torch.inf]])
    assert divergence(own, torch.tensor([[0.0, 0.0]])).item() == pytest.approx(np.log(2))
    assert divergence(torch.tensor([[0.0, 0.0]]), own).item() == torch.inf
    assert changes(own, own.clone()) == (0, 0.0)
    nan = torch.tensor([[torch.nan, 1.0]])
    assert changes(nan, nan.clone()) == (0, 0.0)
    assert changes(nan, torch.tensor([[torch.nan, 1.5]])) == (1, 0.5)


def test_wrapped_models_give_the_same_numbers(
    toy: Any, toy_path: SignalPath, make_batch: Callable[..., Inputs], process_group: None
) -> None:
    plain = _measure(toy, [make_batch()], toy_path).records
    wrapped = nn.parallel.DistributedDataParallel(toy)
    assert _measure(wrapped, [make_batch()], toy_path).records == plain
    compiled = torch.compile(toy, backend="eager")
    compiled(**make_batch())
    assert _measure(compiled, [make_batch()], toy_path).records == plain

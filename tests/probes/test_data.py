"""Each statistic of the data probe on batches made right, and wrong in one way."""

import random as stdlib_random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from probes import data
from probes.context import Context
from probes.diagnosis import diagnose
from probes.errors import ProbeError
from probes.record import RecordLog
from probes.signal_path import SignalPath
from probes.text_statistics import SpecialTokens, TextStatistics
from safe.training.batches import collate

Inputs = dict[str, Tensor]
EOS, PAD = 1, 2
PROMPT = (9, 8, 7)


class Owner:
    """Something with the ids of special tokens, like a tokenizer or a config."""

    def __init__(self, eos: Any = EOS, pad: int | None = PAD) -> None:
        self.eos_token_id, self.pad_token_id = eos, pad


def _batch(*captions: tuple[int, ...], seed: int = 0, pad: int = PAD) -> Inputs:
    """A healthy batch: the same prompt, captions with an end, a clip each; made by safe."""
    answers = [[*caption, EOS] for caption in captions]
    ids, mask, labels = collate([PROMPT] * len(captions), answers, pad)
    sound = torch.randn(len(captions), 8, generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "sound": sound}


def _healthy() -> list[Inputs]:
    return [_batch((4, 5, 6), (6, 4)), _batch((5, 5, 4, 3), (4,), (10, 11), seed=1)]


@pytest.fixture
def measure(toy: Any, toy_path: SignalPath) -> Callable[..., dict[str, dict[str, float]]]:
    """measure(batches, tokenizer=Owner()) -> {component: {statistic: value}}"""

    def run(batches: list[Inputs], tokenizer: Any = None) -> dict[str, dict[str, float]]:
        toy.tokenizer = tokenizer or Owner()
        found: dict[str, dict[str, float]] = {}
        for r in data.measure(Context.of(toy, batches, toy_path)):
            found.setdefault(r.component, {})[r.statistic] = r.value
        return found

    return run


def test_healthy_batches(measure: Any) -> None:
    found = measure(_healthy())
    agreement = found["text"].pop("agreement_next"), found["text"].pop("agreement_previous")
    assert max(agreement) < 0.5
    assert found["text"] == pytest.approx(
        {
            "batches": 2, "rows": 5, "supervised_mean": (4 + 3 + 5 + 2 + 3) / 2,
            "supervised_min": 7, "batches_all_ignored": 0, "rows_all_ignored": 0,
            "first_supervised": 3, "first_supervised_min": 3, "rows_fully_supervised": 0,
            "shared_prefix": 3, "shared_prefix_supervised": 0, "agreement_same": 1,
            "ends_with_eos": 1, "padding": (1 + 3 + 2) / (2 * 7 + 3 * 8), "left_padded": 0,
            "right_padded": 1, "both_sides_padded": 0, "rows_all_masked": 0, "supervised_masked": 0,
            "supervised_padding": 0, "padding_attended": 0,
        }
    )  # fmt: skip
    clips = torch.cat([b["sound"] for b in _healthy()]).double().numpy()
    norms = np.linalg.norm(clips, axis=1)
    units = clips / norms[:, None]
    cosines = (units @ units.T)[~np.eye(5, dtype=bool)]
    spread = np.sqrt(1 - np.sum(clips.mean(0) ** 2) / np.mean(norms**2))
    assert found["signal"] == pytest.approx(
        {
            "clips": 5, "nonfinite": 0, "silent": 0, "identical": 0, "distinct": 1,
                "one_clip_batches": 0,
            "l2_median": np.median(norms), "l2_min": norms.min(),
            "cosine_between_clips": cosines.mean(), "variation": spread,
            "same_text_other_signal": 0, "tokens": 3, "tokens_min": 3, "tokens_max": 3,
        },
        rel=1e-6,
    )  # fmt: skip
    assert found["model"] == {"refused": 0}


def test_all_labels_ignored(measure: Any) -> None:
    batches = _healthy()
    batches[0]["labels"][:] = -100
    batches[1]["labels"][1] = -100
    text = measure(batches)["text"]
    assert (text["batches_all_ignored"], text["rows_all_ignored"]) == (0.5, 3 / 5)
    assert (text["supervised_min"], text["supervised_mean"]) == (0, 4)


def test_prompt_supervised(measure: Any) -> None:
    batches = _healthy()
    for inputs in batches:
        inputs["labels"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    text = measure(batches)["text"]
    assert (text["rows_fully_supervised"], text["first_supervised"]) == (1, 0)
    assert (text["shared_prefix"], text["shared_prefix_supervised"]) == (3, 1)


@pytest.mark.parametrize(("shift", "which"), [(-1, "agreement_next"), (1, "agreement_previous")])
def test_labels_shifted_by_one(measure: Any, shift: int, which: str) -> None:
    batches = _healthy()
    for inputs in batches:
        inputs["labels"] = inputs["labels"].roll(shift, dims=1)
        inputs["labels"][:, 0 if shift == 1 else -1] = -100
    text = measure(batches)["text"]
    assert text[which] == 1
    assert text["agreement_same"] < 0.5


def test_truncated_captions(measure: Any) -> None:
    batches = _healthy()
    for inputs in batches:  # cut at six tokens
        for name in ("input_ids", "attention_mask", "labels"):
            inputs[name] = inputs[name][:, :6]
    text = measure(batches)["text"]
    assert text["ends_with_eos"] == 3 / 5  # of 3+2+1, 3+1+1, 3+2+1 tokens
    assert "ends_with_eos" not in measure(batches, Owner(eos=None))["text"]
    assert measure(_healthy(), Owner(eos=[50, EOS]))["text"]["ends_with_eos"] == 1


@pytest.mark.parametrize("masked", [True, False])
def test_padding_supervised(measure: Any, masked: bool) -> None:
    batches = _healthy()
    for inputs in batches:
        pads = inputs["input_ids"] == PAD
        inputs["labels"][pads] = PAD
        if not masked:
            inputs["attention_mask"][:] = 1
    text = measure(batches)["text"]
    assert text["supervised_padding"] == pytest.approx(6 / (17 + 6))
    assert text["supervised_masked"] == (pytest.approx(6 / 23) if masked else 0)
    assert text["padding_attended"] == (0 if masked else 1)
    assert text["padding"] == pytest.approx(6 / 38)


def test_mask_off_by_one_and_all_zero(measure: Any) -> None:
    batches = _healthy()
    batches[0]["attention_mask"] = batches[0]["attention_mask"].roll(-1, dims=1)
    batches[0]["attention_mask"][:, -1] = 0
    text = measure(batches)["text"]
    assert text["supervised_masked"] == pytest.approx(2 / 17)
    batches[1]["attention_mask"][:] = 0
    text = measure(batches)["text"]
    assert text["rows_all_masked"] == 3 / 5
    assert text["supervised_masked"] == pytest.approx((2 + 10) / 17)


def test_padding_side_with_end_of_text_as_padding(measure: Any) -> None:
    right = [_batch((4, 5, 6), (6, 4), pad=EOS), _batch((5,), (4, 4, 4), pad=EOS)]
    text = measure(right, Owner(EOS, None))["text"]
    assert (text["supervised_padding"], text["padding_attended"]) == (0, 0)
    assert (text["right_padded"], text["ends_with_eos"]) == (1, 1)
    unmasked = [{k: v for k, v in inputs.items() if k != "attention_mask"} for inputs in right]
    text = measure(unmasked, Owner(EOS, None))["text"]
    assert text["padding"] == pytest.approx(3 / (2 * 7 + 2 * 7))
    assert "padding_attended" not in text
    left = [
        {k: v if k == "sound" else torch.stack([_left(row, m) for row, m in
         zip(v, inputs["attention_mask"], strict=True)]) for k, v in inputs.items()}
        for inputs in _healthy()
    ]  # fmt: skip
    text = measure(left)["text"]
    assert (text["left_padded"], text["right_padded"]) == (1, 0)
    assert (text["first_supervised"], text["agreement_same"], text["ends_with_eos"]) == (3, 1, 1)


def test_a_mask_shifted_by_one(measure: Any) -> None:
    batches = _healthy()
    for inputs in batches:  # rows without padding are then padded on the left only
        mask = inputs["attention_mask"]
        inputs["attention_mask"] = torch.cat([torch.zeros_like(mask[:, :1]), mask[:, :-1]], 1)
    padded = sum(int((row == 0).any()) for b in _healthy() for row in b["attention_mask"])
    text = measure(batches)["text"]
    assert text["both_sides_padded"] == pytest.approx(padded / 5)
    assert text["left_padded"] == 1 and text["padding_attended"] > 0


def _left(row: Tensor, mask: Tensor) -> Tensor:
    return row.roll(int((mask == 0).sum()))


def test_broken_clips(measure: Any) -> None:
    batches = _healthy()
    batches[0]["sound"][1] = 0
    batches[1]["sound"][0, 3] = torch.nan
    batches[1]["sound"][2] = batches[1]["sound"][1]
    signal = measure(batches)["signal"]
    assert (signal["silent"], signal["nonfinite"], signal["identical"]) == (0.2, 0.2, 0.4)
    assert (signal["distinct"], signal["l2_min"]) == (0.8, 0)
    assert np.isfinite(signal["variation"]) and np.isfinite(signal["cosine_between_clips"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int16])
def test_same_clip_everywhere(toy: Any, toy_path: SignalPath, dtype: torch.dtype) -> None:
    batches = _healthy()
    for inputs in batches:
        inputs["sound"] = torch.arange(1, 9).to(dtype).expand(len(inputs["sound"]), 8)
    toy.adapter.projector.forward = lambda sound: torch.ones(sound.shape[0], 3, 16)
    log = RecordLog(data.measure(Context.of(toy, batches, toy_path)))
    signal = {r.statistic: r.value for r in log.select(component="signal")}
    assert (signal["identical"], signal["distinct"]) == (1, 0.2)
    assert signal["cosine_between_clips"] == pytest.approx(1)
    assert signal["variation"] == pytest.approx(0, abs=1e-6)


def test_one_clip_for_each_batch(measure: Any) -> None:
    batches = _healthy()
    assert measure(batches)["signal"]["one_clip_batches"] == 0
    batches[1]["sound"] = batches[1]["sound"][:1].expand(3, -1).clone()
    assert measure(batches)["signal"]["one_clip_batches"] == 0.5
    batches[0]["sound"][:] = 0  # silence is another finding
    signal = measure(batches)["signal"]
    assert (signal["one_clip_batches"], signal["distinct"]) == (1, 0.4)
    single = [_batch((4, 5)), _batch((6,), seed=1)]
    assert "one_clip_batches" not in measure(single)["signal"]


def test_one_caption_with_several_clips(measure: Any) -> None:
    batches = [_batch((4, 5), (6,)), _batch((4, 5), (3,), seed=1)]
    assert measure(batches)["signal"]["same_text_other_signal"] == 0.5
    batches[1]["sound"] = batches[0]["sound"]
    assert measure(batches)["signal"]["same_text_other_signal"] == 0


def test_clips_of_several_lengths_are_not_compared(toy: Any, toy_path: SignalPath) -> None:
    toy.adapter.projector.forward = lambda sound: torch.ones(sound.shape[0], 3, 16)
    batches = _healthy()
    batches[0]["sound"] = torch.ones(2, 5, 5)
    log = RecordLog(data.measure(Context.of(toy, batches, toy_path)))
    signal = {r.statistic: r.value for r in log.select(component="signal")}
    assert "cosine_between_clips" not in signal and "variation" not in signal
    assert signal["identical"] == 0.4


def test_what_enters_the_projector_after_an_encoder(toy: Any, toy_path: SignalPath) -> None:
    class Constant(nn.Module):
        def forward(self, sound: Tensor) -> Tensor:
            return torch.ones_like(sound)

    toy.encoder = Constant()
    toy.adapter.projector.register_forward_pre_hook(lambda _, args: (toy.encoder(args[0]),))
    path = SignalPath.from_dict(
        {
            "encoder": "encoder", "projector": "adapter.projector", "layers": "lm.blocks.*",
            "fusion": "adapter.cross.{layer}", "signal_input": "sound",
        }
    )  # fmt: skip
    log = RecordLog(data.measure(Context.of(toy, _healthy(), path)))
    assert log.value(component="signal", statistic="distinct") == 1
    assert log.value(component="encoder", statistic="distinct") == 0.2
    assert log.value(component="encoder", statistic="variation") == 0


def test_spliced_images(llava: Any, llava_inputs: Inputs) -> None:
    log = RecordLog(data.measure(Context.of(llava, [llava_inputs], signal="vision")))
    signal = {r.statistic: r.value for r in log.select(component="signal")}
    assert (signal["tokens"], signal["placeholders"], signal["token_mismatch"]) == (4, 4, 0)
    assert signal["clips"] == 2
    encoded = {r.statistic: r.value for r in log.select(component="encoder")}
    assert (encoded["clips"], encoded["distinct"]) == (2, 1)
    text = {r.statistic: r.value for r in log.select(component="text")}
    assert text["signal_supervised"] == 0
    assert text["rows_fully_supervised"] == 1  # its labels leave out the images only
    llava_inputs["labels"][:, 1:3] = 3
    log = RecordLog(data.measure(Context.of(llava, [llava_inputs], signal="vision")))
    assert log.value(component="text", statistic="signal_supervised") == 0.5


def test_masked_placeholders(llava: Any, llava_inputs: Inputs) -> None:
    def masked(inputs: Inputs) -> float | None:
        log = RecordLog(data.measure(Context.of(llava, [inputs], signal="vision")))
        return log.value(component="text", statistic="signal_masked")

    assert masked(llava_inputs) == 0
    half = {**llava_inputs, "attention_mask": llava_inputs["attention_mask"].clone()}
    half["attention_mask"][:, 1:3] = 0
    assert masked(half) == 0.5
    del half["attention_mask"]
    assert masked(half) is None
    whole = llava_inputs["attention_mask"] * (llava_inputs["input_ids"] != 3)
    found = diagnose(llava, [{**llava_inputs, "attention_mask": whole}], signal="vision")
    assert found.verdict.root is not None and found.verdict.root.code == "SP616"


def test_model_that_refuses_its_input(make_safe: Any, safe_inputs: Inputs) -> None:
    model = make_safe()
    good = {k: v.clone() for k, v in safe_inputs.items()}
    safe_inputs["audio"][0, 0] = torch.nan
    log = RecordLog(data.measure(Context.of(model, [safe_inputs, good])))
    assert log.value(component="model", statistic="refused") == 0.5
    assert log.value(component="signal", statistic="nonfinite") == 0.25
    assert log.value(component="signal", statistic="tokens") == 3
    with pytest.raises(RuntimeError, match="shapes"):  # any other error is the caller's to see
        data.measure(_narrow(model, good))


def _narrow(model: Any, inputs: Inputs) -> Context:
    model.projector.norm.forward = lambda x: x[:, :3]
    return Context.of(model, [inputs])


def test_special_tokens_are_found_where_they_are(llava: Any) -> None:
    model = nn.Module()
    assert data.special_tokens(model) == SpecialTokens()
    model.config = Owner(5, None)
    assert data.special_tokens(model) == (frozenset([5]), 5)
    model.generation_config = Owner([6, 7], None)
    assert data.special_tokens(model) == (frozenset([6, 7]), None)
    model.inner = nn.Module()
    model.inner.tokenizer = Owner(8, 9)
    assert data.special_tokens(model) == (frozenset([8]), 9)
    assert data.special_tokens(llava) == (frozenset([2]), 2)


def test_batches_without_labels_ids_or_mask(toy: Any, toy_path: SignalPath) -> None:
    inputs = _healthy()[0]
    del inputs["labels"], inputs["attention_mask"]
    log = RecordLog(data.measure(Context.of(toy, [inputs], toy_path)))
    text = {r.statistic: r.value for r in log.select(component="text")}
    assert text == {"batches": 1, "rows": 2, "padding": 0}
    with pytest.raises(ProbeError, match="data probe needs at least one batch"):
        data.measure(Context.of(toy, [], toy_path))


def test_model_is_as_found(toy: Any, toy_path: SignalPath) -> None:
    toy.train()
    toy.lm.blocks[0].eval()
    before = (
        [m.training for m in toy.modules()], [b.tolist() for b in toy.buffers()],
        torch.get_rng_state().tolist(), stdlib_random.getstate(),
    )  # fmt: skip
    data.measure(Context.of(toy, _healthy(), toy_path))
    toy.lm.head.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        data.measure(Context.of(toy, _healthy(), toy_path))
    after = (
        [m.training for m in toy.modules()], [b.tolist() for b in toy.buffers()],
        torch.get_rng_state().tolist(), stdlib_random.getstate(),
    )  # fmt: skip
    assert after == before
    assert len(toy.adapter.projector._forward_hooks) == 0


@given(
    st.lists(st.lists(st.integers(3, 9), min_size=1, max_size=5), min_size=1, max_size=4),
    st.integers(0, 3), st.booleans(), st.booleans(),
)  # fmt: skip
def test_any_healthy_batch_has_no_fault(
    captions: list[list[int]], prompt: int, left: bool, shared_id: bool
) -> None:
    pad = EOS if shared_id else PAD
    ids, mask, labels = collate(
        [[8] * (prompt + 1)] * len(captions), [[*c, EOS] for c in captions], pad
    )
    if left:
        ids, labels, kept = (
            torch.stack([_left(row, m) for row, m in zip(x, mask, strict=True)])
            for x in (ids, labels, mask)
        )
        mask = kept
    from probes.batch import Batch
    from probes.record import Rows

    batch = Batch.of({"input_ids": ids, "attention_mask": mask, "labels": labels, "s": ids}, "s")
    statistics, rows = TextStatistics(SpecialTokens(frozenset([EOS]), pad)), Rows("data", 0)
    statistics.add(batch)
    statistics.report(rows)
    found = {r.statistic: r.value for r in rows.records}
    perfect = {"agreement_same": 1.0, "ends_with_eos": 1.0, "first_supervised": prompt + 1}
    assert {k: found[k] for k in perfect} == perfect
    faults = (
        "batches_all_ignored", "rows_all_ignored", "rows_fully_supervised", "rows_all_masked",
        "supervised_masked", "supervised_padding",
    )  # fmt: skip
    assert not any(found[k] for k in faults)
    assert found.get("padding_attended", 0) == 0
    assert found["padding"] == pytest.approx(1 - mask.double().mean().item())
    if (mask == 0).any():
        assert (found["left_padded"], found["right_padded"]) == (float(left), float(not left))

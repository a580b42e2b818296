"""generate() against forward(): nothing to say of what is healthy, wrong clips are named."""

from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor

from probes import generation
from probes.context import Context
from probes.findings.judge import judge
from probes.logits import divergence
from probes.record import RecordLog

Inputs = dict[str, Tensor]


def _measure(model: Any, inputs: Inputs, **options: Any) -> RecordLog:
    return RecordLog(generation.measure(Context.of(model, [inputs], **options)))


def _codes(log: RecordLog) -> set[str]:
    return {finding.code for finding in judge(log)}


def _kl(log: RecordLog, component: str) -> float:
    value = log.value(component=component, statistic="kl")
    assert value is not None
    return value


@pytest.fixture
def three(safe_inputs: Inputs) -> Inputs:
    """Three texts with prompts of different lengths, each with its own clip."""
    twice = {name: torch.cat([x, x.flip(0)])[:3] for name, x in safe_inputs.items()}
    twice["audio"] = torch.randn(3, 8, generator=torch.Generator().manual_seed(5)) * 3
    twice["labels"][1, :3] = -100
    twice["labels"][1, 3] = 7
    return twice


def test_a_healthy_model_says_the_same_and_stays_as_it_was(make_safe: Any, three: Inputs) -> None:
    model = make_safe().train()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    config = model.backbone.generation_config.to_dict()
    flags = [m.training for m in model.modules()]
    log = _measure(model, three)
    assert not _codes(log)
    assert _kl(log, "generate:greedy") < 1e-9 > _kl(log, "generate:beams")
    assert _kl(log, "generate:swapped") > 1e-5 > _kl(log, "generate:rounding")
    assert log.value(component="generate:beams", statistic="tokens") == 3 * generation.STEPS
    assert flags == [m.training for m in model.modules()]
    assert config == model.backbone.generation_config.to_dict()
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_distances_against_a_plain_greedy_loop(make_safe: Any, three: Inputs) -> None:
    """What is recorded as ``swapped`` is what forward() says of greedy tokens and other clips."""
    model = make_safe().eval()
    log = _measure(model, three)
    generation.BEAMS, kept = 1, generation.BEAMS  # then both searches are greedy
    try:
        log = _measure(model, three)
    finally:
        generation.BEAMS = kept
    found = []
    for row, length in enumerate((2, 3, 2)):
        ids = three["input_ids"][row : row + 1, :length]
        with torch.no_grad():
            for _ in range(generation.STEPS):
                logits = model(ids, torch.ones_like(ids), three["audio"][row : row + 1]).logits
                best = logits[:, -1].clone()
                best[:, [1, 2]] = -torch.inf  # ends of text are not allowed that early
                ids = torch.cat([ids, best.argmax(-1, keepdim=True)], 1)
            said = [
                model(ids[:, :-1], torch.ones_like(ids[:, :-1]), three["audio"][i : i + 1]).logits
                for i in range(3)
            ]
        own = said[row][0, -generation.STEPS :]
        found += [divergence(own, said[i][0, -generation.STEPS :]) for i in range(3) if i != row]
    assert _kl(log, "generate:swapped") == pytest.approx(float(torch.cat(found).mean()), rel=1e-4)


def _beams_hear(model: Any, order: Any) -> None:
    """Let every fusion block hear the clips in another order when there are beams."""
    for block in model.fusion.blocks().values():
        original = block.forward

        def forward(
            _self: Any, hidden: Tensor, key: Tensor, value: Tensor, *rest: Any, to: Any = original
        ) -> Tensor:
            if hidden.shape[0] == 6:
                key, value = key[order], value[order]
            return to(hidden, key, value, *rest)

        block.forward = MethodType(forward, block)


@pytest.mark.parametrize("order", [[0, 2, 4, 0, 2, 4], [0, 0, 0, 0, 0, 0], [2, 3, 4, 5, 0, 1]])
def test_clips_laid_out_wrongly_under_beams(
    make_safe: Any, three: Inputs, order: list[int]
) -> None:
    model = make_safe().eval()
    _beams_hear(model, order)
    log = _measure(model, three)
    assert _codes(log) == {"SP423"}
    assert _kl(log, "generate:greedy") < 1e-9


def test_beam_search_that_fails(make_safe: Any, three: Inputs) -> None:
    model = make_safe().eval()
    _beams_hear(model, [0, 1])
    log = _measure(model, three)
    assert _codes(log) == {"SP425"}


def test_clips_rolled_in_generate(make_safe: Any, three: Inputs) -> None:
    model = make_safe().eval()
    original = model.generate
    model.generate = lambda audio, **rest: original(audio=audio.roll(1, 0), **rest)
    findings = judge(_measure(model, three))
    assert [f.code for f in findings] == ["SP424"] and findings[0].severity.word == "error"


def test_pictures(llava: Any, llava_inputs: Inputs) -> None:
    llava.config.pad_token_id = 2
    log = _measure(llava, llava_inputs, signal="vision")
    assert not _codes(log) and _kl(log, "generate:swapped") > 1e-6


def test_bfloat16_is_not_a_finding(make_safe: Any, three: Inputs) -> None:
    model = make_safe().eval()
    model.backbone.to(torch.bfloat16)
    log = _measure(model, three)
    assert not _codes(log)
    assert _kl(log, "generate:rounding") > 1e-7


def _round_behind_a_cache(model: Any) -> None:
    """Let single tokens be rounded in another order than whole texts, as some kernels do."""

    def rounded(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        if output.shape[1] > 1:
            return output
        sign = torch.randn(output.shape).sign().to(output.dtype)
        return output * (1 + torch.finfo(output.dtype).eps * sign)

    model.backbone.model.language_model.layers[0].register_forward_hook(rounded)


def test_rounding_that_only_a_cache_has_is_not_a_finding(make_safe: Any, three: Inputs) -> None:
    """An over-driven model in bfloat16: its layers make much of the last place of their input."""
    model = make_safe(gate_init=1.0).eval()
    model.backbone.to(torch.bfloat16)
    _round_behind_a_cache(model)
    model.backbone.model.language_model.layers[1].register_forward_hook(
        lambda _module, _inputs, out: out + out.std().item() * torch.sin(300 * out)
    )
    log = _measure(model, three)
    assert not _codes(log)
    assert _kl(log, "generate:greedy") > 0.1


def test_wrong_clips_are_found_in_bfloat16(make_safe: Any, three: Inputs) -> None:
    model = make_safe(gate_init=1.0).eval()
    model.backbone.to(torch.bfloat16)
    _round_behind_a_cache(model)
    original = model.generate
    model.generate = lambda audio, **rest: original(audio=audio.roll(1, 0), **rest)
    assert _codes(_measure(model, three)) == {"SP424"}


@pytest.mark.parametrize("kind", ["absent", "ids only", "raises", "other keywords"])
def test_what_cannot_be_measured_has_no_records(make_safe: Any, three: Inputs, kind: str) -> None:
    model = make_safe().eval()
    original = model.generate
    model.generate = {
        "absent": None,
        "ids only": lambda **inputs: original(**inputs).sequences,
        "raises": lambda **_: torch.zeros(2) @ torch.zeros(3),
        "other keywords": lambda prompt: prompt,
    }[kind]
    assert len(_measure(model, three)) == 0


def test_one_clip_or_one_for_all_is_not_enough(make_safe: Any, three: Inputs) -> None:
    model = make_safe().eval()
    one = {name: x[:1] for name, x in three.items()}
    same = {**three, "audio": three["audio"][:1].expand(3, -1).clone()}
    assert len(_measure(model, one)) == 0 and len(_measure(model, same)) == 0


def _wants_placeholders(llava: Any) -> None:
    """An output layer that says the image token after everything, as an untrained one may."""
    head = llava.get_output_embeddings()
    head.register_forward_hook(
        lambda _m, _a, out: out + 50.0 * (torch.arange(out.shape[-1]) == 3).to(out.dtype)
    )


def test_a_model_that_would_write_a_placeholder(llava: Any, llava_inputs: Inputs) -> None:
    _wants_placeholders(llava)
    log = _measure(llava, llava_inputs, signal="vision")
    assert not _codes(log)
    assert log.value(component="generate:greedy", statistic="tokens") == 2 * generation.STEPS


def test_a_generate_that_writes_placeholders_nevertheless(llava: Any, llava_inputs: Inputs) -> None:
    _wants_placeholders(llava)
    original = llava.generate
    llava.generate = lambda **asked: original(**{**asked, "suppress_tokens": None})
    assert len(_measure(llava, llava_inputs, signal="vision")) == 0

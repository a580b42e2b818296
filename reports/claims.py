"""Every number that the Phase 1 plan states, held against arithmetic, the record and the run.

A claim agrees, is off (by how much), or is not measured here; its source says who knows better.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from configs.arithmetic import count_parameters
from configs.claims import (
    AUDIOCAPS_TRAIN_CLIPS,
    BEST,
    CONSTANT,
    EXPECTED_CIDER,
    HUMAN,
    STATED,
    TRAINING_FREE,
    TRAINING_HOURS,
)
from configs.model_configs import get_config
from reports import from_training
from reports.criterion import Measurement
from reports.run import Run

AGREES, OFF, NOT_MEASURED = "agrees", "off", "not measured here"
_TOLERANCE = 0.1
"""A difference that is no more than rounding; as in SP506."""
_STEPS_AN_EPOCH = 389
"""Optimizer steps of 128 of AudioCaps 1.0's training clips."""

PLANNED_BYTES = 32_429_000_000
"""What ``safe-probe params --config phase1`` plans; to three digits."""
_RECORD = (
    "AudioCaps test split: constant caption measured on its references, ZerAuCap (2023), SLAM-AAC "
    "(2024), people against each other (AudioCaps, NAACL 2019)"
)
_ARITHMETIC = "arithmetic: `python3 configs/model_configs.py`"
_COUNT = "counted: `safe-probe params --config phase1`"


@dataclass(frozen=True)
class ClaimCheck:
    """One stated number and what is known of it."""

    name: str
    stated: str
    """As the plan puts it."""
    where: str
    """Section of the plan."""
    found: str
    """Measured here, computed, or on the public record."""
    verdict: str
    """``agrees``, ``off`` or ``not measured here``."""
    detail: str
    """By how much it is off, or what to make of it."""
    source: str
    """Where ``found`` comes from."""

    def to_json(self) -> dict[str, Any]:
        """The claim as JSON-safe values."""
        return asdict(self)


def audit(run: Run | None = None) -> tuple[ClaimCheck, ...]:
    """All claims; with a run, what it measured where it can be compared."""
    return (*_sizes(), *_settings(), *_magnitudes(run), *_scores(run), *_gates(), *_costs(run))


def compared(
    name: str,
    stated: float,
    found: float,
    where: str,
    source: str,
    show: Callable[[float], str] = lambda value: f"{value / 1e6:.4g}M",
) -> ClaimCheck:
    """A claim about one number: it agrees within a tenth, or is off by a factor."""
    ratio = max(stated, found) / min(stated, found)
    agrees = abs(found - stated) <= _TOLERANCE * abs(stated)
    return ClaimCheck(
        name, show(stated), where, show(found), AGREES if agrees else OFF,
        "" if agrees else f"off by {ratio:.2g}x", source,
    )  # fmt: skip


def _sizes() -> Iterator[ClaimCheck]:
    where = "Parameter Count Breakdown"
    counts = {name: count_parameters(get_config(name).model) for name in ("full", "phase1")}
    for name, title in (("full", "baseline"), ("phase1", "phase1")):
        stated, counted = STATED[name], counts[name]
        yield compared(
            f"projector, {title}", stated.projector, counted.projector + counted.norm, where, _COUNT
        )
        yield compared(f"LoRA, {title}", stated.lora, counted.lora, where, _COUNT)
        yield compared(f"all trainable, {title}", stated.trainable, counted.total, where, _COUNT)
    after, before = counts["phase1"], counts["full"]
    yield compared("projector, growth", 83.5e6, after.projector - before.projector, where, _COUNT)
    yield compared("LoRA, growth", 10.3e6, after.lora - before.lora, where, _COUNT)
    yield compared("all trainable, growth", 190e6, after.total - before.total, where, _COUNT)


def _settings() -> Iterator[ClaimCheck]:
    full, phase1, phase2 = (get_config(name) for name in ("full", "phase1", "phase2"))
    where = "Model Configuration"
    percent = lambda value: f"{value:+.0%}"  # noqa: E731
    ranks = phase1.model.fusion.lora_rank / full.model.fusion.lora_rank - 1
    yield compared("LoRA rank", 7.0, ranks, where, _ARITHMETIC, percent)
    tokens = phase1.model.projector.num_tokens
    more = tokens / full.model.projector.num_tokens - 1
    yield compared("audio tokens", 1.0, more, where, _ARITHMETIC, percent)
    yield ClaimCheck(
        "more granular audio", f"{tokens} tokens: more granular 10-second audio", where,
        f"all {tokens} are functions of one pooled {phase1.model.audio_dim}-d vector", OFF,
        "no token knows about time; more tokens add capacity, not resolution",
        "CLAP's pooled embedding; its 64 local features would carry time",
    )  # fmt: skip
    lr = phase1.optim.lr_projector / full.optim.lr_projector
    times = lambda value: f"{value:.3g}x"  # noqa: E731
    yield compared("projector learning rate", 5.0, lr, "Training Script", _ARITHMETIC, times)
    lr = phase1.optim.lr_adapter / full.optim.lr_adapter
    yield compared("adapter learning rate", 5.0, lr, "Training Script", _ARITHMETIC, times)
    batch = float(phase1.optim.effective_batch)
    plain = lambda value: f"{value:g}"  # noqa: E731
    yield compared("effective batch", 128.0, batch, "Training Script", _ARITHMETIC, plain)
    yield ClaimCheck(
        "baseline's fusion", "single-layer fusion", "Information Flow Changes",
        f"multilayer, {list(full.model.fusion.layers)}", OFF,
        "the plan's own table says multilayer before and after", 'plan, "Model Configuration"',
    )  # fmt: skip
    yield ClaimCheck(
        "projector bottleneck", "1024 bottleneck", "Phase 2 Preview",
        f"the input is {phase1.model.audio_dim} wide: 1024 widens it", OFF,
        "no bottleneck: " + _without_bottleneck(), _ARITHMETIC,
    )  # fmt: skip
    warmup = full.model.fusion.gate_warmup_steps
    epochs = warmup / _STEPS_AN_EPOCH
    yield ClaimCheck(
        "gate warm-up", f"gradual warm-up over {warmup} steps", "Information Flow Changes",
        f"{epochs:.1f} of {full.optim.epochs} epochs ({AUDIOCAPS_TRAIN_CLIPS:,} clips by 128)",
        AGREES,
        "the gate is part closed for a quarter of the training", _ARITHMETIC,
    )  # fmt: skip
    yield ClaimCheck(
        "against out of memory", "batch 2 x accumulation 64", "Troubleshooting",
        f"{2 * 64} clips a step, as before", AGREES,
        "the batch lowers the memory, not the accumulation, which the plan's text says as well",
        _ARITHMETIC,
    )  # fmt: skip
    assert phase2.model.projector.bottleneck_dim is None


def _without_bottleneck() -> str:
    with_it, without = (
        count_parameters(get_config(n).model).projector for n in ("phase1", "phase2")
    )
    return (
        f"'full capacity unlock' takes the projector from {with_it / 1e6:.0f}M down to "
        f"{without / 1e6:.0f}M parameters, and makes it linear"
    )


def _gates() -> Iterator[ClaimCheck]:
    full, phase1 = (get_config(name).model for name in ("full", "phase1"))
    where = "Fusion Adapter Initialization"
    yield ClaimCheck(
        "gates", "0.05, at most 0.3, before; 0.3, at most 1.0, after", where,
        f"{full.fusion.gate_init:g}, {full.fusion.gate_max:g}; {phase1.fusion.gate_init:g}, "
        f"{phase1.fusion.gate_max:g}", AGREES, "as the configurations have it", _ARITHMETIC,
    )  # fmt: skip
    yield ClaimCheck(
        "negligible gradients", "at 5% gradients were negligible; 30% forces learning", where,
        "the branch's gradient is proportional to its gate: 6x; the gate's own is not", OFF,
        "Adam divides a gradient by its size, so a sixfold one hardly moves faster",
        "calculus; measured per part by `safe-probe gradflow --config full`",
    )  # fmt: skip
    yield ClaimCheck(
        "fusion layers", "[6, 12, 24] to [8, 16, 24, 32], one more", "Model Configuration",
        f"{list(full.fusion.layers)} to {list(phase1.fusion.layers)} of {phase1.num_layers}",
        AGREES, "as the configurations have it; spacing is no measurement", _ARITHMETIC,
    )  # fmt: skip
    yield ClaimCheck(
        "LoRA's cause of growth", "+10.3M, due to rank 64", "Parameter Count Breakdown",
        f"0.16M x 8 (rank) x 4/3 (layers) = {0.16 * 8 * 4 / 3:.2g}M", OFF,
        "the stated baseline cannot grow to the stated result; its own count is 0.98M", _ARITHMETIC,
    )  # fmt: skip
    yield ClaimCheck(
        "the sum of the table", "168M + 10.5M = about 380M; 84.5M + 0.16M = 189.6M",
        "Parameter Count Breakdown", f"{168 + 10.5:g}M; {84.5 + 0.16:g}M", OFF,
        "the table's rows do not add up to its total, twice over", "arithmetic",
    )  # fmt: skip
    wider = 512 * 4096 + 4096 + 4096 * 163_840 + 163_840
    yield ClaimCheck(
        "a bottleneck of 4096", "remove the bottleneck, or increase it to 4096", "Phase 2 Preview",
        f"a projector of {wider / 1e6:.0f}M parameters at 4096", NOT_MEASURED,
        "four times as large, where removing it halves it: not the same step", _ARITHMETIC,
    )  # fmt: skip


def _magnitudes(run: Run | None) -> Iterator[ClaimCheck]:
    texts = {} if run is None else run.facts.layers("magnitude", "text", "l2_median")
    here = ""
    if texts:
        low, high = min(texts.values()), max(texts.values())
        here = f"; here {low:.3g} to {high:.3g} where the audio is added"
    yield ClaimCheck(
        "text magnitude", "LLaVA embeddings have magnitude 5-15", "Projector Magnitude Fix",
        f"L2 of LLaMA-type token embeddings 0.8-1.4{here}", OFF,
        "which norm, and of what? hidden states grow with depth; fusion adds to those",
        "published weights; `safe-probe magnitude` for a model of yours",
    )  # fmt: skip
    yield ClaimCheck(
        "audio magnitude", "2.5-7.5x weaker than text at scale 2", "Projector Magnitude Fix",
        "tanh x 2 at 5120 wide: L2 14 (pre-activations of std 0.1) to 143 (saturated)", OFF,
        "the scale bounds an element, the comparison was with a norm: 10 to 100 times the 1.08 of "
        "a text token, not weaker",
        "arithmetic: 2 tanh(0.1 z) sqrt(5120), z normal",
    )  # fmt: skip
    yield ClaimCheck(
        "range of the tokens", "magnitude [-10, 10]", "Information Flow Changes",
        "tanh x 10 bounds each element by 10", AGREES,
        "true of AudioProjector; the plan's AdaptiveAudioProjector multiplied without a bound",
        "definition of tanh",
    )  # fmt: skip


def _scores(run: Run | None) -> Iterator[ClaimCheck]:
    low, high = 35 / BEST, 42 / BEST
    yield ClaimCheck(
        "share of the best", "CIDEr 35-42 = 80-95% of SOTA", "Phase 2 Preview",
        f"best {BEST:g}: {low:.0%}-{high:.0%}; people {HUMAN:g}", OFF,
        f"off by {0.8 / low:.2g}x; 80-95% would be {0.8 * BEST:.0f}-{0.95 * BEST:.0f}", _RECORD,
    )  # fmt: skip
    yield ClaimCheck(
        "connectivity verified", "CIDEr > 30 verifies the connection", "Success Criteria",
        f"a constant caption {CONSTANT:g}, without any training {TRAINING_FREE:g}", OFF,
        "no score verifies a connection; a margin over another clip's audio does", _RECORD,
    )  # fmt: skip
    yield ClaimCheck(
        "baseline", "CIDEr 18: generic captions", "Verification Checklist",
        f"{18 - CONSTANT:.1f} above a caption that hears nothing", NOT_MEASURED,
        "a model that hears little or nothing scores as much", _RECORD,
    )  # fmt: skip
    for epoch, (least, most) in EXPECTED_CIDER.items():
        yield ranged(
            f"CIDEr after epoch {epoch}", (least, most), "Training Dynamics",
            None if run is None else from_training.cider_after(epoch, most)(run),
            "needs the 13B model and AudioCaps", _beside(most), _RECORD,
        )  # fmt: skip


def _beside(score: float) -> str:
    if score < CONSTANT:
        return f"below the {CONSTANT:g} of a constant caption"
    if score < TRAINING_FREE:
        return f"below the {TRAINING_FREE:g} that no training at all reaches"
    return ""


def _costs(run: Run | None) -> Iterator[ClaimCheck]:
    low, high = STATED["phase1"].memory or (0.0, 0.0)
    yield ranged(
        "memory", (low / 1e9, high / 1e9), "Training Dynamics",
        None if run is None else from_training.memory(run),
        f"planned {PLANNED_BYTES / 1e9:.1f} GB",
        "the plan is below the stated range; one step of the real model decides",
        "`safe-probe params --config phase1`, part by part", " GB",
    )  # fmt: skip
    yield ranged(
        "training time", TRAINING_HOURS, "Training Dynamics",
        None if run is None else from_training.hours(run), "needs the 13B model on a GPU", "",
        "wall time of a run", " h for 20 epochs",
    )  # fmt: skip
    days = [
        hours / 20 * epochs / 24 for hours, epochs in zip(TRAINING_HOURS, (50, 100), strict=True)
    ]
    yield ClaimCheck(
        "Phase 2's time", "about 1 week for 50-100 epochs", "Phase 2 Preview",
        f"{days[0]:.1f}-{days[1]:.1f} days at the plan's own hours per epoch", OFF,
        "Phase 2's projector is half as large, so not slower either", "arithmetic: 12-18 h for 20",
    )  # fmt: skip


def ranged(
    name: str,
    stated: tuple[float, float],
    where: str,
    found: Measurement | None,
    otherwise: str,
    detail: str,
    source: str,
    unit: str = "",
) -> ClaimCheck:
    """A claim about a range: judged where a run measured what can be compared with it."""
    low, high = stated
    words = otherwise if found is None else found.evidence
    if found is None or found.value is None or not math.isfinite(found.value):
        verdict = NOT_MEASURED
    else:
        inside = low <= found.value <= high
        verdict, detail = AGREES if inside else OFF, "" if inside else f"{found.value:.3g} measured"
    return ClaimCheck(name, f"{low:g}-{high:g}{unit}", where, words, verdict, detail, source)

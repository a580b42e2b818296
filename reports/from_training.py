"""What the metrics of a training say, for the criteria."""

import math
from collections.abc import Callable
from statistics import median
from typing import Literal

from configs.arithmetic import count_parameters
from reports.criterion import Measurement
from reports.run import Run

_STATED_SIZE = 5120
"""Hidden size of LLaVA-1.5-13B, which every number of the plan is about."""
_FIRST, _LAST = 5, 10
"""Steps that stand for the start, and for the end of epoch 2."""


def cider_after(epoch: int, expected: float) -> Callable[[Run], Measurement | None]:
    """CIDEr of the evaluation after ``epoch`` epochs."""

    def measure(run: Run) -> Measurement | None:
        rows = [row for row in run.evaluations if row.get("epoch") == epoch]
        if not rows:
            return None
        score = float(rows[-1]["cider"])
        text = f"CIDEr {score:.1f} on {rows[-1].get('clips', '?')} validation clips"
        if "audiocaps" not in run.config.data.root.lower():
            text += "; not comparable: expected of AudioCaps, these are other clips"
            return Measurement(None, text, f"{score:.1f}", comparable=False)
        if score > expected:
            text += f", above the expected {expected:g}"
        return Measurement(score, text, f"{score:.1f}")

    return measure


def loss_drop(run: Run) -> Measurement | None:
    """Percentage of the first loss that is gone after 2 epochs; medians over steps."""
    if run.epochs_done < 2 - 1e-6:
        return None
    losses = [float(row["loss"]) for row in run.steps if row["epoch"] <= 2 + 1e-6]
    finite = [loss for loss in losses if math.isfinite(loss)]
    if len(finite) < _FIRST + _LAST:
        return None
    if len(finite) < 0.9 * len(losses):
        return Measurement(
            None, f"{len(losses) - len(finite)} of {len(losses)} losses are no number"
        )
    first, after = median(finite[:_FIRST]), median(finite[-_LAST:])
    return Measurement(
        100 * (1 - after / first),
        f"loss {first:.2f} to {after:.2f} nats/token; this alone is no evidence of hearing",
        f"{1 - after / first:.0%}",
    )


def gradients(run: Run) -> Measurement | None:
    """Percentage of steps with a finite gradient above 0, the worse of projector and adapter."""
    shares = {}
    for name in ("projector", "adapter"):
        norms = [row.get(f"grad_norm/{name}") for row in run.steps]
        if all(norm is None for norm in norms):
            return None
        shares[name] = sum(map(_flows, norms)) / len(norms)
    worst = min(shares, key=lambda name: shares[name])
    skipped = sum(bool(row.get("skipped")) for row in run.steps)
    text = f"projector {shares['projector']:.1%} of the steps, fusion {shares['adapter']:.1%}"
    if skipped:
        text += f"; {skipped} steps were skipped"
    return Measurement(100 * shares[worst], text, f"{shares[worst]:.1%}")


def _flows(norm: object) -> bool:
    return isinstance(norm, int | float) and math.isfinite(norm) and norm > 0


def parameters(part: Literal["trainable", "projector", "lora"]) -> Callable[[Run], Measurement]:
    """Trainable parameters in millions, measured, or counted from the configuration."""

    def measure(run: Run) -> Measurement:
        count, how = _count(run, part)
        text = f"{count / 1e6:.2f}M {how}"
        if run.config.model.hidden_size != _STATED_SIZE:
            return _incomparable(run, text, f"{count / 1e6:.2f}M")
        return Measurement(count / 1e6, text, f"{count / 1e6:.1f}M")

    return measure


def _count(run: Run, part: str) -> tuple[float, str]:
    place = {"trainable": "model", "projector": "projector", "lora": "fusion"}[part]
    measured = run.facts.value("parameters", place, "trainable")
    if measured is not None:
        return measured, "measured"
    counts = count_parameters(run.config.model)
    counted = {
        "trainable": counts.total,
        "projector": counts.projector + counts.norm,
        "lora": counts.lora,
    }
    return counted[part], "counted from the configuration"


def hours(run: Run) -> Measurement | None:
    """Wall time of the training steps, over all sittings."""
    seconds = run.resources.get("train_seconds", 0.0)
    if not _flows(seconds):
        return None
    spent = float(seconds) / 3600
    text = f"{spent:.2f} h for {run.epochs_done:.3g} epochs"
    if run.config.model.hidden_size != _STATED_SIZE:
        return _incomparable(run, text, f"{spent:.2f} h")
    planned = spent * 20 / max(run.epochs_done, 1e-9)
    return Measurement(planned, f"{text}: {planned:.1f} h for 20", f"{planned:.1f} h")


def memory(run: Run) -> Measurement | None:
    """Peak memory of the GPU, or of the process where there is none."""
    peak, where = run.resources.get("peak_bytes", 0), run.resources.get("memory", "?")
    if not _flows(peak):
        return None
    size = float(peak) / 1e9
    text = f"peak {size:.1f} GB of {where} memory"
    if run.config.model.hidden_size != _STATED_SIZE or where != "gpu":
        return _incomparable(run, text, f"{size:.1f} GB")
    return Measurement(size, text, f"{size:.1f} GB")


def _incomparable(run: Run, text: str, shown: str) -> Measurement:
    """A number that was stated for the real model, of another one."""
    backbone = run.config.model.backbone
    text += f"; not comparable: stated for LLaVA-1.5-13B on a GPU, this is {backbone}"
    return Measurement(None, text, shown, comparable=False)

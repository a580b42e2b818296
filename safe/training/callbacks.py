"""What may watch a training without changing it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safe.evaluation.metrics import Scores

_NAMED = 8
"""Clips of a skipped step that a message names; its row in metrics.jsonl has all of them."""

if TYPE_CHECKING:
    from safe.training.experiment import Experiment
    from safe.training.stage_a import StageA


@dataclass(frozen=True)
class Step:
    """What one optimizer step did."""

    step: int
    """Optimizer steps taken so far, this one included; counts from 1."""
    epoch: float
    """Epochs completed, fractional."""
    loss: float
    """Cross entropy on caption tokens, nats/token over the whole step."""
    tokens: int
    """Supervised tokens of the step."""
    clips: int
    """Caption examples of the step."""
    grad_norm: dict[str, float]
    """L2 norm of the gradient before clipping: total, projector, adapter."""
    lr: dict[str, float]
    """Learning rate used: projector, adapter."""
    gate: dict[int, float]
    """residual_scale during the step, by fusion layer."""
    outer_gate: float
    """Outer gate times warm-up factor during the step."""
    skipped: bool
    """True when loss or gradient was not finite and no parameter moved."""
    skipped_clips: tuple[str, ...]
    """Ids of the clips of a skipped step, one of which may be the cause; else empty."""
    retention: float | None
    """Retention term before its weight, when it was evaluated at this step."""
    seconds: float = field(compare=False)
    """Wall time of the step."""

    def to_row(self) -> dict[str, Any]:
        """The deterministic part as a flat row for metrics.jsonl (no wall time in it)."""
        return {
            "kind": "step",
            "step": self.step,
            "epoch": round(self.epoch, 6),
            "loss": self.loss,
            "tokens": self.tokens,
            "clips": self.clips,
            **{f"grad_norm/{name}": value for name, value in self.grad_norm.items()},
            **{f"lr/{name}": value for name, value in self.lr.items()},
            **{f"gate/{layer}": value for layer, value in self.gate.items()},
            "outer_gate": self.outer_gate,
            "skipped": self.skipped,
            **({"skipped_clips": self.skipped_clips} if self.skipped else {}),
            **({} if self.retention is None else {"retention": self.retention}),
        }

    def skip_notice(self) -> str:
        """A line on why the step was skipped and which clips it was made of."""
        return (
            f"step {self.step} skipped: loss {self.loss:.3g}, gradient norm "
            f"{self.grad_norm['total']:.3g} is not finite; clips {name_clips(self.skipped_clips)}"
        )


def name_clips(ids: Sequence[str]) -> str:
    """The first few ``ids``, and that there are more."""
    return ", ".join(ids[:_NAMED]) + (", ..." if len(ids) > _NAMED else "")


class Callback:
    """Base class: override what you need. Callbacks run in order, on the main process only.

    They must leave model, optimizer and random state as found.
    """

    runs_model = False
    """Whether it runs the model: with a sharded backbone it is then called in every process."""

    def on_run_begin(self, folder: Path, experiment: "Experiment") -> None:
        """The run's folder is there and ours; once per process, before :meth:`on_train_begin`."""

    def on_train_begin(self, trainer: "StageA") -> None:
        """Before the first step of this process (also after a resume)."""

    def on_gradients(self, trainer: "StageA", step: int) -> None:
        """Gradients of step ``step`` are complete, summed over processes, not yet clipped."""

    def on_step_end(self, trainer: "StageA", step: Step) -> None:
        """The optimizer has stepped; gradients are gone."""

    def on_evaluation(
        self, trainer: "StageA", epoch: float, scores: Scores, captions: dict[str, str]
    ) -> None:
        """The evaluation split was scored after ``epoch`` complete epochs."""

    def on_train_end(self, trainer: "StageA") -> None:
        """Training is complete (not called when it was interrupted)."""

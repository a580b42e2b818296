"""Progress of a training in the terminal, and plain lines where there is none."""

import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from typing_extensions import override

from safe.evaluation.metrics import Scores
from safe.training.callbacks import Callback, Step

if TYPE_CHECKING:
    from safe.training.stage_a import StageA

_PLAIN_SECONDS = 15.0
"""Least time between two plain progress lines."""


class TrainingDisplay(Callback):
    """Epoch, step, loss, gates, gradient norms, clips per second, time left.

    Args:
        console: where to print.
        epochs: epochs of the whole training, to show with the running one.
    """

    def __init__(self, console: Console, epochs: int) -> None:
        self.console, self.epochs = console, epochs
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._last_line = 0.0
        self._clips_per_second = 0.0

    @override
    def on_train_begin(self, trainer: "StageA") -> None:
        self._last_line = time.monotonic()
        if self.console.is_terminal:
            self._bar = Progress(
                BarColumn(bar_width=20),
                TextColumn("{task.description}", markup=False),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self._task = self._bar.add_task(
                "training", total=trainer.total_steps, completed=trainer.position.step
            )
            self._bar.start()

    @override
    def on_step_end(self, trainer: "StageA", step: Step) -> None:
        rate = step.clips / max(step.seconds, 1e-9)
        self._clips_per_second = (
            rate if not self._clips_per_second else 0.9 * self._clips_per_second + 0.1 * rate
        )
        text = self._describe(trainer.total_steps, step)
        if self._bar:
            self._bar.update(self._task, completed=step.step, description=text)
        elif step.step in (1, trainer.total_steps) or self._due():
            left = (trainer.total_steps - step.step) * step.seconds
            self.console.print(f"{text} · {left / 60:.0f} min left")
        if step.skipped:
            self.console.print(step.skip_notice(), markup=False)

    @override
    def on_evaluation(
        self, trainer: "StageA", epoch: float, scores: Scores, captions: dict[str, str]
    ) -> None:
        low, high = scores.cider_interval
        clip, caption = next(iter(captions.items()))
        self.console.print(
            f"epoch {epoch:.3g}: CIDEr {scores.cider:.1f} [{low:.1f}, {high:.1f}] on "
            f"{scores.n_clips} clips · {clip}: {caption!r}",
            markup=False,
        )

    def on_scoring(self, what: str, done: int, total: int) -> None:
        """Captions are being generated for an evaluation."""
        text = f"captioning with {what}: {done} of {total}"
        if self._bar:
            self._bar.update(self._task, description=text)
        elif self._due():
            self.console.print(text, markup=False)

    def close(self) -> None:
        """Give the terminal back; safe to call more than once."""
        if self._bar:
            self._bar.stop()
            self._bar = None

    @override
    def on_train_end(self, trainer: "StageA") -> None:
        self.close()
        if skipped := trainer.position.skipped:
            self.console.print(
                f"{skipped} of {trainer.position.step} steps were skipped, because loss or "
                "gradient was not finite; metrics.jsonl names their clips"
            )

    def _due(self) -> bool:
        if time.monotonic() - self._last_line < _PLAIN_SECONDS:
            return False
        self._last_line = time.monotonic()
        return True

    def _describe(self, total: int, step: Step) -> str:
        gates = " ".join(f"{value:.3f}" for value in step.gate.values())
        norms = step.grad_norm
        return (
            f"epoch {step.epoch:.2f}/{self.epochs} step {step.step}/{total} "
            f"loss {step.loss:.3f} gate {gates} "
            f"grad {norms['projector']:.2g}/{norms['adapter']:.2g} "
            f"{self._clips_per_second:.0f} clips/s"
        )

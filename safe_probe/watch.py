"""Probes while a run trains: a callback that writes ``runs/NAME/probes.jsonl``.

All probes look before the first step and after the last one, cheap ones in between.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer
from typing_extensions import override

from configs.errors import ConfigError
from configs.schema import OptimConfig
from probes import all_probes, get_probe
from probes.diagnosis import diagnose
from probes.findings.catalogue import catalogue
from probes.findings.finding import Severity
from probes.findings.judge import Verdict, judge
from probes.gates import gradient_of
from probes.record import Record, RecordLog, append_records
from safe import processes
from safe.models.safe_model import SAFEModel
from safe.training.batches import CaptionDataset, epoch_windows
from safe.training.callbacks import Callback, Step
from safe.training.experiment import Experiment
from safe.training.retention_texts import TextBatch
from safe.training.stage_a import StageA
from safe_probe.pictures import pictures_of

FILE_NAME = "probes.jsonl"
CHEAP = ("magnitude", "gates")
CLIPS = 16
LARGEST_BATCH = 8
HELD_OUT = ("influence",)
"""Probes that ask what the model has learned to hear, and not what it has learned by heart: they
look at the validation split."""


class ProbeWatch(Callback):
    """Runs all probes at both ends of a training, and cheap ones after step 1 and every N steps.

    In between, the gates' gradients are those of the step itself, all of its clips and before
    clipping; at both ends they are taken on the probes' own clips.

    The training is the same to the bit with and without it. An interrupted and resumed run has
    the file of an uninterrupted one. A probe that cannot measure leaves a ``not_measured`` row,
    as in :func:`safe_probe.diagnose`, and the training goes on. A tracker (``--track``) gets every
    record as a scalar.

    With several processes the first one measures; with a sharded backbone all of them do, in step,
    and the first one writes.

    Args:
        every: optimizer steps between two measurements; None for one epoch.
        probes: names of the cheap probes.
        ends: names of the probes before the first and after the last step; None for all.
        clips: how many clips to measure on: always the first of the first epoch, see
            :func:`watched_batches`.
        say: told before the first step when the signal path is broken already.

    Raises:
        ConfigError: ``every`` is below 1.
        ProbeError: there is no such probe.
    """

    runs_model = True

    def __init__(
        self,
        every: int | None = None,
        probes: Sequence[str] = CHEAP,
        ends: Sequence[str] | None = None,
        clips: int = CLIPS,
        say: Callable[[str], None] | None = None,
    ) -> None:
        if every is not None and every < 1:
            raise ConfigError(f"probes every {every} steps: must be at least 1, such as 50")
        ends = all_probes() if ends is None else ends
        for name in (*probes, *ends):
            get_probe(name)
        catalogue()  # another package's findings fail here too, and not after the training
        self.every, self.probes, self.ends = every, tuple(probes), tuple(ends)
        self.clips, self.say = clips, say
        self._file: Path | None = None
        self._writes = True
        self._experiment: Experiment | None = None
        self._gate_gradients: dict[int, torch.Tensor | None] | None = None
        self._trained_on: list[Any] = []
        self._held_out: list[Any] = []
        self._pictures: TextBatch | None = None

    @override
    def on_run_begin(self, folder: Path, experiment: Experiment) -> None:
        self._file, self._experiment = folder / FILE_NAME, experiment
        self._writes = processes.rank() == 0

    @override
    def on_train_begin(self, trainer: StageA) -> None:
        assert self._file is not None and self._experiment is not None, "on_run_begin comes first"
        self._trained_on = watched_batches(trainer.dataset, trainer.config, self.clips)
        self._held_out = watched_batches(self._experiment.held_out, trainer.config, self.clips)
        self._pictures = pictures_of(self._experiment)
        step = trainer.position.step
        if self._writes:
            _cut_back(self._file, step if step else -1)
        if step == 0:
            with _as_in_the_first_step(trainer.model):
                log = self._measure(trainer, self.ends)
            if self.say is not None:
                verdict = Verdict.of(judge(log))
                if verdict.severity is Severity.ERROR:
                    self.say(f"before the first step: {verdict}; Ctrl-C stops the training")

    @override
    def on_gradients(self, trainer: StageA, step: int) -> None:
        if self._due(trainer, step):
            blocks = trainer.model.fusion.blocks().items()
            self._gate_gradients = {i: gradient_of(b.residual.residual_scale) for i, b in blocks}

    @override
    def on_step_end(self, trainer: StageA, step: Step) -> None:
        if self._due(trainer, step.step):
            self._measure(trainer, self.probes)
            self._gate_gradients = None

    def _due(self, trainer: StageA, step: int) -> bool:
        every = self.every or trainer.steps_per_epoch
        return (step == 1 or step % every == 0) and step < trainer.total_steps

    @override
    def on_train_end(self, trainer: StageA) -> None:
        assert self._file is not None
        if self._writes:
            _cut_back(self._file, trainer.position.step - 1)  # of a process that was stopped here
        with _at_peak_rate(trainer.optimizer):
            self._measure(trainer, self.ends)

    def _measure(self, trainer: StageA, probes: Sequence[str]) -> list[Record]:
        assert self._file is not None
        trained = [name for name in probes if name not in HELD_OUT]
        log = [
            *self._records(trainer, trained, self._trained_on),
            *self._records(trainer, [n for n in probes if n in HELD_OUT], self._held_out),
            *([gate_at_end(trainer)] if "gates" in probes else []),
        ]
        if self._writes:
            append_records(self._file, log)
            scalars = {tag(record): record.value for record in log}
            # nobody listens by default
            trainer.accelerator.log(scalars, step=trainer.position.step)
        return log

    def _records(
        self, trainer: StageA, probes: Sequence[str], batches: Sequence[Any]
    ) -> Sequence[Record]:
        if not probes:
            return []
        assert self._experiment is not None
        with trainer.accelerator.autocast():  # as the training sees the model
            diagnosis = diagnose(
                trainer.model,
                batches,
                optimizer=trainer.optimizer,
                probes=probes,
                step=trainer.position.step,
                start=_gates_at_start(trainer),
                silence=torch.from_numpy(self._experiment.sounds.silence),
                pictures=self._pictures,
                clip_norm=trainer.config.clip_norm,
                gate_gradients=self._gate_gradients,
                in_step=trainer.in_step,
            )
        return diagnosis.log.records


def tag(record: Record) -> str:
    """Name of a record's series in a tracker, e.g. ``gates/gate@6/effective``."""
    layer = "" if record.layer is None else f"@{record.layer}"
    return f"{record.probe}/{record.component}{layer}/{record.statistic}"


@contextmanager
def _as_in_the_first_step(model: SAFEModel) -> Iterator[None]:
    """With the gate as far open as it will be then: before any step a warm-up keeps it shut."""
    gate = model.outer_gate
    before, steps = gate.warmup_step, gate.warmup_steps
    model.set_gate_warmup(min(1, steps), steps)
    try:
        yield
    finally:
        model.set_gate_warmup(before, steps)


@contextmanager
def _at_peak_rate(optimizer: Optimizer) -> Iterator[None]:
    """The learning rates of the configuration: at the end of its schedule no step moves much."""
    scheduled = [group["lr"] for group in optimizer.param_groups]
    try:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"]
        yield
    finally:
        for group, lr in zip(optimizer.param_groups, scheduled, strict=True):
            group["lr"] = lr


def gate_at_end(trainer: StageA) -> Record:
    """The outer gate at the last step, which the gates' own probe cannot know."""
    gate, last = trainer.model.outer_gate, trainer.total_steps
    value = gate.value * min(1.0, last / gate.warmup_steps if gate.warmup_steps else 1.0)
    step = trainer.position.step
    return Record(step, "gates", "gate", None, "outer_gate_at_end", value, "factor")


def batches_of(dataset: CaptionDataset, seed: int, count: int, size: int) -> list[Any]:
    """The first ``count`` micro-batches of ``size`` training examples, as a training draws them."""
    windows = epoch_windows(dataset.lengths(), size, 1, seed, epoch=0)
    return [dataset.batch(window[0]) for window in windows[:count]]


def watched_batches(dataset: CaptionDataset, config: OptimConfig, clips: int = CLIPS) -> list[Any]:
    """``clips`` training examples in batches of the training's own size, of 8 at most.

    Never larger than the training's: whoever made those small has no memory for more. But as many
    clips, in more batches: what is measured does not become noisier, and they cost a moment.
    """
    size = min(LARGEST_BATCH, config.batch_size, clips)
    return batches_of(dataset, config.seed, math.ceil(clips / size), size)


def _gates_at_start(trainer: StageA) -> dict[str, torch.Tensor]:
    """The gates' first values by name; from the configuration, which a resumed run knows too."""
    initial = trainer.model.config.fusion.gate_init
    return {
        f"fusion.{layer}.residual.residual_scale": torch.tensor(float(initial))
        for layer in trainer.model.fusion.blocks()
    }


def _cut_back(file: Path, step: int) -> None:
    """Drop the rows of later steps, which a resumed run measures again."""
    if not file.exists():
        return
    if step < 0:
        file.unlink()
        return
    kept = file.with_name(f".tmp-{file.name}")
    RecordLog(r for r in RecordLog.read(file) if r.step <= step).write(kept)
    kept.replace(file)

"""Probes while a run trains: a callback that writes ``runs/NAME/probes.jsonl``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from typing_extensions import override

from configs.errors import ConfigError
from probes import get_probe
from probes.diagnosis import diagnose
from probes.record import RecordLog, append_records
from safe.training.batches import CaptionDataset, epoch_windows
from safe.training.callbacks import Callback, Step
from safe.training.stage_a import StageA

FILE_NAME = "probes.jsonl"
CHEAP = ("magnitude", "gates")


class ProbeWatch(Callback):
    """Runs probes before the first step, after step 1 and after every ``every`` steps.

    The training is the same to the bit with and without it. An interrupted and resumed run has
    the file of an uninterrupted one. A probe that cannot measure leaves a ``not_measured`` row,
    as in :func:`safe_probe.diagnose`, and the training goes on.

    Args:
        every: optimizer steps between two measurements.
        probes: names of the probes to run.
        batches: how many micro-batches to measure on: always the first of the first epoch.
        batch_size: clips in each of them.

    Raises:
        ConfigError: ``every`` is below 1.
        ProbeError: there is no such probe.
    """

    def __init__(
        self, every: int, probes: Sequence[str] = CHEAP, batches: int = 1, batch_size: int = 8
    ) -> None:
        if every < 1:
            raise ConfigError(f"probes every {every} steps: must be at least 1, such as 50")
        for name in probes:
            get_probe(name)
        self.every, self.probes = every, tuple(probes)
        self.batches, self.batch_size = batches, batch_size
        self._file: Path | None = None
        self._measured_on: list[Any] = []

    @override
    def on_run_begin(self, folder: Path) -> None:
        self._file = folder / FILE_NAME

    @override
    def on_train_begin(self, trainer: StageA) -> None:
        if trainer.in_step:
            raise ConfigError(
                "a sharded backbone cannot be probed while it trains, because the main process "
                "would run forward passes alone; leave out --shard or --probe-every"
            )
        assert self._file is not None, "on_run_begin comes first"
        self._measured_on = batches_of(
            trainer.dataset, trainer.config.seed, self.batches, self.batch_size
        )
        step = trainer.position.step
        _cut_back(self._file, step if step else -1)
        if step == 0:
            self._measure(trainer)

    @override
    def on_step_end(self, trainer: StageA, step: Step) -> None:
        if step.step == 1 or step.step % self.every == 0:
            self._measure(trainer)

    def _measure(self, trainer: StageA) -> None:
        assert self._file is not None
        with trainer.accelerator.autocast():  # as the training sees the model
            diagnosis = diagnose(
                trainer.model,
                self._measured_on,
                optimizer=trainer.optimizer,
                probes=self.probes,
                step=trainer.position.step,
                start=_gates_at_start(trainer),
                clip_norm=trainer.config.clip_norm,
            )
        append_records(self._file, diagnosis.log)


def batches_of(dataset: CaptionDataset, seed: int, count: int, size: int) -> list[Any]:
    """The first ``count`` micro-batches of ``size`` training examples, as a training draws them."""
    windows = epoch_windows(dataset.lengths(), size, 1, seed, epoch=0)
    return [dataset.batch(window[0]) for window in windows[:count]]


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

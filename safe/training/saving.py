"""The checkpoints of one training: written between two steps, and put back after a stop."""

import time
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors.torch import save_file

from configs.errors import CheckpointError, SafeError
from safe import processes
from safe.models.adapter_files import load_adapter, save_pretrained
from safe.training.checkpoint import (
    latest_good,
    publish,
    set_aside,
    step_name,
    step_of,
)
from safe.training.rng import capture_rng
from safe.training.run_directory import ADAPTER_NAME, RunDirectory
from safe.training.run_files import evaluated_step
from safe.training.stage_a import StageA
from safe.training.state import (
    load_training_state,
    read_progress,
    read_tensors,
    save_training_state,
)

_SAVE_SECONDS = 600.0
"""A checkpoint at least this often, besides one after every epoch."""


class Saving:
    """Saves a training that several processes may share; the one with the run's folder writes."""

    def __init__(
        self, trainer: StageA, directory: RunDirectory | None, name: str, console: Console
    ) -> None:
        """Nothing is read or written yet.

        Args:
            trainer: whose position, weights and generators are saved.
            directory: the run's, on the main process; None on the others.
            name: of the configuration, written into every checkpoint.
            console: where it is told what was resumed.
        """
        self.trainer, self.directory, self.name, self.console = trainer, directory, name, console
        self._at, self._step = time.monotonic(), -1

    @property
    def due(self) -> bool:
        """Whether the last save of this process is so long ago that a stop would cost much."""
        return time.monotonic() - self._at > _SAVE_SECONDS

    def save(self) -> None:
        """Publish a checkpoint of the position between two steps, once per step."""
        step = self.trainer.position.step
        if step == self._step:
            return
        rng_states = processes.gather(capture_rng())
        if self.directory is not None:
            self.directory.sync_metrics()
            publish(
                self.directory.checkpoints,
                step_name(step),
                lambda folder: self._write(folder, rng_states),
                metadata={"step": step, "config": self.name},
            )
        self._at, self._step = time.monotonic(), step
        self.trainer.accelerator.wait_for_everyone()

    def restore(self) -> int:
        """Load the newest good checkpoint of the run, if it has one.

        Returns:
            The step at which the evaluation split was last scored; 0 when it was not.

        Raises:
            CheckpointError: it does not fit this training; names the good one before it.
        """
        found = (None, 0) if self.directory is None else self._newest(self.directory)
        folder, evaluated = processes.gather(found)[0]
        if folder is not None:
            try:
                self._load(folder)
            except SafeError as error:
                older, _ = latest_good(folder.parent, before=folder)
                hint = f"; rename {folder} to go on from {older.name}" if older else ""
                raise CheckpointError(f"cannot go on from {folder}: {error}{hint}") from error
        return evaluated

    def _write(self, folder: Path, rng_states: list[Any]) -> None:
        trainer = self.trainer
        save_pretrained(trainer.model, folder / ADAPTER_NAME)
        save_training_state(
            folder,
            optimizer=trainer.optimizer,
            named_parameters=trainer.parameters.items(),
            scheduler_step=trainer.position.step,
            progress=trainer.state(),
            rng_states=rng_states,
        )
        save_file(trainer.retention.state(), folder / "retention.safetensors")

    def _newest(self, directory: RunDirectory) -> tuple[Path | None, int]:
        """The one to go on from and the step last scored; what is damaged or later is put away."""
        folder, rejected = latest_good(directory.checkpoints)
        for path, reason in rejected:
            text = f"checkpoint {path.name} is damaged ({reason}): kept as {set_aside(path)}"
            self.console.print(text, markup=False)
            directory.log(text)
        step = None if folder is None else step_of(folder.name)
        directory.truncate_metrics(-1 if step is None else step)
        return folder, evaluated_step(directory)

    def _load(self, folder: Path) -> None:
        """Put everything that a checkpoint holds into the training."""
        trainer = self.trainer
        load_adapter(trainer.model, folder / ADAPTER_NAME)
        trainer.retention.load_state(read_tensors(folder / "retention.safetensors"))
        trainer.load_state(read_progress(folder))
        state = load_training_state(
            folder,
            optimizer=trainer.optimizer,
            named_parameters=trainer.parameters.items(),
            rank=trainer.accelerator.process_index,
        )
        self._step = trainer.position.step
        for note in state.notes:
            self.console.print(note, markup=False)
        self.console.print(
            f"resumed at step {trainer.position.step} of {trainer.total_steps} from {folder}",
            markup=False,
        )

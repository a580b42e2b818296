"""One run from its configuration to its verdict: train, checkpoint, resume, evaluate, save."""

import json
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from rich.console import Console
from safetensors.torch import load_file, save_file
from typing_extensions import override

from configs.errors import CheckpointError
from configs.schema import RunConfig
from safe.console import progress
from safe.evaluation.evaluate import Evaluation, Evaluator
from safe.evaluation.metrics import Scores
from safe.models.adapter_files import load_adapter, save_pretrained
from safe.training.callbacks import Callback, Step
from safe.training.checkpoint import latest_good, publish, set_aside, step_name
from safe.training.display import TrainingDisplay
from safe.training.durable import write_atomically
from safe.training.experiment import Experiment, prepare
from safe.training.interrupt import Interrupt
from safe.training.retention import build_retention
from safe.training.rng import capture_rng
from safe.training.run_directory import ADAPTER_NAME, RunDirectory, read_config
from safe.training.stage_a import StageA, TrainingDiverged
from safe.training.state import load_training_state, read_progress, save_training_state

_SAVE_SECONDS = 600.0
"""A checkpoint at least this often, besides one after every epoch."""


class Interrupted(Exception):
    """A signal asked the run to stop; everything is saved and the message says how to go on."""


@dataclass(frozen=True)
class Launch:
    """How a run is started, as opposed to what it is (its configuration)."""

    console: Console
    """Where to talk."""
    output: Path = Path("runs")
    """Folder of runs."""
    name: str | None = None
    """Folder name of the run; by default the config's name with date and time."""
    device: str = "auto"
    """"auto" (a GPU when there is one) or "cpu"."""
    track: str | None = None
    """"tensorboard" or "wandb": mirror the metrics there through accelerate."""


def start(config: RunConfig, explicit: Collection[str], launch: Launch) -> Evaluation | None:
    """Make a run folder and train in it; see :func:`resume` for what comes back."""
    accelerator = make_accelerator(config, launch)
    experiment = prepare(config, accelerator, launch.console, explicit)
    directory = None
    if accelerator.is_main_process:
        directory = RunDirectory.create(launch.output, launch.name, experiment.config.to_dict())
    return _run(experiment, accelerator, directory, launch)


def resume(path: Path, launch: Launch) -> Evaluation | None:
    """Go on with an interrupted run, from its newest good checkpoint, bit for bit on a CPU.

    Returns:
        The final evaluation, on the main process; None on the others.

    Raises:
        CheckpointError: no such run, or it is in use.
        Interrupted: a signal asked to stop; the state is saved.
        TrainingDiverged: too many steps in a row were not finite.
    """
    config = RunConfig.from_dict(read_config(path))
    accelerator = make_accelerator(config, launch)
    directory = RunDirectory.open(path) if accelerator.is_main_process else None
    experiment = prepare(config, accelerator, launch.console)
    return _run(experiment, accelerator, directory, launch)


def make_accelerator(config: RunConfig, launch: Launch) -> Accelerator:
    """The engine: device, precision, processes and trackers."""
    return Accelerator(
        cpu=launch.device == "cpu",
        mixed_precision=config.optim.precision,
        log_with=launch.track,
        project_dir=str(launch.output) if launch.track else None,
    )


class RunFiles(Callback):
    """Writes metrics, captions and trackers as the training goes."""

    def __init__(self, directory: RunDirectory, accelerator: Accelerator, track: str | None):
        self.directory, self.accelerator, self.track = directory, accelerator, track

    @override
    def on_step_end(self, trainer: StageA, step: Step) -> None:
        row = step.to_row()
        self.directory.log_metrics(row)
        if self.track:
            numbers = {k: v for k, v in row.items() if isinstance(v, int | float)}
            self.accelerator.log(numbers, step=step.step)

    @override
    def on_evaluation(
        self, trainer: StageA, epoch: int, scores: Scores, captions: dict[str, str]
    ) -> None:
        low, high = scores.cider_interval
        row = {
            "kind": "evaluation",
            "step": trainer.position.step,
            "epoch": epoch,
            "cider": scores.cider,
            "cider_low": low,
            "cider_high": high,
            "clips": scores.n_clips,
            "tokenizer": scores.tokenizer,
        }
        self.directory.log_metrics(row)
        write_captions(self.directory.captions / f"epoch-{epoch:03d}.jsonl", {"own": captions})
        if self.track:
            self.accelerator.log({"cider": scores.cider}, step=trainer.position.step)


def _run(
    experiment: Experiment,
    accelerator: Accelerator,
    directory: RunDirectory | None,
    launch: Launch,
) -> Evaluation | None:
    display = TrainingDisplay(launch.console, experiment.config.optim.epochs)
    callbacks: list[Callback] = [display]
    if directory is not None:
        callbacks.insert(0, RunFiles(directory, accelerator, launch.track))
        _write_json(
            directory.path / "problems.json", [p.to_dict() for p in experiment.sounds.problems]
        )
    if launch.track:
        accelerator.init_trackers("safe-probe", {"config": experiment.config.name})
    try:
        final = Evaluator(
            experiment.tokens,
            experiment.test,
            experiment.config.evaluation,
            experiment.config.optim.seed,
        )
        _ = final.pairing  # a test split that cannot be controlled for is an error before training
        _Training(experiment, accelerator, directory, callbacks, launch.console).run()
        return None if directory is None else _finish(experiment, final, directory, launch.console)
    finally:
        display.close()
        if launch.track:
            accelerator.end_training()
        if directory is not None:
            directory.close()


class _Training:
    """The loop over epochs with evaluations, checkpoints and signals."""

    def __init__(
        self,
        experiment: Experiment,
        accelerator: Accelerator,
        directory: RunDirectory | None,
        callbacks: list[Callback],
        console: Console,
    ) -> None:
        self.experiment, self.accelerator = experiment, accelerator
        self.directory, self.console = directory, console
        config = experiment.config
        self.trainer = StageA(
            experiment.model,
            experiment.dataset,
            config.optim,
            accelerator,
            build_retention(
                config.retention,
                experiment.model,
                experiment.tokens,
                experiment.train.embeddings,
                config.optim.seed,
            ),
            callbacks,
        )
        self.evaluator = Evaluator(
            experiment.tokens, experiment.validation, config.evaluation, config.optim.seed
        )
        self._saved_at = time.monotonic()

    def run(self) -> None:
        """Train to the end, or raise Interrupted after saving."""
        self._restore()
        trainer = self.trainer
        with Interrupt() as interrupt:
            for callback in trainer.callbacks:
                callback.on_train_begin(trainer)
            while True:
                epoch_over = trainer.position.window == 0 and trainer.position.epoch > 0
                if epoch_over or trainer.done:
                    self._evaluate()
                    self._save()
                if self._stop_requested(interrupt):
                    self._save()
                    raise Interrupted(self._how_to_go_on(interrupt.signal_name))
                if trainer.done:
                    break
                self._advance()
            for callback in trainer.callbacks:
                callback.on_train_end(trainer)

    def _advance(self) -> None:
        try:
            self.trainer.advance()
        except TrainingDiverged as error:
            self._save()
            raise TrainingDiverged(f"{error}; the last finite state is saved") from None
        due = time.monotonic() - self._saved_at > _SAVE_SECONDS
        if due and self.trainer.position.window > 0:  # at an epoch's end the loop saves anyway
            self._save()

    def _evaluate(self) -> None:
        position = self.trainer.position
        if position.evaluated == position.epoch:
            return
        every = self.experiment.config.evaluation.every_epochs
        if self.directory is not None and (position.epoch % every == 0 or self.trainer.done):
            scores, captions = self.evaluator.quick(self.experiment.model)
            for callback in self.trainer.callbacks:
                callback.on_evaluation(self.trainer, position.epoch, scores, captions)
        self.accelerator.wait_for_everyone()
        position.evaluated = position.epoch

    def _save(self) -> None:
        """Publish a checkpoint of the position between two steps."""
        rng_states = gather_object([capture_rng()])
        step = self.trainer.position.step
        if self.directory is not None:
            self.directory.sync_metrics()
            publish(
                self.directory.checkpoints,
                step_name(step),
                lambda folder: self._write(folder, rng_states),
                metadata={"step": step, "config": self.experiment.config.name},
            )
        self._saved_at = time.monotonic()
        self.accelerator.wait_for_everyone()

    def _write(self, folder: Path, rng_states: list[Any]) -> None:
        trainer = self.trainer
        save_pretrained(trainer.model, folder / "adapter")
        save_training_state(
            folder,
            optimizer=trainer.optimizer,
            named_parameters=trainer.parameters.items(),
            scheduler_step=trainer.scheduler.last_epoch,
            progress=trainer.state(),
            rng_states=rng_states,
        )
        save_file(trainer.retention.state(), folder / "retention.safetensors")

    def _restore(self) -> None:
        """Load the newest good checkpoint of the run, if it has one."""
        trainer = self.trainer
        folder = None
        if self.directory is not None:
            folder, rejected = latest_good(self.directory.checkpoints)
            for path, reason in rejected:
                aside = set_aside(path)
                self.console.print(f"checkpoint {path.name} is damaged ({reason}): see {aside}")
            self.directory.truncate_metrics(-1 if folder is None else _step_of(folder))
        folder = gather_object([folder])[0]
        if folder is None:
            return
        load_adapter(trainer.model, folder / "adapter")
        trainer.retention.load_state(load_file(folder / "retention.safetensors"))
        trainer.load_state(read_progress(folder))
        state = load_training_state(
            folder,
            optimizer=trainer.optimizer,
            named_parameters=trainer.parameters.items(),
            rank=self.accelerator.process_index,
        )
        for note in state.notes:
            self.console.print(note, markup=False)
        self.console.print(
            f"resumed at step {trainer.position.step} of {trainer.total_steps} from {folder}",
            markup=False,
        )

    def _stop_requested(self, interrupt: Interrupt) -> bool:
        """Whether any process was asked to stop; all processes get the same answer."""
        if self.accelerator.num_processes == 1:
            return interrupt.requested
        return any(gather_object([interrupt.requested]))

    def _how_to_go_on(self, signal_name: str | None) -> str:
        position, total = self.trainer.position, self.trainer.total_steps
        where = "RUN" if self.directory is None else self.directory.path
        return (
            f"{signal_name or 'a signal'} received: saved at step {position.step} of {total}; "
            f"go on with: safe-train {self.experiment.config.name} --resume {where}"
        )


def _finish(
    experiment: Experiment, evaluator: Evaluator, directory: RunDirectory, console: Console
) -> Evaluation:
    """Save the adapter, score the test split with its controls, write evaluation.json."""
    publish(
        directory.path,
        ADAPTER_NAME,
        lambda folder: save_pretrained(experiment.model, folder),
        metadata={"config": experiment.config.name},
    )
    with progress(console, "captioning the test split") as show:
        evaluation = evaluator.full(
            experiment.model,
            experiment.train,
            experiment.sounds.silence,
            lambda _, done, total: show(done, total),
        )
    write_evaluation(directory.path, evaluation)
    return evaluation


def write_evaluation(folder: Path, evaluation: Evaluation) -> None:
    """evaluation.json and captions/final.jsonl in ``folder``."""
    (folder / "captions").mkdir(parents=True, exist_ok=True)
    write_captions(folder / "captions" / "final.jsonl", evaluation.captions)
    _write_json(folder / "evaluation.json", evaluation.to_dict())


def write_captions(path: Path, captions: dict[str, dict[str, str]]) -> None:
    """One JSON line per clip: its id and its caption under each condition."""
    clips = list(next(iter(captions.values())))
    rows = [
        {"clip": clip, **{name: texts[clip] for name, texts in captions.items()}} for clip in clips
    ]
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _step_of(folder: Path) -> int:
    position = read_progress(folder)["position"]
    step = position.get("step")
    if not isinstance(step, int):
        raise CheckpointError(f"{folder} has no step number in its training state")
    return step

"""One run from its configuration to its verdict: train, resume, evaluate."""

import shlex
from collections.abc import Collection
from contextlib import ExitStack, nullcontext
from pathlib import Path

from accelerate import Accelerator

from configs.errors import SafeError
from configs.follow_up import command_name
from configs.overrides import dotted_fields
from configs.schema import RunConfig
from configs.yaml_text import dump_yaml
from safe import processes
from safe.console import progress
from safe.data.splits import Split
from safe.evaluation.evaluate import Evaluation, Evaluator, Progress
from safe.evaluation.unscored import Unscored
from safe.models.adapter_files import save_pretrained
from safe.training.callbacks import Callback
from safe.training.checkpoint import publish
from safe.training.display import TrainingDisplay
from safe.training.experiment import Experiment, prepare
from safe.training.heartbeat import Heartbeat
from safe.training.interrupt import Interrupt, Interrupted
from safe.training.launch import Launch, engine
from safe.training.preflight import check_room
from safe.training.resources import Resources
from safe.training.retention import build_retention
from safe.training.run_directory import ADAPTER_NAME, RunDirectory, check_new_run, read_config
from safe.training.run_files import RunFiles, tracked_values, write_evaluation, write_json
from safe.training.saving import Saving
from safe.training.stage_a import StageA, TrainingDiverged


class _EvaluationCut(Exception):
    """A signal arrived while captions were generated; the evaluation starts anew on resume."""


def start(
    config: RunConfig,
    explicit: Collection[str],
    launch: Launch,
    callbacks: Collection[Callback] = (),
) -> Evaluation | None:
    """Make a run folder and train in it.

    Args:
        config: what to run.
        explicit: dotted keys that the user set and that are therefore taken literally.
        launch: how to run it.
        callbacks: further watchers.

    Returns:
        The final evaluation, on the main process; None on the others.

    Raises:
        SafeError: something of the user's input is wrong; most of it before there is a folder.
        Interrupted: a signal asked to stop; the state is saved.
        TrainingDiverged: too many steps in a row were not finite.
    """
    check_new_run(launch.output, launch.name)
    config, accelerator = engine(config, launch)
    with Interrupt() as interrupt, Heartbeat(interrupt) as heartbeat:
        experiment = prepare(
            config, accelerator, launch.console, explicit, shard=launch.shard, interrupt=interrupt
        )
        final = _final_evaluator(experiment)
        launch.console.print(dump_yaml(experiment.config), markup=False)
        directory = (
            RunDirectory.create(launch.output, launch.name, experiment.config.to_dict())
            if accelerator.is_main_process
            else nullcontext()
        )
        with directory as d:
            if d is not None:
                heartbeat.tell = d.log
            return _run(experiment, final, accelerator, d, launch, callbacks, interrupt)


def resume(path: Path, launch: Launch, callbacks: Collection[Callback] = ()) -> Evaluation | None:
    """Go on with an interrupted run, from its newest good checkpoint, bit for bit on a CPU.

    Returns, and raises, what :func:`start` does.

    Raises:
        CheckpointError: no such run, it is in use, or it does not fit this program.
    """
    config, accelerator = engine(RunConfig.from_dict(read_config(path)), launch)
    with Interrupt() as interrupt, Heartbeat(interrupt) as heartbeat, ExitStack() as stack:
        directory = None
        if accelerator.is_main_process:
            directory = stack.enter_context(RunDirectory.open(path))
            heartbeat.tell = directory.log
        # a saved configuration was adapted when the run began and is taken as it is
        experiment = prepare(
            config,
            accelerator,
            launch.console,
            dotted_fields(),
            shard=launch.shard,
            interrupt=interrupt,
        )
        final = _final_evaluator(experiment)
        return _run(experiment, final, accelerator, directory, launch, callbacks, interrupt)


def _final_evaluator(experiment: Experiment) -> Evaluator:
    final = _evaluator(experiment, experiment.test)
    # a test split that cannot be scored is an error before training, not after
    final.check(experiment.train)
    return final


def _evaluator(experiment: Experiment, split: Split) -> Evaluator:
    config = experiment.config
    return Evaluator(
        experiment.tokens, split, config.evaluation, config.optim.seed, in_step=experiment.sharded
    )


def _run(
    experiment: Experiment,
    final: Evaluator,
    accelerator: Accelerator,
    directory: RunDirectory | None,
    launch: Launch,
    watchers: Collection[Callback],
    interrupt: Interrupt,
) -> Evaluation | None:
    display = TrainingDisplay(launch.console, experiment.config.optim.epochs)
    callbacks: list[Callback] = [c for c in watchers if c.runs_model and experiment.sharded]
    folder = processes.gather(None if directory is None else directory.path)[0]
    assert folder is not None
    with ExitStack() as stack:
        stack.callback(display.close)
        if directory is not None:
            files = RunFiles(directory, accelerator, launch.track)
            callbacks = [files, Resources(), display, *watchers]
        for callback in callbacks:
            callback.on_run_begin(folder, experiment)
        if directory is not None:
            problems = [p.to_dict() for p in experiment.sounds.problems]
            write_json(directory.path / "problems.json", problems)
        if launch.track:
            accelerator.init_trackers("safe-probe", tracked_values(experiment.config))
            stack.callback(accelerator.end_training)
        training = _Training(experiment, accelerator, directory, callbacks, display, interrupt)
        try:
            training.run()
            return training.finish(final)
        except (Interrupted, TrainingDiverged, SafeError) as error:
            if directory is not None:
                directory.log(str(error))
            raise


class _Training:
    """The loop over epochs with evaluations, checkpoints and signals."""

    def __init__(
        self,
        experiment: Experiment,
        accelerator: Accelerator,
        directory: RunDirectory | None,
        callbacks: list[Callback],
        display: TrainingDisplay,
        interrupt: Interrupt,
    ) -> None:
        self.experiment, self.accelerator = experiment, accelerator
        self.directory, self.display, self.interrupt = directory, display, interrupt
        self.console = display.console
        config = experiment.config
        self.evaluator = _evaluator(experiment, experiment.validation)
        retention = build_retention(
            config.retention,
            experiment.model,
            experiment.tokens,
            experiment.train.embeddings,
            config.optim.seed,
        )
        self.trainer = StageA(
            experiment.model, experiment.dataset, config.optim, accelerator, retention, callbacks
        )
        self.trainer.in_step = experiment.sharded
        self.saving = Saving(self.trainer, directory, config.name, self.console)
        self._evaluated = 0  # the step at which the evaluation split was last scored

    def run(self) -> None:
        """Train to the end, or raise Interrupted after saving."""
        self._evaluated = self.saving.restore()
        trainer = self.trainer
        if self.directory is not None:
            check_room(self.directory.checkpoints, trainer.parameters.values())
        for callback in trainer.callbacks:
            callback.on_train_begin(trainer)
        while True:
            epoch_over = trainer.position.window == 0 and trainer.position.epoch > 0
            if epoch_over or trainer.done:
                self.saving.save()
                self._evaluate()
            if self._stop_requested():
                self.saving.save()
                raise Interrupted(self._how_to_go_on())
            if trainer.done:
                break
            self._advance()
        for callback in trainer.callbacks:
            callback.on_train_end(trainer)

    def finish(self, final: Evaluator) -> Evaluation | None:
        """Save the adapter, score the test split with its controls, write evaluation.json.

        Every process captions its share; the main one scores and returns the evaluation.
        """
        experiment, unscored = self.experiment, None
        if self.directory is not None:
            adapter = publish(
                self.directory.path,
                ADAPTER_NAME,
                lambda folder: save_pretrained(experiment.model, folder),
                metadata={"config": experiment.config.name},
            )
            unscored = Unscored.of(
                (self.directory.path,), adapter, final.split, final.config, final.seed
            )
        try:
            with progress(self.console, "captioning the test split with") as show:
                evaluation = final.full(
                    experiment.model,
                    experiment.train,
                    experiment.sounds.silence,
                    self._unless_stopped(lambda what, done, total: show(done, total, what)),
                    unscored,
                )
        except _EvaluationCut:
            raise Interrupted(self._how_to_go_on()) from None
        if self.directory is None or evaluation is None:
            return None
        write_evaluation(self.directory.path, evaluation, final.split)
        if unscored is not None:
            unscored.done()
        self.directory.log(f"score {evaluation.verdict.outcome}: {evaluation.verdict.reason}")
        return evaluation

    def _advance(self) -> None:
        try:
            self.trainer.advance()
        except TrainingDiverged as error:
            self.saving.save()
            raise TrainingDiverged(f"{error}; the last finite state is saved") from None
        if self._on_any_process(self.saving.due) and self.trainer.position.window > 0:
            self.saving.save()  # at an epoch's end the loop saves anyway

    def _evaluate(self) -> None:
        """Score the evaluation split, captioned by all processes; a signal cuts it short."""
        step, epoch = self.trainer.position.step, self.trainer.epochs
        due = epoch % self.experiment.config.evaluation.every_epochs == 0 or self.trainer.done
        if due and self._evaluated < step:
            try:
                scored = self.evaluator.quick(
                    self.experiment.model, self._unless_stopped(self.display.on_scoring)
                )
            except _EvaluationCut:
                pass  # the loop sees the same signal next
            else:
                if scored is not None:
                    for callback in self.trainer.callbacks:
                        callback.on_evaluation(self.trainer, epoch, *scored)
                self._evaluated = step
        self.accelerator.wait_for_everyone()

    def _unless_stopped(self, show: Progress) -> Progress:
        """A progress function that ends an evaluation when a signal has arrived."""

        def report(what: str, done: int, total: int) -> None:
            if self._stop_requested():
                raise _EvaluationCut
            show(what, done, total)

        return report

    def _stop_requested(self) -> bool:
        return self._on_any_process(self.interrupt.requested)

    def _on_any_process(self, here: bool) -> bool:
        """Whether something holds on any process; all of them get the same answer."""
        return any(processes.gather(here))

    def _how_to_go_on(self) -> str:
        position, total = self.trainer.position, self.trainer.total_steps
        where = "RUN" if self.directory is None else shlex.quote(str(self.directory.path))
        command = command_name(self.experiment.config)
        return (
            f"{self.interrupt.signal_name or 'a signal'} received: saved at step {position.step} "
            f"of {total}; go on with: safe-train {command} --resume {where}"
        )

"""Score what was saved: a run, or one of its checkpoints."""

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from configs.errors import CheckpointError
from configs.overrides import dotted_fields
from configs.schema import RunConfig
from safe import processes
from safe.checkpoint_manifest import verify
from safe.console import progress
from safe.evaluation.evaluate import Evaluation, Evaluator
from safe.evaluation.unscored import Unscored
from safe.models.adapter_files import load_adapter
from safe.training.checkpoint import latest_good
from safe.training.experiment import prepare
from safe.training.heartbeat import Heartbeat
from safe.training.interrupt import Interrupt
from safe.training.launch import Launch, engine
from safe.training.run_directory import ADAPTER_NAME, read_config
from safe.training.run_files import write_evaluation


def evaluate_saved(
    checkpoint: Path,
    console: Console,
    *,
    data: str | None = None,
    split: str | None = None,
    output: Path | None = None,
    device: str = "auto",
    shard: bool = False,
) -> tuple[Evaluation, Path] | None:
    """Load an adapter into its backbone and evaluate it with all controls.

    Args:
        checkpoint: a run folder (its finished adapter, or its newest good checkpoint) or one
            folder below ``checkpoints/``.
        console: where to talk.
        data: other data than the run's own.
        split: split to score; by default the run's test split.
        output: folder of the results; by default ``RUN/evaluations/NAME-SPLIT``
            (``NAME-DATA-SPLIT`` with other data).
        device: "auto", "cpu", "cuda" or "cuda:N".
        shard: split the frozen backbone over the processes.

    Returns:
        The evaluation and the folder it was written to; None in all processes but the first.

    Raises:
        CheckpointError: nothing usable there.
        Interrupted: a signal arrived.
    """
    run, adapter = find_adapter(checkpoint)
    config = RunConfig.from_dict(read_config(run))
    root = config.data.root if data is None else data
    scored = config.data.test_split if split is None else split
    config = replace(config, data=replace(config.data, root=root, test_split=scored))
    config, accelerator = engine(config, Launch(console=console, device=device, shard=shard))
    name = adapter.name if adapter.name == ADAPTER_NAME else adapter.parent.name
    heard = scored if data is None else f"{Path(data).resolve().name}-{scored}"
    folder = output or run / "evaluations" / f"{name}-{heard}"
    unscored = None
    with Interrupt() as interrupt, Heartbeat(interrupt):
        experiment = prepare(
            config, accelerator, console, dotted_fields(), shard=shard, interrupt=interrupt
        )
        load_adapter(experiment.model, adapter)
        console.print(f"evaluating {adapter}", markup=False)
        evaluator = Evaluator(
            experiment.tokens, experiment.test, config.evaluation, config.optim.seed,
            in_step=experiment.sharded,
        )  # fmt: skip
        if processes.rank() == 0:
            unscored = Unscored.of(
                (folder, run), adapter, evaluator.split, config.evaluation, config.optim.seed
            )
            if unscored.load() is not None:
                console.print("captions that wait for their scores are there; none is made again")
        with progress(console, f"captioning {scored} with") as show:
            heed = interrupt.heed(show, "nothing was written")
            evaluation = evaluator.full(
                experiment.model,
                experiment.train,
                experiment.sounds.silence,
                lambda what, done, total: heed(done, total, what),
                unscored,
            )
    if evaluation is None or unscored is None:
        return None
    write_evaluation(folder, evaluation, evaluator.split)
    unscored.done()
    return evaluation, folder.resolve()


def find_adapter(checkpoint: Path) -> tuple[Path, Path]:
    """The run folder and the adapter folder that ``checkpoint`` means, its sums verified.

    Raises:
        CheckpointError: neither a run nor a checkpoint, or none of the run's is usable.
    """
    path = Path(checkpoint).resolve()
    if path.parent.name == "checkpoints":
        verify(path)
        return path.parent.parent, path / ADAPTER_NAME
    read_config(path)
    if (path / ADAPTER_NAME).is_dir():
        verify(path / ADAPTER_NAME)
        return path, path / ADAPTER_NAME
    newest, rejected = latest_good(path / "checkpoints")
    if newest is None:
        damaged = "".join(f"; {bad} is damaged: {reason}" for bad, reason in rejected)
        raise CheckpointError(f"{path} has neither a finished adapter nor a checkpoint{damaged}")
    return path, newest / ADAPTER_NAME

"""Back to the baseline: the seed's rollback plan as a config difference and a command."""

import shlex
from pathlib import Path

from configs import follow_up
from configs.plain_text import plain
from configs.schema import RunConfig
from safe.training.run_directory import read_config


def rolled_back(run: Path) -> tuple[RunConfig, frozenset[str]]:
    """The baseline that follows ``run``, and the keys it keeps.

    Raises:
        CheckpointError: no run folder.
    """
    return follow_up.rolled_back(_begun(run))


def describe(run: Path, output: Path = Path("runs")) -> str:
    """What changes, and the command that does it.

    Args:
        run: the run's folder.
        output: folder of runs that the baseline is to be started in.
    """
    begun = _begun(run)
    baseline, _ = follow_up.rolled_back(begun)
    where = [] if output == Path("runs") else ["--output", str(output)]
    apply = ["safe-train", "rollback", str(run), "--apply", *where]
    return "\n".join(
        plain(line)
        for line in (
            f"rollback of {run} to the baseline {baseline.name!r}, on its backbone of "
            f"{begun.model.num_layers} layers and with its data, epochs and clips per step:",
            *(f"  {k}: {old} -> {new}" for k, old, new in follow_up.rollback_differences(begun)),
            f"start it with: {shlex.join(apply)}",
            f"which is: {shlex.join([*follow_up.command_line(baseline), *where])}",
        )
    )


def _begun(run: Path) -> RunConfig:
    return RunConfig.from_dict(read_config(run))

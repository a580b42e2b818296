"""Back to the baseline: the seed's rollback plan as a config difference and a command."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.adapt import adapt_to_backbone, with_effective_batch
from configs.model_configs import get_config
from configs.overrides import apply_values, flatten
from configs.schema import RunConfig
from safe.training.run_directory import read_config

BASELINE = "full"
_FLAGS = {
    "model.backbone": "--backbone",
    "model.audio_encoder": "--audio-encoder",
    "data.root": "--data",
    "optim.epochs": "--epochs",
    "optim.seed": "--seed",
}
"""What a rollback takes over from the run, and its options: pieces, data and amount of training,
so that the two can be compared; not settings."""
_UNSAID = ("name", "description", "model.hidden_size", "model.num_layers")


def rolled_back(run: Path) -> tuple[RunConfig, frozenset[str]]:
    """The baseline with the pieces, data, epochs and clips per step of ``run``, and the keys kept.

    What makes a run a blind control (``data.audio``) is not kept: the baseline listens.

    Raises:
        CheckpointError: no run folder.
    """
    begun = _run_config(run)
    values = _flat(begun.to_dict())
    kept = {key: value for key, value in values.items() if _is_kept(key)}
    baseline = apply_values(get_config(BASELINE), kept)
    return with_effective_batch(baseline, begun.optim.effective_batch), frozenset(kept)


def describe(run: Path, baseline: RunConfig, output: Path = Path("runs")) -> str:
    """What changes, and the command that does it.

    Args:
        run: the run's folder.
        baseline: what :func:`rolled_back` made of it.
        output: folder of runs that the baseline is to be started in.
    """
    begun = _run_config(run)
    model = begun.model
    # as it will run: on the run's own backbone
    adapted, _ = adapt_to_backbone(baseline, model.hidden_size, model.num_layers, model.backbone)
    before, after = _flat(begun.to_dict()), _flat(adapted.to_dict())
    changed = [
        f"  {key}: {before[key]} -> {after[key]}"
        for key in after
        if before[key] != after[key] and key not in _UNSAID
    ]
    where = [] if output == Path("runs") else ["--output", str(output)]
    apply = ["safe-train", "rollback", str(run), "--apply", *where]
    return "\n".join(
        [
            f"rollback of {run} to the baseline {BASELINE!r}, on its backbone of "
            f"{model.num_layers} layers and with its data, epochs and clips per step:",
            *changed,
            f"start it with: {shlex.join(apply)}",
            f"which is: {shlex.join([*_command(baseline), *where])}",
        ]
    )


def _run_config(run: Path) -> RunConfig:
    return RunConfig.from_dict(read_config(run))


def _command(baseline: RunConfig) -> list[str]:
    """The baseline with what it takes over from the run, as a command line."""
    usual_config = get_config(BASELINE)
    usual, values = _flat(usual_config.to_dict()), _flat(baseline.to_dict())
    words = ["safe-train", BASELINE]
    for key, flag in _FLAGS.items():
        words += [flag, str(values[key])]
    if baseline.optim.effective_batch != usual_config.optim.effective_batch:
        words += ["--effective-batch", str(baseline.optim.effective_batch)]
    for key in values:
        if _is_kept(key) and key not in _FLAGS and values[key] != usual[key]:
            words += ["--set", f"{key}={values[key]}"]
    return words


def _is_kept(key: str) -> bool:
    """Whether the baseline takes the value of ``key`` over from the run."""
    if key.startswith("data."):
        return key != "data.audio"
    return key in _FLAGS or key == "optim.max_steps"


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mapping to dotted keys; lists as tuples so that both sides compare."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in flatten(tree)}

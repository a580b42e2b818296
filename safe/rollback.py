"""Back to the baseline: the seed's rollback plan as a config difference and a command."""

import shlex
from pathlib import Path
from typing import Any

from configs.model_configs import get_config
from configs.overrides import apply_values
from configs.schema import RunConfig
from safe.training.run_directory import read_config

BASELINE = "full"
_FLAGS = {
    "model.backbone": "--backbone",
    "model.audio_encoder": "--audio-encoder",
    "data.root": "--data",
    "optim.seed": "--seed",
}
"""What a rollback takes over from the run, and its options: pieces and data, not settings."""


def rolled_back(run: Path) -> tuple[RunConfig, frozenset[str]]:
    """The baseline with the pieces and data of ``run``, and the keys taken over.

    Raises:
        CheckpointError: no run folder.
    """
    values = _flat(RunConfig.from_dict(read_config(run)).to_dict())
    kept = {key: values[key] for key in values if key in _FLAGS or key.startswith("data.")}
    return apply_values(get_config(BASELINE), kept), frozenset(kept)


def describe(run: Path, baseline: RunConfig) -> str:
    """What changes, and the command that does it."""
    before, after = _flat(read_config(run)), _flat(baseline.to_dict())
    changed = [
        f"  {key}: {before.get(key)} -> {after[key]}"
        for key in after
        if before.get(key) != after[key]
        and key not in ("name", "description", "model.hidden_size", "model.num_layers")
    ]
    return "\n".join(
        [
            f"rollback of {run} to the baseline {BASELINE!r} (its values for a 40-layer backbone; "
            "they are adapted to this one when it starts):",
            *changed,
            f"start it with: {shlex.join(['safe-train', 'rollback', str(run), '--apply'])}",
            f"which is: {_command(after)}",
        ]
    )


def _command(values: dict[str, Any]) -> str:
    """The baseline with what it takes over from the run, as a command line."""
    usual = _flat(get_config(BASELINE).to_dict())
    words = ["safe-train", BASELINE]
    for key, flag in _FLAGS.items():
        words += [flag, str(values[key])]
    for key in values:
        if key.startswith("data.") and key not in _FLAGS and values[key] != usual[key]:
            words += ["--set", f"{key}={values[key]}"]
    return shlex.join(words)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping to dotted keys; lists as tuples so that both sides compare."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = tuple(value) if isinstance(value, list) else value
    return flat

"""Back to the baseline: the seed's rollback plan as a config difference and a command."""

from pathlib import Path
from typing import Any

from configs.model_configs import get_config
from configs.overrides import apply_values
from configs.schema import RunConfig
from safe.training.run_directory import read_config

BASELINE = "full"
_KEPT = ("model.backbone", "model.audio_encoder", "data.root", "optim.seed")
"""What a rollback takes over from the run: the same pieces and data, not the settings."""


def rolled_back(run: Path) -> tuple[RunConfig, frozenset[str]]:
    """The baseline with the pieces and data of ``run``, and the keys taken over.

    Raises:
        CheckpointError: no run folder.
    """
    values = _flat(RunConfig.from_dict(read_config(run)).to_dict())
    kept = {key: values[key] for key in _KEPT}
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
    command = (
        f"safe-train {BASELINE} --backbone {baseline.model.backbone} "
        f"--audio-encoder {baseline.model.audio_encoder} --data {baseline.data.root} "
        f"--seed {baseline.optim.seed}"
    )
    return "\n".join(
        [
            f"rollback of {run} to the baseline {BASELINE!r} (its values for a 40-layer backbone; "
            "they are adapted to this one when it starts):",
            *changed,
            f"start it with: safe-train rollback {run} --apply",
            f"which is: {command}",
        ]
    )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping to dotted keys; lists as tuples so that both sides compare."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = tuple(value) if isinstance(value, list) else value
    return flat

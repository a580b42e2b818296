"""What comes after a run: another config on its pieces and data, as a command line.

A run follows another one on the same backbone, audio encoder and data, so that the two can be
compared; a rollback keeps the amount of training as well.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from configs.adapt import adapt_to_backbone, with_effective_batch
from configs.model_configs import CONFIGS, get_config
from configs.overrides import apply_values, flatten
from configs.schema import RunConfig

BASELINE = "full"
"""Where a rollback leads to. Source: seed, "Rollback Plan"."""
NEXT_PHASE = "phase2"
"""What follows a verified Phase 1. Source: seed, "Phase 2 Preview"."""
_FLAGS = {
    "model.backbone": "--backbone",
    "model.audio_encoder": "--audio-encoder",
    "data.root": "--data",
    "optim.epochs": "--epochs",
    "optim.seed": "--seed",
}
"""Options of ``safe-train`` for what a run takes over from the one before."""
_AMOUNT = ("optim.epochs", "optim.max_steps")
_UNSAID = ("name", "description", "model.hidden_size", "model.num_layers")


def rolled_back(begun: RunConfig) -> tuple[RunConfig, frozenset[str]]:
    """The baseline with the pieces, data, epochs and clips per step of a run, and the keys kept.

    What makes a run a blind control (``data.audio``) is not kept: the baseline listens.
    """
    return _followed(begun, BASELINE, _kept(begun))


def following(begun: RunConfig, name: str) -> RunConfig:
    """The config ``name`` with the pieces and data of a run; it trains for as long as it says."""
    kept = {key: value for key, value in _kept(begun).items() if key not in _AMOUNT}
    return _followed(begun, name, kept)[0]


def advanced(begun: RunConfig) -> list[str]:
    """The command of Phase 2 after a run: its pieces and data, and what it had set by itself."""
    words = command_line(following(begun, NEXT_PHASE))
    phase1, phase2 = (flat(get_config(name)) for name in ("phase1", NEXT_PHASE))
    own = {
        key: value for key, (_, value) in own_settings(begun).items()
        if key.startswith("model.") and phase1[key] == phase2[key]
    }  # fmt: skip
    for key, value in own.items():
        words += ["--set", f"{key}={_text(value)}"]
    return words


def command_name(config: RunConfig) -> str:
    """The command of ``safe-train`` for a run; when it resumes any will do, the run decides."""
    return config.name if config.name in CONFIGS else next(iter(CONFIGS))


def own_settings(begun: RunConfig) -> dict[str, tuple[Any, Any]]:
    """What a run had set by itself: dotted key to the value of its config and its own."""
    name = command_name(begun)
    fresh, _ = _followed(begun, name, _kept(begun))
    values, usual = flat(begun), flat(_on_its_backbone(fresh, begun))
    return {k: (usual[k], v) for k, v in values.items() if k not in _UNSAID and v != usual[k]}


def mended(begun: RunConfig, changes: Mapping[str, Any]) -> list[str]:
    """The command that repeats a run with some values changed.

    Args:
        begun: the run's configuration, as it was adapted to its backbone.
        changes: dotted keys and their new values.
    """
    name = command_name(begun)
    own = {key: value for key, (_, value) in own_settings(begun).items()} | dict(changes)
    # what has an option of its own is said by it: an option is stronger than --set
    taken_over = _kept(begun) | {key: own.pop(key) for key in list(own) if _is_kept(key)}
    words = command_line(_followed(begun, name, taken_over)[0])
    for key, value in own.items():
        words += ["--set", f"{key}={_text(value)}"]
    return words


def differences(before: RunConfig, after: RunConfig) -> list[tuple[str, Any, Any]]:
    """Dotted key with its values in both, where they differ."""
    old, new = flat(before), flat(after)
    return [(k, old[k], new[k]) for k in new if old[k] != new[k] and k not in _UNSAID]


def rollback_differences(begun: RunConfig) -> list[tuple[str, Any, Any]]:
    """What a rollback changes, on the run's own backbone."""
    return differences(begun, _on_its_backbone(rolled_back(begun)[0], begun))


def command_line(config: RunConfig) -> list[str]:
    """``safe-train`` with what a followed-up config takes over from the run before it."""
    usual_config = get_config(config.name)
    usual, values = flat(usual_config), flat(config)
    words = ["safe-train", config.name]
    for key, flag in _FLAGS.items():
        if values[key] != usual[key] or key not in _AMOUNT:
            words += [flag, str(values[key])]
    if config.optim.effective_batch != usual_config.optim.effective_batch:
        words += ["--effective-batch", str(config.optim.effective_batch)]
    for key in values:
        if _is_kept(key) and key not in _FLAGS and values[key] != usual[key]:
            words += ["--set", f"{key}={_text(values[key])}"]
    return words


def flat(config: RunConfig) -> dict[str, Any]:
    """Dotted key to value; lists as tuples so that configs compare."""
    pairs = flatten(config.to_dict())
    return {k: tuple(v) if isinstance(v, list) else v for k, v in pairs}


def _followed(
    begun: RunConfig, name: str, kept: Mapping[str, Any]
) -> tuple[RunConfig, frozenset[str]]:
    config = apply_values(get_config(name), kept)
    return with_effective_batch(config, begun.optim.effective_batch), frozenset(kept)


def _on_its_backbone(config: RunConfig, begun: RunConfig) -> RunConfig:
    model = begun.model
    return adapt_to_backbone(config, model.hidden_size, model.num_layers, model.backbone)[0]


def _kept(begun: RunConfig) -> dict[str, Any]:
    return {key: value for key, value in flat(begun).items() if _is_kept(key)}


def _is_kept(key: str) -> bool:
    """Whether a following run takes the value of ``key`` over."""
    if key.startswith("data."):
        return key != "data.audio"
    return key in _FLAGS or key in _AMOUNT


def _text(value: Any) -> str:
    """A value as ``--set`` reads it."""
    if value is None:
        return "null"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ",".join(map(str, value)) + "]"
    return str(value)

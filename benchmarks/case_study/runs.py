"""One run of a variant, from its configuration to a finished run folder; interrupted ones go on."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.case_study.layer_norms import PlantLayerNorms
from benchmarks.case_study.variants import Variant
from configs.adapt import with_effective_batch
from configs.overrides import apply_values, flatten
from configs.schema import RunConfig
from configs.yaml_text import read_yaml
from safe.training.callbacks import Callback
from safe.training.launch import Launch
from safe.training.run import resume, start
from safe_probe.watch import ProbeWatch

EPOCHS, EFFECTIVE_BATCH, MAX_NEW_TOKENS = 4, 16, 24
_ARCHITECTURE = ("model.projector.kind", "model.audio_features")
"""What a calibration depends on, besides the pieces."""


@dataclass(frozen=True)
class Pieces:
    """What all runs share."""

    data: Path
    """Folder in AudioCaps layout."""
    backbone: str = "smollm2"
    audio_encoder: str = "aisfx"

    @property
    def values(self) -> dict[str, Any]:
        """Dotted keys for the configuration; these are taken literally."""
        return {
            "model.backbone": self.backbone,
            "model.audio_encoder": self.audio_encoder,
            "data.root": str(self.data),
            "optim.epochs": EPOCHS,
            "evaluation.every_epochs": EPOCHS,
            "evaluation.max_new_tokens": MAX_NEW_TOKENS,
        }


def train(variant: Variant, seed: int, pieces: Pieces, output: Path, console: Console) -> Path:
    """Train, score and probe one variant, or go on where it stopped; its folder.

    Raises:
        SafeError: it cannot be trained.
        Interrupted: a signal arrived; it is saved.
        TrainingDiverged: it ended in NaN.
    """
    folder = output / f"{variant.name}-{seed}"
    launch = Launch(console=console, output=output, name=folder.name)
    watchers: list[Callback] = [ProbeWatch()]
    if variant.layer_norms:
        watchers.insert(0, PlantLayerNorms())
    if folder.exists():
        resume(folder, launch, watchers)
        return folder
    config, explicit = configured(variant, seed, pieces, output)
    start(config, explicit, launch, watchers)
    return folder


def configured(
    variant: Variant, seed: int, pieces: Pieces, calibrations: Path
) -> tuple[RunConfig, frozenset[str]]:
    """The configuration of a run, and the keys that hold whatever the backbone is."""
    values = pieces.values | {"optim.seed": seed}
    if variant.calibrated:
        file = calibration_file(variant, calibrations)
        found = read_yaml(file)
        values |= dict(flatten({key: value for key, value in found.items() if key != "base"}))
    config = apply_values(variant.config, values)
    return with_effective_batch(config, EFFECTIVE_BATCH), frozenset(values)


def calibration_file(variant: Variant, folder: Path) -> Path:
    """Where the calibration lies that ``variant`` takes its scale and gate from."""
    architecture = [str(variant.values[k]) for k in _ARCHITECTURE if k in variant.values]
    return folder / f"{'-'.join(['calibrated', *architecture])}.yaml"


def calibrate(variant: Variant, pieces: Pieces, folder: Path) -> Path:
    """Ask ``safe-probe calibrate`` for scale and gate, before any training; where they are."""
    file = calibration_file(variant, folder)
    if file.exists():
        return file
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "safe_probe.cli", "calibrate", "--config", variant.base,
        "--backbone", pieces.backbone, "--audio-encoder", pieces.audio_encoder,
        "--data", str(pieces.data), "--output", str(file),
    ]  # fmt: skip
    for key in _ARCHITECTURE:
        if key in variant.values:
            command += ["--set", f"{key}={variant.values[key]}"]
    subprocess.run(command, check=False)  # exit code 1: no setting suits every layer; it says so
    return file

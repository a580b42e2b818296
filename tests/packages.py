"""Packages as pip leaves them, and what to use theirs on."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from configs.model_configs import get_config
from safe.models.backbones import load_backbone
from safe.models.safe_model import SAFEModel

Files = Mapping[str, str]
Install = Callable[..., Path]


def install(place: Path, name: str, files: Files, points: Mapping[str, Mapping[str, str]]) -> Path:
    """Put a package into a folder, as pip leaves it: modules, and metadata with entry points."""
    for file, text in files.items():
        (place / file).write_text(text, encoding="utf-8")
    info = place / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = []
    for group, entries in points.items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return place


def kinds_of_sounds(root: Path) -> Path:
    """A data set in the format of docs/extend.md: a folder for each kind of sound."""
    root.mkdir()
    (root / "KINDS").touch()
    rng = np.random.default_rng(0)
    for kind in ("dog_barking", "rain", "siren"):
        (root / kind).mkdir()
        for index in range(4):
            samples = rng.standard_normal(8000) * 0.1
            soundfile.write(root / kind / f"{index:04}.wav", samples, 16_000, subtype="PCM_16")
    return root


def small_model() -> tuple[SAFEModel, dict[str, Any]]:
    """The demo's model, and a batch of three clips."""
    torch.manual_seed(1)
    model = SAFEModel(load_backbone("embedded", dtype="float32"), get_config("demo").model)
    ids = torch.randint(5, 50, (3, 6))
    labels = ids.clone()
    labels[:, :3] = -100
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    return model, inputs | {"audio": torch.nn.functional.normalize(torch.randn(3, 512), dim=-1)}

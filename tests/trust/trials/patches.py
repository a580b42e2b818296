"""Known bugs, put back into the program by name: the trials must notice each of them."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safe.training import checkpoint
from safe.training.checkpoint_manifest import write_manifest


def in_place_save() -> None:
    """A checkpoint is written under its own name."""

    def publish(parent: Path, name: str, write: Any, *, metadata: Any, **_: Any) -> Path:
        target = parent / name
        target.mkdir(parents=True, exist_ok=True)
        write(target)
        write_manifest(target, name, metadata)
        checkpoint._prune(parent, target, 2)
        return target

    checkpoint.publish = publish


def remove_then_rename() -> None:
    """The old checkpoints go before the new one is there."""

    def write_and_rename(temp: Path, target: Path, write: Any, metadata: Any) -> None:
        write(temp)
        write_manifest(temp, target.name, metadata)
        for old in checkpoint.checkpoints(target.parent):
            shutil.rmtree(old)
        os.rename(temp, target)

    checkpoint._write_and_rename = write_and_rename


def temp_never_swept() -> None:
    """What killed writers leave stays for ever."""
    checkpoint.sweep = lambda _parent: []


PATCHES: dict[str, Callable[[], None]] = {
    patch.__name__: patch for patch in (in_place_save, remove_then_rename, temp_never_swept)
}

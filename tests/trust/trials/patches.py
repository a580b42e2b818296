"""Known bugs, put back into the program by name: the trials must notice each of them."""

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from safe.checkpoint_manifest import write_manifest
from safe.training import checkpoint
from safe.training.locks import FileLock


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


def generators_not_restored() -> None:
    """A resumed run draws other random numbers."""
    from safe.training import state

    state.restore_rng = lambda _state: []


def no_sampler_state() -> None:
    """A resumed run begins again with the clips of the first epoch."""
    from safe.training.stage_a import StageA

    load = StageA.load_state

    def forget(self: StageA, state: dict[str, Any]) -> None:
        load(self, state)
        self.position.epoch = self.position.window = 0

    StageA.load_state = forget  # type: ignore[method-assign]


def unescaped_field() -> None:
    """One field of the page is put into it as it is."""
    from jinja2 import FileSystemLoader

    get_source = FileSystemLoader.get_source

    def careless(self: Any, environment: Any, template: str) -> Any:
        source, *rest = get_source(self, environment, template)
        return (source.replace("{{ s.clip }}", "{{ s.clip|safe }}"), *rest)

    FileSystemLoader.get_source = careless  # type: ignore[method-assign]


def nan_is_a_number() -> None:
    """A step is taken whatever its loss and gradient are."""
    from safe.training import stage_a

    stage_a.math = SimpleNamespace(  # type: ignore[assignment]
        isfinite=lambda _: True, hypot=math.hypot, ceil=math.ceil, cos=math.cos, pi=math.pi
    )


def raw_pickle() -> None:
    """A stranger's file is unpickled."""
    import torch

    load = torch.load
    torch.load = lambda *args, **options: load(*args, **options | {"weights_only": False})


def hooks_stay() -> None:
    """What a session did to the model is not undone."""
    from probes.session import Session

    Session.__exit__ = lambda *_: None  # type: ignore[method-assign]


def stale_lock() -> None:
    """A lock is a file that is there, and a dead owner never takes it away."""
    from safe.training import run_lock

    def try_lock(path: Path) -> FileLock | None:
        if path.exists() and path.read_text():
            return None
        return FileLock(os.open(path, os.O_RDWR | os.O_CREAT))

    run_lock.try_lock = try_lock


def line_ends_in_captions() -> None:
    """A carriage return in a caption reaches the tokenizer, which reads a caption per line."""
    from safe.evaluation import text

    text.clean_caption = lambda caption: caption


def truncated_audio() -> None:
    """Half a sound file counts as a whole one."""
    from safe.data import audio

    audio._check_complete = lambda *_: None
    audio._check_wav_size = lambda *_: None


def paths_outside() -> None:
    """A manifest may name any file."""
    from safe.data import audio_files, rows

    # the code and not the name: other modules have taken the function under its name
    rows.relative_path.__code__ = (lambda value, place: value).__code__  # noqa: ARG005
    audio_files.AudioFiles.named = lambda self, name: (self.root / name, False)  # type: ignore


PATCHES: dict[str, Callable[[], None]] = {
    patch.__name__: patch
    for patch in (
        in_place_save, remove_then_rename, temp_never_swept, no_sampler_state,
        generators_not_restored, nan_is_a_number, unescaped_field, raw_pickle, hooks_stay,
        line_ends_in_captions, stale_lock, truncated_audio, paths_outside,
    )
}  # fmt: skip

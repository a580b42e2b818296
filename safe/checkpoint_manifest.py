"""The list of a checkpoint's files with their SHA-256 sums, and the check against it."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from configs.errors import CheckpointError

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 1
_MAX_MANIFEST_BYTES = 16 * 2**20  # ours are a few kilobytes; a stranger's must not fill the memory


@dataclass(frozen=True)
class FileEntry:
    """What one file of a checkpoint must be."""

    bytes: int
    """Size in bytes."""
    sha256: str
    """Hexadecimal SHA-256 of its content."""


@dataclass(frozen=True)
class Manifest:
    """What a published checkpoint contains."""

    name: str
    """The name it was published under, such as step-00000123."""
    metadata: dict[str, Any]
    """JSON values that the writer attached (step, config name, score, ...)."""
    files: dict[str, FileEntry]
    """Every file by its path below the folder, with / between the parts."""

    @property
    def total_bytes(self) -> int:
        """Size of all files together, in bytes."""
        return sum(entry.bytes for entry in self.files.values())


def write_manifest(folder: Path, name: str, metadata: dict[str, Any]) -> Manifest:
    """Hash every file below `folder` and write the result there as manifest.json.

    Raises:
        CheckpointError: `metadata` is not JSON, or the folder holds a link, a device or a file
            called manifest.json.
        OSError: the disk failed.
    """
    metadata = as_json(metadata, "metadata")
    paths = _regular_files(folder)
    if MANIFEST_NAME in paths:
        _refuse(folder, MANIFEST_NAME, "this name is reserved, but the writer made such a file")
    files = {relative: _hash_file(path) for relative, path in paths.items()}
    manifest = Manifest(name, metadata, files)
    (folder / MANIFEST_NAME).write_bytes(_render(manifest))
    return manifest


def verify(folder: Path, part: str = "") -> Manifest:
    """Check every byte of a checkpoint and return its manifest.

    Reads all files once (about a second per gigabyte). Catches any changed byte, also in the
    manifest itself, which must be exactly what its own content renders to.

    Args:
        folder: the checkpoint.
        part: beginning of the paths that are to be checked, such as adapter/; all by default.

    Raises:
        CheckpointError: it names the file and what is wrong with it (missing, extra, size, sha256,
            version, symlink, unreadable).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(
            f"checkpoint {folder}: no such folder; pass one that has a "
            f"{MANIFEST_NAME}, such as runs/NAME/checkpoints/step-00000123"
        )
    try:
        paths = _regular_files(folder)
        manifest = _read_manifest(folder, paths)
        paths.pop(MANIFEST_NAME)
        names = manifest.files.keys() | paths.keys()
        for relative in sorted(name for name in names if name.startswith(part)):
            _check_file(folder, relative, paths.get(relative), manifest.files.get(relative))
    except OSError as error:
        raise CheckpointError(f"checkpoint {folder}: cannot be read: {error}") from error
    return manifest


def as_json(value: Any, what: str) -> Any:
    """Return `value` as it will come back from JSON.

    Raises:
        CheckpointError: it would come back different (a tuple, an integer key), or has NaN.
    """
    try:
        copy = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{what} cannot be written as JSON: {error}; use finite numbers, "
            "text, true/false, None, lists and dicts"
        ) from error
    if copy != value:
        raise CheckpointError(
            f"{what} changes when written as JSON and read back ({value!r} "
            f"becomes {copy!r}); use lists for tuples and text for keys"
        )
    return copy


def _regular_files(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for root, folders, files in os.walk(folder, onerror=_raise):
        for name in folders + files:
            path = Path(root, name)
            relative = path.relative_to(folder).as_posix()
            if path.is_symlink():
                _refuse(folder, relative, "is a symlink, which may point anywhere")
            if name in files:
                if not path.is_file():
                    _refuse(folder, relative, "is not a regular file")
                found[relative] = path
    return found


def _raise(error: OSError) -> NoReturn:
    raise error


def _hash_file(path: Path) -> FileEntry:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileEntry(file.tell(), digest)


def _check_file(folder: Path, relative: str, path: Path | None, entry: FileEntry | None) -> None:
    if entry is None:
        _refuse(folder, relative, "extra file that the manifest does not list")
    if path is None:
        _refuse(folder, relative, "missing")
    size = path.stat().st_size
    if size != entry.bytes:
        _refuse(folder, relative, f"size is {size:,} bytes, the manifest says {entry.bytes:,}")
    found = _hash_file(path)
    if found != entry:
        _refuse(
            folder,
            relative,
            f"sha256 is {found.sha256[:16]}..., the manifest says "
            f"{entry.sha256[:16]}... (same size, different bytes)",
        )


def _read_manifest(folder: Path, paths: dict[str, Path]) -> Manifest:
    if MANIFEST_NAME not in paths:
        _refuse(folder, MANIFEST_NAME, "missing, so this is no finished checkpoint")
    with paths[MANIFEST_NAME].open("rb") as file:
        text = file.read(_MAX_MANIFEST_BYTES + 1)
    if len(text) > _MAX_MANIFEST_BYTES:
        _refuse(folder, MANIFEST_NAME, f"larger than {_MAX_MANIFEST_BYTES:,} bytes")
    try:
        body = json.loads(text)
        version = body["format_version"]
        if version == FORMAT_VERSION:
            files = {key: FileEntry(**entry) for key, entry in body["files"].items()}
            manifest = Manifest(body["name"], body["metadata"], files)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        _refuse(folder, MANIFEST_NAME, f"not a manifest: {type(error).__name__}: {error}")
    if version != FORMAT_VERSION:
        _refuse(
            folder,
            MANIFEST_NAME,
            f"format version {version!r}; this safe-probe reads only version {FORMAT_VERSION}",
        )
    if _render(manifest) != text:
        _refuse(folder, MANIFEST_NAME, "sha256 of its own content does not match; it was changed")
    return manifest


def _render(manifest: Manifest) -> bytes:
    body: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "name": manifest.name,
        "metadata": manifest.metadata,
        "files": {
            key: {"bytes": entry.bytes, "sha256": entry.sha256}
            for key, entry in manifest.files.items()
        },
    }
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    body["manifest_sha256"] = hashlib.sha256(canonical.encode()).hexdigest()
    return (json.dumps(body, indent=2, sort_keys=True) + "\n").encode()


def _refuse(folder: Path, relative: str, problem: str) -> NoReturn:
    raise CheckpointError(
        f"checkpoint {folder}: {relative}: {problem}; do not use it, "
        "go on from an older checkpoint beside it"
    )

"""Which format a folder is in: the one place that decides, and says what it took."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from configs.errors import DataError
from safe.data.audio_files import SUFFIXES
from safe.data.sources.audiocaps import AUDIOCAPS
from safe.data.sources.clotho import CLOTHO
from safe.data.sources.folder_csv import FOLDER_CSV
from safe.data.sources.hf_disk import HF_DISK
from safe.data.sources.source import Format, Source
from safe.data.sources.wavcaps import WAVCAPS
from safe.data.tables import csv_header
from safe.plugins import DATASETS

_T = TypeVar("_T")
FORMATS: tuple[Format, ...] = (AUDIOCAPS, CLOTHO, WAVCAPS, FOLDER_CSV, HF_DISK)
_SHOWN = 12
_UNREAD = (".m4a", ".mp4", ".webm", ".mkv", ".opus", ".aac", ".wma", ".aiff", ".aif", ".m4b")


def read_source(root: Path | str) -> Source:
    """Read a data set in any of the FORMATS.

    Raises:
        DataError: no such folder, none or several formats fit, or a bad row; says what is
            supported and what was found.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"the data folder {root} does not exist or is not a folder")
    claims = _claims(root, FORMATS) or _claims(root, _added_formats())
    if len(claims) > 1:
        found = "; ".join(
            f"{form.name}: {', '.join(str(path.relative_to(root)) for path in files[:3])}"
            for form, files in claims
        )
        raise DataError(
            f"{root} fits several formats ({found}); name the folder that holds one of them alone"
        )
    if not claims:
        raise DataError(_nothing_fits(root))
    form, files = claims[0]
    source = form.read(root, files)
    clips = [clip for manifest in source.manifests.values() for clip in manifest.clips]
    if all(clip.path is not None for clip in clips):
        return source
    return replace(source, notes=(*source.notes, *_unread(root)))


def _unread(root: Path) -> list[str]:
    """Say which audio files there are that cannot be read, when some seem to be missing."""
    suffixes = Counter(Path(name).suffix.lower() for _, _, names in os.walk(root) for name in names)
    found = [f"{suffixes[suffix]:,} {suffix}" for suffix in _UNREAD if suffixes[suffix]]
    if not found:
        return []
    return [f"{', '.join(found)} files are not read; only {', '.join(SUFFIXES)} are: convert them"]


def _claims(root: Path, formats: Sequence[Format]) -> list[tuple[Format, list[Path]]]:
    return [(form, files) for form in formats if (files := form.claims(root))]


def _added_formats() -> list[Format]:
    """The formats that other packages add, whose errors name the package.

    Raises:
        PluginError: one of them is no format, or is called as a built-in one.
    """
    formats = []
    taken = {form.name for form in FORMATS}
    for name in DATASETS.names():
        form = DATASETS.load(name)
        if not isinstance(form, Format):
            raise DATASETS.broken(name, f"a {type(form).__name__} is no Format")
        if form.name in taken:
            raise DATASETS.broken(name, f"its name {form.name!r} is a built-in format's")
        named = partial(_by_name, name)
        formats.append(replace(form, claims=named(form.claims), read=named(form.read)))
    return formats


def _by_name(name: str, call: Callable[..., _T]) -> Callable[..., _T]:
    """Call a stranger's function; what goes wrong in it names the package."""

    def named(*arguments: Any) -> _T:
        try:
            return call(*arguments)
        except Exception as error:
            raise DATASETS.broken(name, error) from error

    return named


def _nothing_fits(root: Path) -> str:
    found = [_described(root / name) for name in sorted(os.listdir(root))[:_SHOWN]]
    left = len(os.listdir(root)) - len(found)
    listed = ", ".join(found) + (f" and {left} more" if left > 0 else "")
    formats = (*FORMATS, *_added_formats())
    inside = [p.name for p in sorted(root.iterdir()) if p.is_dir() and _claims(p, formats)]
    hint = f"; did you mean {' or '.join(str(root / name) for name in inside)}?" if inside else ""
    supported = "; ".join(f"({n}) {form.name}: {form.looks}" for n, form in enumerate(formats, 1))
    return (
        f"no manifest in {root} that can be read; found: {listed or 'nothing'}{hint}. "
        f"Supported: {supported}"
    )


def _described(path: Path) -> str:
    if path.is_dir():
        return f"{path.name}/"
    if path.suffix == ".csv":
        return f"{path.name} ({', '.join(csv_header(path)) or 'no header'})"
    return path.name

"""Making the AudioCaps layout out of a data set in any known format."""

import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from configs.checks import MAX_UNUSABLE, share
from configs.errors import DataError
from safe.data.append_log import file_lock
from safe.data.audiocaps_test import in_audiocaps_test
from safe.data.check import Findings, Progress, known, unusable
from safe.data.fingerprints import known_clips, to_lines
from safe.data.manifests import Manifest, write_manifest
from safe.data.overlap import Known, shared_sounds
from safe.data.placing import PARTIAL, Placed, Placer
from safe.data.prepared import Count, Prepared, Twin
from safe.data.prepared_hashes import FILE
from safe.data.problems import AudioProblem, Problem
from safe.data.sources import Source, read_source
from safe.data.tables import json_value, read_text

STATE = ".prepare"
REPORT = "prepared.json"


def prepare(
    source: Path | str,
    output: Path | str,
    *,
    against: Sequence[Path | str] = (),
    max_unusable: float = MAX_UNUSABLE,
    progress: Progress | None = None,
) -> Prepared:
    """Bring a data set into the layout that training reads.

    Writes {output}/{split}.csv with all clips, {output}/audio/{split}/ with those that have sound,
    hashes.jsonl (SHA-256 of every file and of its samples) and prepared.json (the result). Nothing
    is written anywhere else. An interrupted call loses nothing, a repeated one is quick, and both
    end with the same files.

    Args:
        source: folder in one of the formats of `safe.data.sources`.
        output: a new or empty folder, or one made by an earlier call from the same source.
        against: other data sets, to find clips in common with.
        max_unusable: share of a split's clips that may be unusable, for the exit code.
        progress: called with (clips done, clips in all).

    Raises:
        DataError: the source cannot be read, or the output is something else.
    """
    share("max_unusable", max_unusable)
    source, output = Path(source), Path(output)
    others = {str(folder): Path(folder) for folder in against}
    for folder in others.values():
        if folder.resolve() in (output.resolve(), source.resolve()):
            raise DataError(f"--against {folder}: is the data set itself; name another one")
    found = read_source(source)
    there = {name: known_clips(folder, progress) for name, folder in others.items()}
    _claim(output, found)
    with file_lock(output / STATE / "running"):  # two calls at once: one after the other
        return _prepare(found, output, there, max_unusable, progress)


def _prepare(
    source: Source,
    output: Path,
    others: dict[str, list[Known]],
    max_unusable: float,
    progress: Progress | None,
) -> Prepared:
    for partial in output.glob(f"audio/*/{PARTIAL}*"):  # left by a call that was killed
        partial.unlink(missing_ok=True)
    clips = [clip for manifest in source.manifests.values() for clip in manifest.clips]
    placer = Placer(output, output / STATE / "journal.jsonl")
    placed = placer.place(clips, progress)
    notes = list(source.notes)
    if placer.kept:
        notes.append(f"{placer.kept:,} sounds are no longer in the source; kept from before")
    findings: Findings = {
        (clip.split, clip.id): placed[clip.split, clip.id].facts
        if (clip.split, clip.id) in placed
        else AudioProblem.without_file(clip)
        for clip in clips
    }
    heard = {
        name: [known(clip, findings[clip.split, clip.id]) for clip in manifest.clips]
        for name, manifest in source.manifests.items()
    }
    twins = _twins(heard, others)
    problems = unusable(clips, findings)
    files = _write_manifests(output, source, to_lines(clips, placed))
    bad = {(row.split, row.clip) for row in problems}
    result = Prepared(
        source=str(source.root.resolve()),
        output=str(output.resolve()),
        format=source.format,
        splits={n: _count(m, problems, placed) for n, m in source.manifests.items()},
        audiocaps_test=sum(
            in_audiocaps_test(clip.id)
            for clip in clips
            if clip.split == "test" and (clip.split, clip.id) not in bad
        ),
        problems=problems,
        twins=twins,
        files=files,
        notes=notes,
        reused=placer.reused,
        max_unusable=max_unusable,
    )
    text = json.dumps(result.to_dict(), indent=2, ensure_ascii=False)
    _write_text(output / REPORT, text + "\n")
    return result


def _claim(output: Path, source: Source) -> None:
    """Make the output folder ours, or refuse."""
    here, there = output.resolve(), source.root.resolve()
    if here.is_relative_to(there) or there.is_relative_to(here):
        raise DataError(f"{output} and {source.root} lie in one another; choose another OUTPUT")
    state = output / STATE / "source.json"
    made_of = {"source": str(there), "format": source.format}
    if output.exists() and (not output.is_dir() or os.listdir(output)):
        if not state.is_file():
            raise DataError(
                f"{output} is not empty and was not made by `data prepare`; name a new folder"
            )
        before = json_value(read_text(state), str(state))
        if before != made_of:
            raise DataError(
                f"{output} was made from another data set ({before}), not from {made_of}; name a "
                "new folder"
            )
    audio = (output / "audio", *(output / "audio" / split for split in source.manifests))
    for inside in (output / STATE, *output.glob(f"{STATE}/*"), *audio):
        if inside.is_symlink():
            raise DataError(f"{inside} is a link; nothing is written outside OUTPUT")
    state.parent.mkdir(parents=True, exist_ok=True)
    _write_text(state, json.dumps(made_of, ensure_ascii=False) + "\n")


def _twins(heard: dict[str, list[Known]], others: dict[str, list[Known]]) -> list[Twin]:
    twins = [
        Twin.of(pair)
        for one, other in combinations(heard.values(), 2)
        for pair in shared_sounds(one, other)
    ]
    for name, clips in others.items():
        there: dict[str, list[Known]] = {}
        for clip in clips:
            there.setdefault(clip.clip.split, []).append(clip)
        for theirs in there.values():
            for ours in heard.values():
                twins += [Twin.of(pair, name) for pair in shared_sounds(theirs, ours)]
    return twins


def _count(
    manifest: Manifest, problems: Sequence[Problem], placed: dict[tuple[str, str], Placed]
) -> Count:
    clips = {(clip.split, clip.id) for clip in manifest.clips}
    reasons = Counter(row.reason for row in problems if (row.split, row.clip) in clips)
    return Count(
        rows=manifest.rows,
        clips=len(clips),
        captions=sum(len(clip.captions) for clip in manifest.clips),
        present=len(clips & placed.keys()),
        usable=len(clips) - reasons.total(),
        reasons=dict(sorted(reasons.items())),
    )


def _write_manifests(output: Path, source: Source, hashes: str) -> dict[str, str]:
    """Write {split}.csv and hashes.jsonl; returns the SHA-256 of each."""
    for stale in _made_before(output):
        if stale.endswith(".csv") and stale.removesuffix(".csv") not in source.manifests:
            (output / stale).unlink(missing_ok=True)
    for split, manifest in source.manifests.items():
        write_manifest(output / f"{split}.csv", manifest.clips)
    _write_text(output / FILE, hashes)
    names = [*(f"{split}.csv" for split in source.manifests), FILE]
    return {name: hashlib.sha256((output / name).read_bytes()).hexdigest() for name in names}


def _made_before(output: Path) -> list[str]:
    """Return the plain names of the files that the last complete call wrote."""
    try:
        files = json.loads((output / REPORT).read_text(encoding="utf-8"))["files"]
        return [name for name in files if Path(name).name == name]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _write_text(path: Path, text: str) -> None:
    """Write a file that appears complete or not at all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise

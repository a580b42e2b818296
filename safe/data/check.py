"""Looking through a data folder: what is there, and what is wrong with it."""

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path

from configs.checks import MAX_UNUSABLE, share
from safe.data.audio import MIN_SECONDS, AudioFacts
from safe.data.decoding import inspect
from safe.data.manifests import Clip, Manifest, read_manifest
from safe.data.overlap import Known, shared_sounds
from safe.data.prepared_hashes import prepared_sounds
from safe.data.problems import AudioProblem, Problem
from safe.data.report import AUDIOCAPS_LAYOUT, DataReport, SplitReport
from safe.data.sources import read_source
from safe.data.sources.source import ALIASES

Progress = Callable[[int, int], None]
"""Called with the number of clips that are done and the number of all clips."""

CLIPPED_SHARE = 1e-3

Findings = dict[tuple[str, str], AudioFacts | AudioProblem]


def check_root(
    root: Path | str,
    *,
    splits: Sequence[str] | None = None,
    sample_rate: int | None = None,
    min_seconds: float = MIN_SECONDS,
    max_unusable: float = MAX_UNUSABLE,
    progress: Progress | None = None,
) -> DataReport:
    """Read every manifest and every audio file of a data folder, in any known format.

    `splits`: which to read, of a folder in AudioCaps layout; default all.
    `sample_rate`: rate in Hz that files should have; default no expectation.
    `min_seconds`: clips shorter than this are unusable.
    `max_unusable`: share of a split's clips that may be unusable, for the exit code.

    Raises DataError when a manifest is missing or has a bad row.
    """
    share("max_unusable", max_unusable)
    form, notes, lacking = AUDIOCAPS_LAYOUT, tuple[str, ...](), tuple[str, ...]()
    if splits:
        manifests = {name: read_manifest(root, name) for name in dict.fromkeys(splits)}
    else:
        source = read_source(root)
        form, manifests, notes = source.format, source.manifests, source.notes
        if form == AUDIOCAPS_LAYOUT:
            lacking = tuple(name for name in ALIASES if name not in manifests)
    clips = [clip for manifest in manifests.values() for clip in manifest.clips]
    findings = inspect_all(clips, progress)
    problems: list[Problem] = []
    reports = {}
    for name, manifest in manifests.items():
        found = [*unusable(manifest.clips, findings, min_seconds)]
        found += _remarks(manifest.clips, findings, sample_rate)
        reports[name] = _split_report(manifest, findings, found)
        problems += found
    problems += [*_shared(manifests, findings), *_changed(Path(root), manifests, findings)]
    return DataReport(str(root), reports, tuple(problems), form, notes, max_unusable, lacking)


def usable(
    clips: Sequence[Clip], *, min_seconds: float = MIN_SECONDS, progress: Progress | None = None
) -> tuple[list[Clip], list[Problem]]:
    """Split clips into those that can be used and one row for each of the others."""
    bad = unusable(clips, inspect_all(clips, progress), min_seconds)
    names = {(row.split, row.clip) for row in bad}
    return [clip for clip in clips if (clip.split, clip.id) not in names], bad


def inspect_all(clips: Sequence[Clip], progress: Progress | None = None) -> Findings:
    """Inspect every file, each thread with a decoding process of its own."""
    findings: Findings = {}
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        results = pool.map(inspect_clip, [clip for clip in clips if clip.path is not None])
        for done, clip in enumerate(clips, 1):
            findings[clip.split, clip.id] = (
                AudioProblem.without_file(clip) if clip.path is None else next(results)
            )
            if progress:
                progress(done, len(clips))
    finally:
        pool.shutdown(cancel_futures=True)  # whoever stops us does not wait for the others
    return findings


def inspect_clip(clip: Clip) -> AudioFacts | AudioProblem:
    """Return what the sound of a clip with a file is like, or why it is none; see `inspect`."""
    assert clip.path is not None
    try:
        if clip.embedded is None:
            return inspect(clip.path)
        with tempfile.NamedTemporaryFile(suffix=clip.path.suffix) as file:
            file.write(clip.embedded.read())
            file.flush()
            return inspect(file.name)
    except AudioProblem as problem:
        return problem


def unusable(
    clips: Sequence[Clip], findings: Findings, min_seconds: float = MIN_SECONDS
) -> list[Problem]:
    """Return one row for each clip that cannot be used."""
    rows = []
    for clip in clips:
        facts = findings[clip.split, clip.id]
        if isinstance(facts, AudioProblem):
            rows.append(Problem.of(clip, facts.reason, facts.detail))
        elif facts.nonfinite:
            rows.append(Problem.of(clip, "nonfinite", f"{facts.nonfinite} NaN or infinite"))
        elif facts.seconds < min_seconds:
            detail = f"{facts.seconds:.3f} s, at least {min_seconds:g} s are needed"
            rows.append(Problem.of(clip, "too_short", detail))
        elif facts.silent:
            rows.append(Problem.of(clip, "silent", f"peak {facts.peak:.1e}"))
    return rows


def _remarks(clips: Sequence[Clip], findings: Findings, sample_rate: int | None) -> list[Problem]:
    """Return rows for what leaves clips usable but should be known."""
    rows = []
    first_with_audio: dict[str, Clip] = {}
    first_with_id: dict[str, Clip] = {}
    for clip in clips:
        twin = first_with_id.setdefault(clip.youtube_id, clip)
        if twin is not clip:
            rows.append(Problem.of(clip, "duplicate_id", f"also {twin.id}"))
        for text, count in Counter(clip.captions).items():
            if count > 1:
                rows.append(Problem.of(clip, "duplicate_caption", f"{count} times: {text}"))
        facts = findings[clip.split, clip.id]
        if isinstance(facts, AudioProblem):
            continue
        twin = first_with_audio.setdefault(facts.sha256, clip)
        if twin is not clip:
            rows.append(Problem.of(clip, "duplicate_audio", f"same as {twin.id}"))
        if sample_rate and facts.sample_rate != sample_rate:
            detail = f"{facts.sample_rate} Hz, expected {sample_rate} Hz"
            rows.append(Problem.of(clip, "wrong_rate", detail))
        if facts.clipped_share > CLIPPED_SHARE:
            detail = f"{facts.clipped_share:.2%} of the samples at full scale"
            rows.append(Problem.of(clip, "clipped", detail))
    return rows


def known(clip: Clip, facts: AudioFacts | AudioProblem) -> Known:
    """Return a clip with what finds it in another split."""
    if isinstance(facts, AudioProblem):
        return Known(clip, None, clip.seconds)
    # Two silent clips are alike without being the same recording.
    return Known(clip, None if facts.silent else facts.sha256, facts.seconds)


def _shared(manifests: dict[str, Manifest], findings: Findings) -> list[Problem]:
    sounds = {
        name: [known(clip, findings[clip.split, clip.id]) for clip in manifest.clips]
        for name, manifest in manifests.items()
    }
    rows = []
    for one, other in combinations(sounds.values(), 2):
        for pair in shared_sounds(one, other):
            detail = f"also in {pair.first.split} as {pair.first.id}"
            rows.append(Problem.of(pair.second, f"shared_{pair.by}", detail))
    return rows


def _changed(root: Path, manifests: dict[str, Manifest], findings: Findings) -> list[Problem]:
    """Return rows for sounds of a prepared folder that are not those that were prepared."""
    prepared = prepared_sounds(root)
    rows = []
    for manifest in manifests.values():
        for clip in manifest.clips:
            facts, before = findings[clip.split, clip.id], prepared.get((clip.split, clip.id))
            if before and isinstance(facts, AudioFacts) and facts.sha256 != before:
                rows.append(Problem.of(clip, "changed", f"samples {facts.sha256[:12]}..."))
    return rows


def _split_report(manifest: Manifest, findings: Findings, rows: list[Problem]) -> SplitReport:
    clips = manifest.clips
    facts = [findings[clip.split, clip.id] for clip in clips]
    readable = [one for one in facts if isinstance(one, AudioFacts)]
    absent = sum(isinstance(one, AudioProblem) and one.reason == "missing" for one in facts)
    return SplitReport(
        manifest=manifest.path.name,
        rows=manifest.rows,
        clips=len(clips),
        captions=sum(len(clip.captions) for clip in clips),
        present=len(clips) - absent,
        usable=len(clips) - sum(row.unusable for row in rows),
        reasons=dict(Counter(row.reason for row in rows)),
        rates=dict(sorted(Counter(one.sample_rate for one in readable).items())),
        channels=dict(sorted(Counter(one.channels for one in readable).items())),
        seconds=tuple(sorted(one.seconds for one in readable)),
    )

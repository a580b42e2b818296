"""What is fuzzed, with which input: the same for hypothesis and for atheris.

A target has cases (a hypothesis strategy) and uses one: a result or a typed error, in two seconds.
"""

import atexit
import io
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml
from hypothesis import strategies as st

from configs.errors import SafeError
from configs.model_configs import get_config
from configs.overrides import resolve
from probes.record import Record, append_records
from probes.signal_path import SignalPath
from reports.report import Report
from reports.run import read_run
from safe.child import Child
from safe.data.audio import decode, inspect
from safe.data.manifests import read_manifest
from safe.data.problems import AudioProblem
from safe.data.sources import Source, read_source
from safe.data.sources.hf_disk import read_in

SECONDS, MEGABYTES = 2.0, 1000
PATIENCE = 20.0
"""Seconds on the wall, on a machine that others use."""
TOKENS = (
    b"\0", b"\xff", b"\r", b"\n", b"NaN", b"Infinity", b"-1", b"1e999", b"9" * 400, b"[", b"{",
    b"]", b"}", b"null", b"true", b'"', b",", b":", b": ", b"- ", b"{}", b"[]", b"'", b"&a [*a]",
    b"*a", b"<<: ", b"!!python/object/apply:os.abort []", b"../", b"/etc/passwd", b"{layer}", b"*",
    "\u2028".encode(), b"\xed\xa0\x80", b"\\ud800", b"\xef\xbb\xbf", b"=cmd", b"[" * 3000,
    b"0x", b"\x7f\xff\xff\xff", b"2024-13-45", b"1:2", b"3", b"0.5", b"_",
)  # fmt: skip
CSV = 'audiocap_id,youtube_id,start_time,caption\n1,abc,30,A dog barks\n2,abc,30,"A, dog"\n'
JSON = '[{"youtube_id": "abc", "start_time": 30, "captions": ["A dog"], "audio": "train/a.wav"}]'
JSONL = '{"youtube_id": "abc", "caption": "A dog"}\n{"id": 7, "captions": ["a", "b"]}\n'
CLOTHO = {
    "clotho_captions_validation.csv": b'file_name,caption_1,caption_2\na.wav,"A dog, ""Rex""",\n',
    "clotho_metadata_validation.csv": b"file_name,keywords,sound_id\na.wav,caf\xe9;dog,803\n",
}
WAVCAPS = {
    "fsd_final.json": b'{"data": [{"id": "7", "caption": "Rain.", "duration": 3.2}]}',
    "as_final.json": b'[{"id": "Yb0RFKhbpFJA.wav", "caption": "Wind.", "duration": 10}]',
}
FOLDER_CSV = {"captions.csv": b'file,caption,split,duration\na.wav,"A, dog",val,1.5\nb/c,x,test,\n'}
ARROW_STATE = b'{"_data_files": [{"filename": "data.arrow"}], "_split": null}'
PATH = """\
projector: adapter.projector
scale: 2.0
knobs: [adapter.temperature]
layers: lm.blocks.*
fusion: adapter.cross.{layer}
branch: {1: adapter.one, 3: adapter.three}
gates: {name: "adapter.gates.{layer}", clamp: [0, 1], transform: tanh}
head: lm.head
"""
PROBED = (
    (0, "magnitude", "fusion", 4, "contribution_median", 0.2, "ratio"),
    (0, "gates", "gate", 4, "value", 0.3, "factor"),
    (3, "influence", "signal:swapped", None, "loss_change", 0.1, "nats/token"),
)
RUN_FILES = ("config.json", "metrics.jsonl", "evaluation.json", "environment.json",
             "resources.json", "problems.json", "captions/final.jsonl",
             "captions/references.jsonl", "probes.jsonl")  # fmt: skip
TRAPS = (None, b"[" * 3000 + b"\n", b'{"a":' * 3000 + b"\n", b"[" * 900 + b"]" * 900 + b"\n")
"""Whole files of a run: a pipe (None), which waits for a writer, and deep JSON."""


@dataclass
class Target:
    """One kind of input."""

    cases: st.SearchStrategy[Any]
    act: Callable[[Any], object]
    count: Counter[str] = field(default_factory=Counter)
    """How many were refused, and how many taken."""
    slowest: float = 0.0
    """Seconds of processor time."""
    largest: int = 0
    """MB that a case took beyond what was there before it, at its peak."""

    def use(self, case: Any) -> None:
        """Use a case: a result or a typed error, soon, in little memory."""
        held = peak_memory(anew=True)
        start, begun = time.process_time(), time.monotonic()
        try:
            self.act(case)
            self.count["taken"] += 1
        except (SafeError, AudioProblem):
            self.count["refused"] += 1
        seconds = time.process_time() - start
        self.slowest = max(self.slowest, seconds)
        self.largest = max(self.largest, peak_memory() - held)
        assert self.largest < MEGABYTES, f"{self.largest} MB"
        assert seconds < SECONDS, f"{seconds:.1f} s"
        assert time.monotonic() - begun < PATIENCE, "it waits for something"


def peak_memory(*, anew: bool = False) -> int:
    """The most that this process has held, in MB, since the last call that began ``anew``."""
    if anew:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def damaged(base: bytes) -> st.SearchStrategy[bytes]:
    """``base`` after up to three cuts, insertions and overwritten places."""

    def apply(edits: list[tuple[int, int, bytes]]) -> bytes:
        content = base
        for place, length, new in edits:
            at = place % (len(content) + 1)
            content = content[:at] + new + content[at + length :]
        return content

    piece = st.sampled_from(TOKENS) | st.binary(max_size=8)
    edit = st.tuples(st.integers(0, 2**31), st.sampled_from((0, 0, 1, 1, 2, 4, 30, 10**6)), piece)
    return st.lists(edit, min_size=1, max_size=3).map(apply)


def audio(folder: Path, suffix: str) -> Target:
    """Sound files, most of them with lies in the header."""
    sound, file = io.BytesIO(), folder / f"a.{suffix}"
    samples = np.sin(np.arange(4000) / 10).astype(np.float32)[:, None].repeat(2, axis=1)
    soundfile.write(sound, samples, 8000, format=suffix.upper())
    base = sound.getvalue()

    def act(content: bytes) -> None:
        file.write_bytes(content)
        heard = decode(file, 16000, 10.0)
        assert np.isfinite(heard.samples).all() and 0 < len(heard.samples) <= 160_000
        inspect(file)

    head = damaged(base[:64]).map(lambda start: start + base[64:])
    return Target(head | damaged(base), act)


def manifests(folder: Path, suffix: str, base: str) -> Target:
    """Manifests of a split."""

    def act(content: bytes) -> None:
        (folder / f"train.{suffix}").write_bytes(content)
        for clip in read_manifest(folder, "train").clips:
            assert clip.captions and all(clip.captions)
            assert clip.path is None or folder in clip.path.resolve().parents

    return Target(damaged(base.encode()), act)


def sources(
    folder: Path, files: dict[str, bytes], read: Callable[[Path], Source] = read_source
) -> Target:
    """Data sets as they come, one file of them damaged."""
    for name, content in files.items():
        (folder / name).write_bytes(content)

    def act(case: tuple[str, bytes]) -> None:
        name, content = case
        (folder / name).write_bytes(content)
        try:
            for manifest in read(folder).manifests.values():
                for clip in manifest.clips:
                    assert clip.captions and all(clip.captions)
                    assert clip.embedded or clip.path is None or folder in clip.path.parents
                    assert clip.embedded is None or len(clip.embedded.read()) <= len(content)
        finally:
            (folder / name).write_bytes(files[name])

    cases = st.sampled_from(list(files)).flatmap(
        lambda name: st.tuples(st.just(name), damaged(files[name]))
    )
    return Target(cases, act)


def arrow_sources(folder: Path) -> Target:
    """Data sets in Arrow files, which one child process reads."""
    child = Child("safe.data.sources.arrow_worker")
    atexit.register(child.close)
    files = {"state.json": ARROW_STATE, "data.arrow": arrow_file(folder)}
    return sources(folder, files, lambda root: read_in(child, root, [root / "state.json"]))


def arrow_file(folder: Path) -> bytes:
    """An Arrow stream as `save_to_disk` writes it: two sounds inside, captions, starts."""
    arrow = pytest.importorskip("pyarrow", reason="needs the extra `arrow`")
    values = {
        "audio": [{"bytes": b"RIFF" + bytes(20), "path": f"{name}.wav"} for name in "ab"],
        "caption": ["a dog", "a cat"], "start_time": [30, 40],
    }  # fmt: skip
    table, file = arrow.table(values), folder / "data.arrow"
    with arrow.OSFile(str(file), "wb") as sink, arrow.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return file.read_bytes()


def configs(folder: Path) -> Target:
    """Configuration files."""

    def act(content: bytes) -> None:
        (folder / "a.yaml").write_bytes(content)
        resolve(None, folder / "a.yaml")

    return Target(damaged(yaml.safe_dump(get_config("demo").to_dict()).encode()), act)


def overrides(_folder: Path) -> Target:
    """Assignments of the command line."""
    keys = st.sampled_from(
        ("optim.lr_projector", "model.fusion.layers", "optim.seed", "data.root", "data.audio",
         "model.projector.kind", "optim", "model.quantization")
    )  # fmt: skip
    tokens = [token.decode(errors="replace") for token in TOKENS]
    values = st.text() | st.floats().map(str) | st.integers().map(str) | st.sampled_from(tokens)
    assignments = st.builds("{}={}".format, keys, values) | st.text()
    cases = st.lists(assignments, min_size=1, max_size=3)
    return Target(cases, lambda given: resolve("demo", None, given))


def signal_paths(folder: Path) -> Target:
    """Signal paths of other models."""

    def act(content: bytes) -> None:
        (folder / "a.yaml").write_bytes(content)
        SignalPath.from_yaml(folder / "a.yaml")

    return Target(damaged(PATH.encode()), act)


def run_folders(folder: Path, source: Path) -> Target:
    """Folders of runs, one file of them damaged; ``source`` is a whole one."""
    run = folder / "run"
    shutil.copytree(source, run, ignore=shutil.ignore_patterns("*.safetensors"))
    append_records(run / "probes.jsonl", [Record(*row) for row in PROBED])
    whole = {name: (run / name).read_bytes() for name in RUN_FILES}

    def act(case: tuple[str, bytes | None]) -> None:
        name, content = case
        if content is None:
            (run / name).unlink()
            os.mkfifo(run / name)
        else:
            (run / name).write_bytes(content)
        try:
            assert Report.of(read_run(run)).verdict is not None
        finally:
            (run / name).unlink()
            (run / name).write_bytes(whole[name])

    cases = st.sampled_from(RUN_FILES).flatmap(
        lambda name: st.tuples(st.just(name), st.sampled_from(TRAPS) | damaged(whole[name]))
    )
    return Target(cases, act)


TARGETS: dict[str, Callable[[Path, Path], Target]] = {
    **{f"{kind} files": lambda folder, _, kind=kind: audio(folder, kind)  # type: ignore[misc]
       for kind in ("wav", "flac", "ogg", "mp3")},
    "csv manifests": lambda folder, _: manifests(folder, "csv", CSV),
    "json manifests": lambda folder, _: manifests(folder, "json", JSON),
    "jsonl manifests": lambda folder, _: manifests(folder, "jsonl", JSONL),
    "Clotho": lambda folder, _: sources(folder, CLOTHO),
    "WavCaps": lambda folder, _: sources(folder, WAVCAPS),
    "folders with CSV": lambda folder, _: sources(folder, FOLDER_CSV),
    "Hugging Face data sets": lambda folder, _: arrow_sources(folder),
    "configuration files": lambda folder, _: configs(folder),
    "overrides": lambda folder, _: overrides(folder),
    "signal paths": lambda folder, _: signal_paths(folder),
    "run folders": run_folders,
}  # fmt: skip
"""What is fuzzed: (empty folder, folder of a whole run) -> target."""

"""Damaged and hostile input of every kind: a result or a typed error, soon, in little memory."""

import io
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.errors import SafeError
from configs.model_configs import get_config
from configs.overrides import resolve
from probes.signal_path import SignalPath
from reports.report import Report
from reports.run import read_run
from safe.data.audio import decode, inspect
from safe.data.manifests import read_manifest
from safe.data.problems import AudioProblem

SECONDS, MEGABYTES = 2.0, 1000
TOKENS = (
    b"\0", b"\xff", b"\r", b"\n", b"NaN", b"Infinity", b"-1", b"1e999", b"9" * 400, b"[", b"{",
    b"]", b"}", b"null", b"true", b'"', b",", b":", b": ", b"- ", b"{}", b"[]", b"'", b"&a [*a]",
    b"*a", b"<<: ", b"!!python/object/apply:os.abort []", b"../", b"/etc/passwd", b"{layer}", b"*",
    "\u2028".encode(), b"\xed\xa0\x80", b"\\ud800", b"\xef\xbb\xbf", b"=cmd", b"[" * 3000,
    b"0x", b"\x7f\xff\xff\xff", b"2024-13-45", b"1:2", b"3", b"0.5", b"_",
)  # fmt: skip


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


def fuzz(
    size: int, cases: st.SearchStrategy[Any], use: Callable[[Any], object], what: str, figure: Any
) -> None:
    """Use every case: a result or a typed error within two seconds."""
    count = {"refused": 0, "taken": 0}
    slowest, peak = 0.0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @settings(max_examples=size, suppress_health_check=list(HealthCheck))
    @given(cases)
    def one(case: Any) -> None:
        nonlocal slowest
        start = time.process_time()
        try:
            use(case)
            count["taken"] += 1
        except (SafeError, AudioProblem):
            count["refused"] += 1
        seconds = time.process_time() - start
        slowest = max(slowest, seconds)
        assert seconds < SECONDS

    one()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) // 1024
    figure(f"fuzzed {what}: {count['refused']} refused by a typed error, {count['taken']} taken, "
           f"{slowest:.2f} s at most, {grown} MB more memory")  # fmt: skip
    assert grown < MEGABYTES


@pytest.mark.sizes(200, 5000)
@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_audio(size: int, suffix: str, figure: Any, tmp_path: Path) -> None:
    sound, file = io.BytesIO(), tmp_path / f"a.{suffix}"
    samples = np.sin(np.arange(4000) / 10).astype(np.float32)[:, None].repeat(2, axis=1)
    soundfile.write(sound, samples, 8000, format=suffix.upper())
    base = sound.getvalue()

    def use(content: bytes) -> None:
        file.write_bytes(content)
        heard = decode(file, 16000, 10.0)
        assert np.isfinite(heard.samples).all() and 0 < len(heard.samples) <= 160_000
        inspect(file)

    # the header is where the lies are
    head = damaged(base[:64]).map(lambda start: start + base[64:])
    fuzz(size, head | damaged(base), use, f"{suffix} files", figure)


CSV = 'audiocap_id,youtube_id,start_time,caption\n1,abc,30,A dog barks\n2,abc,30,"A, dog"\n'
JSON = '[{"youtube_id": "abc", "start_time": 30, "captions": ["A dog"], "audio": "train/a.wav"}]'
JSONL = '{"youtube_id": "abc", "caption": "A dog"}\n{"id": 7, "captions": ["a", "b"]}\n'


@pytest.mark.sizes(200, 5000)
@pytest.mark.parametrize(("suffix", "base"), [("csv", CSV), ("json", JSON), ("jsonl", JSONL)])
def test_manifests(size: int, suffix: str, base: str, figure: Any, tmp_path: Path) -> None:
    def use(content: bytes) -> None:
        (tmp_path / f"train.{suffix}").write_bytes(content)
        for clip in read_manifest(tmp_path, "train").clips:
            assert clip.captions and all(clip.captions)
            assert clip.path is None or tmp_path in clip.path.resolve().parents

    fuzz(size, damaged(base.encode()), use, f"{suffix} manifests", figure)


@pytest.mark.sizes(200, 5000)
def test_configs(size: int, figure: Any, tmp_path: Path) -> None:
    base = yaml.safe_dump(get_config("demo").to_dict()).encode()

    def use(content: bytes) -> None:
        (tmp_path / "a.yaml").write_bytes(content)
        resolve(None, tmp_path / "a.yaml")

    fuzz(size, damaged(base), use, "configuration files", figure)


@pytest.mark.sizes(300, 5000)
def test_overrides(size: int, figure: Any) -> None:
    keys = st.sampled_from(
        ("optim.lr_projector", "model.fusion.layers", "optim.seed", "data.root", "data.audio",
         "model.projector.kind", "optim", "model.quantization")
    )  # fmt: skip
    values = st.text() | st.floats().map(str) | st.integers().map(str) | st.sampled_from(
        [token.decode(errors="replace") for token in TOKENS])  # fmt: skip
    assignments = st.builds("{}={}".format, keys, values) | st.text()
    fuzz(size, st.lists(assignments, min_size=1, max_size=3),
         lambda given: resolve("demo", None, given), "overrides", figure)  # fmt: skip


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


@pytest.mark.sizes(300, 5000)
def test_signal_paths(size: int, figure: Any, tmp_path: Path) -> None:
    def use(content: bytes) -> None:
        (tmp_path / "a.yaml").write_bytes(content)
        SignalPath.from_yaml(tmp_path / "a.yaml")

    fuzz(size, damaged(PATH.encode()), use, "signal paths", figure)


@pytest.mark.sizes(100, 2000)
def test_run_folders(size: int, tiny_run: Any, figure: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run.folder, run, ignore=shutil.ignore_patterns("*.safetensors"))
    names = ("config.json", "metrics.jsonl", "evaluation.json", "environment.json",
             "resources.json", "problems.json", "captions/final.jsonl",
             "captions/references.jsonl")  # fmt: skip
    whole = {name: (run / name).read_bytes() for name in names}
    cases = st.sampled_from(names).flatmap(
        lambda name: st.tuples(st.just(name), damaged(whole[name]))
    )

    def use(case: tuple[str, bytes]) -> None:
        name, content = case
        (run / name).write_bytes(content)
        try:
            assert Report.of(read_run(run)).verdict is not None
        finally:
            (run / name).write_bytes(whole[name])

    fuzz(size, cases, use, "run folders", figure)

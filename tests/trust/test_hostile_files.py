"""A stranger's .pt file: nothing in it is run, no limit is passed, and the error names the file."""

import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from trials.foreign import bombs, files
from trials.fuzz import ARROW_STATE, arrow_file, peak_memory

from configs.errors import DataError, ModelError
from safe.child import Child
from safe.data.sources.hf_disk import read_in
from safe.models.audio_encoders import checkpoint
from safe.models.audio_encoders.checkpoint import open_checkpoint, open_in
from safe.models.foreign_checkpoint import rewrite

EVERY = ("",)


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    with Child("safe.models.foreign_checkpoint") as started:
        yield started


def test_foreign_checkpoints(child: Child, figure: Any, tmp_path: Path) -> None:
    canary, kinds, slowest = tmp_path / "canary", Counter[str](), 0.0
    path, link = tmp_path / "stranger.pt", tmp_path / "link.pt"
    link.symlink_to(path)
    before = set(os.listdir(tmp_path)) | {path.name}
    held = peak_memory(anew=True)
    wrong: list[str] = []
    for name, content in files(canary):
        path.write_bytes(content)
        start = time.monotonic()
        try:
            open_in(child, link if kinds.total() % 2 else path, EVERY)
            wrong.append(f"{name}: opened")
        except ModelError as error:
            if ".pt: " not in str(error):
                wrong.append(f"{name}: {error}")
        except Exception as error:
            wrong.append(f"{name}: {error!r}")
        slowest = max(slowest, time.monotonic() - start)
        kinds[name.rpartition(".")[0]] += 1
        assert not canary.exists() and set(os.listdir(tmp_path)) == before, name
    grown = peak_memory() - held
    figure(
        f"strangers' .pt files: {kinds.total()} of {len(kinds)} kinds opened in a child, the "
        f"canary touched 0 times, {len(wrong)} without a clear error, {slowest:.1f} s at most, "
        f"{grown} MB more memory here"
    )
    assert wrong == []
    assert len(kinds) >= 60 and grown < 100


def test_nothing_is_run_where_it_is_opened(tmp_path: Path) -> None:
    canary, path, answers = tmp_path / "canary", tmp_path / "stranger.pt", []
    for name, content in files(canary):
        if name.startswith("reduce-"):
            path.write_bytes(content)
            answers.append(rewrite({"path": path, "target": tmp_path / "b", "parts": [""]})[0])
            assert not canary.exists(), name
    assert len(answers) > 5 and all(answer["refused"] for answer in answers)


def test_bombs_break_a_limit(
    child: Child, figure: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_SPARE_BYTES", 200 * 2**20)
    told, leftovers = {}, set(os.listdir(checkpoint.tempfile.gettempdir()))
    for name, content in bombs():
        torch.save(content, tmp_path / f"{name}.pt")
        with pytest.raises(ModelError, match=rf"{name}\.pt: .*opened safely \((.+)\)") as caught:
            open_in(child, tmp_path / f"{name}.pt", EVERY)
        told[name] = str(caught.value).rpartition("(")[2].rstrip(")")
    figure(f"checkpoints that grow when they are opened: {told}")
    assert all("MB of memory" in reason for reason in told.values())
    new = set(os.listdir(checkpoint.tempfile.gettempdir())) - leftovers
    assert not [name for name in new if name.startswith("safe-probe-")]


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("hang", "it took longer than 1 s"),
        ("busy", "it took longer than 1 s|more than 1 s of processor time"),
        ("memory", "it asks for more than 64 MB of memory"),
        ("crash", r"it crashed the process that read it \(SIGSEGV\)"),
        ("leave", r"it ended the process that read it \(exit code 7\)"),
    ],
)
def test_a_child_that_misbehaves_is_replaced(
    behaviour: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_SECONDS", 1.0 if behaviour in ("hang", "busy") else 60.0)
    monkeypatch.setattr(checkpoint, "_SPARE_BYTES", 64 * 2**20)
    (tmp_path / "a.pt").write_bytes(b"x")
    with Child("trials.misbehaving") as child:
        monkeypatch.setattr(checkpoint, "_COPIES", 0)
        for _ in range(2):
            with pytest.raises(ModelError, match=rf"a\.pt: not a checkpoint .*\({message}"):
                open_in(child, tmp_path / "a.pt", (behaviour,))
        answer, _ = child.ask({"parts": ["fine"]}, seconds=20, memory=2**26)
        assert answer == {"pid": answer["pid"], "blocked": True}
        os.kill(answer["pid"], signal.SIGINT)  # as a Ctrl-C would, which goes to the whole group
        again, _ = child.ask({"parts": ["fine"]}, seconds=20, memory=2**26)
        assert again == answer
    with pytest.raises(ProcessLookupError):
        os.kill(answer["pid"], 0)


def test_what_comes_out_is_what_was_saved(tmp_path: Path) -> None:
    """By the public way, with a process of its own: names, views, types and what is left out."""
    base = torch.arange(6.0).reshape(2, 3)
    content = ({"net.a": base, "net.t": base.T, "net.h": base.half(), "fc.b": base}, {"x": 1})
    torch.save(content, tmp_path / "a.pt")
    found = open_checkpoint(tmp_path / "a.pt", ("0/net.",))
    assert sorted(found) == ["0/net.a", "0/net.h", "0/net.t"]
    assert torch.equal(found["0/net.t"], base.T) and torch.equal(found["0/net.h"], base.half())


@pytest.mark.sizes(120, 3000)
def test_foreign_arrow_files(size: int, figure: Any, tmp_path: Path) -> None:
    """pyarrow dies of some: of the child, and the error names the file."""
    base, choose, told, wrong = arrow_file(tmp_path), random.Random(0), Counter[str](), []
    (tmp_path / "state.json").write_bytes(ARROW_STATE)
    with Child("safe.data.sources.arrow_worker") as child:
        for number in range(size):
            content = bytearray(base)
            for _ in range(choose.randint(1, 8)):
                content[choose.randrange(len(content))] = choose.randrange(256)
            (tmp_path / "data.arrow").write_bytes(content)
            try:
                read_in(child, tmp_path, [tmp_path / "state.json"])
                told["read"] += 1
            except DataError as error:
                said = re.search(r"\((SIG\w+)\)", str(error))
                told[said[1] if said else "refused"] += 1
            except Exception as error:
                wrong.append(f"{number}: {error!r}")
    figure(
        f"strangers' Arrow files: {size} of {len(base)} bytes with 1 to 8 of them changed: "
        f"{dict(told)}, {len(wrong)} without a typed error"
    )
    assert wrong == []


@pytest.mark.parametrize("target", ["/dev/zero", "/", "missing"])
def test_links_to_what_is_no_file(target: str, child: Child, tmp_path: Path) -> None:
    (tmp_path / "a.pt").symlink_to(target)
    with pytest.raises(ModelError, match=r"a\.pt"):
        open_in(child, tmp_path / "a.pt", EVERY)

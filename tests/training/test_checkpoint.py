"""A checkpoint is whole or absent: kills, full disks, flipped bytes and strangers' files."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import CheckpointError, ConfigError
from safe.training import checkpoint
from safe.training.checkpoint import (
    checkpoints,
    latest_good,
    newest,
    publish,
    set_aside,
    step_name,
    step_of,
    sweep,
    verify,
)
from safe.training.locks import try_lock


def writer(text: str = "weights", extra: bytes = b"\x00" * 4000) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "adapter").mkdir()
        (folder / "adapter" / "model.safetensors").write_bytes(text.encode() + extra)
        (folder / "state.json").write_text(json.dumps({"text": text}))

    return write


def save(parent: Path, step: int, **options: object) -> Path:
    return publish(
        parent, step_name(step), writer(f"step {step}"), metadata={"step": step}, **options
    )  # type: ignore[arg-type]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def hidden(parent: Path) -> list[str]:
    return [path.name for path in parent.iterdir() if path.name.startswith(".")]


# what a save leaves


def test_publish_gives_exactly_what_was_written_and_a_manifest(tmp_path: Path) -> None:
    path = save(tmp_path / "checkpoints", 123)
    assert path == tmp_path / "checkpoints" / "step-00000123"
    manifest = verify(path)
    assert manifest.metadata == {"step": 123}
    assert set(manifest.files) == {"adapter/model.safetensors", "state.json"}
    assert manifest.total_bytes == sum((path / name).stat().st_size for name in manifest.files)
    assert hidden(path.parent) == []


def test_two_newest_good_ones_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 9, 10):
        save(tmp_path, step)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000009", "step-00000010"]
    assert newest(tmp_path) == tmp_path / "step-00000010"
    assert hidden(tmp_path) == []


def test_a_damaged_one_does_not_count_as_kept(tmp_path: Path) -> None:
    save(tmp_path, 1)
    damaged = save(tmp_path, 2)
    (damaged / "state.json").write_text("{}")
    save(tmp_path, 3)
    good, rejected = latest_good(tmp_path)
    assert good == tmp_path / "step-00000003" and rejected == []
    assert (tmp_path / "step-00000001").exists()  # the second good one


def test_the_one_just_published_is_never_pruned(tmp_path: Path) -> None:
    for step in (20, 30):
        save(tmp_path, step)
    save(tmp_path, 10)
    assert [step_of(path.name) for path in checkpoints(tmp_path)] == [10, 30]


def test_other_names_are_neither_listed_nor_pruned(tmp_path: Path) -> None:
    publish(tmp_path, "adapter", writer(), metadata={})
    for step in (1, 2, 3):
        save(tmp_path, step)
    assert verify(tmp_path / "adapter").name == "adapter"
    assert [step_of(path.name) for path in checkpoints(tmp_path)] == [2, 3]


def test_same_content_twice_changes_nothing(tmp_path: Path) -> None:
    before = save(tmp_path, 1).stat().st_ino
    assert save(tmp_path, 1).stat().st_ino == before
    assert hidden(tmp_path) == []


def test_other_content_under_a_good_name_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    before = snapshot(path)
    with pytest.raises(CheckpointError, match="exists already with other content"):
        publish(tmp_path, path.name, writer("different"), metadata={"step": 1})
    assert snapshot(path) == before and hidden(tmp_path) == []


def test_a_damaged_one_of_the_same_name_is_set_aside(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    (path / "state.json").unlink()
    save(tmp_path, 1)
    verify(path)
    assert (tmp_path / "step-00000001.corrupt" / "adapter").is_dir()


def test_set_aside_numbers_what_is_taken(tmp_path: Path) -> None:
    names = [set_aside(save(tmp_path, 5), "superseded").name for _ in range(3)]
    assert names == [f"step-00000005.superseded{end}" for end in ("", "-2", "-3")]
    assert checkpoints(tmp_path) == []


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "a b", "x" * 201])
def test_names_that_could_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="checkpoint name"):
        publish(tmp_path, name, writer(), metadata={})
    assert list(tmp_path.iterdir()) == []


def test_impossible_values_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="keep is 0; at least 1"):
        save(tmp_path, 1, keep=0)
    with pytest.raises(CheckpointError, match="step is -1"):
        step_name(-1)
    for metadata, word in (
        ({"x": float("nan")}, "JSON"),
        ({"x": (1,)}, "lists for tuples"),
        ({1: 2}, "changes when written"),
        ({"x": object()}, "JSON"),
    ):
        with pytest.raises(CheckpointError, match=word):
            publish(tmp_path, "a", writer(), metadata=metadata)
    assert list(tmp_path.iterdir()) == []


@given(st.integers(0, 10**12))
def test_step_names_round_trip_and_order(step: int) -> None:
    assert step_of(step_name(step)) == step


def test_empty_and_absent_folders_have_no_checkpoint(tmp_path: Path) -> None:
    for parent in (tmp_path, tmp_path / "absent"):
        assert newest(parent) is None and latest_good(parent) == (None, [])


# writers that fail


def make_link(folder: Path) -> None:
    (folder / "link").symlink_to("/etc/hostname")


def make_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("{}")


@pytest.mark.parametrize(
    ("write", "word"), [(make_link, "link: is a symlink"), (make_manifest, "name is reserved")]
)
def test_what_a_writer_must_not_make(
    tmp_path: Path, write: Callable[[Path], None], word: str
) -> None:
    with pytest.raises(CheckpointError, match=word):
        publish(tmp_path, "a", write, metadata={})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, ConfigError])
def test_a_failing_writer_leaves_nothing_and_its_own_error(
    tmp_path: Path, error: type[BaseException]
) -> None:
    save(tmp_path, 1)

    def write(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise error("stopped")

    with pytest.raises(error, match="stopped"):
        publish(tmp_path, "step-00000002", write, metadata={})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def raise_nospace(*_args: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("failing", ["fsync_tree", "fsync_path", "write_manifest", "os.rename"])
def test_a_full_disk_is_explained_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    before = snapshot(save(tmp_path, 1))
    with monkeypatch.context() as patch:
        patch.setattr(f"safe.training.checkpoint.{failing}", raise_nospace)
        with pytest.raises(
            CheckpointError,
            match=r"step-00000002: .*No space left.*"
            r"needed at least [\d,]+ bytes, [\d,]+ bytes",
        ):
            save(tmp_path, 2)
    assert snapshot(tmp_path / "step-00000001") == before
    assert hidden(tmp_path) == []
    save(tmp_path, 2)


def test_safetensors_own_disk_error_is_recognised(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        raise RuntimeError("Error while serializing: I/O error: File too large (os error 27)")

    with pytest.raises(CheckpointError, match="cannot save checkpoint .*File too large"):
        publish(tmp_path, "a", write, metadata={})


def test_too_little_space_is_refused_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    needed = sum(path.stat().st_size for path in (tmp_path / "step-00000001").rglob("*.*"))
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match=f"at least {needed:,} bytes, 100 bytes are free"):
        publish(tmp_path, "step-00000002", lambda _: pytest.fail("was written"), metadata={})
    with pytest.raises(CheckpointError, match="at least 5,000,000 bytes"):
        publish(tmp_path, "b", writer(), metadata={}, needed_bytes=5_000_000)
    publish(tmp_path, "c", writer("", b""), metadata={}, needed_bytes=1)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small tmpfs")
def test_a_really_full_disk(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", tmp_path], capture_output=True
    ).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        before = snapshot(save(tmp_path, 1))

        def big(folder: Path) -> None:
            save_file({"w": torch.zeros(200_000)}, folder / "w.safetensors")

        for write in (big, writer("plain", b"\x01" * 800_000)):
            with pytest.raises(CheckpointError, match="No space left on device"):
                publish(tmp_path, "step-00000002", write, metadata={})
            assert snapshot(tmp_path / "step-00000001") == before and hidden(tmp_path) == []
        save(tmp_path, 2)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_vanished_run_folder_is_not_made_anew(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file or directory"):
        save(tmp_path / "gone" / "checkpoints", 1)
    assert not (tmp_path / "gone").exists()


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(CheckpointError, match="cannot save checkpoint"):
        save(tmp_path / "checkpoints", 1)


# damage is found


def test_every_byte_of_the_manifest_counts(tmp_path: Path) -> None:
    path = publish(
        tmp_path,
        "step-00000001",
        writer("x", b""),
        metadata={"step": 1, "score": 0.25, "note": "é\n"},
    )
    file = path / "manifest.json"
    content = file.read_bytes()
    choose = random.Random(0)
    for position in range(len(content)):
        for changed in (content[position] ^ (1 << choose.randrange(8)), choose.randrange(256)):
            if changed != content[position]:
                file.write_bytes(content[:position] + bytes([changed]) + content[position + 1 :])
                with pytest.raises(CheckpointError, match="manifest.json|missing|extra|sha|size"):
                    verify(path)
    for spelled in (
        content + b" ",
        content.replace(b'"files"', b'"files":{},"files"'),
        content.replace(b"0.25", b"2.5e-1"),
        b"",
        b"[]",
        b"{}",
        b"[" * 100_000,
        content[:-1],
        content.replace(b'"bytes": 1,', b'"bytes": 1, "x": 1,'),
    ):
        file.write_bytes(spelled)
        with pytest.raises(CheckpointError, match="manifest.json"):
            verify(path)
    file.write_bytes(content)
    verify(path)


@pytest.mark.parametrize("relative", ["adapter/model.safetensors", "state.json"])
def test_flips_and_cuts_of_every_file_are_found(tmp_path: Path, relative: str) -> None:
    path = save(tmp_path, 1)
    file, choose = path / relative, random.Random(1)
    content = file.read_bytes()
    for position in {0, len(content) - 1, *(choose.randrange(len(content)) for _ in range(60))}:
        flipped = bytearray(content)
        flipped[position] ^= 1 << choose.randrange(8)
        file.write_bytes(flipped)
        with pytest.raises(CheckpointError, match=rf"{relative}: sha256 is"):
            verify(path)
    for other in (b"", content[:-1], content[: len(content) // 2], content + b"\0"):
        file.write_bytes(other)
        with pytest.raises(CheckpointError, match=rf"{relative}: size is .* manifest says"):
            verify(path)
    file.write_bytes(b"\0" * len(content))
    with pytest.raises(CheckpointError, match=rf"{relative}: sha256"):
        verify(path)


def test_missing_extra_linked_and_swapped_files_are_found(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    file = path / "state.json"
    content = file.read_bytes()

    file.unlink()
    with pytest.raises(CheckpointError, match="state.json: missing"):
        verify(path)
    (tmp_path / "elsewhere").write_bytes(content)
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="state.json: is a symlink"):
        verify(path)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(CheckpointError, match="state.json: is not a regular file"):
        verify(path)
    file.unlink()
    file.write_bytes(content)

    (path / "adapter" / "more.pkl").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"adapter/more.pkl: extra file"):
        verify(path)
    (path / "adapter" / "more.pkl").unlink()

    (path / "here").symlink_to("/")
    with pytest.raises(CheckpointError, match="here: is a symlink"):
        verify(path)
    (path / "here").unlink()

    other = save(tmp_path, 2)
    shutil.copy(other / "adapter" / "model.safetensors", path / "adapter" / "model.safetensors")
    with pytest.raises(CheckpointError, match="model.safetensors: sha256"):
        verify(path)


def test_no_folder_no_manifest_other_version(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        verify(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="manifest.json: missing"):
        verify(tmp_path / "empty")
    path = save(tmp_path, 1)
    file = path / "manifest.json"
    file.write_text(file.read_text().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(CheckpointError, match="format version 2; .* only version 1"):
        verify(path)


def test_a_huge_manifest_is_not_read(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    with (path / "manifest.json").open("r+b") as file:
        file.truncate(2**34)  # sparse: 16 GiB that take no space
    with pytest.raises(CheckpointError, match="manifest.json: larger than"):
        verify(path)


def test_latest_good_passes_over_the_damaged_and_the_renamed(tmp_path: Path) -> None:
    good = save(tmp_path, 1)
    damaged = save(tmp_path, 2)
    (damaged / "state.json").write_text("")
    shutil.copytree(good, tmp_path / "step-00000007")
    (tmp_path / "step-00000009").symlink_to(good)
    before = snapshot(tmp_path)
    path, rejected = latest_good(tmp_path)
    assert path == good
    assert [item.path.name for item in rejected] == ["step-00000007", "step-00000002"]
    assert "its manifest says it is step-00000001" in rejected[0].reason
    assert "state.json: size is 0" in rejected[1].reason
    assert snapshot(tmp_path) == before


def test_the_good_one_before(tmp_path: Path) -> None:
    good, damaged, last = (save(tmp_path, step, keep=3) for step in (1, 99_999_999, 100_000_000))
    (damaged / "state.json").write_text("")
    assert latest_good(tmp_path, before=last)[0] == good  # by number: as a text it is the first
    assert latest_good(tmp_path, before=good) == (None, [])


# temporary folders


def test_sweep_takes_the_dead_and_leaves_the_living(tmp_path: Path) -> None:
    for name in (".tmp-step-00000001-1", ".tmp-old-step-00000001-1", ".tmp-step-00000002-1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    (tmp_path / ".tmp-link-1").symlink_to("/")
    living = try_lock(tmp_path / ".tmp-step-00000002-1")
    assert living is not None
    swept = {path.name for path in sweep(tmp_path)}
    assert swept == {".tmp-step-00000001-1", ".tmp-old-step-00000001-1"}
    living.release()
    save(tmp_path, 3)
    assert hidden(tmp_path) == [".tmp-link-1"]


def test_without_locks_the_process_number_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(_path: Path) -> None:
        raise OSError(errno.ENOTSUP, "no locks here")

    done = subprocess.Popen(["true"])
    done.wait()
    for name in (f"a-{done.pid}", "b-1", "c", f"d-{os.getpid()}"):
        (tmp_path / f".tmp-{name}").mkdir()
    monkeypatch.setattr(checkpoint, "try_lock", unsupported)
    save(tmp_path, 1)
    assert sorted(hidden(tmp_path)) == [".tmp-b-1", ".tmp-c"]


BACK_TO_BACK = textwrap.dedent("""
    import sys
    from pathlib import Path
    from safe.training.checkpoint import newest, publish, step_name, step_of

    parent = Path(sys.argv[1])
    last = newest(parent)
    step = 0 if last is None else step_of(last.name)
    while True:
        step += 1
        def write(folder):
            for index in range(4):
                (folder / f"part-{index}").write_bytes(bytes([step % 256]) * 100_000)
        publish(parent, step_name(step), write, metadata={"step": step})
        print(step, flush=True)
""")


def kill_during_saves(parent: Path, root: Path, delay: float) -> int:
    """Start the saver, kill -9 it `delay` after its first save, return the last step it told."""
    with subprocess.Popen(
        [sys.executable, "-c", BACK_TO_BACK, str(parent)],
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        told = [first, *process.stdout.readlines()]
        assert process.wait() == -signal.SIGKILL
    return int([line for line in told if line.endswith("\n")][-1])


def test_kill_9_at_random_moments_tears_and_loses_nothing(tmp_path: Path, repo_root: Path) -> None:
    choose, torn, lost, halfway = random.Random(0), 0, 0, 0
    for _ in range(20):
        told = kill_during_saves(tmp_path, repo_root, choose.uniform(0, 0.05))
        halfway += bool(hidden(tmp_path))
        path, rejected = latest_good(tmp_path)
        torn += len(rejected)
        lost += path is None or (step_of(path.name) or 0) < told
        assert len(checkpoints(tmp_path)) in (1, 2, 3)  # 3: killed before the old one went
        for found in checkpoints(tmp_path):
            verify(found)
    print(f"20 kills: {torn} torn, {lost} lost, {halfway} left a temporary folder")
    assert (torn, lost) == (0, 0)
    assert halfway > 0  # else the kills never hit a save and this test shows nothing
    save(tmp_path, 10**7)
    assert hidden(tmp_path) == []


DIE_AT_CALL = textwrap.dedent("""
    import os, sys
    from pathlib import Path
    from safe.training.checkpoint import publish

    left = int(sys.argv[2])
    def die_after(name):
        original = getattr(os, name)
        def call(*args, **kwargs):
            global left
            left -= 1
            if left == 0:
                os._exit(9)
            return original(*args, **kwargs)
        setattr(os, name, call)

    def write(folder):
        for name in ("a", "b"):
            (folder / name).write_bytes(b"new" * 1000)

    for name in ("open", "mkdir", "rename", "fsync", "close", "unlink", "rmdir"):
        die_after(name)
    publish(Path(sys.argv[1]), "step-00000003", write, metadata={})
    os._exit(0)
""")


@pytest.mark.slow
def test_death_at_every_file_system_call_of_a_save(tmp_path: Path, repo_root: Path) -> None:
    for call in range(1, 200):
        parent = tmp_path / str(call)
        parent.mkdir()
        (parent / ".tmp-stale-1").mkdir()
        for step in (1, 2):
            save(parent, step)
        code = subprocess.run(
            [sys.executable, "-c", DIE_AT_CALL, str(parent), str(call)],
            env={**os.environ, "PYTHONPATH": str(repo_root)},
        ).returncode
        for found in checkpoints(parent):
            verify(found)
        assert len(checkpoints(parent)) >= 2
        save(parent, 4)
        assert hidden(parent) == [] and len(checkpoints(parent)) == 2
        if code == 0:
            break
        assert code == 9
    print(f"died at each of {call - 1} calls, nothing lost")
    assert 15 < call < 199


def test_saving_needs_no_torch(repo_root: Path) -> None:
    code = (
        "import sys, safe.training.checkpoint, safe.training.run_directory, "
        "safe.training.interrupt; sys.exit('torch' in sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(repo_root)}
    )

"""Ways in which a checkpoint's files go wrong after they were written."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

# each returns the names of which the error must tell one
Damage = Callable[[Path, list[Path], random.Random], tuple[str, ...]]


def _rewrite(file: Path, content: bytes) -> tuple[str, ...]:
    """Replace a file that may be a hard link to the original; its name, as it must be told."""
    file.unlink()
    file.write_bytes(content)
    return (file.name,)


def flip(_folder: Path, files: list[Path], choose: random.Random) -> tuple[str, ...]:
    """One bit of one byte, anywhere."""
    file = choose.choice(files)
    content = bytearray(file.read_bytes())
    content[choose.randrange(len(content))] ^= 1 << choose.randrange(8)
    return _rewrite(file, bytes(content))


def cut(_folder: Path, files: list[Path], choose: random.Random) -> tuple[str, ...]:
    """The end of a file is missing, or all of it."""
    file = choose.choice(files)
    content = file.read_bytes()
    return _rewrite(file, content[: choose.randrange(len(content))])


def grown(_folder: Path, files: list[Path], choose: random.Random) -> tuple[str, ...]:
    """Bytes were appended."""
    file = choose.choice(files)
    return _rewrite(file, file.read_bytes() + choose.randbytes(choose.randrange(1, 5000)))


def zeros(_folder: Path, files: list[Path], choose: random.Random) -> tuple[str, ...]:
    """A block reads as zeros, as after a power cut on some file systems."""
    file = choose.choice(files)
    content = bytearray(file.read_bytes())
    start = choose.randrange(len(content))
    block = content[start : start + 4096]
    if not any(block):  # there were zeros already: take the whole file
        start, block = 0, content[:]
    content[start : start + len(block)] = bytes(len(block))
    return _rewrite(file, bytes(content))


def swapped(_folder: Path, files: list[Path], choose: random.Random) -> tuple[str, ...]:
    """Two files have each other's names."""
    one, other = choose.sample(files, 2)
    first, second = one.read_bytes(), other.read_bytes()
    return _rewrite(one, second) + _rewrite(other, first)


def missing(_folder: Path, files: list[Path], choose: random.Random) -> tuple[str, ...]:
    """A file is gone."""
    file = choose.choice(files)
    file.unlink()
    return (file.name,)


def foreign(folder: Path, files: list[Path], choose: random.Random) -> tuple[str, ...]:
    """A file is the one of the older checkpoint."""
    file = choose.choice([file for file in files if file.name != "manifest.json"])
    older = folder.with_name("step-00000003") / file.relative_to(folder)
    if older.read_bytes() == file.read_bytes():
        return flip(folder, files, choose)
    return _rewrite(file, older.read_bytes())


def extra(folder: Path, _files: list[Path], choose: random.Random) -> tuple[str, ...]:
    """There is a file more, such as a pickle that a careless reader would open."""
    place = choose.choice([folder, folder / "adapter"])
    (place / "pytorch_model.bin").write_bytes(choose.randbytes(10))
    return ("pytorch_model.bin",)


def linked(folder: Path, files: list[Path], choose: random.Random) -> tuple[str, ...]:
    """A file is a link to a good copy elsewhere, which may change or go."""
    file = choose.choice(files)
    copy = folder.parent.parent / "elsewhere"
    shutil.copyfile(file, copy)
    file.unlink()
    file.symlink_to(copy)
    return (file.name,)


def renamed(folder: Path, _files: list[Path], _choose: random.Random) -> tuple[str, ...]:
    """The older checkpoint stands under the newer name."""
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("step-00000003"), folder, copy_function=os.link)
    return ("renamed",)


DAMAGES: tuple[Damage, ...] = (
    flip, flip, flip, cut, cut, grown, zeros, swapped, missing, foreign, extra, linked, renamed,
)  # fmt: skip

"""Strangers' .pt files that would touch a canary if anything in them were run."""

import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path


class Reduced:
    """Pickles as a call of ``function(*arguments)``."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call  # type: ignore[return-value]


def _unicode(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def pickles(canary: Path) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of pickles that call something, each by other opcodes."""
    touch, word = f"touch {canary}", _unicode(f"touch {canary}")
    code = f"open({str(canary)!r}, 'w').close()"
    for protocol in (0, 2, 4):
        for name, thing in (
            ("system", Reduced(__import__("os").system, touch)),
            ("eval", Reduced(eval, code)),
            ("exec", Reduced(exec, code)),
            ("open", Reduced(open, str(canary), "w")),
            ("getattr", Reduced(getattr, Path(canary), "touch")),
            ("popen", Reduced(__import__("subprocess").Popen, ["touch", str(canary)])),
            ("import", Reduced(__import__("importlib").import_module, "antigravity")),
        ):
            yield f"reduce-{name}-{protocol}", pickle.dumps(thing, protocol)
            yield f"nested-{name}-{protocol}", pickle.dumps({"state_dict": [thing]}, protocol)
    yield "global", b"cos\nsystem\n(" + word + b"tR."
    yield (
        "stack-global",
        b"\x80\x04" + _unicode("os") + _unicode("system") + b"\x93" + word + b"\x85R.",
    )
    yield "inst", b"(" + word + b"ios\nsystem\n."
    yield "obj", b"(cos\nsystem\n" + word + b"o."
    yield "newobj", b"\x80\x02csubprocess\nPopen\n(" + word + b"\x88tR."
    yield (
        "newobj-ex",
        b"\x80\x04"
        + _unicode("subprocess")
        + _unicode("Popen")
        + b"\x93("
        + (word + b"\x85t}\x92."),
    )
    yield "build", b"\x80\x02ctorch.nn\nModule\n)R}" + _unicode("__class__") + b"cos\nsystem\nsb."
    yield (
        "dotted",
        b"\x80\x04"
        + _unicode("torch")
        + _unicode("serialization.os.system")
        + (b"\x93" + word + b"\x85R."),
    )
    yield "torch-load", b"\x80\x02ctorch\nload\n(" + _unicode(str(canary)) + b"tR."
    yield "hub", b"\x80\x02ctorch.hub\nload\n(" + _unicode("a/b") + _unicode("c") + b"tR."
    yield "jit", b"\x80\x02ctorch.jit\nload\n(" + _unicode(str(canary)) + b"tR."
    yield "persistent", b"\x80\x02" + word + b"Q."
    yield "extension", b"\x80\x02\x82\x01."
    yield "memory", b"\x80\x02cbuiltins\nbytearray\n(\x8a\x08" + struct.pack("<q", 2**46) + b"tR."
    yield "long", b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"\x01."
    yield "frame", b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N."
    yield "string", b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"a."
    yield "deep", b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b"."
    yield "memo", b"\x80\x02]r" + struct.pack("<I", 2**32 - 1) + b"j" + struct.pack("<I", 7) + b"."
    yield "empty", b""
    yield "stop", b"."
    yield "junk", bytes(range(256)) * 8


def _zip(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file.getvalue()


def _tar(entries: dict[str, bytes], link: str | None = None) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        if link is not None:
            info = tarfile.TarInfo("storages")
            info.type, info.linkname = tarfile.SYMTYPE, link
            archive.addfile(info)
    return file.getvalue()


def files(canary: Path) -> Iterator[tuple[str, bytes]]:
    """Every pickle as it is, in torch's zip, in its legacy tar, and some oddities of each."""
    system = b"cos\nsystem\n(" + _unicode(f"touch {canary}") + b"tR."
    for name, content in pickles(canary):
        yield f"{name}.bare", content
        yield f"{name}.legacy", pickle.dumps(0x1950A86A20F9469CFC6C, 2) + content
        yield (
            f"{name}.zip",
            _zip({"a/data.pkl": content, "a/version": b"3\n", "a/byteorder": b"little"}),
        )
        tar = {"sys_info": content, "pickle": content, "storages": content, "tensors": content}
        yield f"{name}.tar", _tar(tar)
    yield "traversal.zip", _zip({"../../canary": b"x", "a/data.pkl": system, "a/version": b"3"})
    yield "traversal.tar", _tar({f"../../../../../../..{canary}": b"x", "pickle": system})
    yield "link.tar", _tar({"pickle": system}, link=str(canary.parent))
    yield "jit.zip", _zip({"a/constants.pkl": system, "a/data.pkl": system, "a/version": b"3",
                           "a/code/__torch__.py": b"import os"})  # fmt: skip
    yield "two.zip", _zip({"a/data.pkl": system, "b/data.pkl": system, "a/version": b"3"})
    yield "polyglot.zip", system + _zip({"a/data.pkl": system, "a/version": b"3"})
    yield "bomb.zip", _bomb(200)


def _bomb(megabytes: int) -> bytes:
    """A small zip whose pickle grows."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/version", b"3")
        with archive.open("a/data.pkl", "w") as member:
            for _ in range(megabytes):
                member.write(bytes(2**20))
    return file.getvalue()


def bombs() -> Iterator[tuple[str, object]]:
    """Name and content of checkpoints of plain tensors that are small only as long as views."""
    import torch

    yield "expanded", {"a": torch.zeros(1).expand(2**40)}
    one = torch.zeros(2**20)
    yield "many-views", {f"{n}": one for n in range(64)}

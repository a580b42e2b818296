"""In a child process: a stranger's .pt file, read with ``weights_only``, becomes safetensors."""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from safe.child import Answer, serve

_DEPTH = 8  # how deep state dicts lie in dictionaries, lists and tuples

# Training scripts leave NumPy scalars (epoch, loss, class counts) beside the weights.
# NumPy 2 writes another module name for the same function.
_SCALAR: Any = vars(np.core.multiarray)["scalar"]
_NUMPY_GLOBALS: list[Any] = [
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("int32", "int64", "float32", "float64")),
]


def rewrite(question: dict[str, Any]) -> Answer:
    """Write the tensors of ``path`` whose names hold one of ``parts`` to ``target``.

    Answers {}, or {"refused": reason}.
    """
    try:
        path = Path(question["path"])
        _check_sizes(path)
        with torch.serialization.safe_globals(_NUMPY_GLOBALS):
            content = torch.load(path, map_location="cpu", weights_only=True)
        parts = question["parts"]
        found = {
            name: tensor.detach().clone(memory_format=torch.contiguous_format)
            for name, tensor in _tensors(content, "", set())
            if any(part in name for part in parts)
        }
        save_file(found, question["target"])
    except Exception as error:  # a stranger's bytes may raise anything
        text = str(error).strip()
        if isinstance(error, MemoryError) or "allocate memory" in text:
            raise MemoryError from None
        return {"refused": text.splitlines()[0][:500] if text else "damaged"}, b""
    return {}, b""


def _check_sizes(path: Path) -> None:
    """Raise ValueError for a zip that grows: torch stores its files uncompressed."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            declared = sum(member.file_size for member in archive.infolist())
        if declared > path.stat().st_size:
            raise ValueError(f"its files would grow to {declared:,} bytes")


def _tensors(value: Any, name: str, seen: set[int]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor with its place, keys joined by "/"."""
    if isinstance(value, torch.Tensor):
        yield name, value
        return
    if isinstance(value, dict):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [(str(number), item) for number, item in enumerate(value)]
    else:
        return
    if name.count("/") >= _DEPTH:
        raise ValueError(f"its values lie more than {_DEPTH} deep in one another")
    if id(value) in seen:
        return
    seen.add(id(value))
    for key, item in items:
        yield from _tensors(item, f"{name}/{key}" if name else key, seen)


if __name__ == "__main__":
    serve(rewrite)

"""Short content hashes that say which weights a result was made with."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

_CHUNK_BYTES = 1 << 20


def file_digest(paths: Iterable[Path], *, edge_bytes: int | None = None) -> str:
    """Return the first 16 hex digits of a SHA-256 over names, sizes and contents of files.

    Args:
        paths: the files, taken in order of name; their folders do not matter.
        edge_bytes: of a file longer than twice this, hash only that many bytes from each end.
            A 13B backbone has 26 GB of weights; its ends and sizes tell it from another one.
    """
    total = hashlib.sha256()
    for path in sorted(paths, key=lambda path: path.name):
        size = path.stat().st_size
        total.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            if edge_bytes is None or size <= 2 * edge_bytes:
                while chunk := file.read(_CHUNK_BYTES):
                    total.update(chunk)
            else:
                total.update(file.read(edge_bytes))
                file.seek(-edge_bytes, 2)
                total.update(file.read(edge_bytes))
    return total.hexdigest()[:16]

"""In a child process: reading Arrow files that may be hostile to pyarrow."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow
import pyarrow.ipc

from safe.child import Answer, serve
from safe.data.sources.columns import caption_columns, file_column

_OTHERS = ("youtube_id", "id", "start_time", "duration")


def answer(question: dict[str, Any]) -> Answer:
    """Return what is wrong with a file, or nothing and beside it, as JSON, its rows.

    A row is [values by column, path, place of the embedded file or null]; a place is
    [first byte, number of bytes] in the Arrow file.
    """
    try:
        rows = _rows(question["path"])
        return {}, json.dumps(rows, default=_odd).encode("ascii")
    except MemoryError:
        raise
    except Exception as error:  # pyarrow has many for damaged bytes, KeyError among them
        detail = " ".join(str(error).split())[:300]
        return {"wrong": detail or type(error).__name__}, b""


def _rows(path: str) -> list[tuple[dict[str, Any], Any, tuple[int, int] | None]]:
    with pyarrow.memory_map(path) as file:
        whole = file.read_buffer()
    options = pyarrow.ipc.IpcReadOptions(use_threads=False)
    table = pyarrow.ipc.open_stream(whole, options=options).read_all()
    columns = table.column_names
    # a name beside the sound (file_name and audio) is one of a file that nobody has to have
    held = [field.name for field in table.schema if _holds_sounds(field.type)]
    audio, captions = file_column(held) or file_column(columns), caption_columns(columns)
    if not captions or audio is None:
        raise ValueError(
            f"needs a column audio (or file_name, path) and a caption; found: {', '.join(columns)}"
        )
    wanted = [name for name in (*_OTHERS, *captions) if name in columns]
    table = table.select(list(dict.fromkeys((*wanted, audio))))
    table.validate(full=True)
    rows = table.select(wanted).to_pylist()
    sounds = (pair for chunk in table.column(audio).chunks for pair in _sounds(chunk, whole))
    return [(row, *sound) for row, sound in zip(rows, sounds, strict=True)]


def _holds_sounds(kind: Any) -> bool:
    return pyarrow.types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind}


def _sounds(chunk: Any, whole: Any) -> Iterator[tuple[Any, tuple[int, int] | None]]:
    """Yield path and place of the embedded file of each row."""
    if not pyarrow.types.is_struct(chunk.type):
        yield from ((path, None) for path in chunk.to_pylist())
        return
    fields = dict(zip([field.name for field in chunk.type], chunk.flatten(), strict=True))
    if not {"bytes", "path"} <= fields.keys():
        raise ValueError(f"the audio needs the fields bytes and path; found: {', '.join(fields)}")
    places = _places(fields["bytes"], whole)
    yield from zip(fields["path"].to_pylist(), places, strict=True)


def _places(values: Any, whole: Any) -> Iterator[tuple[int, int] | None]:
    """Yield where in the file the bytes of each row are; they have been validated."""
    if not len(values):
        return
    types = {pyarrow.binary(): np.int32, pyarrow.large_binary(): np.int64}
    if values.type not in types:
        raise ValueError(f"the audio's bytes are of type {values.type}; binary can be read")
    _, ends, content = values.buffers()
    offsets = np.frombuffer(ends, types[values.type])[values.offset :].tolist()
    start = content.address - whole.address if content else 0
    if not 0 <= start <= whole.size - offsets[len(values)]:
        raise ValueError("its sounds are compressed; write it without, as save_to_disk does")
    for row, valid in enumerate(values.is_valid().to_pylist()):
        yield (start + offsets[row], offsets[row + 1] - offsets[row]) if valid else None


def _odd(value: object) -> dict[str, str]:
    """Return what stands for a value that is no text or number, for the message of the reader."""
    return {"type": type(value).__name__}


if __name__ == "__main__":
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())  # others reserve more than they take
    serve(answer)

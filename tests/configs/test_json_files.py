import json
import os
import pickle
from pathlib import Path

import pytest

from configs.errors import FileError
from configs.json_files import parse_json, read_json, require_regular, whole_lines

pytestmark = pytest.mark.timeout(60)  # a pipe that is opened waits for ever


def test_what_is_there_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": [1, NaN, "ä"]}')
    assert read_json(path, str) == {"a": [1, "NaN", "ä"]}
    path.write_bytes(b'{"a": 1}\r\n{"a"\n\xff\n{"torn": ')
    assert list(whole_lines(path)) == [b'{"a": 1}\r\n', b'{"a"\n', b"\xff\n"]
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "absent.json")
    with pytest.raises(FileNotFoundError):
        list(whole_lines(tmp_path / "absent.json"))
    require_regular(tmp_path / "absent.json")


@pytest.mark.parametrize(
    "text", [b"[" * 3000, b"[" * 60 + b"]" * 60, b'{"":' * 51 + b"1" + b"}" * 51]
)
def test_deep_values_are_refused(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(FileError, match="a.json cannot be read: it is nested more than 50 deep"):
        read_json(tmp_path / "a.json")
    with pytest.raises(ValueError, match="nested more than 50 deep"):
        parse_json(text)


def test_many_brackets_are_not_deep() -> None:
    assert parse_json(b"[" * 40 + b"]" * 40)
    assert len(parse_json(json.dumps([{"a": [i]} for i in range(1000)]).encode())) == 1000
    assert parse_json(json.dumps("[" * 1000).encode()) == "[" * 1000


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "link to itself"])
def test_what_is_no_file_is_not_opened(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path)
    for read in (read_json, lambda path: list(whole_lines(path))):
        with pytest.raises(FileError, match="a.json cannot be read: ") as info:
            read(path)
    if kind != "link to itself":
        assert "not a regular file" in info.value.why


def test_large_files_are_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(2**40)  # sparse
    for read in (read_json, lambda path: list(whole_lines(path))):
        with pytest.raises(FileError, match=r"it has 1,099,511,627,776 bytes; at most [\d,]+ are"):
            read(tmp_path / "a.json")


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"9" * 5000, b"\xef\xbb\xbf1"])
def test_what_is_no_json(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(FileError, match="a.json cannot be read: ") as info:
        read_json(tmp_path / "a.json")
    assert str(pickle.loads(pickle.dumps(info.value))) == str(info.value)  # noqa: S301

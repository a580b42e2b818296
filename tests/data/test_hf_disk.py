"""Hugging Face data sets on disk: Arrow files written as `save_to_disk` writes them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from configs.errors import DataError
from safe.data.check import check_root
from safe.data.prepare import prepare
from safe.data.sources import read_source
from tests.data.test_sources import sound

pyarrow = pytest.importorskip("pyarrow", reason="needs the extra `arrow`")

BY_DATASETS = Path(__file__).parent / "saved_by_datasets"
"""Saved by the package; its README says how."""


def save(folder: Path, columns: dict[str, list[Any]], shards: int = 1) -> None:
    """Write what `Dataset.save_to_disk` of datasets 5.2 leaves, but for keys that nobody reads."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table(columns)
    names = [f"data-{at:05d}-of-{shards:05d}.arrow" for at in range(shards)]
    size = -(-len(table) // shards)
    for at, name in enumerate(names):
        with pyarrow.OSFile(str(folder / name), "wb") as file:
            part = table.slice(at * size, size)
            with pyarrow.ipc.new_stream(file, table.schema) as stream:
                stream.write_table(part, max_chunksize=2)  # several chunks, as for many rows
    state = {"_data_files": [{"filename": name} for name in names], "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")


def embedded(root: Path, names: list[str]) -> list[dict[str, Any]]:
    values = []
    for seed, name in enumerate(names):
        sound(root / f"{name}.wav", seed)
        values.append({"bytes": (root / f"{name}.wav").read_bytes(), "path": f"{name}.wav"})
    return values


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Return a data set with 3 training clips of two captions and 1 validation clip."""
    root = tmp_path / "saved"
    a, b, c, d = embedded(tmp_path, ["a", "b", "c", "d"])
    train = {
        "audio": [a, b, a, b, c, c],
        "caption": [f"text {n}" for n in range(6)],
        "youtube_id": ["a", "b", "a", "b", "c", "c"],
        "start_time": [30] * 6,
    }
    save(root / "train", train, shards=2)
    save(root / "validation", {"audio": [d], "text": ["last"]})
    (root / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    return root


def test_splits_with_the_sounds_inside(saved: Path, tmp_path: Path) -> None:
    source = read_source(saved)
    assert source.format == "Hugging Face data set on disk"
    assert list(source.manifests) == ["train", "val"]
    found = {clip.id: clip for clip in source.manifests["train"].clips}
    assert {name: clip.captions for name, clip in found.items()} == {
        "a_30": ("text 0", "text 2"), "b_30": ("text 1", "text 3"), "c_30": ("text 4", "text 5"),
    }  # fmt: skip
    for clip in found.values():
        assert clip.embedded is not None
        assert clip.embedded.read() == (tmp_path / f"{clip.youtube_id}.wav").read_bytes()
    report = check_root(saved)
    assert (report.exit_code, report.problems) == (0, ())
    assert report.splits["train"].usable == 3


def test_prepare_writes_the_sounds_out(saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert prepare(saved, out).exit_code == 0
    for name in "abc":
        made = out / "audio" / "train" / f"{name}_30.wav"
        assert made.read_bytes() == (tmp_path / f"{name}.wav").read_bytes()
    assert (out / "audio" / "val" / "d.wav").is_file()
    assert prepare(saved, out).reused == 4


def test_what_datasets_itself_has_saved(tmp_path: Path) -> None:
    """Its sounds win over the names beside them (``file_name``), which nobody here has."""
    source = read_source(BY_DATASETS)
    found = {n: [(c.id, c.captions) for c in m.clips] for n, m in source.manifests.items()}
    assert found == {
        "train": [("low_30", ("a low tone", "a hum")), ("high_0", ("a high tone", "a whistle"))],
        "val": [("deep", ("a drone", "a buzz")), ("deepest", ("a thud",))],
    }  # fmt: skip
    result = prepare(BY_DATASETS, tmp_path / "out")
    assert {name: count.usable for name, count in result.splits.items()} == {"train": 2, "val": 2}
    pitches = {}
    for file in (tmp_path / "out" / "audio").rglob("*.flac"):
        wave, rate = soundfile.read(file)
        pitches[file.stem] = np.abs(np.fft.rfft(wave)).argmax() * 2 * np.pi / len(wave)
        assert (rate, len(wave)) == (8000, 2000)
    expected = {"low_30": 0.1, "high_0": 0.2, "deep": 0.05, "deepest": 0.02}
    assert pitches == pytest.approx(expected, abs=0.002)


def test_a_struct_without_a_sound_is_no_rival_of_a_name(tmp_path: Path) -> None:
    save(tmp_path, {"file_name": ["a.wav"], "audio": [{"label": 1}], "text": ["x"]})
    (clip,) = read_source(tmp_path).manifests["train"].clips
    assert clip.id == "a"


def test_one_split_with_lists_of_captions_and_files_beside_it(tmp_path: Path) -> None:
    root = tmp_path / "one"
    save(root, {"audio": ["a.wav", "b.wav"], "captions": [["x", "y"], ["z"]], "id": [0, 1]})
    sound(root / "audio" / "a.wav", 0)
    source = read_source(root)
    assert source.notes == ("the data set has no splits: all its clips are in train",)
    first, second = source.manifests["train"].clips
    assert (first.id, first.captions, second.id) == ("0", ("x", "y"), "1")
    assert first.path == root / "audio" / "a.wav" and second.path is None


def test_sounds_without_a_name_get_a_suffix_by_their_first_bytes(tmp_path: Path) -> None:
    content = b"OggS" + bytes(20)
    save(tmp_path, {"audio": [{"bytes": content, "path": None}], "text": ["x"]})
    (clip,) = read_source(tmp_path).manifests["train"].clips
    assert clip.path == Path("data-00000-of-00001-000000.ogg")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"audio": ["/home/me/a.wav"], "text": ["x"]}, "row 1: audio path .* stay inside it"),
        ({"audio": ["../a.wav"], "text": ["x"]}, "stay inside it"),
        ({"sound": ["a.wav"], "text": ["x"]}, "needs a column audio .* found: sound, text"),
        ({"audio": ["a.wav"], "label": ["x"]}, "needs a column audio .* and a caption"),
        ({"audio": ["a.wav"], "text": [""]}, "row 1: has no caption"),
        ({"audio": ["a.wav"], "text": [b"x"]}, "row 1: text must be text, got {'type': 'bytes'}"),
        ({"audio": [b"a.wav"], "text": ["x"]}, "row 1: the audio path must be text"),
        ({"audio": [{"bytes": b"x", "path": 1}], "text": ["x"]}, "path must be text, got 1"),
        ({"audio": [{"bytes": b"x", "path": "a/."}], "text": [3]}, "text must be text, got 3"),
        ({"audio": [{"bytes": b"x", "path": "."}], "text": ["x"]}, "row 1: needs an id, .* got ''"),
        ({"audio": [{"path": "a.wav"}], "text": ["x"]}, "needs the fields bytes and path; found:"),
        ({"audio": [{"bytes": "x", "path": "a"}], "text": ["x"]}, "are of type string; binary can"),
    ],
)
def test_bad_columns(columns: dict[str, list[Any]], message: str, tmp_path: Path) -> None:
    save(tmp_path, columns)
    with pytest.raises(DataError, match=message):
        read_source(tmp_path)


def test_two_sounds_under_one_name_are_not_joined(tmp_path: Path) -> None:
    values = [{"bytes": b"RIFF1", "path": "a.wav"}, {"bytes": b"RIFF2", "path": "a.wav"}]
    save(tmp_path, {"audio": values, "text": ["x", "y"]})
    with pytest.raises(DataError, match="two different sounds .* have the clip id 'a'"):
        read_source(tmp_path)


def test_a_damaged_or_unfinished_data_set(saved: Path) -> None:
    file = saved / "validation" / "data-00000-of-00001.arrow"
    file.write_bytes(b"not arrow")
    with pytest.raises(DataError, match="cannot be read as an Arrow stream"):
        read_source(saved)
    (saved / "validation" / "state.json").unlink()
    with pytest.raises(DataError, match="has no state.json; the data set was not saved compl"):
        read_source(saved)


def test_a_file_that_crashes_pyarrow_is_named(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holey = "import os, safe.child\nsafe.child.serve(lambda question: os.abort())\n"
    (tmp_path / "holey_arrow.py").write_text(holey)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("safe.data.sources.hf_disk._MODULE", "holey_arrow")
    with pytest.raises(DataError, match=r"00002.arrow: cannot be read .* crashed .*\(SIGABRT\)"):
        read_source(saved)


def test_an_arrow_file_that_is_elsewhere(saved: Path, tmp_path: Path) -> None:
    file = saved / "validation" / "data-00000-of-00001.arrow"
    file.rename(tmp_path / "elsewhere.arrow")
    with pytest.raises(DataError, match="cannot be read .*: No such file"):
        read_source(saved)
    file.symlink_to(tmp_path / "elsewhere.arrow")
    with pytest.raises(DataError, match=f"{file} is a link that leads out of the data folder"):
        read_source(saved)


def test_compressed_sounds_and_rows_without_one(tmp_path: Path) -> None:
    values = [{"bytes": bytes(range(256)) * 9, "path": "a.wav"}, None, {"bytes": b"", "path": "b"}]
    save(tmp_path, {"audio": values, "text": ["x", "y", "z"], "id": ["1", "2", "3"]})
    first, second, third = read_source(tmp_path).manifests["train"].clips
    assert first.embedded is not None and first.embedded.read() == values[0]["bytes"]
    assert second.embedded is None and second.path is None
    assert third.embedded is not None and third.embedded.read() == b""
    table = pyarrow.table({"audio": values, "text": ["x", "y", "z"]})
    options = pyarrow.ipc.IpcWriteOptions(compression="zstd")
    file = str(tmp_path / "data-00000-of-00001.arrow")
    with (
        pyarrow.OSFile(file, "wb") as sink,
        pyarrow.ipc.new_stream(sink, table.schema, options=options) as stream,
    ):
        stream.write_table(table)
    with pytest.raises(DataError, match="its sounds are compressed; write it without"):
        read_source(tmp_path)


@pytest.mark.parametrize(
    "text", ["[]", '{"splits": 5}', '{"splits": ["../x"]}', '{"splits": [{}]}']
)
def test_odd_json(text: str, saved: Path) -> None:
    (saved / "dataset_dict.json").write_text(text)
    with pytest.raises(DataError, match="needs a list 'splits'|plain name|needs an id"):
        read_source(saved)


def test_odd_state(saved: Path) -> None:
    (saved / "train" / "state.json").write_text('{"_data_files": ["x"]}')
    with pytest.raises(DataError, match="needs an id"):
        read_source(saved)

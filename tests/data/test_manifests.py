"""Manifests: AudioCaps CSV, JSON and JSONL, and every way they can be wrong."""

import csv
import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.errors import DataError
from safe.data.manifests import Clip, load_split, read_manifest, write_manifest

HEADER = "audiocap_id,youtube_id,start_time,caption\n"

any_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def write(root: Path, text: str | bytes, name: str = "train.csv") -> Path:
    data = text if isinstance(text, bytes) else text.encode()
    (root / name).write_bytes(data)
    return root


def test_rows_of_a_clip_are_grouped_in_order_of_first_appearance(tmp_path: Path) -> None:
    write(tmp_path, HEADER + "1,b,30,two\n2,-a,0,one\n3,b,30.0,three\n4,b,40,four\n")
    clips = load_split(tmp_path, "train")
    assert [(c.id, c.captions) for c in clips] == [
        ("b_30", ("two", "three")),
        ("-a_0", ("one",)),
        ("b_40", ("four",)),
    ]
    assert clips[1].youtube_id == "-a"
    assert clips[1].split == "train"
    assert clips[1].path is None
    assert read_manifest(tmp_path, "train").rows == 4


def test_bom_crlf_quotes_blank_lines_and_other_columns(tmp_path: Path) -> None:
    text = (
        '\ufeffyoutube_id, caption ,start_time,note\r\n\r\n"x","a ""dog"", barking",30,\r\n  \r\n'
        'y,"two\nlines",7.50,n\r\n'
    )
    write(tmp_path, text)
    clips = load_split(tmp_path, "train")
    assert [(c.id, c.captions) for c in clips] == [
        ("x_30", ('a "dog", barking',)),
        ("y_7.5", ("two\nlines",)),
    ]


@pytest.mark.parametrize(
    ("start", "id_"),
    [
        ("30", "v_30"),
        ("30.0", "v_30"),
        ("030", "v_30"),
        ("0", "v_0"),
        ("7.25", "v_7.25"),
        ("", "v"),
    ],
)
def test_start_times_are_normalised(tmp_path: Path, start: str, id_: str) -> None:
    write(tmp_path, f"{HEADER}1,v,{start},text\n")
    assert load_split(tmp_path, "train")[0].id == id_


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "train.csv: is empty; the header must be"),
        ("youtube_id,youtube_id,start_time,caption\n", r"line 1: column 'youtube_id' stands twice"),
        ("youtube_id,caption\n", r"line 1: column 'start_time' is missing; found: youtube_id"),
        (HEADER + "1,a,0,ok\n2,b,0,\n", "line 3: empty or missing caption: ''"),
        (HEADER + "1,a,0,  \n", "line 2: empty or missing caption"),
        (HEADER + "1,,0,text\n", "line 2: needs an id"),
        (HEADER + "1,a,0,a dog, barking\n", "line 2: has 5 fields, the header has 4; a caption"),
        (HEADER + "1,a,0\n", "line 2: has 3 fields"),
        (HEADER + '1,a,0,"two\nlines"\n2,b,x,text\n', "line 4: start_time 'x' is not a number"),
        (HEADER + "1,a,-3,text\n", "start_time '-3' is not a number"),
        (HEADER + "1,a,nan,text\n", "start_time 'nan' is not a number"),
        (HEADER + '1,a,0,"never closed\n2,b,0,text\n', "line 2: unexpected end of data; a field"),
        (HEADER + '1,a,0,"closed" too early\n', "line 2: .*in double quotes"),
        (HEADER + "1,../a,0,text\n", r"line 2: id '../a' must be a plain name"),
        (HEADER + "1,/etc/passwd,0,text\n", "must be a plain name without path separators"),
        (HEADER + "1,..,0,text\n", "must be a plain name"),
        (HEADER + "1,a\\b,0,text\n", "must be a plain name"),
        (HEADER + "1,a\tb,0,text\n", "holds a control character"),
        (HEADER + "1,a,0,te\0xt\n", "line 2: holds a NUL byte"),
        (HEADER.encode() + b"1,a,0,caf\xe9\n", r"line 2: is not UTF-8 \(byte 0xe9\); save"),
        (HEADER + "1,a_1,,one\n2,a,1,two\n", "'a' at '1' and 'a_1' at '' both give .*'a_1'"),
        (HEADER + "1,a,0," + "x" * 200_000, "line 2: field larger than field limit"),
    ],
)
def test_bad_csv_is_an_error_with_its_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_split(write(tmp_path, text), "train")


def test_long_input_is_read_in_linear_time(tmp_path: Path) -> None:
    def seconds(name: str, text: str) -> float:
        began = time.process_time()
        with pytest.raises(DataError):
            load_split(write(tmp_path, text, name), "train")
        (tmp_path / name).unlink()
        return time.process_time() - began

    def names(count: int) -> list[str]:
        return [f"n{number}" for number in range(count)]

    texts: dict[str, Callable[[int], tuple[str, str]]] = {
        "zeros before a letter": lambda n: ("train.csv", f"{HEADER}1,a,{'0' * n}x,text\n"),
        "columns": lambda n: ("train.csv", ",".join([*names(n), "n0"]) + "\n"),
        "keys": lambda n: ("train.json", json.dumps(dict.fromkeys(names(n)))[:-1] + ', "n0": 1}'),
    }
    for what, make in texts.items():
        few, many = seconds(*make(5_000)), seconds(*make(40_000))
        assert many < 24 * few + 0.2, f"{what}: {few:.3f} s, 8 times as many {many:.3f} s"


def test_json_and_jsonl(tmp_path: Path) -> None:
    entries = [
        {"youtube_id": "a", "start_time": 30, "caption": "one"},
        {"id": "b", "captions": ["two", "three\u2028four"]},
        {"audio": "sounds/c.wav", "caption": "five"},
        {"path": "./d.wav", "id": 7, "start_time": 1.5, "caption": "six"},
        {"youtube_id": "a", "start_time": "30.0", "caption": "seven"},
    ]
    (tmp_path / "sounds").mkdir()
    (tmp_path / "sounds" / "c.wav").touch()
    write(tmp_path, json.dumps(entries, ensure_ascii=False), "train.json")
    lines = "\r\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
    write(tmp_path, "\ufeff" + lines + "\n\n", "val.jsonl")
    for split in ("train", "val"):
        clips = load_split(tmp_path, split)
        assert [(c.id, c.captions) for c in clips] == [
            ("a_30", ("one", "seven")),
            ("b", ("two", "three\u2028four")),
            ("sounds_c", ("five",)),
            ("7_1.5", ("six",)),
        ]
        assert clips[2].path == tmp_path / "sounds" / "c.wav"
        assert clips[3].path is None
    assert read_manifest(tmp_path, "val").rows == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "train.json, line 1: is not JSON"),
        ('[\n{"id": "a"\n"caption"}]', "train.json, line 3: is not JSON"),
        ("{}", "must be a list of objects, not dict"),
        ("[3]", "entry 1: must be an object, not int"),
        ('[{"id": "a", "caption": "x"}, {"caption": "x"}]', "entry 2: needs an id"),
        ('[{"id": true, "caption": "x"}]', "needs an id, .* got True"),
        ('[{"id": "a"}]', "entry 1: empty or missing caption: None"),
        ('[{"id": "a", "captions": []}]', r"empty or missing caption: \[\]"),
        ('[{"id": "a", "captions": ["x", 3]}]', "empty or missing caption"),
        ('[{"id": "a", "caption": "x", "captions": ["y"]}]', "has both caption and captions"),
        ('[{"id": "a", "caption": "x", "caption": "y"}]', "key 'caption' stands twice"),
        ('[{"id": "a", "start_time": NaN, "caption": "x"}]', "start_time nan is not a number"),
        ('[{"id": "a", "start_time": true, "caption": "x"}]', "start_time True is not a number"),
        ('[{"id": "a", "caption": "\\ud800"}]', "half a surrogate pair"),
        ('[{"id": "a\\u0000", "caption": "x"}]', "holds a NUL"),
        ('[{"audio": "../x.wav", "caption": "x"}]', "must be relative to the data folder"),
        ('[{"audio": "/x.wav", "caption": "x"}]', "must be relative to the data folder"),
        ('[{"audio": "C:\\\\x.wav", "caption": "x"}]', "must be relative to the data folder"),
        ('[{"audio": 3, "caption": "x"}]', "the audio path must be text, got 3"),
        (
            '[{"id": "a", "audio": "x.wav", "caption": "x"}, {"id": "a", "caption": "y"}]',
            "entry 2: clip 'a' has the audio file None, but 'x.wav' at train.json, entry 1",
        ),
        ("[" * 100_000, "is not usable JSON"),
        ("9" * 10_000, "is not usable JSON"),
    ],
)
def test_bad_json_is_an_error_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_split(write(tmp_path, text, "train.json"), "train")


def test_bad_jsonl_names_the_line(tmp_path: Path) -> None:
    write(tmp_path, '{"id": "a", "caption": "x"}\n\n{"id": }\n', "train.jsonl")
    with pytest.raises(DataError, match=r"train.jsonl, line 3: is not JSON"):
        load_split(tmp_path, "train")


def test_missing_and_ambiguous_manifests(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="looked for train.csv, train.json, train.jsonl"):
        load_split(tmp_path, "train")
    with pytest.raises(DataError, match="does not exist or is not a folder"):
        load_split(tmp_path / "nowhere", "train")
    with pytest.raises(DataError, match="split '../train' must be a plain name"):
        load_split(tmp_path, "../train")
    write(write(tmp_path, HEADER), "[]", "train.json")
    with pytest.raises(DataError, match=r"several manifests .*: train.csv and train.json; keep"):
        load_split(tmp_path, "train")


def test_audio_is_found_under_the_usual_names(tmp_path: Path) -> None:
    folder = tmp_path / "audio" / "train"
    folder.mkdir(parents=True)
    names = ["-a_30.ogg", "Yb.flac", "c.mp3", "Yd_10.wav", "e_1.wav", "e_1.flac", "f.txt"]
    for name in names:
        (folder / name).touch()
    (folder / "g.wav").mkdir()
    ids = ["-a,30", "b,5", "c,0", "d,10", "e,1", "f,0", "g,0", "-a,31"]
    write(tmp_path, HEADER + "".join(f"1,{one},text\n" for one in ids))
    found = [clip.path.name if clip.path else None for clip in load_split(tmp_path, "train")]
    assert found == ["-a_30.ogg", "Yb.flac", "c.mp3", "Yd_10.wav", "e_1.wav", None, None, None]


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    root, disk = tmp_path / "root", tmp_path / "disk"
    (root / "audio" / "train").mkdir(parents=True)
    disk.mkdir()
    for name in ("secret.wav", "y.wav"):
        (disk / name).touch()
    (root / "real.wav").touch()
    (root / "audio" / "train" / "x.wav").symlink_to(disk / "secret.wav")
    (root / "audio" / "train" / "in.wav").symlink_to(root / "real.wav")
    (root / "audio" / "train" / "broken.wav").symlink_to(disk / "gone.wav")
    (root / "audio" / "train" / "loop.wav").symlink_to("loop.wav")
    (root / "out.wav").symlink_to(disk / "secret.wav")
    names = ["x", "in", "broken", "loop"]
    entries = [{"id": one, "caption": "text"} for one in names]
    entries.append({"id": "named", "audio": "out.wav", "caption": "text"})
    entries.append({"id": "long", "audio": "x" * 300 + ".wav", "caption": "text"})
    write(root, json.dumps(entries), "train.json")
    found = {clip.id: (clip.path, clip.outside) for clip in load_split(root, "train")}
    assert found == {
        "x": (None, True),
        "in": (root / "audio" / "train" / "in.wav", False),
        "broken": (None, False),
        "loop": (None, False),
        "named": (None, True),
        "long": (None, False),
    }
    # The root is what a person has named: it may be a link, as may a folder that stays inside.
    (tmp_path / "link").symlink_to(root)
    (root / "audio" / "val").symlink_to("train")
    write(root, HEADER + "1,in,0,text\n", "val.csv")
    found = load_split(tmp_path / "link", "val")[0]
    assert found.path == tmp_path / "link" / "audio" / "val" / "in.wav"


@pytest.mark.parametrize("name", ["audio", "audio/val", "val"])
def test_a_folder_that_leads_out_is_refused(name: str, tmp_path: Path) -> None:
    root, disk = tmp_path / "root", tmp_path / "disk"
    (root / name).parent.mkdir(parents=True)
    disk.mkdir()
    (root / name).symlink_to(disk)
    write(root, HEADER + "1,y,0,text\n", "val.csv")
    with pytest.raises(DataError, match=f"{root / name} leads out .*, to {disk}; .*put the sounds"):
        load_split(root, "val")


def load_or_refuse(root: Path, naming: str) -> list[Clip]:
    """Return the clips of the split, or none when it is refused by an error with its file name."""
    try:
        return load_split(root, "train")
    except DataError as error:
        if naming not in str(error):
            raise
        return []


cells = st.text(st.sampled_from('ab,"\n\r 0.\ufeff\x00\u2028/-'), max_size=8)


@any_folder
@given(st.one_of(st.text(), st.binary(), st.lists(st.lists(cells, max_size=5), max_size=5)))
def test_any_csv_parses_or_is_a_data_error(
    tmp_path: Path, content: str | bytes | list[list[str]]
) -> None:
    if isinstance(content, list):
        text = io.StringIO()
        csv.writer(text).writerows(content)
        content = HEADER + text.getvalue()
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    write(tmp_path, data)
    clips = load_or_refuse(tmp_path, naming="train.csv")
    assert all(clip.captions and all(text.strip() for text in clip.captions) for clip in clips)
    assert len({clip.id for clip in clips}) == len(clips)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["id", "youtube_id", "audio", "path", "start_time", "caption", "captions"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@any_folder
@given(value=json_values, suffix=st.sampled_from(["json", "jsonl"]), text=st.none() | st.text())
def test_any_json_parses_or_is_a_data_error(
    tmp_path: Path, value: object, suffix: str, text: str | None
) -> None:
    for old in tmp_path.iterdir():
        old.unlink()
    content = json.dumps(value) if text is None else text
    write(tmp_path, content.encode("utf-8", "surrogatepass"), f"train.{suffix}")
    load_or_refuse(tmp_path, naming="train.json")


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
captions = words.map(str.strip).filter(bool)
ids = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/\\_"), min_size=1
).map(str.strip)
starts = st.sampled_from(["", "0", "30", "7.5", "120"])


@any_folder
@given(
    st.dictionaries(
        st.tuples(ids.filter(lambda text: text not in ("", ".", "..")), starts),
        st.lists(captions, min_size=1, max_size=5),
        max_size=5,
    )
)
def test_written_manifests_read_back_the_same(
    tmp_path: Path, content: dict[tuple[str, str], list[str]]
) -> None:
    clips = [
        Clip(f"{name}_{start}" if start else name, "val", None, tuple(texts), name, start)
        for (name, start), texts in content.items()
    ]
    write_manifest(tmp_path / "val.csv", clips)
    assert load_split(tmp_path, "val") == clips
    assert [path.name for path in tmp_path.iterdir()] == ["val.csv"]


def test_a_manifest_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"manifests are written as .csv"):
        write_manifest(tmp_path / "val.json", [])

    def clips() -> object:
        yield Clip("a", "val", None, ("text",), "a", "")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_manifest(tmp_path / "val.csv", clips())  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_the_real_audiocaps_manifests(shared: Path) -> None:
    root = shared / "data" / "audiocaps"
    began = time.perf_counter()
    train, val, test = (load_split(root, split) for split in ("train", "val", "test"))
    # 1.1 s on one core of a slow machine; a lookup per clip and file name would take minutes.
    assert time.perf_counter() - began < 10
    assert len(train) == 49_838
    assert {len(clip.captions) for clip in train} == {1}
    assert len(val) == 495
    assert len(test) == 975
    assert {len(clip.captions) for clip in val + test} == {5}
    assert sum(clip.id.startswith("-") for clip in train) == 2406
    assert train[0].id == "r1nicOVtvkQ_130"
    assert train[0].captions == ("A woman talks nearby as water pours",)

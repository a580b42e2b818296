"""Data sets as they come: each format is recognised, read with its sounds, and refused when odd."""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.errors import DataError
from safe.data.audiocaps_test import in_audiocaps_test
from safe.data.check import check_root
from safe.data.manifests import Clip
from safe.data.sources import read_source

RATE = 8000
CAPTIONS = [f"caption_{number}" for number in range(1, 6)]


def sound(path: Path, seed: int, seconds: float = 0.25) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * RATE))
    soundfile.write(path, noise, RATE)


def table(path: Path, header: list[str], rows: list[list[str]], encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding=encoding, newline="") as file:
        csv.writer(file).writerows([header, *rows])


def clips(root: Path, split: str = "train") -> dict[str, Clip]:
    return {clip.id: clip for clip in read_source(root).manifests[split].clips}


def audiocaps(root: Path, split: str = "test", names: tuple[str, ...] = ("-a_b-C", "xyz")) -> None:
    header = ["audiocap_id", "youtube_id", "start_time", "caption"]
    rows = [
        [str(5 * at + number), name, "30", f"{name} sounds, {number}"]
        for number in range(5)
        for at, name in enumerate(names)
    ]
    table(root / f"{split}.csv", header, rows)


def clotho(root: Path) -> None:
    for number, word in enumerate(("development", "evaluation")):
        rows = [
            [f"{word} ä {n}.wav", *(f'a "{word}" {n}, {k}' for k in range(5))] for n in range(2)
        ]
        table(root / f"clotho_captions_{word}.csv", ["file_name", *CAPTIONS], rows, "utf-8-sig")
        meta = [
            [f"{word} ä 0.wav", "café;x", f"8039{number}"],
            [f"{word} ä 1.wav", "", "Not found"],
        ]
        header = ["file_name", "keywords", "sound_id"]
        table(root / f"clotho_metadata_{word}.csv", header, meta, "latin-1")


def wavcaps(root: Path) -> None:
    parts = {
        "json_files/AudioSet_SL/as_final.json": [
            {"id": "Yb0RFKhbpFJA.wav", "caption": "Wind blows.", "duration": 10.0, "audio": "x"},
            {"id": "Y-1nilez17Dg.wav", "caption": "Bells.", "duration": 10.0},
        ],
        "json_files/FreeSound/fsd_final.json": [{"id": "7", "caption": "Rain.", "duration": 3.21}],
        "json_files/FreeSound/fsd_final_2s.json": [{"id": "7", "caption": "Rain.", "duration": 3}],
        "json_files/SoundBible/sb_final.json": [{"id": "7", "caption": "A dog.", "duration": 1}],
    }
    for name, entries in parts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # both forms are published: the list alone, and in an object
        whole = {"num_captions_per_audio": 1, "data": entries} if "AudioSet" in name else entries
        path.write_text(json.dumps(whole), encoding="utf-8")
    blacklist = root / "json_files" / "blacklist" / "blacklist_exclude_test_ac.json"
    blacklist.parent.mkdir()
    blacklist.write_text('{"AudioSet": ["Yb0RFKhbpFJA.wav"]}')


def test_audiocaps_has_five_captions_per_clip(tmp_path: Path) -> None:
    audiocaps(tmp_path)
    audiocaps(tmp_path, "validation", ("v",))
    sound(tmp_path / "audio" / "test" / "Yxyz.wav", 0)
    sound(tmp_path / "test" / "-a_b-C_30.ogg", 1)
    source = read_source(tmp_path)
    assert (source.format, list(source.manifests)) == ("AudioCaps layout", ["val", "test"])
    found = clips(tmp_path, "test")
    assert list(found) == ["-a_b-C_30", "xyz_30"]
    assert found["xyz_30"].captions == tuple(f"xyz sounds, {number}" for number in range(5))
    assert found["xyz_30"].path == tmp_path / "audio" / "test" / "Yxyz.wav"
    assert found["-a_b-C_30"].path == tmp_path / "test" / "-a_b-C_30.ogg"
    assert source.manifests["test"].rows == 10
    assert [clip.split for clip in source.manifests["val"].clips] == ["val"]


def test_audiocaps_2(tmp_path: Path) -> None:
    """The header and ids of 2.0; captions of its kind: lower case but for a few, double spaces."""
    rows = {
        "train": "58146,UDGBjjwyaqE,20,many clanking sounds\n91139,r1nicOVtvkQ,130,a woman talks",
        "val": '97151,vfY_TJq7n_U,130,"ducks quack, and water splashes"',
        "test": "3452,0NGSrwioYjA,30,there is  a goat\n105634,4IeDBwyQ9ZQ,190,A woman speaks\n"
        "103014,0NGSrwioYjA,30,a man talks as wind blows",
    }
    for split, text in rows.items():
        header = "audiocap_id,youtube_id,start_time,caption"
        (tmp_path / f"{split}.csv").write_text(f"{header}\n{text}\n", encoding="utf-8")
    source = read_source(tmp_path)
    assert source.format == "AudioCaps layout"
    found = {n: [(c.id, c.captions) for c in m.clips] for n, m in source.manifests.items()}
    assert found == {
        "train": [
            ("UDGBjjwyaqE_20", ("many clanking sounds",)), ("r1nicOVtvkQ_130", ("a woman talks",)),
        ],
        "val": [("vfY_TJq7n_U_130", ("ducks quack, and water splashes",))],
        "test": [
            ("0NGSrwioYjA_30", ("there is  a goat", "a man talks as wind blows")),
            ("4IeDBwyQ9ZQ_190", ("A woman speaks",)),
        ],
    }  # fmt: skip
    assert all(in_audiocaps_test(clip.id) for clip in source.manifests["test"].clips)


def test_audiocaps_with_two_names_for_a_split(tmp_path: Path) -> None:
    audiocaps(tmp_path, "val")
    audiocaps(tmp_path, "validation")
    with pytest.raises(DataError, match=r"'val' has several manifests in .*: val.csv and valid"):
        read_source(tmp_path)


@pytest.mark.parametrize("folder", ["development", "clotho_audio_development", "audio/development"])
def test_clotho(folder: str, tmp_path: Path) -> None:
    clotho(tmp_path)
    sound(tmp_path / folder / "development ä 0.wav", 0)
    source = read_source(tmp_path)
    assert (source.format, list(source.manifests)) == ("Clotho", ["train", "test"])
    first, second = source.manifests["train"].clips
    assert first.captions == tuple(f'a "development" 0, {k}' for k in range(5))
    assert first.path == tmp_path / folder / "development ä 0.wav"
    assert (first.id, first.origin) == ("development ä 0", "freesound:80390")
    assert (second.path, second.origin) == (None, "development ä 1")


def test_clotho_in_a_folder_below(tmp_path: Path) -> None:
    clotho(tmp_path / "v2.1")
    sound(tmp_path / "v2.1" / "evaluation" / "evaluation ä 1.wav", 0)
    found = clips(tmp_path, "test")
    assert found["evaluation ä 1"].path == tmp_path / "v2.1" / "evaluation" / "evaluation ä 1.wav"


def test_wavcaps(tmp_path: Path) -> None:
    wavcaps(tmp_path)
    sound(tmp_path / "Zip_files" / "FreeSound" / "7.flac", 0)
    sound(tmp_path / "Zip_files" / "SoundBible" / "7.flac", 1)
    sound(tmp_path / "Zip_files" / "AudioSet_SL" / "Yb0RFKhbpFJA.flac", 2)
    source = read_source(tmp_path)
    assert (source.format, list(source.manifests)) == ("WavCaps", ["train"])
    assert source.notes == ("1 entries repeat an earlier one, id and caption",)
    found = clips(tmp_path)
    assert list(found) == ["b0RFKhbpFJA", "-1nilez17Dg", "FreeSound-7", "SoundBible-7"]
    assert found["b0RFKhbpFJA"].origin == "b0RFKhbpFJA", "as AudioCaps calls it"
    assert found["FreeSound-7"].origin == "freesound:7", "as Clotho's metadata call it"
    assert found["FreeSound-7"].seconds == 3.21
    assert found["SoundBible-7"].path == tmp_path / "Zip_files" / "SoundBible" / "7.flac"
    assert found["-1nilez17Dg"].path is None


def test_json_with_five_captions_and_paths(tmp_path: Path) -> None:
    row = {name: f"text {name}" for name in CAPTIONS}
    row |= {"wav": "AudioCaps/waveforms/test/Y7fmOlUlwoNg.wav", "audio": "/home/x/Y7fmOlUlwoNg.wav"}
    (tmp_path / "test.json").write_text(json.dumps({"data": [row]}))
    sound(tmp_path / "waveforms" / "test" / "Y7fmOlUlwoNg.wav", 0)
    (clip,) = clips(tmp_path, "test").values()
    assert clip.id == "7fmOlUlwoNg" and len(clip.captions) == 5 and clip.path is not None


@pytest.mark.parametrize("column", ["file_name", "filename", "file", "audio", "path"])
def test_folder_with_csv(column: str, tmp_path: Path) -> None:
    rows = [["a/1.wav", "one, two", "train"], ["b/1.wav", "three", "test"]]
    rows += [["a/1.wav", 'more "of" it', "train"], ["gone.wav", "four", "evaluation"]]
    table(tmp_path / "metadata.csv", [column, "caption", "split"], rows)
    sound(tmp_path / "a" / "1.wav", 0)
    sound(tmp_path / "audio" / "b" / "1.wav", 1)
    assert read_source(tmp_path).format == "folder with CSV"
    train, test = clips(tmp_path), clips(tmp_path, "test")
    assert train["a_1"].captions == ("one, two", 'more "of" it')
    assert test["b_1"].path == tmp_path / "audio" / "b" / "1.wav"
    assert test["gone"].path is None


def test_folder_with_a_csv_per_split_and_some_captions_empty(tmp_path: Path) -> None:
    table(tmp_path / "train.csv", ["path", "caption1", "caption2"], [["x", "one", ""]])
    table(tmp_path / "val.csv", ["path", "text"], [["y.wav", "two"]])
    sound(tmp_path / "x.flac", 0)
    assert clips(tmp_path)["x"].captions == ("one",)
    assert clips(tmp_path)["x"].path == tmp_path / "x.flac"
    assert clips(tmp_path, "val")["y"].captions == ("two",)
    table(tmp_path / "more.csv", ["path", "text"], [["z.wav", "three"]])
    assert read_source(tmp_path).notes == ("more.csv names no split: all its clips are in train",)


@pytest.mark.parametrize("name", ["../secret.wav", "/etc/passwd", "a/../../b.wav", "C:\\x.wav"])
def test_a_name_that_leads_outside_is_refused(name: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    table(root / "captions.csv", ["file", "caption"], [["ok.wav", "a"], [name, "b"]])
    with pytest.raises(DataError, match=r"captions.csv, line 3: audio path .* stay inside it"):
        read_source(root)
    (root / "captions.csv").unlink()
    (root / "list.json").write_text(json.dumps({"data": [{"audio": name, "caption": "a"}]}))
    with pytest.raises(DataError, match="stay inside it"):
        read_source(root)
    (root / "list.json").unlink()
    table(root / "clotho_captions_validation.csv", ["file_name", *CAPTIONS], [[name, *"abcde"]])
    with pytest.raises(DataError, match="stay inside it"):
        read_source(root)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    table(tmp_path / "train.csv", ["path", "text"], [["x.m4a", "one"], ["y.wav", "two"]])
    (tmp_path / "x.m4a").touch()
    sound(tmp_path / "y.wav", 0)
    assert read_source(tmp_path).notes == (
        "1 .m4a files are not read; only .wav, .flac, .ogg, .mp3 are: convert them",
    )


def test_a_long_field_of_clothos_metadata_is_named(tmp_path: Path) -> None:
    clotho(tmp_path)
    metadata = tmp_path / "clotho_metadata_development.csv"
    metadata.write_text(f"file_name,sound_id\na.wav,1\n{'x' * 140_000},2\n")
    with pytest.raises(DataError, match=r"metadata_development.csv, line 3: field larger than"):
        read_source(tmp_path)


@pytest.mark.parametrize("name", ["captions.csv", "clotho_captions_validation.csv"])
def test_a_header_that_goes_on_in_the_next_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text('caption_1,"file_name\n_x"\ntext,a.wav\n')
    with pytest.raises(DataError, match=rf"{name}, line 1: needs a column .*; found: caption_1, "):
        read_source(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["train.csv", "train.json", "as_final.json", "captions.csv", "clotho_captions_validation.csv"],
)
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_is_no_manifest(name: str, make: Callable, tmp_path: Path) -> None:
    make(tmp_path / name)
    with pytest.raises(DataError, match="no manifest in"):
        read_source(tmp_path)


def test_a_table_in_another_encoding_says_so(tmp_path: Path) -> None:
    table(tmp_path / "train.csv", ["path", "text"], [["x.wav", "café"]], "latin-1")
    with pytest.raises(DataError, match=r"train.csv, line 2: is not UTF-8 \(byte 0xe9\); save"):
        read_source(tmp_path)


def test_wavcaps_with_lists_before_the_caption(tmp_path: Path) -> None:
    entry = {"id": "1", "tags": ["a", "b"], "caption": "Rain."}
    (tmp_path / "fsd_final.json").write_text(json.dumps([entry]))
    assert list(clips(tmp_path)) == ["FreeSound-1"]


def test_links_that_lead_outside_are_left_out(tmp_path: Path) -> None:
    root = tmp_path / "data"
    table(root / "captions.csv", ["file", "caption"], [["x.wav", "a"], ["y.wav", "b"]])
    sound(tmp_path / "elsewhere.wav", 0)
    (root / "x.wav").symlink_to(tmp_path / "elsewhere.wav")
    (root / "y.wav").symlink_to(tmp_path / "nothing.wav")
    found = clips(root)
    assert (found["x"].path, found["x"].outside) == (None, True)
    assert (found["y"].path, found["y"].outside) == (None, False)
    (root / "x.wav").unlink()
    sound(tmp_path / "disk" / "x.wav", 0)
    (root / "audio").symlink_to(tmp_path / "disk")
    with pytest.raises(DataError, match=f"{root / 'audio'} leads out of the data folder, to"):
        read_source(root)
    (root / "audio").unlink()
    sound(root / "sounds" / "x.wav", 0)
    (root / "audio").symlink_to("sounds")
    (tmp_path / "link").symlink_to(root)  # the root is what a person has named
    assert clips(tmp_path / "link")["x"].path == tmp_path / "link" / "audio" / "x.wav"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["a.wav", " "]], "line 2: has no caption"),
        ([["", "text"]], "line 2: the audio path must be text"),
        ([["a.wav", "x"], ["a.flac", "y"]], "have the clip id 'a'; rename one"),
        ([["a\x07.wav", "x"]], "holds a control character"),
    ],
)
def test_bad_rows_are_errors_with_their_place(
    rows: list[list[str]], message: str, tmp_path: Path
) -> None:
    table(tmp_path / "c.csv", ["file", "caption"], rows)
    sound(tmp_path / "a.wav", 0)
    sound(tmp_path / "a.flac", 1)
    with pytest.raises(DataError, match=message):
        read_source(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"data": [{"id": "a", "caption": ""}]}', "entry 1: has no caption"),
        ('{"data": [{"caption": "x"}]}', "entry 1: needs an id"),
        ('{"data": [{"id": "a", "caption": "x", "duration": "long"}]}', "duration 'long' is not"),
        ('{"data": [{"id": "a", "caption": "x"}, 5]}', "entry 2: must be an object, not int"),
        ('{"data": [{"id": "a", "caption": "x"}', "line 1: is not JSON"),
        ('{"data": [{"id": "../a", "caption": "x"}]}', "must be a plain name"),
        ('{"data": [{"id": "a", "caption": 5}]}', "caption must be text, got 5"),
    ],
)
def test_bad_json_is_an_error_with_its_place(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_source(tmp_path)


def test_nothing_that_fits_lists_what_is_supported_and_what_was_found(tmp_path: Path) -> None:
    table(tmp_path / "sounds.csv", ["clip", "label"], [["a", "b"]])
    (tmp_path / "readme.txt").touch()
    audiocaps(tmp_path / "dataset2.0")
    with pytest.raises(DataError) as caught:
        read_source(tmp_path)
    message = str(caught.value)
    assert "found: dataset2.0/, readme.txt, sounds.csv (clip, label); did you mean" in message
    assert f"did you mean {tmp_path / 'dataset2.0'}?" in message and "\n" not in message
    for name in ("AudioCaps", "Clotho", "WavCaps", "folder with CSV", "Hugging Face"):
        assert name in message
    with pytest.raises(DataError, match="does not exist"):
        read_source(tmp_path / "nowhere")


def test_several_formats_at_once_are_an_error(tmp_path: Path) -> None:
    audiocaps(tmp_path)
    clotho(tmp_path)
    with pytest.raises(DataError, match=r"fits several formats \(AudioCaps layout: test.csv; Clo"):
        read_source(tmp_path)


@pytest.mark.parametrize("make", [audiocaps, clotho, wavcaps])
def test_check_works_on_every_format(make: object, tmp_path: Path) -> None:
    make(tmp_path)  # type: ignore[operator]
    report = check_root(tmp_path)
    assert report.exit_code == 1  # there is no sound at all
    assert {row.reason for row in report.problems} == {"missing"}
    assert report.format in ("AudioCaps layout", "Clotho", "WavCaps")


words = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\r\t"), min_size=1
).filter(str.strip)
stems = st.text(st.sampled_from("abcäß '\",._-0"), min_size=1, max_size=8).filter(
    lambda s: s.strip(" ") == s and s.strip(". ") == s
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    st.dictionaries(stems, st.lists(words, min_size=1, max_size=5), min_size=1, max_size=5),
    st.booleans(),
    st.sampled_from(["\r\n", "\n"]),
)
def test_a_csv_comes_back_as_it_was_written(
    tmp_path: Path, content: dict[str, list[str]], bom: bool, ending: str
) -> None:
    path = tmp_path / "c.csv"
    with open(path, "w", encoding="utf-8-sig" if bom else "utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator=ending, quoting=csv.QUOTE_ALL)
        writer.writerow(["file", "caption"])
        writer.writerows([f"{name}.wav", text] for name, texts in content.items() for text in texts)
    found = clips(tmp_path)
    assert {name: list(clip.captions) for name, clip in found.items()} == {
        name: [text.strip() for text in texts] for name, texts in content.items()
    }


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(st.dictionaries(stems, words, min_size=1, max_size=5))
def test_json_comes_back_as_it_was_written(tmp_path: Path, content: dict[str, str]) -> None:
    entries = [{"id": name, "caption": text, "duration": 1.5} for name, text in content.items()]
    (tmp_path / "x.json").write_text(json.dumps({"data": entries}))
    assert {n: c.captions for n, c in clips(tmp_path).items()} == {
        name: (text.strip(),) for name, text in content.items()
    }


def test_a_data_set_on_disk_without_pyarrow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(DataError, match=r"needs pyarrow: pip install 'safe-probe\[arrow\]'"):
        read_source(tmp_path)

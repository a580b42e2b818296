"""Damaged sounds and hostile manifests: one row each, and everything good is processed."""

import csv
import os
import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from trials.manifest_damage import HEADER, manifests
from trials.sounds import GONE, SOUNDS, good

from configs.csv_cells import original_cell, plain_cell
from configs.errors import DataError
from safe.cli import main
from safe.data import audio, decoding
from safe.data.cache import EmbeddingCache
from safe.data.check import check_root
from safe.data.manifests import Clip, load_split, write_manifest
from safe.data.prepare import prepare

GOOD = 6
PLACE = r"train\.\w+((, (line|entry|from line) \d+)?:| \(not UTF-8 text\))"
_opened: list[str] = []


class Ears:
    """An encoder that hears the loudness."""

    identity, sample_rate, max_seconds, crop_rule = "ears", 8000, 2.0, "center"

    def encode(self, waveform: torch.Tensor, _lengths: object) -> torch.Tensor:
        return waveform.std(dim=1, keepdim=True)


@pytest.fixture(scope="module", autouse=True)
def _processes() -> Iterator[None]:
    yield
    decoding.close()


@pytest.fixture(scope="module")
def watch() -> list[str]:
    """Every path that this process opens from now on, or asks a decoding child to open."""
    if not _opened:
        _opened.append("")
        sys.addaudithook(
            lambda event, args: _opened.append(str(args[0])) if event == "open" else None
        )
        ask = decoding._ask

        def asked(question: dict[str, Any], path: Path | str) -> Any:
            _opened.append(os.path.realpath(path))
            return ask(question, path)

        decoding._ask = asked
    return _opened


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data folder with good clips g0, g1, ... for train, beside one that nobody may look into."""
    outside, folder = tmp_path / "outside", tmp_path / "data"
    outside.mkdir()
    (outside / "secret.wav").write_bytes(good(seed=99))
    (folder / "audio").mkdir(parents=True)
    for number in range(GOOD):
        (folder / "audio" / f"g{number}.wav").write_bytes(good(seed=number))
    for seed, (name, caption) in enumerate({"val": "wind", "test": "rain"}.items(), 200):
        (folder / "audio" / f"{name}.wav").write_bytes(good(seed=seed))
        (folder / f"{name}.csv").write_text(f"{HEADER}\n1,{name},,{caption}\n")
    return folder


def rows(names: list[str]) -> list[str]:
    return [f"{number},{name},,a dog {number}" for number, name in enumerate(names)]


@pytest.mark.sizes(3, 20)
def test_damaged_sounds(size: int, root: Path, figure: Any, tmp_path: Path, watch: Any) -> None:
    choose, kinds, allowed = random.Random(1), {}, {}
    for number, (what, (damage, reasons)) in enumerate(SOUNDS.items()):
        for variant in range(size):
            name = f"b{number}-{variant}"
            damage(root / "audio" / name, choose)
            kinds[name], allowed[name] = what, reasons
    fine = [f"g{number}" for number in range(GOOD)]
    names = [*fine, *kinds]
    choose.shuffle(names)
    (root / "train.csv").write_text("\n".join([HEADER, *rows(names)]) + "\n")
    before = sorted((str(p), p.stat().st_size) for p in (tmp_path / "outside").rglob("*"))
    watch.clear()

    report = check_root(root)
    prepared = prepare(root, tmp_path / "prepared")
    vanishing = load_split(root, "train")
    (root / "audio" / "g0.wav").unlink()  # between being looked for and being used
    cache = EmbeddingCache(tmp_path / "cache", "ears", 1)
    unusable = cache.fill(vanishing, Ears())

    kinds["g0"], allowed["g0"] = "vanished", ("missing",)
    for where, problems, lost in (
        ("check", [row for row in report.problems if row.unusable], len(kinds) - 1),
        ("prepare", list(prepared.problems), len(kinds) - 1),
        ("fill", unusable, len(kinds)),
    ):
        found = Counter(row.clip for row in problems)
        assert set(found.values()) == {1}, where
        expected = set(kinds) if where == "fill" else set(kinds) - {"g0"}
        assert set(found) == expected, (where, {kinds[n] for n in expected ^ set(found)})
        assert len(problems) == lost and len(names) - lost == GOOD - (where == "fill")
        for row in problems:
            assert row.reason in allowed[row.clip], (where, kinds[row.clip], row)
            assert row.detail and (row.reason in ("missing", "outside") or row.clip in row.file)
    split, count = report.splits["train"], prepared.splits["train"]
    assert split.clips == count.clips == len(names) and split.usable == count.usable == GOOD
    assert len(cache) == GOOD - 1
    assert cache.lookup([c for c in vanishing if c.id in fine[1:]]).shape == (GOOD - 1, 1)
    after = sorted((str(p), p.stat().st_size) for p in (tmp_path / "outside").rglob("*"))
    outside = [path for path in watch if "outside" in path]
    assert (before, outside) == (after, [])
    copied = [p.read_bytes() for p in (tmp_path / "prepared").rglob("*.wav")]
    assert copied and good(seed=99) not in copied
    assert report.exit_code == prepared.exit_code == 1  # most of it cannot be used
    figure(
        f"damaged sounds: {len(SOUNDS) + 1} kinds, {len(kinds)} files, each one row with file and "
        f"reason in check, prepare and fill; {GOOD} of {GOOD} good clips used; "
        f"{len(outside)} files outside opened"
    )


@pytest.mark.sizes(3, 20)
def test_damaged_manifests(size: int, root: Path, figure: Any, tmp_path: Path, watch: Any) -> None:
    fine, read, refused = [f"g{number}" for number in range(GOOD)], 0, 0
    watch.clear()
    for what, (damage, usable) in manifests(root).items():
        for variant in range(size):
            name, content = damage(rows(fine), random.Random(f"{what}{variant}"))
            (root / name).write_bytes(content)
            if usable:
                report = check_root(root)
                assert report.splits["train"].usable == GOOD and report.exit_code == 0, what
                assert [c.captions for c in load_split(root, "train")] == [
                    (f"a dog {number}",) for number in range(GOOD)
                ], what
                read += 1
            else:
                for use in (check_root, lambda data: prepare(data, tmp_path / "out")):
                    with pytest.raises(DataError, match=PLACE) as caught:
                        use(root)
                    assert str(caught.value).isprintable(), what
                assert not (tmp_path / "out").exists()
                refused += 1
            (root / name).unlink()
    assert not [path for path in watch if "outside" in path]
    figure(
        f"damaged manifests: {len(manifests(root))} kinds, {refused} refused with file and line, "
        f"{read} read all the same, 0 files outside opened"
    )


CSV = f"{HEADER}\n1,secret,,a dog\n"
LINKS = {
    "audio": ("train.csv", CSV), "audio/train": ("train.csv", CSV), "train": ("train.csv", CSV),
    "audio/named": ("train.json", '[{"audio": "audio/named/secret.wav", "caption": "a dog"}]'),
    "named": ("train.jsonl", '{"audio": "named/secret.wav", "caption": "a dog"}'),
    "sounds": ("captions.csv", "file,caption\nsounds/secret.wav,a dog\n"),
    "development": ("clotho_captions_development.csv", "file_name,caption_1\nsecret.wav,a dog\n"),
    "Zip_files": ("fsd_final.json", '[{"id": "secret", "caption": "a dog"}]'),
    "Zip_files/FreeSound": ("fsd_final.json", '[{"id": "secret", "caption": "a dog"}]'),
}  # fmt: skip
"""Folders that are links to outside of the root, and a manifest for whose clip they would serve."""


def test_linked_folders(root: Path, figure: Any, tmp_path: Path, watch: Any) -> None:
    told = Counter[str]()
    for name, (manifest, content) in LINKS.items():
        outside = tmp_path / "outside"
        for target in (outside, os.path.relpath(outside, (tmp_path / "links" / name).parent)):
            data = tmp_path / "links"
            (data / name).parent.mkdir(parents=True)
            (data / manifest).write_text(content)
            (data / name).symlink_to(target)
            watch.clear()
            for use in (check_root, lambda data: prepare(data, tmp_path / "out")):
                try:
                    (row,) = use(data).problems
                    what = row.reason
                except DataError as error:
                    what = str(error).replace(f"{data / name} ", "").partition(",")[0]
                assert what in (*GONE, "leads out of the data folder"), name
                told[what] += 1
            assert not [path for path in watch if "outside" in path], name
            assert not [*(tmp_path / "out").rglob("*.wav")], name
            shutil.rmtree(data)
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
    figure(f"linked folders: {len(LINKS)} kinds, {dict(told)}; 0 files outside opened or placed")


def test_a_hostile_decoder_costs_one_clip(
    root: Path, figure: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that crash, hang or bloat the decoder, by a stand-in for a library with a hole."""
    decoding.close()
    monkeypatch.setattr(decoding, "_MODULE", "trials.holey_decoder")
    monkeypatch.setattr(decoding, "SECONDS", 4.0)
    monkeypatch.setattr(decoding, "MEMORY", 2**28)
    bad = {"crash": "crashed", "hang": "over_limits", "bloat": "over_limits", "leave": "crashed"}
    for number, what in enumerate(bad, GOOD):
        (root / "audio" / f"{what}.wav").write_bytes(good(seed=number))
    names = [*bad, *(f"g{number}" for number in range(GOOD))]
    random.Random(2).shuffle(names)
    (root / "train.csv").write_text("\n".join([HEADER, *rows(names)]) + "\n")
    report = check_root(root)
    cache = EmbeddingCache(tmp_path / "cache", "ears", 1)
    filled = cache.fill(load_split(root, "train"), Ears())
    for problems in ([row for row in report.problems if row.unusable], filled):
        assert {row.clip: row.reason for row in problems} == bad
    details = {row.clip: row.detail for row in filled}
    assert "SIGSEGV" in details["crash"] and "256 MB" in details["bloat"]
    assert len(cache) == report.splits["train"].usable == GOOD
    decoding.close()
    figure(f"files that break the decoder: {details}; {GOOD} of {GOOD} good clips used")


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_a_child_hears_the_same_bits(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(good(3, suffix))
    assert decoding.inspect(path) == audio.inspect(path)
    for crop in audio.CROP_RULES:
        there = decoding.decode(path, 16000, 1.0, crop=crop, seed=3)
        here = audio.decode(path, 16000, 1.0, crop=crop, seed=3)
        assert there.samples.tobytes() == here.samples.tobytes() and there.seconds == here.seconds
        assert there.samples.dtype == here.samples.dtype and there.samples.flags.writeable
    with pytest.raises(DataError, match="crop rule 'end' is unknown"):
        decoding.decode(path, 16000, 1.0, crop="end")


def test_a_child_follows_to_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(2):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / "a.wav").write_bytes(good(seed=number))
        monkeypatch.chdir(tmp_path / f"{number}")
        assert decoding.inspect("a.wav") == audio.inspect("a.wav")
    with pytest.raises(DataError, match="^gone.wav: missing"):
        decoding.inspect("gone.wav")


CELLS = ("=1+1", "+1+1", "-1+cmd|' /C calc'!A0", "@SUM(1)", "\t=1", "\r=1", "=HYPERLINK(1)",
         "'=1", "''=1", "'tis", "- a dog barks", "'", "''", "a=b", "-0xzrMun0Rs",
         "-1.5e-3", "+5", "-A1", "-1-1", "+A1-B2", "-0xzrMun0Rs_30", "-0xzrMun0Rs+A1")  # fmt: skip


HARMLESS = ("-0xzrMun0Rs", "-0xzrMun0Rs_30", "-1.5e-3", "+5")


@pytest.mark.parametrize("text", CELLS)
def test_formulas_in_cells(text: str) -> None:
    cell = plain_cell(text)
    assert original_cell(cell) == text
    harmless = text[0] not in "=+-@\t\r" or text in HARMLESS
    assert (cell == text) == (harmless and not text.startswith(("'=", "''=")))


def test_written_manifests_hold_no_formula(tmp_path: Path) -> None:
    captions = tuple(text.strip() for text in CELLS)
    clip = Clip("-0xzrMun0Rs_30", "train", None, captions, "-0xzrMun0Rs", "30")
    write_manifest(tmp_path / "train.csv", [clip])
    with (tmp_path / "train.csv").open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert {c for c in cells if c[:1] in ("=", "@", "+", "-")} == set(HARMLESS)
    assert load_split(tmp_path, "train") == [clip]


@pytest.mark.parametrize(("bad", "allowed", "code"), [
    (3, None, 0), (4, None, 1), (1, "0.2", 1), (1, "0.25", 0), (0, "0", 0), (1, "0", 1),
    (0, "1.5", 2), (0, "nan", 2),
])  # fmt: skip
def test_the_share_of_unusable_clips_decides_the_exit_code(
    bad: int, allowed: str | None, code: int, root: Path, tmp_path: Path, capsys: Any
) -> None:
    (root / "train.csv").write_text("\n".join([HEADER, *rows(["g0", "g1", "g2"][: 3]),
        *(f"9,b{number},,a cat" for number in range(bad))]) + "\n")  # fmt: skip
    given = [] if allowed is None else ["--max-unusable", allowed]
    for command in (["check", str(root)], ["prepare", str(root), str(tmp_path / "out")]):
        assert main(["data", *command, *given]) == code, command
        out = "".join(capsys.readouterr())
        assert (code != 1) or "clips cannot be used, more than" in out
        assert (code != 2) or "must be between 0 and 1" in out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT])
@pytest.mark.parametrize("command", ["check", "prepare"])
def test_signals_end_data_commands(
    command: str, number: signal.Signals, root: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: Any,
) -> None:  # fmt: skip
    """The signal arrives with the first clip that is done, and a second one right after."""
    (root / "train.csv").write_text("\n".join([HEADER, *rows(["g0", "g1", "g2"])]) + "\n")
    line = ["data", command, str(root), *([str(tmp_path / "out")] if command == "prepare" else [])]

    @contextmanager
    def show(*_: object) -> Iterator[Any]:
        yield lambda *_: [os.kill(os.getpid(), n) for n in (number, signal.SIGTERM)]

    with monkeypatch.context() as patch:
        patch.setattr("safe.console.progress", show)
        assert main(line) == 3
    assert f"{number.name} received" in capsys.readouterr().err
    assert main(line) == 0  # the same command goes on

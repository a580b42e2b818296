"""The embedding cache: equal to encoding afresh, whoever is killed and whoever shares it.

Run as `python test_cache.py CACHE ROOT BATCH_SIZE SECONDS_PER_BATCH` this file is one of the
processes that fill a cache; it prints the number of clips it has encoded after each clip.
"""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from configs.errors import DataError
from safe.data.audio import decode
from safe.data.cache import EmbeddingCache
from safe.data.manifests import Clip, load_split, write_manifest
from safe.data.overlap import assert_no_overlap

RATE = 8000
COUNT = 24
DIM = 512


class FakeEncoder:
    """Random features of each clip's spectrum, row by row: the batch has no influence."""

    identity = "fake:1:center"
    sample_rate = 8000
    max_seconds = 1.0
    crop_rule = "center"

    def __init__(self, delay: float = 0.0) -> None:
        self.delay = delay
        self.encoded = 0
        self.batches: list[list[int]] = []

    def encode(self, waveform: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        assert lengths is not None
        assert not torch.is_grad_enabled()
        assert waveform.shape == (len(lengths), int(lengths.max()))
        assert all(not row[size:].any() for row, size in zip(waveform, lengths, strict=True))
        time.sleep(self.delay)
        rows = [self.features(row[:size].numpy()) for row, size in zip(waveform, lengths)]  # noqa: B905
        self.encoded += len(rows)
        self.batches.append(lengths.tolist())
        return torch.from_numpy(np.stack(rows))

    @staticmethod
    def features(samples: np.ndarray) -> np.ndarray:
        """Return the [512] embedding of one clip."""
        return np.abs(np.fft.rfft(samples, 2 * DIM))[:DIM].astype(np.float32)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with clips of different lengths; the last has the sound of the first."""
    folder = tmp_path_factory.mktemp("data")
    audio = folder / "audio" / "train"
    audio.mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(COUNT):
        samples = random.uniform(-0.5, 0.5, int(random.integers(1000, 12_000)))
        soundfile.write(audio / f"clip{number}_0.wav", samples, RATE)
    (audio / f"clip{COUNT}_0.wav").write_bytes((audio / "clip0_0.wav").read_bytes())
    clips = [
        Clip(f"clip{number}_0", "train", None, ("text",), f"clip{number}", "0")
        for number in range(COUNT + 1)
    ]
    write_manifest(folder / "train.csv", clips)
    return folder


@pytest.fixture
def clips(root: Path) -> list[Clip]:
    return load_split(root, "train")


def fresh(clips: list[Clip]) -> np.ndarray:
    """Encode clips one by one without the cache."""
    rows = []
    for clip in clips:
        assert clip.path is not None
        rows.append(FakeEncoder.features(decode(clip.path, RATE, 1.0).samples))
    return np.stack(rows)


def cache_in(folder: Path) -> EmbeddingCache:
    return EmbeddingCache(folder, FakeEncoder.identity)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_cached_equals_fresh_bit_by_bit(tmp_path: Path, clips: list[Clip], batch_size: int) -> None:
    cache, encoder = cache_in(tmp_path), FakeEncoder()
    seen: list[tuple[int, int]] = []
    problems = cache.fill(
        clips,
        encoder,
        batch_size=batch_size,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert problems == []
    assert seen == [(done, COUNT + 1) for done in range(1, COUNT + 2)]
    assert encoder.encoded == len(cache) == COUNT  # equal sounds are encoded once
    assert max(map(len, encoder.batches)) <= batch_size
    vectors = cache.lookup(clips)
    assert vectors.dtype == np.float32
    assert vectors.shape == (COUNT + 1, DIM)
    assert vectors.tobytes() == fresh(clips).tobytes()
    assert cache_in(tmp_path).lookup(clips[::-1]).tobytes() == fresh(clips[::-1]).tobytes()
    lengths = [soundfile.info(clip.path).duration for clip in clips]
    assert cache.seconds(clips).tolist() == lengths


def test_a_second_fill_encodes_nothing(tmp_path: Path, clips: list[Clip]) -> None:
    cache_in(tmp_path).fill(clips[:10], FakeEncoder())
    again = FakeEncoder()
    cache_in(tmp_path).fill(clips, again)
    assert again.encoded == COUNT - 10
    idle = FakeEncoder()
    assert cache_in(tmp_path).fill(clips, idle) == []
    assert idle.encoded == 0


def test_content_decides_and_names_do_not(tmp_path: Path, clips: list[Clip]) -> None:
    cache = cache_in(tmp_path / "cache")
    cache.fill(clips, FakeEncoder())
    assert clips[3].path is not None
    path = tmp_path / "renamed.wav"
    path.write_bytes(clips[3].path.read_bytes())
    moved = replace(clips[3], id="other", path=path)
    assert np.array_equal(cache.lookup([moved]), cache.lookup([clips[3]]))
    # Same name, same size, other content: not what is stored.
    assert clips[4].path is not None
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="1 of 1 clips are not in the embedding cache .*'other'"):
        cache.lookup([moved])
    encoder = FakeEncoder()
    cache.fill([moved], encoder)
    assert encoder.encoded == 1
    assert cache.lookup([moved]).tobytes() == fresh([moved]).tobytes()


def test_hashes_find_overlap_and_are_remembered(
    tmp_path: Path, clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safe.data.file_hashes._SETTLED_NS", -1)  # the files were just written
    cache = cache_in(tmp_path)
    missing = replace(clips[1], id="gone", path=None)
    hashes = cache.hashes([*clips, missing])
    assert set(hashes) == {("train", clip.id) for clip in clips}
    copy = replace(clips[COUNT], split="test", id="copy_0", youtube_id="copy")
    hashes |= cache.hashes([copy])
    with pytest.raises(DataError, match="0 by recording id, 1 by identical audio"):
        assert_no_overlap(clips, [copy], hashes)
    reads: list[object] = []
    monkeypatch.setattr("safe.data.file_hashes.hashlib.file_digest", reads.append)
    assert cache_in(tmp_path).hashes([*clips, copy]) == hashes
    assert reads == []


def test_problems_are_listed_and_not_stored(tmp_path: Path, clips: list[Clip]) -> None:
    silent, junk = tmp_path / "silent.wav", tmp_path / "junk.wav"
    soundfile.write(silent, np.zeros(RATE), RATE)
    junk.write_text("junk")
    bad = [
        replace(clips[0], id="gone", path=None),
        replace(clips[0], id="link", path=None, outside=True),
        replace(clips[0], id="deleted", path=tmp_path / "deleted.wav"),
        replace(clips[0], id="silent", path=silent),
        replace(clips[0], id="silent2", path=silent),
        replace(clips[0], id="junk", path=junk),
    ]
    cache = cache_in(tmp_path / "cache")
    problems = cache.fill([bad[0], clips[0], *bad[1:], clips[1]], FakeEncoder(), batch_size=4)
    assert [(row.clip, row.reason) for row in problems] == [
        ("gone", "missing"),
        ("link", "outside"),
        ("deleted", "missing"),
        ("silent", "silent"),
        ("silent2", "silent"),
        ("junk", "unreadable"),
    ]
    assert len(cache) == 2
    assert cache.lookup(clips[:2]).tobytes() == fresh(clips[:2]).tobytes()


def test_least_length_also_holds_for_clips_that_are_stored(
    tmp_path: Path, clips: list[Clip]
) -> None:
    cache = cache_in(tmp_path)
    cache.fill(clips, FakeEncoder())
    short = [clip.id for clip, s in zip(clips, cache.seconds(clips), strict=True) if s < 0.7]
    problems = cache.fill(clips, FakeEncoder(), min_seconds=0.7)
    assert short
    assert [row.clip for row in problems] == short
    assert {row.reason for row in problems} == {"too_short"}


class BrokenEncoder(FakeEncoder):
    """Returns NaN for every third clip, or something of a wrong shape."""

    def __init__(self, width: int = DIM) -> None:
        super().__init__()
        self.width = width

    def encode(self, waveform: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        result = super().encode(waveform, lengths)
        result[::3, 5] = torch.nan
        return result[:, : self.width]


def test_nonfinite_embeddings_are_problems(tmp_path: Path, clips: list[Clip]) -> None:
    cache = cache_in(tmp_path)
    problems = cache.fill(clips[:4], BrokenEncoder(), batch_size=4)
    assert [(row.clip, row.reason) for row in problems] == [
        ("clip0_0", "nonfinite_embedding"),
        ("clip3_0", "nonfinite_embedding"),
    ]
    assert cache.lookup(clips[1:3]).tobytes() == fresh(clips[1:3]).tobytes()
    with pytest.raises(DataError, match="1 of 1 clips are not in the embedding cache"):
        cache.lookup(clips[:1])


def test_wrong_encoders_are_refused(tmp_path: Path, clips: list[Clip]) -> None:
    with pytest.raises(DataError, match=r"returned \[4, 7\] for 4 clips; .* width 512"):
        cache_in(tmp_path).fill(clips[:4], BrokenEncoder(width=7), batch_size=4)
    other = EmbeddingCache(tmp_path, "another")
    with pytest.raises(DataError, match="for encoder 'another', not for 'fake:1:center'"):
        other.fill(clips, FakeEncoder())


def test_encoders_have_folders_of_their_own(tmp_path: Path, clips: list[Clip]) -> None:
    cache = cache_in(tmp_path)
    cache.fill(clips, FakeEncoder())
    other = EmbeddingCache(tmp_path, "another")
    assert len(other) == 0
    assert cache.folder != other.folder
    assert EmbeddingCache(tmp_path, FakeEncoder.identity, dim=7).folder != cache.folder
    identity = json.loads((cache.folder / "identity.json").read_text())
    assert identity["identity"] == FakeEncoder.identity
    assert identity["dim"] == 512


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot use the embedding cache"):
        cache_in(tmp_path / "file")


def start(cache: Path, root: Path, batch_size: int, delay: float) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, __file__, str(cache), str(root), str(batch_size), str(delay)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
    )


def test_a_killed_fill_goes_on_where_it_was(tmp_path: Path, root: Path, clips: list[Clip]) -> None:
    process = start(tmp_path, root, 2, 0.05)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 8:
            process.kill()
            break
    process.stdout.close()
    process.wait()
    cache, encoder = cache_in(tmp_path), FakeEncoder()
    stored = len(cache)
    assert 6 <= stored < COUNT
    assert cache.fill(clips, encoder) == []
    assert encoder.encoded == COUNT - stored
    assert cache.lookup(clips).tobytes() == fresh(clips).tobytes()


def test_two_processes_share_the_work(tmp_path: Path, root: Path, clips: list[Clip]) -> None:
    processes = [start(tmp_path, root, 2, 0.1) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sum(int(lines[-1]) for lines in outputs) == COUNT  # none of them twice
    cache = cache_in(tmp_path)
    assert len((cache.folder / "index.jsonl").read_text().splitlines()) == COUNT
    assert cache.lookup(clips).tobytes() == fresh(clips).tobytes()


def test_threads_may_share_a_folder(tmp_path: Path, clips: list[Clip]) -> None:
    def work() -> None:
        cache_in(tmp_path).fill(clips, FakeEncoder(0.01), batch_size=3)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache_in(tmp_path).lookup(clips).tobytes() == fresh(clips).tobytes()


@pytest.mark.parametrize("keep", range(0, 130, 13))
def test_a_torn_index_line_is_cut_off(tmp_path: Path, clips: list[Clip], keep: int) -> None:
    cache = cache_in(tmp_path)
    cache.fill(clips[:6], FakeEncoder())
    index = cache.folder / "index.jsonl"
    lines = index.read_bytes().splitlines(keepends=True)
    torn = lines[4][: min(keep, len(lines[4]) - 1)]
    index.write_bytes(b"".join(lines[:4]) + torn)
    again, encoder = cache_in(tmp_path), FakeEncoder()
    assert len(again) == 4
    again.fill(clips, encoder)
    assert encoder.encoded == COUNT - 4
    assert cache_in(tmp_path).lookup(clips).tobytes() == fresh(clips).tobytes()
    assert len(index.read_bytes().splitlines()) == COUNT


@pytest.mark.parametrize("cut", [1, 4 * DIM, 4 * DIM + 1, 6 * 4 * DIM])
def test_rows_that_are_lost_or_damaged_are_encoded_again(
    tmp_path: Path, clips: list[Clip], cut: int
) -> None:
    cache = cache_in(tmp_path)
    cache.fill(clips[:6], FakeEncoder(), batch_size=2)
    data = cache.folder / "vectors.f32"
    content = data.read_bytes()
    data.write_bytes(content[:-cut])
    cache_in(tmp_path).fill(clips, FakeEncoder())
    assert cache_in(tmp_path).lookup(clips).tobytes() == fresh(clips).tobytes()
    damaged = bytearray(data.read_bytes())
    damaged[len(damaged) // 2] ^= 255
    data.write_bytes(damaged)
    encoder = FakeEncoder()
    cache_in(tmp_path).fill(clips, encoder)
    assert encoder.encoded == 1
    assert cache_in(tmp_path).lookup(clips).tobytes() == fresh(clips).tobytes()


def test_junk_in_the_index_is_passed_over(tmp_path: Path, clips: list[Clip]) -> None:
    cache = cache_in(tmp_path)
    cache.fill(clips[:3], FakeEncoder())
    index = cache.folder / "index.jsonl"
    with open(index, "ab") as file:
        file.write(b'\xff\xfe\n[1]\n{}\n{"key": 3}\n\n')
    (tmp_path / "files.jsonl").write_bytes(b'{"path": "x"}\n{"path": "x", "stamp": 1}\nnull\n{"pa')
    cache_in(tmp_path).fill(clips, FakeEncoder())
    assert cache_in(tmp_path).lookup(clips).tobytes() == fresh(clips).tobytes()


def test_a_file_that_changes_while_it_is_read(
    tmp_path: Path, clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.wav"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, RATE), RATE)

    def decode_and_change(*args: object, **options: object) -> object:
        wave = decode(*args, **options)  # type: ignore[arg-type]
        soundfile.write(path, wave.samples[::-1], RATE)
        return wave

    monkeypatch.setattr("safe.data.cache.decode", decode_and_change)
    cache = cache_in(tmp_path / "cache")
    problems = cache.fill([replace(clips[0], path=path)], FakeEncoder())
    assert [row.detail for row in problems] == ["the file changed while it was being read"]
    assert len(cache) == 0


def test_an_encoder_that_fails_leaves_a_cache_that_works(
    tmp_path: Path, clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = FakeEncoder()
    cache = cache_in(tmp_path)

    def fail(*args: object) -> torch.Tensor:
        raise RuntimeError("out of memory")

    cache.fill(clips[:4], encoder)
    with monkeypatch.context() as patch:
        patch.setattr(encoder, "encode", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            cache.fill(clips, encoder)
    assert cache.fill(clips, encoder) == []
    assert cache.lookup(clips).tobytes() == fresh(clips).tobytes()


def test_a_full_disk_is_told(
    tmp_path: Path, clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = cache_in(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("safe.data.vector_store.os.fsync", full)
        with pytest.raises(DataError, match="cannot use the embedding cache .*No space left"):
            cache.fill(clips, FakeEncoder())
    assert cache.fill(clips, FakeEncoder()) == []
    assert cache.lookup(clips).tobytes() == fresh(clips).tobytes()


def main() -> None:
    cache, root, batch_size, delay = sys.argv[1:]
    encoder = FakeEncoder(float(delay))
    clips = load_split(Path(root), "train")
    problems = EmbeddingCache(cache, encoder.identity).fill(
        clips,
        encoder,
        batch_size=int(batch_size),
        progress=lambda *_: print(encoder.encoded, flush=True),
    )
    assert not problems, problems


if __name__ == "__main__":
    main()

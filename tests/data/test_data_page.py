"""docs/data.md: its commands run, its Python prints, its table is the one in the code."""

import contextlib
import io
import json
import re
import shlex
from pathlib import Path

import pytest

from configs.claims import PUBLIC_SCALE
from safe import cli
from safe.data.prepare import prepare
from tests.data.test_prepare import data_set
from tests.data.test_sources import clotho, sound


@pytest.fixture
def page(repo_root: Path) -> str:
    return (repo_root / "docs" / "data.md").read_text(encoding="utf-8")


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to a folder with the data sets that the page speaks of."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "downloads"
    data_set(root / "audiocaps", {"train": ["train000001"], "val": ["v"], "test": ["7fmOlUlwoNg"]})
    clotho(root / "clotho")
    for number, word in enumerate(("development", "evaluation")):
        for at in range(2):
            sound(root / "clotho" / word / f"{word} ä {at}.wav", 2 * number + at)
    (root / "wavcaps").mkdir()
    entry = {"id": "Y7fmOlUlwoNg.wav", "caption": "A machine rattles.", "duration": 10.0}
    other = {"id": "YotherClip_1.wav", "caption": "Rain falls.", "duration": 9.0}
    (root / "wavcaps" / "as_final.json").write_text(json.dumps({"data": [entry, other]}))
    sound(root / "wavcaps" / "AudioSet_SL" / "Y7fmOlUlwoNg.flac", 9)
    sound(root / "wavcaps" / "AudioSet_SL" / "YotherClip_1.flac", 10)
    return root


def test_every_command_of_the_page_runs(page: str, downloads: Path) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) == 4
    for line in lines:
        said = re.search(r"# exits with (\d)", line)
        name, *words = shlex.split(line, comments=True)
        with contextlib.redirect_stdout(io.StringIO()) as out:
            code = cli.main(words)
        assert (name, code) == ("safe-train", int(said[1]) if said else 0), out.getvalue()
    assert (
        "leakage: 1 of train is also in test of data/audiocaps (1 by recording)" in out.getvalue()
    )


def test_the_python_of_the_page(page: str, downloads: Path) -> None:
    prepare("downloads/audiocaps", "data/audiocaps")
    prepare("downloads/wavcaps", "data/wavcaps", against=["data/audiocaps"])
    recipe, code = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(recipe, {})
        exec(code, {})
    assert out.getvalue() == (
        "train: 1 of 2 clips\nval: 1 of 1 clips\ntest: 1 of 1 clips\n()\n"
        "Clotho 5\n0 {'train': 2, 'test': 2}\n"
    )


def test_the_scale_of_the_page_is_that_of_the_code(page: str) -> None:
    unlinked = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", page)
    for point in PUBLIC_SCALE:
        score = f"{point.low:g}" if point.low == point.high else f"{point.low:g}-{point.high:g}"
        assert f"| {score} | {point.name} | {point.source} |" in unlinked


def call(*words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(words)
    return code, out.getvalue(), err.getvalue()


def test_the_command_says_everything_as_json(downloads: Path, tmp_path: Path) -> None:
    words = ("data", "prepare", "downloads/clotho", "out", "--json")
    code, out, _ = call(*words, "-")
    assert code == 0, out
    assert json.loads(out) == json.loads((tmp_path / "out/prepared.json").read_text())
    assert call(*words, "report.json")[0] == 0
    assert json.loads(out) == json.loads(Path("report.json").read_text())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere", "out"), "DataError: the data folder nowhere does not exist"),
        (("downloads", "out"), "DataError: downloads fits several formats (Clotho: clotho/"),
        (("downloads/clotho", "downloads"), "DataError: downloads and downloads/clotho lie in one"),
        (("downloads/clotho", "out", "--against", "no"), "DataError: the data folder no does not"),
    ],
)
def test_wrong_input_is_one_line_and_code_2(
    words: tuple[str, ...], message: str, downloads: Path
) -> None:
    code, out, err = call("data", "prepare", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(message)
    assert not Path("out").exists()


def test_ctrl_c_exits_with_3_and_says_that_it_goes_on(
    downloads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("safe.data.prepare.prepare", stop)
    code, _, err = call("data", "prepare", "downloads/clotho", "out")
    assert code == 3 and "the same command goes on" in err

"""The documents' Python runs as it is printed, and prints what they say."""

import contextlib
import io
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from probes.diagnosis import diagnose
from tests.docs.pages import PAGES, ROOT, blocks_of
from tests.docs.stand_ins import ELSEWHERE

SPOKEN = {"docs/your-own-model.md": 7, "docs/first-hour.md": 3, "README.md": 0}
"""Pages whose Python runs here, and how many text blocks say what it prints."""


def same(printed: str, said: str) -> bool:
    """Whether the words are equal, and the decimal numbers close: machines round differently."""
    number = r"(\d+\.\d+)"
    ours, theirs = re.split(number, printed), re.split(number, said)
    close = [float(x) for x in ours[1::2]] == pytest.approx([float(x) for x in theirs[1::2]], 0.2)
    return ours[::2] == theirs[::2] and close


def run_document(document: Path, namespace: dict[str, Any]) -> int:
    """Run the Python of a document in order, in the current folder; returns how often it spoke.

    A YAML block is a file, named in its first line. A text block behind Python is what the Python
    blocks before it print; behind a command it is the command's.
    """
    printed, spoken, python = io.StringIO(), 0, True
    for language, text, line in blocks_of(document):
        if language == "yaml":
            Path(text.splitlines()[0].removeprefix("# ")).write_text(text, encoding="utf-8")
        elif language == "python":
            # line numbers of a traceback are the document's
            code = compile("\n" * (line - 1) + text, str(document), "exec")
            with contextlib.redirect_stdout(printed):
                exec(code, namespace)
        elif language == "text" and python:
            assert same(printed.getvalue(), text), f"line {line} prints\n{printed.getvalue()}"
            printed, spoken = io.StringIO(), spoken + 1
        python = language in ("python", "yaml", "text") and (python or language == "python")
    assert printed.getvalue() == "", "printed, but not in the document"
    return spoken


@pytest.fixture(scope="module")
def your_own_model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What docs/your-own-model.md has defined when all of it has run."""
    namespace: dict[str, Any] = {"__name__": "your_own_model"}
    page = "docs/your-own-model.md"
    with contextlib.chdir(tmp_path_factory.mktemp("reader")):
        assert run_document(ROOT / page, namespace) == SPOKEN[page]
    return namespace


def test_your_own_model(your_own_model: dict[str, Any]) -> None:
    tests = [value for name, value in your_own_model.items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()


def test_weight_decay_closes_the_gates_of_your_own_model(your_own_model: dict[str, Any]) -> None:
    model, batch, path = (your_own_model[name] for name in ("build", "batch", "path"))
    model = model()
    optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    found = diagnose(model, [batch(0)], path, optimizer=optimizer, probes=["gates"])
    assert {f.code for f in found.findings} == {"SP208"}


def test_the_first_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_document(ROOT / "docs/first-hour.md", {}) == SPOKEN["docs/first-hour.md"]


def test_the_readme_captions_a_sound(
    tiny_run: Any, tiny_data: Path, in_small_world: None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_run.folder / "adapter", "runs/latest/adapter")
    samples, rate = soundfile.read(next(tiny_data.glob("audio/test/*.flac")))
    soundfile.write("clip.wav", samples, rate)
    # what it prints depends on the clip, so the page does not say it
    (code,) = [text for language, text, _ in blocks_of(ROOT / "README.md") if language == "python"]
    exec(code, {})
    (caption,) = capsys.readouterr().out.splitlines()
    assert caption.startswith("['") and caption.endswith("']")


def test_no_page_with_python_is_left_out() -> None:
    speak = {
        page for page in PAGES if any(block[0] == "python" for block in blocks_of(ROOT / page))
    }
    assert speak == {*SPOKEN, *ELSEWHERE}


@pytest.mark.parametrize("said", ["", "```text\nloss 2.0\n```\n", "```text\nloss is 1.0\n```\n"])
def test_a_document_that_says_something_else_is_noticed(said: str, tmp_path: Path) -> None:
    document = tmp_path / "wrong.md"
    document.write_text("```python\nprint('loss 1.0')\n```\n" + said)
    with pytest.raises(AssertionError):
        run_document(document, {})

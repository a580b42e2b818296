"""The documents' code runs as it is printed, and prints what they say."""

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from probes.diagnosis import diagnose

_BLOCK = re.compile(r"^```(python|yaml|text)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(document: Path) -> Iterator[tuple[str, str, int]]:
    """Language, text and line number of each block of a document."""
    whole = document.read_text(encoding="utf-8")
    for found in _BLOCK.finditer(whole):
        yield found[1], found[2], whole.count("\n", 0, found.start()) + 2


def same(printed: str, said: str) -> bool:
    """Whether the words are equal, and the decimal numbers close: machines round differently."""
    number = r"(\d+\.\d+)"
    ours, theirs = re.split(number, printed), re.split(number, said)
    close = [float(x) for x in ours[1::2]] == pytest.approx([float(x) for x in theirs[1::2]], 0.2)
    return ours[::2] == theirs[::2] and close


def run_document(document: Path, namespace: dict[str, Any]) -> int:
    """Run the blocks of a document in order, in the current folder; returns how many spoke.

    A YAML block is a file, named in its first line. A text block is what the Python blocks
    before it print.
    """
    printed, spoken = io.StringIO(), 0
    for language, text, line in blocks(document):
        if language == "yaml":
            Path(text.splitlines()[0].removeprefix("# ")).write_text(text, encoding="utf-8")
        elif language == "python":
            # line numbers of a traceback are the document's
            code = compile("\n" * (line - 1) + text, str(document), "exec")
            with contextlib.redirect_stdout(printed):
                exec(code, namespace)
        else:
            assert same(printed.getvalue(), text), f"line {line} prints\n{printed.getvalue()}"
            printed, spoken = io.StringIO(), spoken + 1
    assert printed.getvalue() == "", "printed, but not in the document"
    return spoken


@pytest.fixture(scope="module")
def your_own_model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What docs/your-own-model.md has defined when all of it has run."""
    document = Path(__file__).resolve().parents[1] / "docs" / "your-own-model.md"
    namespace: dict[str, Any] = {"__name__": "your_own_model"}
    with contextlib.chdir(tmp_path_factory.mktemp("reader")):
        assert run_document(document, namespace) == 7
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


@pytest.mark.parametrize("said", ["", "```text\nloss 2.0\n```\n", "```text\nloss is 1.0\n```\n"])
def test_a_document_that_says_something_else_is_noticed(said: str, tmp_path: Path) -> None:
    document = tmp_path / "wrong.md"
    document.write_text("```python\nprint('loss 1.0')\n```\n" + said)
    with pytest.raises(AssertionError):
        run_document(document, {})

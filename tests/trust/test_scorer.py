"""A scorer that fails in any way: a typed error, no score of a part, and no caption lost."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from configs.errors import MetricError
from safe import cli
from safe.evaluation import evaluate, text
from safe.evaluation.java import java_available
from safe.evaluation.meteor import meteor
from safe.evaluation.metrics import Scorer, score

FAKE = """#!/bin/sh
[ "$1" = -version ] && exit {version}
n=$(cat "$0.count" 2>/dev/null || echo 0); echo $((n + 1)) > "$0.count"
[ "$n" -lt {good} ] && exec tr A-Z a-z
{then}
"""
"""Lower-cases its lines, as PTB does, the first {good} times; then does what it must not."""
WRONG = {
    "is of a wrong version": "echo UnsupportedClassVersionError >&2; exit 1",
    "crashes": "kill -9 $$",
    "hangs": "sleep 600",
    "prints too few lines": "head -n 3 | tr A-Z a-z",
    "prints nothing": "cat > /dev/null",
    "prints other lines": "cat > /dev/null; yes dog | head -n 100",
    "prints no UTF-8": "printf '\\377\\n'",
    "closes its input": "exec 0<&-; sleep 600",
}
REFERENCES = {"a": ["A dog barks", "A dog"], "b": ["A cat meows"], "c": ["Rain falls"]}
PREDICTIONS = {"a": "A dog barks", "b": "A cat", "c": ""}

Java = Callable[..., None]


@pytest.fixture
def java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Java]:
    """java(then, good=0, version=0): the Java of this machine."""
    monkeypatch.setattr(text, "PTB_TIMEOUT_SECONDS", 1.0)
    monkeypatch.setattr(meteor, "__defaults__", (1.0,))  # its timeout, too

    def install(then: str, good: int = 0, version: int = 0) -> None:
        folder = tmp_path / "java"
        folder.mkdir(exist_ok=True)
        (folder / "java.count").unlink(missing_ok=True)
        (folder / "java").write_text(FAKE.format(then=then, good=good, version=version))
        (folder / "java").chmod(0o755)
        if not os.environ["PATH"].startswith(str(folder)):
            monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        java_available.cache_clear()

    yield install
    java_available.cache_clear()


@pytest.mark.parametrize("good", [0, 1], ids=["references", "predictions"])
@pytest.mark.parametrize("wrong", WRONG)
def test_java_that(wrong: str, good: int, java: Java) -> None:
    java(WRONG[wrong], good)
    with pytest.raises(MetricError, match="the PTB tokenizer"):
        score(PREDICTIONS, REFERENCES, tokenizer="ptb", metrics=("cider",))


def test_java_that_is_not_there(java: Java) -> None:
    java("exit 1", version=1)
    with pytest.raises(MetricError, match="needs Java"):
        Scorer(REFERENCES, "ptb")
    assert score(PREDICTIONS, REFERENCES, metrics=("cider",)).tokenizer == "simple"


def test_meteor_says_why_there_is_none(java: Java) -> None:
    for then in WRONG.values():
        java(then, good=2)
        found = score(PREDICTIONS, REFERENCES, tokenizer="ptb")
        assert found.meteor is None and "METEOR failed" in str(found.meteor_reason)


@pytest.mark.parametrize("tokenizer", ["simple", "ptb"])
def test_odd_captions(tokenizer: str, java: Java) -> None:
    java("exit 1", good=1000)
    scorer = Scorer(REFERENCES, tokenizer, n_resamples=10)

    def cider(**captions: str) -> dict[str, float]:
        return scorer.score(PREDICTIONS | captions, metrics=("cider",)).per_clip_cider

    plain = cider()
    assert plain["c"] == 0 < plain["b"] < plain["a"]
    assert cider(a="\x00A\x1b\x07 dog\x9b barks\x7f") == plain
    for end in ("\r", "\n", "\r\n", "\x0b", "\x0c", "\x85", "\u2028", "\u2029"):
        assert cider(a=f"A dog{end}barks") == plain
        assert cider(a=f"A dog barks{end}", c=end) == plain
    assert set(cider(a="a dog", b="a dog", c="a dog")) == {"a", "b", "c"}
    for predictions in ({"a": "x", "b": "y"}, PREDICTIONS | {"d": "z"}, PREDICTIONS | {"a": None}):
        with pytest.raises(MetricError, match="clip"):
            scorer.score(predictions)  # type: ignore[arg-type]
    same = ["A dog barks"]
    for references in ({}, {"a": same}, {"a": same, "b": same}, {"a": [], "b": same},
                       {"a": ["\r\n"], "b": same}):  # fmt: skip
        with pytest.raises(MetricError):
            Scorer(references, tokenizer)


def test_captions_survive_a_scorer_that_fails(
    java: Java, tiny_run: Any, in_small_world: None, figure: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    results, command = tmp_path / "results", ["evaluate", str(tiny_run.folder), "--device", "cpu"]
    java(WRONG["crashes"], good=1)  # the references are tokenized, and then no caption
    assert cli.main([*command, "--output", str(results)]) == 2
    [kept] = (results / "captions").iterdir()
    error = capsys.readouterr().err
    assert error.startswith("MetricError: the PTB tokenizer failed") and str(kept) in error
    assert not (results / "evaluation.json").exists()

    java("exit 1", good=1000)
    generate = evaluate.generate_captions
    monkeypatch.setattr(evaluate, "generate_captions", lambda *_, **__: pytest.fail("again"))
    assert cli.main([*command, "--output", str(results)]) in (0, 1)
    assert (results / "evaluation.json").exists() and not kept.exists()
    monkeypatch.setattr(evaluate, "generate_captions", generate)
    java("exit 1", good=1000)
    assert cli.main([*command, "--output", str(tmp_path / "other")]) in (0, 1)
    for name in ("evaluation.json", "captions/final.jsonl"):
        assert (tmp_path / "other" / name).read_bytes() == (results / name).read_bytes()
    figure(
        f"scorer: {len(WRONG)} kinds of broken Java end in a typed error at references and at "
        "predictions; the captions are kept, and scored later without being generated again"
    )

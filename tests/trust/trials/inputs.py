"""Captions, sounds, manifests and strangers' files that have deceived other programs."""

import json
import shutil
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from configs.errors import MetricError, SafeError
from reports.html import render
from reports.report import Report
from safe.data.audio import decode
from safe.data.manifests import load_split
from safe.data.problems import AudioProblem
from safe.evaluation import text
from safe.models import foreign_checkpoint
from trials import foreign


def captions() -> dict[str, int]:
    """Tokenize captions with line ends by a stand-in for PTB that reads one caption per line."""
    text.java_available = lambda: True
    text._run_ptb = lambda given: "".join(f"{line}\n" for line in given.lower().splitlines())
    spoken = {"a": ["one\rtwo"], "b": ["three\u2028four", "five"], "c": ["six\x85"]}
    expected = {"a": ["one two"], "b": ["three four", "five"], "c": ["six"]}
    try:
        return {"shifted": int(text.tokenize(spoken, "ptb") != expected)}
    except MetricError:
        return {"shifted": 1}


def truncated(folder: str) -> dict[str, int]:
    """Decode the first half of a sound file."""
    file = Path(folder, "a.wav")
    soundfile.write(file, np.sin(np.arange(32000) / 9), 16000)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    try:
        decode(file, 16000, 10.0)
    except AudioProblem:
        return {"accepted": 0}
    return {"accepted": 1}


def traversal(folder: str) -> dict[str, int]:
    """Name files outside the data folder in a manifest."""
    root, outside = Path(folder, "data"), 0
    root.mkdir()
    secret = Path(folder, "secret.wav")
    secret.write_bytes(b"RIFF")
    for name in ("../secret.wav", str(secret), "train/../../secret.wav", "..\\secret.wav"):
        entry = {"id": "x", "caption": "a dog", "audio": name}
        (root / "train.json").write_text(json.dumps([entry]))
        try:
            found = load_split(root, "train")[0].path
        except SafeError:
            continue
        outside += found is not None and root.resolve() not in found.resolve().parents
    return {"outside": outside}


def pages(source: str, folder: str) -> dict[str, int]:
    """Show a run whose every caption and clip id is a script; how many scripts are in its page?"""
    run, bad = Path(folder, "run"), "<script>alert(1)</script>"
    shutil.copytree(source, run)
    for name in ("captions/final.jsonl", "captions/references.jsonl"):
        lines = (run / name).read_text(encoding="utf-8").splitlines()
        rows = [{"clip": f"{bad}{n}"} | _text_as(bad, json.loads(line)) for n, line in
                enumerate(lines)]  # fmt: skip
        (run / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"scripts": render(Report.of(run)).count("<script")}


def _text_as(bad: str, row: dict[str, Any]) -> dict[str, Any]:
    return {name: bad if isinstance(text, str) else text for name, text in row.items()
            if name != "clip"}  # fmt: skip


def pickles(folder: str) -> dict[str, int]:
    """Open strangers' checkpoints that touch a canary when they are unpickled."""
    warnings.simplefilter("ignore")
    canary, touched = Path(folder, "canary"), 0
    file = Path(folder, "a.pt")
    for name, content in foreign.files(canary):
        if not name.startswith(("reduce-exec", "reduce-open", "reduce-eval")):
            continue
        file.write_bytes(content)
        with suppress(MemoryError):  # what the child does, where the bug is
            foreign_checkpoint.rewrite({"path": file, "target": Path(folder, "b"), "parts": [""]})
        touched += canary.exists()
        canary.unlink(missing_ok=True)
    return {"touched": touched}

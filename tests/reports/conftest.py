"""Run folders written by hand, in any state, for everything that reads them."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from configs.model_configs import get_config
from configs.overrides import apply_values
from probes.record import Record, RecordLog

LAYERS = (2, 4, 6, 8)
Rows = list[dict[str, Any]]


def step_rows(steps: int = 30, epochs: float = 3.0, gate: float = 0.3, loss: float = 2.0) -> Rows:
    """Rows of metrics.jsonl of a loss that falls from 3 times ``loss`` to ``loss``."""
    rows = []
    for step in range(1, steps + 1):
        done = step / steps
        rows.append({
            "kind": "step", "step": step, "epoch": epochs * done, "loss": loss * (3 - 2 * done),
            "tokens": 80, "clips": 16, "grad_norm/total": 1.5, "grad_norm/projector": 1.2,
            "grad_norm/adapter": 0.9 * done + 0.01, "lr/projector": 1e-3, "outer_gate": 1.0,
            "skipped": False, **{f"gate/{layer}": gate + 0.001 * step for layer in LAYERS},
        })  # fmt: skip
    return rows


def evaluation_rows(scores: Mapping[float, float], steps_an_epoch: int = 10) -> Rows:
    """Rows of metrics.jsonl: score by epoch."""
    return [
        {
            "kind": "evaluation", "step": int(epoch * steps_an_epoch), "epoch": epoch,
            "cider": score, "cider_low": score - 4, "cider_high": score + 4, "clips": 40,
            "tokenizer": "java-free",
        }
        for epoch, score in scores.items()
    ]  # fmt: skip


def probe_records(
    gate: float = 0.3, contribution: float = 0.2, swapped: float = 0.5, step: int = 30
) -> list[Record]:
    """What the probes measure in a model of four fusion layers, before training and at ``step``."""
    found: list[Record] = []
    for when in (0, step):
        add = lambda *a, when=when: found.append(_record(when, *a))  # noqa: E731
        for layer, size in zip((None, *LAYERS), (1.0, 300.0, 400.0, 550.0, 800.0), strict=True):
            for name, factor in (("p5", 0.7), ("median", 1.0), ("p95", 2.0)):
                add("magnitude", "text", layer, f"l2_{name}", factor * size, "L2/token")
        for name, value in (("p5", 45.0), ("median", 54.0), ("p95", 70.0)):
            add("magnitude", "projector", None, f"l2_{name}", value, "L2/token")
        for layer in LAYERS:
            for name, factor in (("p5", 0.5), ("median", 1.0), ("p95", 2.0)):
                value = contribution * factor
                add("magnitude", "fusion", layer, f"contribution_{name}", value, "ratio")
            add("magnitude", "fusion", layer, "branch_ratio", contribution / (gate or 1), "ratio")
            for name in ("raw", "value", "effective"):
                add("gates", "gate", layer, name, gate, "factor")
            add("gates", "gate", layer, "trainable", 1.0, "flag")
            add("gates", "gate", layer, "slope", 1.0, "factor")
            if when:
                add("gates", "gate", layer, "moved", 0.01, "factor")
            for component in ("fusion", "gate"):
                add("gradflow", component, layer, "norm", 0.1 + when / 100, "L2")
                add("gradflow", component, layer, "state", 3.0, "state")
        add("gradflow", "projector", None, "norm", 1.0 + when / 10, "L2")
        add("gradflow", "projector", None, "state", 3.0, "state")
        add("gradflow", "projector", None, "update_to_weight", 1e-3, "ratio")
    add = lambda *a: found.append(_record(step, *a))  # noqa: E731
    for name, factor in (("signal:swapped", 1.0), ("signal:silence", 1.4), ("gate:zero", 1.2)):
        add("influence", name, None, "loss_change", swapped * factor, "nats/token")
        add("influence", name, None, "loss_change_error", 0.02, "nats/token")
        add("influence", name, None, "kl", abs(swapped) / 2, "nats/token")
        add("influence", name, None, "changed", 0.98, "share")
    add("influence", "gate:zero", None, "parity_changed", 0.0, "share")
    add("influence", "gate:zero", None, "parity_max_change", 0.0, "logit")
    for layer in LAYERS:
        add("influence", "fusion", layer, "loss_change", swapped / layer, "nats/token")
        add("influence", "fusion", layer, "loss_change_error", 0.01, "nats/token")
        add("influence", "fusion", layer, "kl", abs(swapped) / layer, "nats/token")
    for part, total, trainable in (
        ("projector", 6_823_936, 6_823_936), ("fusion", 10_240, 10_240), ("gate", 4, 4),
        ("decoder", 3_936_192, 0), ("model", 11_642_180, 6_834_180),
    ):  # fmt: skip
        add("parameters", part, None, "total", total, "parameters")
        add("parameters", part, None, "trainable", trainable, "parameters")
        add("parameters", part, None, "in_optimizer", trainable, "parameters")
        add("parameters", part, None, "bytes", 4 * total, "bytes")
    for component, statistic, value in (
        ("text", "batches", 2), ("text", "rows", 16), ("text", "agreement_same", 1),
        ("signal", "clips", 16), ("signal", "silent", 0), ("signal", "tokens", 32),
        ("signal", "cosine_between_clips", 0.2), ("signal", "distinct", 1),
    ):  # fmt: skip
        add("data", component, None, statistic, value, "count")
    return found


def _record(
    step: int,
    probe: str,
    component: str,
    layer: int | None,
    statistic: str,
    value: float,
    unit: str,
) -> Record:
    return Record(step, probe, component, layer, statistic, float(value), unit)


def final_scores(
    score: float = 41.0, shuffled: float = 15.0, clips: int = 40, constant: float = 6.0
) -> dict[str, Any]:
    """An evaluation.json with its controls and floors; each clip's score is around ``score``."""

    def scores(mean: float) -> dict[str, Any]:
        per_clip = {f"clip-{i:04}": mean + 30 * math.sin(i) for i in range(clips)}
        return {
            "cider": mean, "cider_interval": [mean - 5, mean + 5], "per_clip_cider": per_clip,
            "tokenizer": "java-free", "n_clips": clips, "n_references": 3 * clips,
        }  # fmt: skip

    gap = score - shuffled
    return {
        "split": "test",
        "scores": scores(score),
        "controls": {
            "another clip's audio": scores(shuffled), "silence": scores(shuffled / 2),
            "gate 0": scores(2.0),
        },
        "floors": {"commonest caption": scores(constant), "nearest neighbour": scores(60.0)},
        "versus_shuffled": {
            "mean": gap, "low": gap - 8, "high": gap + 8, "significant": gap - 8 > 0,
        },
        "event_recall": 0.4,
        "diversity": {
            "distinct": 0.8, "vocabulary": 190, "commonest_share": 0.05, "commonest": "x",
        },
    }  # fmt: skip


def caption_rows(clips: int = 40) -> Rows:
    """Rows of captions/final.jsonl."""
    sounds = ("dog barks", "violin plays", "siren wails", "man speaks", "clock ticks")
    return [
        {
            "clip": f"clip-{i:04}", "own audio": f"A {sounds[i % 5]} near a {sounds[i % 3]} {i}",
            "another clip's audio": f"A {sounds[(i + 2) % 5]}", "silence": "Wind blows",
            "gate 0": "The picture shows", "commonest caption": "A man speaks",
        }
        for i in range(clips)
    ]  # fmt: skip


def reference_rows(clips: int = 40, audio: str | None = None) -> Rows:
    """Rows of captions/references.jsonl; every clip with the same sound."""
    return [
        {"clip": f"clip-{i:04}", "captions": [f"Something {i} sounds", "A dog"], "audio": audio}
        for i in range(clips)
    ]


def write_run(
    folder: Path,
    *,
    config: Mapping[str, Any] | None = None,
    metrics: Rows | None = None,
    records: Iterable[Record] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    captions: Rows | None = None,
    references: Rows | None = None,
    environment: Mapping[str, Any] | None = None,
    resources: Mapping[str, Any] | None = None,
    problems: Rows | None = None,
) -> Path:
    """A run's folder with the files that are given, and only them; ``config`` has dotted keys."""
    folder.mkdir(parents=True)
    values = {"optim.epochs": 3, **(config or {})}
    whole = apply_values(get_config("demo"), values).to_dict()
    (folder / "config.json").write_text(json.dumps(whole))
    for name, value in (
        ("evaluation", evaluation), ("environment", environment), ("resources", resources),
        ("problems", problems),
    ):  # fmt: skip
        if value is not None:
            (folder / f"{name}.json").write_text(json.dumps(value))
    (folder / "captions").mkdir()
    for name, rows in (
        ("metrics", metrics), ("captions/final", captions), ("captions/references", references),
    ):  # fmt: skip
        if rows is not None:
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{name}.jsonl").write_text(lines)
    if records is not None:
        RecordLog(records).write(folder / "probes.jsonl")
    return folder


def write_whole_run(
    folder: Path, *, score: float = 41.0, shuffled: float = 15.0, gate: float = 0.3,
    swapped: float = 0.5, contribution: float = 0.2, audio: str | None = None, **files: Any,
) -> Path:  # fmt: skip
    """A finished run with every file; ``files`` replaces some of them, None leaves one out."""
    curve = {1.0: 0.4 * score, 2.0: 0.8 * score, 3.0: 0.95 * score}
    whole: dict[str, Any] = {
        "metrics": [*step_rows(gate=gate), *evaluation_rows(curve)],
        "records": probe_records(gate, contribution, swapped),
        "evaluation": final_scores(score, shuffled),
        "captions": caption_rows(),
        "references": reference_rows(audio=audio),
        "environment": {"python": "3.11.7", "devices": ["cpu"], "packages": {"torch": "2.8"}},
        "resources": {"train_seconds": 60.0, "peak_bytes": 2_000_000_000, "memory": "process"},
        "problems": [],
    }
    return write_run(folder, **(whole | files))


RunFactory = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> RunFactory:
    """make_run("name", **files) writes exactly these files; see :func:`write_run`."""
    return lambda name="run", **files: write_run(tmp_path / name, **files)


@pytest.fixture
def make_whole_run(tmp_path: Path) -> RunFactory:
    """make_whole_run("name", score=41.0, **files): finished and healthy unless told otherwise."""
    return lambda name="run", **files: write_whole_run(tmp_path / name, **files)


@pytest.fixture(scope="session")
def write_folder() -> RunFactory:
    """write_folder(folder, whole=True, **files): the same, anywhere, for fixtures of any scope."""
    return lambda folder, whole=True, **files: (
        write_whole_run(folder, **files) if whole else write_run(folder, **files)
    )


@pytest.fixture(scope="session")
def run_rows() -> dict[str, Callable[..., Any]]:
    """The makers of single files' contents by name, to change some of it."""
    return {
        "steps": step_rows, "evaluations": evaluation_rows, "records": probe_records,
        "scores": final_scores, "captions": caption_rows, "references": reference_rows,
    }  # fmt: skip

"""What is diagnosed: a fresh model with the clips it will see, a trained one with others."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from safe_probe.subject import Request, Subject, build

pytestmark = pytest.mark.usefixtures("in_small_world")


def _rows(clips: Any) -> set[bytes]:
    return {row.tobytes() for row in clips}


def _heard(subject: Subject) -> set[bytes]:
    return {key for batch in subject.batches for key in _rows(batch.audio.numpy())}


def test_a_trained_model_is_measured_on_clips_it_was_not_trained_on(
    tiny_run: Any, tiny_data: Path
) -> None:
    said = Console(file=io.StringIO())
    subject = build(Request(checkpoint=tiny_run.folder, device="cpu"), said)
    experiment = subject.experiment
    assert experiment is not None and subject.step > 0
    assert subject.about["clips"] == experiment.config.data.eval_split
    trained = _rows(experiment.train.embeddings)
    assert not _heard(subject) & trained
    assert _heard(subject) <= _rows(experiment.validation.embeddings)
    request = Request(config="demo", data=str(tiny_data), device="cpu")
    fresh = build(request, Console(file=io.StringIO()))
    assert fresh.experiment is not None and fresh.step == 0
    assert _heard(fresh) <= _rows(fresh.experiment.train.embeddings)
    assert fresh.about["clips"] == fresh.experiment.config.data.train_split

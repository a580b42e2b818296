"""The backbone's own pictures, measured again by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from configs.errors import ModelError
from safe_probe.subject import Request, Subject, build
from safe_probe.vision import vision_beside, vision_subject

pytestmark = pytest.mark.usefixtures("in_small_world")


@pytest.fixture(scope="module")
def subject(tiny_data: Path, in_small_world: None) -> Subject:
    request = Request(config="demo", data=str(tiny_data), batches=2, batch_size=3, device="cpu")
    return build(request, Console(quiet=True))


def medians(model: Any, batch: Any) -> tuple[float, float]:
    """Median L2 of picture tokens and of text tokens at the input, by the model's own parts."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        pictures = model.get_image_features(pixel_values=batch["pixel_values"]).pooler_output
        text = model.get_input_embeddings()(ids[(ids != model.config.image_token_id) & (mask > 0)])
    tokens = torch.cat(list(pictures)).flatten(0, -2)
    return tokens.norm(dim=-1).quantile(0.5).item(), text.norm(dim=-1).quantile(0.5).item()


def test_ratio_is_that_of_the_models_own_parts(subject: Subject) -> None:
    vision = vision_beside(subject)
    assert vision is not None and not vision.trained
    seeing = vision_subject(subject)
    signal, text = medians(seeing.model, seeing.batches[0])
    assert vision.to_json()["l2_to_text"] == pytest.approx(signal / text, rel=1e-4)


def test_a_run_has_it_too(tiny_run: Any) -> None:
    subject = build(Request(checkpoint=tiny_run.folder, device="cpu"), Console(quiet=True))
    vision = vision_beside(subject)
    assert vision is not None and len(vision.to_json()["layers"]) == 10


def test_only_audio_has_vision_beside_it(subject: Subject) -> None:
    assert vision_beside(vision_subject(subject)) is None


def test_relatives_of_llava_are_refused(subject: Subject, monkeypatch: Any) -> None:
    assert subject.experiment is not None
    config = subject.experiment.model.backbone.config
    monkeypatch.setattr(config, "model_type", "llava_next")
    assert vision_beside(subject) is None
    with pytest.raises(ModelError, match="is a llava_next, and pictures are made here for"):
        vision_subject(subject)

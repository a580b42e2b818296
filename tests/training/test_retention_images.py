"""Retention shows a backbone that sees drawn pictures, exactly as its own class takes them."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig, LlavaConfig, SiglipVisionConfig

from configs.schema import RetentionConfig
from safe.models.prompts import LLAVA_15
from safe.training.batches import CaptionTokens
from safe.training.retention import build_retention, divergence, fisher_diagonal, query_inputs
from safe.training.retention_images import (
    RetentionImages,
    draw_picture,
    image_tokens,
    questions,
)
from safe.training.retention_texts import RetentionTexts, read_texts

EMBEDDINGS = np.random.default_rng(0).normal(size=(6, 12)).astype(np.float32)
IMAGE = 3


@pytest.fixture(scope="module")
def tokens(tokenizer):
    """A LLaVA's tokenizer writes <image> as one token, which the byte tokenizer is taught here."""
    taught = deepcopy(tokenizer)
    taught.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return CaptionTokens(taught, LLAVA_15)


@pytest.fixture
def seeing(make_model):
    def make(**options):
        model = make_model(**options)
        model.sees = True
        return model

    return make


@pytest.fixture
def few(monkeypatch):
    """A few questions, where a test needs no more."""
    some, texts = questions()[::6], read_texts()[:8]
    monkeypatch.setattr("safe.training.retention_images.questions", lambda: some)
    monkeypatch.setattr("safe.training.retention_texts.read_texts", lambda: texts)


def retain(variant, weight=1.0, every=1):
    return RetentionConfig(variant=variant, weight=weight, every=every)


# ---- pictures


def test_every_question_has_a_different_answer_for_different_pictures():
    asked = questions()
    assert len(asked) == len(set(asked)) == 22
    assert {answer for _, q, answer in asked if "shape is" in q} == {
        "A circle.", "A square.", "A triangle.",
    }  # fmt: skip
    assert {answer for _, q, answer in asked if "color" in q} == {"Red.", "Green.", "Blue."}


def test_pictures_show_what_they_are_called():
    for picture, _, _ in questions():
        pixels = draw_picture(picture, 33)
        assert pixels.shape == (3, 33, 33) and pixels.dtype == np.float32
        assert pixels.min() >= 0 and pixels.max() <= 1
    red = draw_picture("red circle", 33)
    assert red[:, 16, 16].argmax() == 0 and (red[:, 0, 0] == 1).all()
    covered = [(draw_picture(f"blue {s}", 99)[0] < 0.5).mean() for s in ("circle", "square")]
    assert covered == pytest.approx([np.pi * 0.4 / 4, 0.36], abs=0.02)
    triangle = (draw_picture("green triangle", 99)[0] < 0.5).sum(1)
    assert triangle[25] < triangle[50] < triangle[75] and triangle[95] == 0
    left, top = draw_picture("left", 8)[0], draw_picture("top", 8)[0]
    assert (left[:, 0] > left[:, -1]).all() and (top[0] > top[-1]).all()


def test_draws_depend_on_seed_and_step_alone(seeing, tokens):
    model = seeing()
    first, again, other = (RetentionImages(model, tokens, EMBEDDINGS, s) for s in (0, 0, 1))
    first.draw(3, 2)
    one, two, three = (source.draw(7, 4) for source in (first, again, other))
    for name in ("input_ids", "labels", "audio", "pixel_values"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name
    assert not torch.equal(one.audio, three.audio)


# ---- as the backbone takes them


@pytest.mark.parametrize(
    ("vision", "strategy", "expected"),
    [
        (CLIPVisionConfig(image_size=336, patch_size=14), "default", 576),  # LLaVA-1.5
        (CLIPVisionConfig(image_size=336, patch_size=14), "full", 577),
        (SiglipVisionConfig(image_size=384, patch_size=16), "full", 576),
    ],
)
def test_tokens_per_image(vision, strategy, expected):
    config = LlavaConfig(vision_config=vision, vision_feature_select_strategy=strategy)
    assert image_tokens(config) == expected


def test_prompt_holds_the_image_tokens_that_the_tower_gives(seeing, tokens):
    model = seeing()
    images = RetentionImages(model, tokens, EMBEDDINGS, 0)
    batch = images.all(3)[0]
    features = model.backbone.get_image_features(batch.pixel_values).pooler_output
    assert [len(f) for f in features] == [images.tokens_per_image] * 3
    assert ((batch.input_ids == IMAGE).sum(1) == images.tokens_per_image).all()
    assert not (batch.labels == IMAGE).any()
    picture, question, answer = questions()[0]
    row = batch.input_ids[0][batch.attention_mask[0].bool()].tolist()
    text = tokens.tokenizer.decode([i for i in row if i != IMAGE])
    assert text == f"USER: \n{question} ASSISTANT:{answer}</s>"
    mean, deviation = np.array(images.norm).reshape(2, 3, 1, 1)
    restored = batch.pixel_values[0].numpy() * deviation + mean
    np.testing.assert_allclose(restored, draw_picture(picture, 32), atol=1e-6)


def test_pixels_are_those_of_clips_own_processor(seeing, tokens):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    images = RetentionImages(seeing(), tokens, EMBEDDINGS, 0)
    ours = images.all(1)[0].pixel_values[0]
    processor = CLIPImageProcessorPil(do_resize=False, do_center_crop=False, do_rescale=False)
    picture = draw_picture(images.pictures[0], 32)
    theirs = processor([picture], return_tensors="pt", input_data_format="channels_first")
    theirs = theirs.pixel_values[0]
    torch.testing.assert_close(ours, theirs.float(), rtol=0, atol=1e-5)


def test_the_picture_reaches_the_answer(seeing, tokens):
    model = seeing()
    batch = RetentionImages(model, tokens, EMBEDDINGS, 0).all(2)[0]
    inputs = batch.input_ids, batch.attention_mask, batch.audio, batch.labels
    with torch.no_grad():
        shown = model(*inputs, **batch.sights).logits
        black = model(*inputs, pixel_values=torch.zeros_like(batch.pixel_values)).logits
    assert not torch.allclose(shown, black, atol=1e-3)


# ---- in the terms


def test_soft_is_the_mean_of_texts_and_pictures(seeing, tokens):
    model = seeing()
    retention = build_retention(retain("soft_retention"), model, tokens, EMBEDDINGS, 0)
    texts = RetentionTexts(tokens, EMBEDDINGS, 0, model.device).draw(4, 8)
    images = RetentionImages(model, tokens, EMBEDDINGS, 0).draw(4, 2)
    inputs = {"attention_mask": images.attention_mask, "pixel_values": images.pixel_values}
    with torch.no_grad():
        untouched = model.backbone(images.input_ids, **inputs).logits
        with model.hearing(images.audio):
            fused = model.backbone(images.input_ids, **inputs).logits
    p, q = (x[:, :-1][images.labels[:, 1:] != -100].softmax(-1) for x in (untouched, fused))
    kl = (p * (p / q).log()).sum() / len(p)
    expected = (kl.item() + divergence(model, texts).item()) / 2
    assert kl > 0 and retention.backward(4) == pytest.approx(expected, rel=1e-4)


def test_a_model_that_does_not_see_is_asked_in_words_alone(make_model, tokens):
    model = make_model()
    assert not model.sees
    (term,) = build_retention(retain("soft_retention"), model, tokens, EMBEDDINGS, 0).terms
    texts = RetentionTexts(tokens, EMBEDDINGS, 0, model.device).draw(4, 8)
    assert term.backward(4) == divergence(model, texts).item()


def test_soft_lowers_the_divergence_of_pictures(seeing, tokens, few):
    """What the term is for: the answers about pictures move less while a sound plays."""
    model = seeing()
    images = RetentionImages(model, tokens, EMBEDDINGS, 0)

    def mean_divergence():
        with torch.no_grad():
            return np.mean([divergence(model, batch).item() for batch in images.all(4)])

    before = mean_divergence()
    retention = build_retention(retain("soft_retention"), model, tokens, EMBEDDINGS, 0)
    parameters = [p for g in model.trainable_groups().values() for p in g.values()]
    optimizer = torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.0)
    for step in range(1, 16):
        retention.backward(step)
        optimizer.step()
        optimizer.zero_grad()
    assert mean_divergence() < 0.5 * before


def test_fisher_measures_the_pictures_too(seeing, tokens, few):
    model = seeing()
    texts = RetentionTexts(tokens, EMBEDDINGS, 0, model.device)
    images = RetentionImages(model, tokens, EMBEDDINGS, 0)
    alone, both = fisher_diagonal(model, texts), fisher_diagonal(model, texts, images)
    assert any(not torch.allclose(alone[name], both[name], rtol=1e-2) for name in alone)
    state = build_retention(retain("fisher_retention"), model, tokens, EMBEDDINGS, 0).state()
    for name, importance in both.items():
        torch.testing.assert_close(state[f"fisher.{name}"], importance)


def test_full_on_a_bfloat16_backbone_that_sees(seeing, tokens, few):
    model = seeing(dtype=torch.bfloat16)
    retention = build_retention(retain("full_retention", 0.01), model, tokens, EMBEDDINGS, 0)
    assert np.isfinite(retention.backward(1))
    # the protected queries stay those of the texts: pictures have so many positions that they
    # would fill the whole subspace
    texts = RetentionTexts(tokens, EMBEDDINGS, 0, model.device)
    assert all(len(rows) < 8 * 100 for rows in query_inputs(model, texts).values())

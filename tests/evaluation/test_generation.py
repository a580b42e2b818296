"""Captions in batches: the same whatever the batch, with beams, without audio; model as found."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from configs.schema import EvalConfig
from safe.evaluation.generation import generate_captions
from safe.models.safe_model import SAFEModel
from safe.training.batches import CaptionTokens

ModelMaker = Callable[..., SAFEModel]
CLIPS = 7


@pytest.fixture(scope="module")
def heard(make_model: ModelMaker) -> tuple[SAFEModel, CaptionTokens, np.ndarray, np.ndarray]:
    model = make_model()
    rng = np.random.default_rng(0)
    embeddings = (3 * rng.normal(size=(CLIPS, model.config.audio_dim))).astype(np.float32)
    return model, CaptionTokens(model.tokenizer, model.prompt), embeddings, np.full(CLIPS, 4.0)


def one_by_one(model: SAFEModel, tokens: CaptionTokens, audio: np.ndarray | None,
               steps: int) -> list[str]:  # fmt: skip
    """Greedy captions from whole forward passes, without any cache."""
    captions = []
    for clip in range(CLIPS):
        ids = list(tokens.prompt_ids)
        heard = None if audio is None else torch.from_numpy(audio[clip : clip + 1])
        for _ in range(steps):
            with torch.no_grad():
                best = int(model(torch.tensor([ids]), audio=heard).logits[0, -1].argmax())
            if best == tokens.eos:
                break
            ids.append(best)
        captions.append(tokens.decode(ids[len(tokens.prompt_ids) :]))
    return captions


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize("with_audio", [True, False])
def test_batches_with_cache_equal_one_by_one_without(
    batch_size: int, with_audio: bool, heard: Any
) -> None:
    model, tokens, embeddings, seconds = heard
    audio, done = embeddings if with_audio else None, []
    captions = generate_captions(
        model, tokens, audio, seconds, EvalConfig(batch_size=batch_size, max_new_tokens=9),
        progress=done.append,
    )  # fmt: skip
    assert captions == one_by_one(model, tokens, audio, 9)
    assert len(set(captions)) > 1 if with_audio else len(set(captions)) == 1
    assert done == [*range(batch_size, CLIPS, batch_size), CLIPS]


def test_beams_do_not_depend_on_the_batch(heard: Any) -> None:
    model, tokens, embeddings, seconds = heard
    sizes = [
        generate_captions(model, tokens, embeddings, seconds,
                          EvalConfig(batch_size=size, num_beams=3, max_new_tokens=6))
        for size in (1, 4)
    ]  # fmt: skip
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("training", [True, False])
def test_model_is_left_as_found_even_after_an_error(training: bool, heard: Any) -> None:
    model, tokens, embeddings, seconds = heard
    model.train(training)
    hooks = [len(layer._forward_hooks) for layer in model.layers.values()]
    state = torch.get_rng_state()

    def stop(done: int) -> None:
        raise KeyboardInterrupt

    generate_captions(model, tokens, embeddings, seconds, EvalConfig(max_new_tokens=2))
    assert model.training == training
    with pytest.raises(KeyboardInterrupt):
        generate_captions(model, tokens, embeddings, seconds, EvalConfig(max_new_tokens=2),
                          progress=stop)  # fmt: skip
    assert model.training == training and not model.backbone.training
    assert [len(layer._forward_hooks) for layer in model.layers.values()] == hooks
    assert torch.equal(torch.get_rng_state(), state)
    model.eval()

"""Captions against the bare backbone's own generate(), on the same prompts and as many tokens."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.speed.pairs import Ratio, take_turns
from benchmarks.speed.training import Bench
from safe.models.safe_model import SAFEModel
from safe.training.batches import CaptionTokens

CLIPS, NEW_TOKENS = 16, 20
AT_MOST = 1 / 0.85
"""Tokens per second are asked to be 0.85 of the bare backbone's."""
OURS = "safe-train: captions that hear"


def captioning(bench: Bench, pairs: int) -> list[Ratio]:
    """Generation with the audio heard, and as a plain loop would hear it, against the backbone."""
    subject, model = bench.subject, bench.model
    tokens = CaptionTokens(model.tokenizer, model.prompt)
    prompt = torch.tensor([tokens.prompt_ids] * CLIPS, device=subject.device)
    heard = np.random.default_rng(0).normal(size=(CLIPS, 512)).astype("f4")
    audio = torch.from_numpy(heard).to(subject.device)
    options: dict[str, Any] = {
        "max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False,
        "eos_token_id": tokens.eos, "pad_token_id": tokens.pad,
    }  # fmt: skip
    mask = torch.ones_like(prompt)

    def bare() -> None:
        with torch.no_grad():
            model.backbone.generate(input_ids=prompt, attention_mask=mask, **options)

    ways = {
        OURS: lambda: model.generate(prompt, mask, audio, **options),
        "keys and values made anew for every token": lambda: _anew(model, bare, audio),
    }
    table = f"{subject.name}, generate() of {NEW_TOKENS} tokens for {CLIPS} prompts"
    return take_turns(table, bare, ways, {OURS: AT_MOST}, pairs, subject.device)


def _anew(model: SAFEModel, generate: Callable[[], None], audio: torch.Tensor) -> None:
    """Make the keys and values of the audio in every pass of every layer."""
    tokens, mask = model.audio_tokens(audio)
    handles = []
    for index, block in model.fusion.blocks().items():

        def hear(_layer: Any, _args: Any, hidden: torch.Tensor, block: Any = block) -> torch.Tensor:
            fused: torch.Tensor = block(hidden, *block.keys_values(tokens), mask, 1.0)
            return fused

        handles.append(model.layers[index].register_forward_hook(hear))
    try:
        generate()
    finally:
        for handle in handles:
            handle.remove()

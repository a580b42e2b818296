"""Batched captions from a SAFEModel: greedy or beam search with the key/value cache."""

from collections.abc import Callable

import numpy as np
import torch

from configs.schema import EvalConfig
from safe.data.mapped_rows import MappedRows
from safe.models.safe_model import SAFEModel
from safe.training.batches import CaptionTokens


def generate_captions(
    model: SAFEModel,
    tokens: CaptionTokens,
    embeddings: np.ndarray | MappedRows | None,
    seconds: np.ndarray,
    config: EvalConfig,
    *,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """One caption per clip, deterministic.

    Every clip has the same prompt, so batches need no padding.

    Args:
        model: the model; its training flag is as found afterwards.
        tokens: tokenizer and prompt, as in training.
        embeddings: [n, D] audio embeddings or [n, M, D] local features; None to let the bare
            backbone speak.
        seconds: [n] clip lengths in seconds.
        config: batch size, beams, longest caption.
        progress: called with the number of clips done after each batch.
    """
    device = model.device
    was_training = model.training
    model.eval()
    captions: list[str] = []
    try:
        for start in range(0, len(seconds), config.batch_size):
            rows = slice(start, min(start + config.batch_size, len(seconds)))
            count = rows.stop - rows.start
            prompt = torch.tensor([tokens.prompt_ids] * count, device=device)
            ids = model.generate(
                prompt,
                torch.ones_like(prompt),
                None if embeddings is None else _tensor(embeddings[rows], device),
                _tensor(seconds[rows], device),
                num_beams=config.num_beams,
                max_new_tokens=config.max_new_tokens,
                do_sample=False,
                eos_token_id=tokens.eos,
                pad_token_id=tokens.pad,
            )
            captions += [tokens.decode(row) for row in ids[:, prompt.shape[1] :].tolist()]
            if progress:
                progress(len(captions))
    finally:
        model.train(was_training)
    return captions


def _tensor(array: np.ndarray | MappedRows, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32)).to(device)

"""Batched captions from a SAFEModel: greedy or beam search with the key/value cache."""

from collections.abc import Callable
from itertools import chain

import numpy as np
import torch

from configs.schema import EvalConfig
from safe import processes
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
    share: bool = False,
    in_step: bool = False,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """One caption per clip, deterministic.

    Every clip has the same prompt, so batches need no padding. Processes that share the work take
    one batch each in turn: the same batches as one process, so the same captions, and every
    process gets all of them.

    Args:
        model: the model; its training flag is as found afterwards.
        tokens: tokenizer and prompt, as in training.
        embeddings: [n, D] audio embeddings or [n, M, D] local features; None to let the bare
            backbone speak.
        seconds: [n] clip lengths in seconds.
        config: batch size, beams, longest caption.
        share: share the batches with the other processes of the run, which must all call this.
        in_step: every process must run the same number of forward passes (sharded backbone).
        progress: called with the number of clips done after each turn, in every process.
    """
    device = model.device
    was_training = model.training
    model.eval()
    captions: list[str] = []
    starts = range(0, len(seconds), config.batch_size)
    count, rank = (processes.count(), processes.rank()) if share else (1, 0)

    def caption(start: int) -> list[str]:
        rows = slice(start, min(start + config.batch_size, len(seconds)))
        prompt = torch.tensor([tokens.prompt_ids] * (rows.stop - rows.start), device=device)
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
            synced_gpus=in_step and count > 1,
        )
        return [tokens.decode(row) for row in ids[:, prompt.shape[1] :].tolist()]

    try:
        for first in range(0, len(starts), count):
            turn = starts[first : first + count]
            texts: list[str] = []
            if rank < len(turn) or in_step:  # without a batch of its own, one that nobody reads
                texts = caption(turn[min(rank, len(turn) - 1)])
            found = processes.gather(texts) if count > 1 else [texts]
            captions += chain.from_iterable(found[: len(turn)])
            if progress:
                progress(len(captions))
    finally:
        model.train(was_training)
    return captions


def _tensor(array: np.ndarray | MappedRows, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32)).to(device)

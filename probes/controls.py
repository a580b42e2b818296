"""Other signals for the same texts: another clip's, silence, noise.

Only the signal itself is exchanged; what goes with it (``seconds``, masks) stays the text's own.
"""

import inspect
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from probes.batch import Batch
from probes.errors import ProbeError
from probes.names import modules_by_name
from probes.resolved_path import ResolvedPath


class Swapped(NamedTuple):
    """A batch whose texts have other clips' signals."""

    batch: Batch
    distinct: Tensor
    """[B] bool, texts whose new signal differs from their own."""


def swapped(batches: Sequence[Batch]) -> list[Swapped | None]:
    """Each batch with every clip's signal given to another text of the batch.

    The clips are rotated by the number of places that leaves the fewest texts with an equal signal
    (a clip may have several captions). Where that leaves all of them equal, a batch of one above
    all, clips of the other batches are taken. None where there is no other clip at all, or where
    the signal does not have one row per text.
    """
    keys = [_row_keys(batch) for batch in batches]
    return [_swap(i, batches, keys) for i in range(len(batches))]


def _swap(
    index: int, batches: Sequence[Batch], keys: Sequence[list[bytes] | None]
) -> Swapped | None:
    batch, own = batches[index], keys[index]
    if own is None:
        return None
    shifts = range(1, len(own))
    best = max(shifts, key=lambda k: _distinct(own, own[-k:] + own[:-k]).sum(), default=0)
    distinct = _distinct(own, own[-best:] + own[:-best])
    if best and distinct.any():
        return Swapped(batch.with_signal(batch.signal.roll(best, 0)), distinct)
    donors = {
        key: other.signal[row]
        for number, other in enumerate(batches)
        for row, key in enumerate(keys[number] or ())
        if number != index and other.signal.shape[1:] == batch.signal.shape[1:]
    }
    if not (best or donors):
        return None
    found = [next((k for k in donors if k != key), key) for key in own]
    rows = [donors.get(key, batch.signal[i]).to(batch.signal) for i, key in enumerate(found)]
    return Swapped(batch.with_signal(torch.stack(rows)), _distinct(own, found))


def _distinct(own: list[bytes], other: list[bytes]) -> Tensor:
    return torch.tensor([a != b for a, b in zip(own, other, strict=True)], dtype=torch.bool)


def _row_keys(batch: Batch) -> list[bytes] | None:
    """The bytes of each row's signal; None when the signal does not have one row per text."""
    signal = batch.signal.detach().cpu()
    if signal.shape[:1] != (texts(batch),):
        return None
    return [row.contiguous().flatten().view(torch.uint8).numpy().tobytes() for row in signal]


def texts(batch: Batch) -> int:
    """B, the number of texts in the batch (of signals, when it has no text tensor)."""
    names = ("input_ids", "inputs_embeds", "attention_mask", "labels")
    found = [batch.inputs[n] for n in names if isinstance(batch.inputs.get(n), Tensor)]
    return int((found or [batch.signal])[0].shape[0])


def silent(batch: Batch, silence: Tensor | None = None) -> Batch:
    """The batch with a silent signal: zeros, or ``silence`` for every text.

    Args:
        batch: to be silenced.
        silence: a signal of one clip, e.g. the embedding of recorded silence.

    Raises:
        ProbeError: the silence has another shape than a clip's signal.
    """
    signal = batch.signal
    if silence is None:
        return batch.with_signal(torch.zeros_like(signal))
    if silence.shape not in (signal.shape[1:], (1, *signal.shape[1:])):
        raise ProbeError(
            f"silence has shape {list(silence.shape)}, but the signal of one clip has "
            f"{list(signal.shape[1:])}"
        )
    return batch.with_signal(silence.to(signal).expand_as(signal).clone())


def noisy(batch: Batch) -> Batch | None:
    """The batch with seeded noise as large (RMS) as the signal; None for whole-number signals."""
    signal = batch.signal
    if not signal.is_floating_point():
        return None
    generator = torch.Generator().manual_seed(72_911)  # no seed that a user would draw from, too
    noise = torch.randn(signal.shape, generator=generator)
    rms = signal.detach().float().square().mean().sqrt()
    return batch.with_signal((noise.to(signal.device) * rms).to(signal.dtype))


def may_lack_signal(path: ResolvedPath) -> bool:
    """Whether the model's ``forward`` can be called without the signal."""
    bare = modules_by_name(path.model)[""]
    parameters = inspect.signature(bare.forward).parameters
    named = parameters.get(path.spec.signal_input)
    return named is None or named.default is not inspect.Parameter.empty

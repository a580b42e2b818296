"""What a batch is for the probes: the model's keyword inputs, and where text and signal stand."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from probes.errors import ProbeError

IGNORED = -100
"""Label of a position that is not supervised."""


class Positions(NamedTuple):
    """Which positions of the hidden states are what; padding is in neither."""

    text: Tensor
    """[B, T] bool, real text tokens."""
    signal: Tensor | None
    """[B, T] bool, tokens of the spliced signal; None when the signal is not in the sequence."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Keyword inputs of one forward pass.

    ``attention_mask`` [B, T] (0 for padding) and ``labels`` [B, T] (-100 for unsupervised,
    aligned with the inputs: position t is predicted from t-1) have their usual meaning.
    """

    inputs: Mapping[str, Any]
    """Everything that is passed to the model's ``forward``."""
    signal_input: str
    """The keyword among them that holds the signal."""

    @classmethod
    def of(cls, raw: Any, signal_input: str) -> "Batch":
        """Make a batch of a mapping, or of a dataclass, whose tensor fields are the inputs.

        Raises:
            ProbeError: it is neither, or the signal is not in it.
        """
        if isinstance(raw, Batch):
            return raw
        if dataclasses.is_dataclass(raw) and not isinstance(raw, type):
            pairs = ((f.name, getattr(raw, f.name)) for f in dataclasses.fields(raw))
            raw = {name: value for name, value in pairs if isinstance(value, Tensor)}
        if not isinstance(raw, Mapping):
            raise ProbeError(
                f"a batch must be a mapping of the model's keyword inputs, got {type(raw).__name__}"
            )
        if raw.get(signal_input) is None:
            raise ProbeError(
                f"the batch has no {signal_input!r}; it has {', '.join(map(str, raw))}. "
                "Set SignalPath.signal_input to the keyword that holds the signal"
            )
        return cls(dict(raw), signal_input)

    @property
    def signal(self) -> Tensor:
        """The signal as given to the model, B rows."""
        value: Tensor = self.inputs[self.signal_input]
        return value

    @property
    def labels(self) -> Tensor | None:
        """[B, T] target ids, or None."""
        return self.inputs.get("labels")

    @property
    def supervised(self) -> int:
        """How many tokens a loss is taken on: labels that have a token before them."""
        return 0 if self.labels is None else int((self.labels[:, 1:] != IGNORED).sum())

    @property
    def width(self) -> int | None:
        """T, positions of the longest text; None when the batch has no text tensor."""
        names = ("input_ids", "inputs_embeds", "attention_mask", "labels")
        found = (self.inputs.get(name) for name in names)
        return next((int(x.shape[1]) for x in found if isinstance(x, Tensor)), None)

    def with_inputs(self, **changes: Any) -> "Batch":
        """The same batch with other inputs; None takes a keyword away."""
        inputs = {k: v for k, v in {**self.inputs, **changes}.items() if v is not None}
        return dataclasses.replace(self, inputs=inputs)

    def with_signal(self, signal: Tensor | None) -> "Batch":
        """The same texts with another signal, or with none at all."""
        return self.with_inputs(**{self.signal_input: signal})

    def rows(self, chosen: Sequence[int]) -> "Batch":
        """Only these texts: the rows of every tensor that has one row per text."""
        index = torch.tensor(chosen)
        count = self.signal.shape[0]
        inputs = {
            k: v[index.to(v.device)] if isinstance(v, Tensor) and v.shape[:1] == (count,) else v
            for k, v in self.inputs.items()
        }
        return dataclasses.replace(self, inputs=inputs)

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on ``device``."""
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in self.inputs.items()}
        return dataclasses.replace(self, inputs=moved)

    def positions(self, shape: torch.Size, splice: int | str | None = None) -> Positions:
        """Which positions of hidden states of this ``shape`` are text, signal or padding.

        Args:
            shape: [B, T, H] of the hidden states.
            splice: see ``SignalPath.splice``.

        Raises:
            ProbeError: the shape does not belong to this batch.
        """
        ids, mask = self.inputs.get("input_ids"), self.inputs.get("attention_mask")
        basis = mask if mask is not None else ids
        if basis is None:
            basis = self.inputs.get("inputs_embeds")
        if basis is None or len(shape) != 3:
            raise ProbeError("a batch needs attention_mask or input_ids to tell text from padding")
        real = mask.bool() if mask is not None else torch.ones(basis.shape[:2], dtype=torch.bool)
        if splice == "prefix" and real.dim() == 2 and shape[1] > real.shape[1]:
            front = torch.zeros(shape[0], shape[1] - real.shape[1], dtype=torch.bool)
            text = torch.cat([front.to(real.device), real], dim=1)
            signal = torch.cat([~front.to(real.device), torch.zeros_like(real)], dim=1)
        elif isinstance(splice, int) and ids is not None:
            text, signal = real & (ids != splice), real & (ids == splice)
        else:
            text, signal = real, None
        if text.shape != shape[:2]:
            raise ProbeError(
                f"hidden states have shape {list(shape)} but the batch's mask {list(text.shape)}: "
                "cannot tell which tokens are text (sequence packing, or a signal spliced in "
                "without SignalPath.splice)"
            )
        return Positions(text, signal)

"""The loss that a probe takes gradients of, and the loss of every single token."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F

from probes.batch import IGNORED, Batch
from probes.errors import ProbeError

LossFn = Callable[[Any, Batch], Tensor]
"""(model output, batch) to a scalar in nats per supervised token."""


def field_of(output: Any, name: str) -> Any:
    """``output.name`` or ``output["name"]``; None when it has neither."""
    if isinstance(output, Mapping):
        return output.get(name)
    return getattr(output, name, None)


@dataclass(frozen=True)
class OwnLoss:
    """The default loss: the model's own ``.loss`` in nats per supervised token.

    Raises:
        ProbeError: the model returned none.
    """

    reduction: Literal["mean", "sum"] = "mean"
    """What ``.loss`` is; a sum is divided by the number of supervised tokens of the batch."""

    def __call__(self, output: Any, batch: Batch) -> Tensor:
        """The loss of one output."""
        value = field_of(output, "loss")
        if not isinstance(value, Tensor):
            raise ProbeError(
                f"the model returned no loss ({type(output).__name__}); put labels into the batch, "
                "or give loss_fn(output, batch)"
            )
        return value / max(1, batch.supervised) if self.reduction == "sum" else value


def token_losses(logits: Tensor, batch: Batch) -> Tensor:
    """Cross entropy of every supervised token, recomputed from the logits.

    Args:
        logits: [M, V] at the M supervised tokens, as :func:`probes.logits.counted` picks them.
        batch: has ``labels`` [B, T].

    Returns:
        [M] float32 nats, row by row of the batch.

    Raises:
        ProbeError: no labels, or of another number of tokens.
    """
    if batch.labels is None:
        raise ProbeError("per-token losses need labels in the batch")
    labels = batch.labels[:, 1:]
    target = labels[labels != IGNORED]
    if logits.dim() != 2 or logits.shape[0] != target.shape[0]:
        raise ProbeError(
            f"logits of shape {list(logits.shape)} do not belong to labels of shape "
            f"{list(batch.labels.shape)} with {target.shape[0]} supervised tokens"
        )
    return F.cross_entropy(logits.float(), target.to(logits.device), reduction="none")

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


def token_losses(output: Any, batch: Batch) -> Tensor:
    """Cross entropy of every supervised token, recomputed from the logits.

    Args:
        output: has ``logits`` [B, T, V] (extra positions in front are a spliced prefix), or
            [M, V] at the M supervised positions.
        batch: has ``labels`` [B, T].

    Returns:
        [M] float32 nats, row by row of the batch.

    Raises:
        ProbeError: no logits or labels, or their shapes do not belong together.
    """
    logits, labels = field_of(output, "logits"), batch.labels
    if not isinstance(logits, Tensor) or labels is None:
        raise ProbeError("per-token losses need logits in the output and labels in the batch")
    supervised = labels[:, 1:] != IGNORED
    target = labels[:, 1:][supervised]
    if logits.dim() == 3 and logits.shape[1] >= labels.shape[1]:
        logits = logits[:, -labels.shape[1] : -1][supervised.to(logits.device)]
    if logits.dim() != 2 or logits.shape[0] != target.shape[0]:
        raise ProbeError(
            f"logits of shape {list(logits.shape)} do not belong to labels of shape "
            f"{list(labels.shape)} with {target.shape[0]} supervised tokens"
        )
    return F.cross_entropy(logits.float(), target.to(logits.device), reduction="none")

"""What the Phase 1 plan states about its own configs, to be held against what is measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StatedSizes:
    """Sizes as they were written down, in parameters and bytes."""

    projector: float
    """Trainable parameters of the projector."""
    lora: float
    """Trainable parameters of LoRA in the fusion."""
    trainable: float
    """All trainable parameters."""
    memory: tuple[float, float] | None = None
    """GPU memory of the training, lowest and highest, in bytes."""


STATED: dict[str, StatedSizes] = {
    "full": StatedSizes(projector=84.5e6, lora=0.16e6, trainable=189.6e6),
    "phase1": StatedSizes(projector=168e6, lora=10.5e6, trainable=380e6, memory=(38e9, 42e9)),
}
"""By name of the config. Source: seed, "Parameter Count Breakdown" and "Training Dynamics"."""

VERIFIED_ABOVE, PARTIAL_FROM = 30.0, 25.0
"""CIDEr x 100 above which the connection is verified, and from which it is a partial success.
Source: seed, "Success Criteria"."""
EXPECTED_CIDER: dict[int, tuple[float, float]] = {1: (10, 15), 5: (22, 28), 10: (28, 35)}
"""CIDEr x 100 by epochs completed, lowest and highest. Source: seed, "Training Dynamics"."""
BASELINE_CIDER = 18.0
"""CIDEr x 100 of the baseline on its own data. Source: seed, "Verification Checklist"."""
TRAINING_HOURS = (12.0, 18.0)
"""Hours for 20 epochs on one GPU with the 13B backbone. Source: seed, "Training Dynamics"."""

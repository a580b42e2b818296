"""The words of the gradient ledger, as the numbers in its records (this module needs no torch)."""

from enum import IntEnum


class State(IntEnum):
    """What backward left in ``.grad`` of a parameter, or of a component's parameters together.

    A component is in the highest state that one of its trainable parameters is in.
    """

    ABSENT = 0
    """The component has no parameters."""
    NONE = 1
    """No gradient in any batch: frozen, or outside the graph of the loss."""
    ZERO = 2
    """A gradient whose elements are all exactly zero in every batch."""
    FINITE = 3
    """A finite gradient that is not zero."""
    NONFINITE = 4
    """NaN or infinity in at least one batch."""


class Reason(IntEnum):
    """Why a trainable parameter has no gradient, found out by experiment."""

    UNKNOWN = 0
    """Nothing that was opened or filled gave it a gradient: the path to the loss is cut."""
    GATE = 1
    """A closed gate that has a gradient itself, so it will open: a normal cold start."""
    ZERO_WEIGHT = 2
    """Weights of zero that have a gradient themselves (LoRA's B): a normal cold start."""
    OUTER_GATE = 3
    """The factor before all gates is 0 (warm-up not begun, or the model-wide gate shut)."""
    FROZEN_GATE = 4
    """A closed gate that is not trainable: it stays so."""
    DEADLOCK = 5
    """Zeros that wait for each other (gate and branch, LoRA's A and B): it stays so for ever."""
    FROZEN_ZERO = 6
    """Frozen weights of projector or fusion that are all zero (LoRA's B): it stays so."""


NORMAL = (Reason.GATE, Reason.ZERO_WEIGHT)
"""Reasons that pass by themselves within a few steps."""

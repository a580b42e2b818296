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

AUDIOCAPS_TRAIN_CLIPS = 49_838
"""Training clips of AudioCaps 1.0. Source: its train.csv (github.com/cdjkim/audiocaps)."""
AUDIOCAPS_TEST_SIZES = {
    975: "the whole test split, as most papers score it",
    957: "as EnCLAP and DRCap score it",
}
"""Numbers of test clips that published scores are over: some have gone from YouTube."""


@dataclass(frozen=True)
class PublicScore:
    """CIDEr x 100 on AudioCaps' test split that is on the public record."""

    name: str
    """What reached it, to go on from "above" or "below"."""
    low: float
    """The score, or the lowest of several like it."""
    high: float
    """The highest of them."""
    source: str
    """Who measured it."""


CONSTANT, TRAINING_FREE, BASELINE_2019, BEST, HUMAN = 15.6, 28.1, 59.3, 84.1, 90.8
"""CIDEr x 100 on AudioCaps' test split: best constant caption, ZerAuCap, the data set's own model,
SLAM-AAC, people."""
FROZEN_LLM = (70.4, 72.1)
"""The same for a frozen LLaMA with CLAP and a projection, 7B and 13B."""

PUBLIC_SCALE = (
    PublicScore(
        "a constant caption", CONSTANT, CONSTANT, "measured on the references, the best there is"
    ),
    PublicScore("training-free", TRAINING_FREE, TRAINING_FREE, "ZerAuCap, 2023"),
    PublicScore(
        "the 2019 baseline", BASELINE_2019, BASELINE_2019, "Kim et al., AudioCaps, NAACL 2019"
    ),
    PublicScore("a frozen LLM with CLAP", *FROZEN_LLM, "AnyMAL 7B and 13B, 2023"),
    PublicScore("the best", BEST, BEST, "SLAM-AAC, 2024"),
    PublicScore("people", HUMAN, HUMAN, "measured on the references, each against the other four"),
)
"""From the lowest to the highest."""

"""Every limit that a rule compares with, its unit, meaning and source: one table."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from configs.errors import ConfigError, shown, unknown

_RUN = "a real run: SmolLM2-135M, 800 steps"


def _limit(default: float, unit: str, meaning: str, source: str) -> Any:
    return field(default=default, metadata={"unit": unit, "meaning": meaning, "source": source})


@dataclass(frozen=True)
class Thresholds:
    """The limits; each can be overridden under ``thresholds`` in the settings."""

    quiet_branch: float = _limit(
        0.1, "ratio", "||branch|| / ||hidden|| below this in every fusion layer is too quiet",
        f"with a gate of 0.3 the contribution is then below 0.03, nearly silent in {_RUN}",
    )  # fmt: skip
    loud: float = _limit(
        1.0, "ratio", "contribution ||gate*branch|| / ||hidden|| from which on it drowns the text",
        f"0.1-0.3 at the start and below 1 always in the good runs ({_RUN})",
    )  # fmt: skip
    deafening: float = _limit(
        30.0, "ratio", "contribution from which on nothing of the text is left",
        f"twice the largest value that a run survived (15, {_RUN})",
    )  # fmt: skip
    quiet_token: float = _limit(
        0.1, "ratio", "L2 of a spliced token over L2 of a text token, too quiet below",
        "an order of magnitude below the text; LLaVA-1.5's visual tokens are at 37",
    )  # fmt: skip
    loud_token: float = _limit(
        300.0, "ratio", "L2 of a spliced token over L2 of a text token, too loud from here on",
        "ten times LLaVA-1.5's visual tokens, rounded down",
    )  # fmt: skip
    saturated: float = _limit(
        0.05, "share", "elements of the projector at the end of tanh",
        f"1.3% in the good run, 36-62% in the weak ones ({_RUN})",
    )  # fmt: skip
    mostly_saturated: float = _limit(
        0.9, "share", "saturated elements from which on nothing can be learned",
        f"beyond the worst run that still learned something (62%, {_RUN})",
    )  # fmt: skip
    dead_units: float = _limit(
        0.5, "share", "units of the projector that are the same for every clip",
        "a unit that never changes carries nothing",
    )  # fmt: skip
    same_clips: float = _limit(
        0.9999, "cosine", "mean cosine between the tokens of different clips",
        "embeddings of unlike clips differ; 1 means one output for every clip",
    )  # fmt: skip
    same_tokens: float = _limit(
        0.9999, "cosine", "mean cosine between the tokens of one clip",
        "N equal tokens carry no more than one",
    )  # fmt: skip
    sink_inflation: float = _limit(
        2.0, "ratio", "by how much sink tokens inflate the mean norm",
        "SmolLM2's first token makes the mean 2,000 where the median is 135",
    )  # fmt: skip
    float16_room: float = _limit(
        8192.0, "amplitude", "largest element that is far enough from float16's 65,504",
        "an eighth of the range: one layer may multiply by a few",
    )  # fmt: skip
    quiet_gate: float = _limit(
        0.02, "factor", "a gate smaller than this (and not 0) hardly lets anything through",
        f"gate 0.05 with scale 2 was nearly silent ({_RUN})",
    )  # fmt: skip
    tiny_gradient: float = _limit(
        1e-7, "nats/token", "gradient of an open gate below which only noise is left",
        "a LayerNorm after the gate leaves about 1e-6 of the true gradient",
    )  # fmt: skip
    gate_mismatch: float = _limit(
        0.25, "share", "difference between what arrives and gate times branch",
        "0 in exact arithmetic; bfloat16 rounding stays below a tenth of it",
    )  # fmt: skip
    gate_noise: float = _limit(
        0.01, "ratio", "difference in contribution below which bfloat16 rounding may explain it",
        "2^-8 of the hidden states, the largest rounding of bfloat16",
    )  # fmt: skip
    slow_update: float = _limit(
        1e-8, "ratio", "||update|| / ||weight|| of a step below which nothing moves",
        "float32 cannot represent a relative change below 6e-8",
    )  # fmt: skip
    violent_update: float = _limit(
        0.3, "ratio", "||update|| / ||weight|| of a step from which on weights are thrown about",
        "1e-3 is usual; a third of the weight in one step is no fine adjustment",
    )  # fmt: skip
    violent_gradient: float = _limit(
        100.0, "L2", "norm of the whole gradient from which on clipping decides everything",
        f"750 at the start of the over-driven run, about 1-10 in the good ones ({_RUN})",
    )  # fmt: skip
    noisy_gradient: float = _limit(
        0.05, "ratio", "||mean gradient|| / its standard deviation over batches",
        "pure noise gives 1/sqrt(batches)",
    )  # fmt: skip
    wrong_slope: float = _limit(
        0.2, "ratio", "how far the loss's slope along the gradient may be from its norm",
        "at most 0.01 in 40 healthy float32 set-ups",
    )  # fmt: skip
    missing_slope: float = _limit(
        0.2, "ratio", "how far slopes along random directions may be from what the gradient says",
        "at most 0.006 in 40 healthy float32 set-ups; 1 where as much is missing as is there",
    )  # fmt: skip
    uphill: float = _limit(
        0.01, "cosine", "minus the cosine of a step's direction with downhill, uphill above it",
        "at least +0.2 in 54 healthy set-ups; the same with a minus when the sign is turned",
    )  # fmt: skip
    warm: float = _limit(
        100, "steps", "optimizer steps after which a trained model is judged as one",
        f"the shuffled-minus-true gap was at least 0.1 nat by step 100 in the good runs ({_RUN})",
    )  # fmt: skip
    warmup_stuck: float = _limit(
        0.5, "factor", "outer gate that a warm-up must have passed after 'warmup_over' steps",
        "the seed's warm-up is linear",
    )  # fmt: skip
    warmup_over: float = _limit(
        4000, "steps", "steps after which a warm-up should be over",
        "twice the seed's 2,000 steps",
    )  # fmt: skip
    first_loss: float = _limit(
        1.0, "nats/token", "own loss minus the loss without the signal",
        f"first loss <= no-audio loss + 1 in the good runs ({_RUN})",
    )  # fmt: skip
    signal_gain: float = _limit(
        0.1, "nats/token", "loss with another clip's signal minus loss with the own",
        f"at least 0.1 nat by step 100 in the good runs ({_RUN})",
    )  # fmt: skip
    constant_signal: float = _limit(
        1e-3, "ratio", "KL of another clip's signal over KL of none, below it the signal is a bias",
        "a signal that is heard differs between clips by about as much as from none",
    )  # fmt: skip
    leak: float = _limit(
        0.01, "ratio", "KL by what must not matter over KL by another clip, too much above it",
        "exactly 0 between the texts of a batch in 50 healthy set-ups; a mean over 4 texts gives 1",
    )  # fmt: skip
    rounding: float = _limit(
        1e-6, "nats/token", "KL below which two outputs are the same but for rounding",
        "at most 2e-11 in float32 and exactly 0 under a correct mask, in 50 healthy set-ups",
    )  # fmt: skip
    one_hot: float = _limit(
        0.99, "weight", "largest attention weight over the signal's tokens",
        f"max attention weight < 0.99 in the good runs ({_RUN})",
    )  # fmt: skip
    uniform: float = _limit(
        0.9999, "share", "entropy of the attention over log N, above it nothing is chosen",
        "1 is exactly uniform: queries and keys have no say",
    )  # fmt: skip
    lora_low: float = _limit(
        0.05, "factor", "smallest usual LoRA scaling (alpha / r)",
        "LoRA uses 1-2; at a twentieth B must grow twenty times as far",
    )  # fmt: skip
    lora_high: float = _limit(
        32.0, "factor", "largest usual LoRA scaling (alpha / r, rsLoRA: alpha / sqrt(r))",
        "LoRA uses 1-2, rsLoRA 8 at rank 64",
    )  # fmt: skip
    claim: float = _limit(
        0.1, "share", "difference between a stated and a measured number",
        "a tenth is more than rounding",
    )  # fmt: skip
    trainable_decoder: float = _limit(
        0.1, "share", "trainable share of the decoder that is no adapter any more",
        "LoRA trains about 1%",
    )  # fmt: skip
    truncated: float = _limit(
        0.05, "share", "captions that are cut", "one in twenty",
    )  # fmt: skip
    copied_caption: float = _limit(
        0.5, "share", "clips that get the commonest generated caption", "half of all clips",
    )  # fmt: skip
    constant_caption: float = _limit(
        15.6, "CIDEr x 100", "what a caption that never hears anything scores",
        "best constant caption on AudioCaps' test split",
    )  # fmt: skip

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Thresholds":
        """Thresholds with these values instead of the defaults.

        Raises:
            ConfigError: an unknown name, or a value that is not a finite number of at least 0.
        """
        names = [f.name for f in fields(cls)]
        for name, value in values.items():
            if name not in names:
                raise ConfigError(unknown("threshold", str(name), names))
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number and 0 <= value <= sys.float_info.max):
                raise ConfigError(
                    f"threshold {name} = {shown(value)}: must be a finite number of at least 0"
                )
        return cls(**{name: float(value) for name, value in values.items()})

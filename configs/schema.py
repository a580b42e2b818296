"""What a run is made of: frozen dataclasses that check themselves when they are made.

Every error names the dotted key (as `--set` takes it), the value and what is allowed.
"""

import re
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from configs.checks import above_zero, at_least, not_empty
from configs.errors import ConfigError
from configs.section import Section

EMBEDDED = "embedded"
"""Name of the backbone and of the audio encoder that come with the package."""
SYNTHETIC = "synthetic"
"""Value of data.root for the built-in clips."""

RetentionVariant = Literal[
    "no_retention", "soft_retention", "fisher_retention", "nullspace_retention", "full_retention"
]


@dataclass(frozen=True, kw_only=True)
class ProjectorConfig(Section):
    """How one audio embedding becomes N audio tokens of the backbone's hidden size."""

    PATH: ClassVar[str] = "model.projector"

    kind: Literal["mlp", "adaptive", "resampler"] = "mlp"
    """mlp gives num_tokens per clip, adaptive between min_tokens and num_tokens; a resampler's
    tokens are learned queries that share one matrix: 6M parameters instead of 168M."""
    bottleneck_dim: int | None = 1024
    """Width of the hidden layer (of a resampler's queries); null for a single linear layer."""
    num_tokens: int = 32
    """Audio tokens per clip (the most of them, when adaptive)."""
    min_tokens: int = 8
    """Fewest audio tokens per clip; used by the adaptive projector only."""
    scale: float = 10.0
    """Bound of every element of an audio token: the last operation is tanh(x) * scale."""

    def __post_init__(self) -> None:
        self.check_types()
        at_least(self.key("bottleneck_dim"), self.bottleneck_dim, 1)
        at_least(self.key("num_tokens"), self.num_tokens, 1)
        at_least(self.key("min_tokens"), self.min_tokens, 1)
        above_zero(self.key("scale"), self.scale)
        if self.kind == "resampler" and self.bottleneck_dim is None:
            raise ConfigError(
                f"{self.key('bottleneck_dim')} = None: a resampler needs a width, e.g. 1024"
            )
        if self.kind == "adaptive" and self.min_tokens > self.num_tokens:
            raise ConfigError(
                f"{self.key('min_tokens')} = {self.min_tokens}: must be at most "
                f"{self.key('num_tokens')} = {self.num_tokens}"
            )


@dataclass(frozen=True, kw_only=True)
class FusionConfig(Section):
    """Where and how strongly the audio tokens enter the decoder."""

    PATH: ClassVar[str] = "model.fusion"

    layers: tuple[int, ...]
    """Decoder layers, counted from 0, whose outgoing hidden states receive the audio branch."""
    lora_rank: int
    """Rank of the LoRA matrices on q, k, v and o of every fusion layer's cross-attention."""
    lora_alpha: float | None = None
    """LoRA's alpha; null means equal to the rank, so that the factor alpha / rank is 1."""
    base: Literal["shared", "random"] = "shared"
    """Frozen projections under the LoRA: the decoder layer's own attention, or random ones."""
    gate_init: float
    """Value of the trainable residual gate (residual_scale) at step 0."""
    gate_max: float
    """Upper bound that the residual gate is clamped to; the lower bound is 0."""
    gate_warmup_steps: int = 0
    """Optimizer steps over which the gate is faded in linearly; 0 switches the warm-up off."""
    skip_first_token: bool = False
    """Leave the token at position 0 alone: where it is the attention sink, audio unsettles it."""

    def __post_init__(self) -> None:
        self.check_types()
        at_least(self.key("lora_rank"), self.lora_rank, 1)
        if self.lora_alpha is not None:
            above_zero(self.key("lora_alpha"), self.lora_alpha)
        above_zero(self.key("gate_max"), self.gate_max)
        at_least(self.key("gate_warmup_steps"), self.gate_warmup_steps, 0)
        if not 0 <= self.gate_init <= self.gate_max:
            raise ConfigError(
                f"{self.key('gate_init')} = {self.gate_init}: must be between 0 and "
                f"{self.key('gate_max')} = {self.gate_max}"
            )
        if not self.layers or list(self.layers) != sorted(set(self.layers)) or self.layers[0] < 0:
            raise ConfigError(
                f"{self.key('layers')} = {list(self.layers)}: must be one or more different "
                "layer numbers from 0 on, in ascending order"
            )

    @property
    def alpha(self) -> float:
        """LoRA's alpha as a number: lora_alpha, or the rank where that is null."""
        return float(self.lora_rank) if self.lora_alpha is None else self.lora_alpha


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Section):
    """The frozen backbone, the frozen audio encoder and the trained adapter between them."""

    PATH: ClassVar[str] = "model"

    backbone: str
    """"embedded", "smollm2", a hub name or a local folder."""
    hidden_size: int
    """Width H of the backbone's hidden states, which the other sizes were chosen for."""
    num_layers: int
    """Number of the backbone's decoder layers."""
    audio_encoder: str
    """"embedded", "aisfx", "laion-clap" (or "laion-clap:CHECKPOINT") or "hf:FOLDER_OR_HUB"."""
    audio_dim: int = 512
    """Width D of the audio encoder's embedding, or of each local feature."""
    audio_features: Literal["pooled", "local"] = "pooled"
    """pooled: one embedding per clip; local: the encoder's features in order of time (64 for CLAP),
    for a resampler."""
    prompt: str | None = None
    """Text in front of every caption; null for the backbone's own template."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Storage type of the frozen backbone's weights."""
    quantization: Literal["8bit", "4bit"] | None = None
    """Quantise the frozen backbone with bitsandbytes (the extra `quant`); null for none."""
    device_map: str | None = None
    """Passed to transformers, e.g. "auto"; null puts the backbone on the training device."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    """From the audio embedding to audio tokens."""
    fusion: FusionConfig
    """From the audio tokens into the decoder."""

    def __post_init__(self) -> None:
        self.check_types()
        for name in ("backbone", "audio_encoder"):
            not_empty(self.key(name), getattr(self, name))
        for name in ("hidden_size", "num_layers", "audio_dim"):
            at_least(self.key(name), getattr(self, name), 1)
        last = self.num_layers - 1
        if self.fusion.layers[-1] > last:
            raise ConfigError(
                f"model.fusion.layers = {list(self.fusion.layers)}: layer {self.fusion.layers[-1]} "
                f"does not exist; model.num_layers = {self.num_layers} allows 0 to {last}"
            )
        if self.audio_features == "local" and self.projector.kind != "resampler":
            raise ConfigError(
                f"model.audio_features = 'local': projector kind {self.projector.kind!r} takes "
                "one embedding per clip; set model.projector.kind=resampler"
            )
        if self.fusion.lora_rank > self.hidden_size:
            raise ConfigError(
                f"model.fusion.lora_rank = {self.fusion.lora_rank}: must be at most "
                f"model.hidden_size = {self.hidden_size}"
            )


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Section):
    """How the adapter is trained: AdamW, cosine schedule with warm-up, clipped gradients."""

    PATH: ClassVar[str] = "optim"

    lr_projector: float
    """Peak learning rate of the projector."""
    lr_adapter: float
    """Peak learning rate of the LoRA matrices and the residual gates."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""
    warmup_ratio: float = 0.03
    """Share of all optimizer steps over which the learning rates rise from 0."""
    clip_norm: float = 1.0
    """Largest allowed L2 norm of the whole gradient."""
    batch_size: int
    """Clips per forward pass (micro-batch)."""
    accumulation: int
    """Micro-batches per optimizer step; batch_size * accumulation clips make one step."""
    epochs: int
    """Passes over the training split."""
    max_steps: int | None = None
    """Stop after this many optimizer steps; null for all epochs."""
    precision: Literal["no", "bf16"] = "bf16"
    """Autocast during training: bf16, or no for plain float32."""
    max_bad_steps: int = 5
    """Stop after this many steps in a row whose loss or gradient is not finite."""
    seed: int = 0
    """Seed of initialisation, shuffling and cropping."""

    def __post_init__(self) -> None:
        self.check_types()
        for name in ("lr_projector", "lr_adapter", "clip_norm"):
            above_zero(self.key(name), getattr(self, name))
        for name in ("batch_size", "accumulation", "epochs", "max_steps", "max_bad_steps"):
            at_least(self.key(name), getattr(self, name), 1)
        at_least(self.key("weight_decay"), self.weight_decay, 0)
        if not 0 <= self.warmup_ratio < 1:
            raise ConfigError(
                f"{self.key('warmup_ratio')} = {self.warmup_ratio}: must be from 0 to below 1"
            )
        if not 0 <= self.seed < 2**32:  # NumPy takes no larger seed
            raise ConfigError(f"{self.key('seed')} = {self.seed}: must be from 0 to 4294967295")

    @property
    def effective_batch(self) -> int:
        """Clips per optimizer step, over all processes."""
        return self.batch_size * self.accumulation


@dataclass(frozen=True, kw_only=True)
class RetentionConfig(Section):
    """How the model is kept from forgetting what it could do without audio."""

    PATH: ClassVar[str] = "retention"

    variant: RetentionVariant = "no_retention"
    """Which retention term is added to the caption loss."""
    weight: float = 0.1
    """Weight of that term; without meaning for no_retention."""
    every: int = 8
    """Optimizer steps between two evaluations of the term."""

    def __post_init__(self) -> None:
        self.check_types()
        above_zero(self.key("weight"), self.weight)
        at_least(self.key("every"), self.every, 1)


@dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """The clips and their captions."""

    PATH: ClassVar[str] = "data"

    root: str
    """Folder in the AudioCaps layout, or "synthetic" for the built-in clips."""
    max_caption_tokens: int = 48
    """Longer training captions are cut after this many tokens."""
    train_split: str = "train"
    """Split to train on."""
    eval_split: str = "val"
    """Split to score during training."""
    test_split: str = "test"
    """Split to score at the end."""
    min_seconds: float = 0.1
    """Shorter clips are listed as unusable."""
    audio: Literal["own", "mean"] = "own"
    """own: each clip's embedding; mean: the training split's mean for all, the blind control."""

    def __post_init__(self) -> None:
        self.check_types()
        for name in ("root", "train_split", "eval_split", "test_split"):
            not_empty(self.key(name), getattr(self, name))
        at_least(self.key("max_caption_tokens"), self.max_caption_tokens, 1)
        at_least(self.key("min_seconds"), self.min_seconds, 0)
        for name in ("eval_split", "test_split"):
            if getattr(self, name) == self.train_split:
                raise ConfigError(
                    f"{self.key(name)} = {self.train_split!r}: must differ from "
                    f"{self.key('train_split')}; a score on training clips says nothing"
                )


@dataclass(frozen=True, kw_only=True)
class EvalConfig(Section):
    """How captions are generated and scored."""

    PATH: ClassVar[str] = "evaluation"

    batch_size: int = 16
    """Clips per generation batch."""
    num_beams: int = 1
    """Beams; 1 is greedy decoding."""
    max_new_tokens: int = 40
    """Longest generated caption, in tokens."""
    every_epochs: int = 1
    """Epochs between two evaluations during training."""
    eval_clips: int | None = None
    """Clips of the eval split to score during training; null for all of them."""
    bootstrap: int = 1000
    """Resamples behind the 95% interval."""

    def __post_init__(self) -> None:
        self.check_types()
        for name in ("batch_size", "num_beams", "max_new_tokens", "every_epochs", "bootstrap"):
            at_least(self.key(name), getattr(self, name), 1)
        at_least(self.key("eval_clips"), self.eval_clips, 2)  # CIDEr of one clip is undefined


@dataclass(frozen=True, kw_only=True)
class RunConfig(Section):
    """Everything that decides what a run does."""

    name: str
    """Name of the config and of the run's folder."""
    description: str
    """One sentence on what the run is for."""
    model: ModelConfig
    """Backbone, audio encoder and adapter."""
    optim: OptimConfig
    """Optimizer, schedule and batches."""
    retention: RetentionConfig = field(default_factory=RetentionConfig)
    """What keeps the model from forgetting."""
    data: DataConfig
    """Clips and captions."""
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    """Generation and scoring."""

    def __post_init__(self) -> None:
        self.check_types()
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ConfigError(
                f"name = {self.name!r}: must be letters, digits, '.', '_' or '-', "
                "because it becomes a folder's name"
            )

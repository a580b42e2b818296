"""Healthy set-ups: a small SAFEModel with clips, captions and the optimizer of stage A."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from configs.adapt import adapt_to_backbone
from configs.model_configs import get_config
from configs.overrides import apply_values
from probes.diagnosis import Diagnosis, diagnose
from probes.signal_path import SignalPath
from safe.data.synthetic import synthetic_scene
from safe.data.synthetic_events import EVENTS
from safe.models.backbones import Backbone, backbone_from_causal_lm, load_backbone
from safe.models.safe_model import SAFEModel
from safe.training.batches import Batch, CaptionDataset, CaptionTokens
from safe.training.retention import Retention
from safe.training.stage_a import StageA

CLIPS, BATCH, WIDTH = 1024, 4, 512
LONG = 300
"""Optimizer steps after which the embedded model clearly hears its clips."""
CAUSAL = {
    "llama": ("LlamaConfig", "LlamaForCausalLM"),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM"),
    "mistral": ("MistralConfig", "MistralForCausalLM"),
}
"""Tiny random language models, put into the LLaVA class."""


@dataclass(eq=False)
class Bench:
    """Everything that a training has at hand; faults change it in place."""

    model: SAFEModel
    trainer: StageA
    batches: list[Batch]
    path: SignalPath | None = None
    """How to find the signal; None infers it."""
    clip_norm: float = 1.0
    step: int = 0
    """Optimizer steps done."""
    start: dict[str, Tensor] = field(default_factory=dict)
    """Trainable parameters before the first step, by name."""

    autocast: torch.dtype | None = None
    """Precision of the forward passes where it is not that of the weights."""
    loss_scale: float = 1.0
    """Of a GradScaler."""

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer of the training."""
        return self.trainer.optimizer

    def casting(self) -> torch.autocast:
        """A context for forward passes in the precision of the training."""
        return torch.autocast("cpu", self.autocast, enabled=self.autocast is not None)

    def train(self, steps: int) -> None:
        """Take optimizer steps as stage A does, with whatever fault is already planted."""
        if not self.start:
            self.start = {n: p.detach().clone() for n, p in self.trainer.parameters.items()}
        for _ in range(steps):
            self.trainer.advance()
        self.step += steps

    def change_batches(self, **tensors: Any) -> None:
        """Replace tensors of every batch; values are functions of the batch."""
        self.batches = [
            replace(batch, **{name: change(batch) for name, change in tensors.items()})
            for batch in self.batches
        ]

    def diagnose(self) -> Diagnosis:
        """All probes and all rules."""
        with self.casting():
            return diagnose(
                self.model, self.batches, self.path, optimizer=self.optimizer, step=self.step,
                start=self.start, clip_norm=self.clip_norm, loss_scale=self.loss_scale,
            )  # fmt: skip


def build(
    config: str = "demo",
    seed: int = 0,
    backbone: str = "embedded",
    dtype: str = "float32",
    steps: int = 0,
    accumulation: int = 1,
    **values: Any,
) -> Bench:
    """A healthy set-up.

    Args:
        config: whose shape, adapted to the backbone as the trainer does.
        seed: of the initialisation, the clips and their order.
        backbone: ``embedded`` or one of ``CAUSAL``.
        dtype: of the frozen weights.
        steps: optimizer steps to take.
        accumulation: micro-batches per step.
        values: configuration values, dotted keys with ``__`` for the dot.
    """
    torch.manual_seed(seed)
    parts = _backbone(backbone, dtype)
    settings = {"optim.precision": "no", "optim.seed": seed, "model.dtype": dtype}
    settings |= {key.replace("__", "."): value for key, value in values.items()}
    run, _ = adapt_to_backbone(
        apply_values(get_config(config), settings), parts.hidden_size, parts.num_layers, backbone
    )
    # a constant learning rate, so that a few steps of this long training are real steps
    small = replace(
        run.optim, batch_size=BATCH, accumulation=accumulation, epochs=1000, warmup_ratio=0.0
    )
    model = SAFEModel(parts, run.model)
    dataset = clips(model, seed)
    trainer = StageA(model, dataset, small, Accelerator(cpu=True), Retention([]))
    batches = [
        dataset.batch(range(i, i + BATCH)) for i in range(0, BATCH * max(2, accumulation), BATCH)
    ]
    gate = model.outer_gate
    if gate.warmup_steps:
        model.set_gate_warmup(1, gate.warmup_steps)  # as in the first training step
    bench = Bench(model, trainer, batches, clip_norm=run.optim.clip_norm)
    if steps:
        bench.train(steps)
    return bench


def clips(model: SAFEModel, seed: int) -> CaptionDataset:
    """Captions of the built-in scenes with an embedding that names their events, and noise."""
    scenes = [synthetic_scene("train", i, seed=seed) for i in range(CLIPS)]
    return CaptionDataset(
        [scene.id for scene in scenes],
        [scene.captions for scene in scenes],
        embeddings([scene.events for scene in scenes], seed),
        np.full(CLIPS, 4.0),
        CaptionTokens(model.tokenizer, model.prompt),
        max_caption_tokens=48,
    )


def embeddings(events: Sequence[Sequence[str]], seed: int) -> NDArray[np.float32]:
    """[clips, 512] of norm 1, as CLAP's: the sum of the events' own directions, and noise."""
    rng = np.random.default_rng((seed, 7))
    directions = {name: rng.standard_normal(WIDTH) for name in EVENTS}
    rows = [sum(directions[name] for name in names) for names in events]
    noisy = np.array(rows) + 0.3 * rng.standard_normal((len(rows), WIDTH))
    unit: NDArray[np.float64] = noisy / np.linalg.norm(noisy, axis=1, keepdims=True)
    return unit.astype(np.float32)


def _backbone(name: str, dtype: str) -> Backbone:
    if name == "embedded":
        return load_backbone("embedded", dtype="bfloat16" if dtype == "bfloat16" else "float32")
    import transformers

    tokenizer, prompt = _embedded_text()
    config_class, model_class = CAUSAL[name]
    config = getattr(transformers, config_class)(
        hidden_size=64, intermediate_size=128, num_hidden_layers=10, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=4096, max_position_embeddings=128,
        initializer_range=0.1, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    lm = getattr(transformers, model_class)(config).to(getattr(torch, dtype))
    return backbone_from_causal_lm(lm, tokenizer, name, prompt=prompt)


@lru_cache(maxsize=1)
def _embedded_text() -> tuple[Any, str]:
    backbone = load_backbone("embedded", dtype="float32")
    return backbone.tokenizer, backbone.prompt

"""How the cost of an optimizer step grows with everything that a user can turn.

One axis at a time is varied around :data:`USUAL`, on a random Llama in the LLaVA class. The
exponent is the slope of a straight line through the logarithms: 1 is proportional, 0 is no growth;
a part that stays the same keeps it below.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from benchmarks.speed.pairs import seconds
from configs.model_configs import get_config
from configs.schema import FusionConfig, ProjectorConfig
from probes.batch import Batch
from probes.norms import PassNorms
from probes.statistics import TokenPool, stacked, summary
from safe.models.backbones import Backbone, backbone_from_causal_lm, load_backbone
from safe.models.safe_model import SAFEModel
from safe.training.batches import CaptionDataset, CaptionTokens
from safe.training.retention import Retention
from safe.training.stage_a import StageA

TURNS = 5
CPU = torch.device("cpu")
_VOCABULARY = 4096


@dataclass(frozen=True)
class Shape:
    """The sizes of a step."""

    clips: int = 8
    """Clips of the step, in one micro-batch."""
    caption_tokens: int = 16
    """Tokens of each caption."""
    audio_tokens: int = 32
    """Audio tokens of each clip."""
    fusion_layers: int = 4
    """Decoder layers with fusion, evenly spaced; the first one is always layer 1."""
    lora_rank: int = 16
    """Rank of the fusion's LoRA."""
    hidden_size: int = 256
    """Width of the decoder."""
    decoder_layers: int = 9
    """Layers of the decoder."""


USUAL = Shape()
AXES: dict[str, tuple[int, ...]] = {
    "clips": (4, 8, 16, 32),
    "caption_tokens": (8, 16, 32, 64, 128),
    "audio_tokens": (8, 16, 32, 64, 128),
    "fusion_layers": (1, 2, 4, 8),
    "lora_rank": (4, 8, 16, 32, 64),
    "hidden_size": (128, 256, 512, 1024),
    "decoder_layers": (9, 17, 33),
}
"""What is varied, and the sizes it takes."""


@dataclass(frozen=True)
class Curve:
    """Cost by size along one axis."""

    what: str
    """Axis, as a person reads it."""
    sizes: tuple[int, ...]
    """Sizes measured."""
    milliseconds: tuple[float, ...]
    """Time at each, median."""
    kept_bytes: tuple[int, ...]
    """What is kept in memory at each: of a step what its backward pass needs, parameters apart."""

    @property
    def time_exponent(self) -> float:
        """Of the time."""
        return _exponent(self.sizes, self.milliseconds)

    @property
    def memory_exponent(self) -> float:
        """Of what is kept."""
        return _exponent(self.sizes, self.kept_bytes)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        exponents = {"time_exponent": self.time_exponent, "memory_exponent": self.memory_exponent}
        return {**asdict(self), **exponents}

    def __str__(self) -> str:
        points = zip(self.sizes, self.milliseconds, self.kept_bytes, strict=True)
        line = "  ".join(f"{size}: {ms:.0f} ms {kept / 1e6:.1f} MB" for size, ms, kept in points)
        return (
            f"  {self.what:<16} time ~ size^{self.time_exponent:.2f}, "
            f"memory ~ size^{self.memory_exponent:.2f}   {line}"
        )


def _exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def training_curves(device: torch.device = CPU) -> Iterator[Curve]:
    """One curve for each axis."""
    for axis, sizes in AXES.items():
        found = [_cost(replace(USUAL, **{axis: size}), device) for size in sizes]
        yield Curve(axis.replace("_", " "), sizes, *zip(*found, strict=True))


def _cost(shape: Shape, device: torch.device) -> tuple[float, int]:
    """Milliseconds of a step, and the bytes that its backward pass needs."""
    trainer = make_trainer(shape, device)
    window = [list(range(shape.clips))]
    kept = kept_for_backward(trainer, lambda: trainer.take_step(window))
    times = [seconds(lambda: trainer.take_step(window), device=device) for _ in range(TURNS)]
    return 1000 * statistics.median(times), kept


def kept_for_backward(trainer: StageA, work: Callable[[], object]) -> int:
    """Bytes that autograd keeps between forward and backward, each memory once, no parameters."""
    own = {p.untyped_storage().data_ptr() for p in trainer.model.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        work()
    return sum(seen.values())


def make_trainer(shape: Shape, device: torch.device = CPU) -> StageA:
    """A trainer of this shape on random weights and captions, in float32."""
    torch.manual_seed(0)
    backbone = _backbone(shape.hidden_size, shape.decoder_layers)
    step = (shape.decoder_layers - 1) // shape.fusion_layers
    config = replace(
        get_config("phase1").model,
        backbone="random", hidden_size=shape.hidden_size, num_layers=shape.decoder_layers,
        dtype="float32", projector=ProjectorConfig(num_tokens=shape.audio_tokens, scale=2.0),
        fusion=FusionConfig(
            layers=tuple(1 + step * i for i in range(shape.fusion_layers)),
            lora_rank=shape.lora_rank, gate_init=0.3, gate_max=1.0,
        ),
    )  # fmt: skip
    model = SAFEModel(backbone, config).to(device)
    rng = np.random.default_rng(0)
    tokens = CaptionTokens(backbone.tokenizer, backbone.prompt)
    dataset = CaptionDataset(
        [f"clip{i}" for i in range(shape.clips)], [["a"]] * shape.clips,
        rng.normal(size=(shape.clips, config.audio_dim)).astype(np.float32),
        np.full(shape.clips, 10.0), tokens, 1,
    )  # fmt: skip
    dataset.rows = [
        (i, rng.integers(10, 1000, shape.caption_tokens).tolist()) for i in range(shape.clips)
    ]
    optim = replace(
        get_config("phase1").optim, batch_size=shape.clips, accumulation=1, precision="no"
    )
    AcceleratorState._reset_state()  # of a trainer before, in another precision
    accelerator = Accelerator(cpu=device.type == "cpu")
    return StageA(model, dataset, optim, accelerator, Retention([]))


def _backbone(hidden_size: int, layers: int) -> Backbone:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=_VOCABULARY, hidden_size=hidden_size, intermediate_size=int(2.7 * hidden_size),
        num_hidden_layers=layers, num_attention_heads=hidden_size // 32,
        num_key_value_heads=hidden_size // 32, tie_word_embeddings=True,
    )  # fmt: skip
    tokenizer = load_backbone("embedded").tokenizer
    return backbone_from_causal_lm(LlamaForCausalLM(config), tokenizer, "random", prompt="Sound:")


def probe_curve(device: torch.device = CPU) -> Curve:
    """The statistics of all layers against their number; what is kept are norms of tokens."""
    sizes, found = (8, 16, 32, 64), []
    for layers in sizes:
        states = [torch.randn(8, 64, USUAL.hidden_size, device=device) for _ in range(layers)]
        kept = _statistics(states)
        times = [seconds(lambda: _statistics(states), device=device) for _ in range(TURNS)]  # noqa: B023  # called at once
        found.append((1000 * statistics.median(times), kept))
    return Curve("probed layers", sizes, *zip(*found, strict=True))


def _statistics(states: Sequence[Tensor]) -> int:
    """The full statistics; how many bytes of norms they were made from."""
    norms, pools = PassNorms(), []
    for state in states:
        norms.add(state)
    ids = torch.ones(states[0].shape[:2], dtype=torch.long)
    text = np.flatnonzero(Batch({"input_ids": ids}, "input_ids").positions(states[0].shape).text)
    for found in norms.read() or []:
        pool = TokenPool()
        pool.add(found, text)
        pools.append(pool)
    together = stacked(pools)
    summary(together)
    return together.l2.nbytes + together.peak.nbytes

"""Small models to probe: a hand-written foreign one with its YAML path, and a SAFE-type one."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probes.signal_path import SignalPath

HIDDEN, VOCAB, AUDIO, TOKENS, IMAGE = 16, 13, 8, 3, 3

TOY_YAML = """\
projector: adapter.projector
scale: adapter.projector.scale
layers: lm.blocks.*
fusion: adapter.cross.{layer}
branch: adapter.cross.{layer}
gates: {name: "adapter.gates.{layer}", transform: tanh}
attention: adapter.cross.{layer}.weights
text_embeddings: lm.embed
head: lm.head
signal_input: sound
"""


class ToyProjector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = 2.0
        self.linear = nn.Linear(AUDIO, TOKENS * HIDDEN)

    def forward(self, sound: Tensor) -> Tensor:
        return torch.tanh(self.linear(sound)).unflatten(-1, (TOKENS, HIDDEN)) * self.scale


class ToyCross(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Softmax(dim=-1)
        self.out = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, hidden: Tensor, *, tokens: Tensor) -> Tensor:
        weights = self.weights((hidden @ tokens.mT)[:, None])
        return self.out((weights @ tokens[:, None])[:, 0])


class ToyBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(HIDDEN, HIDDEN)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, hidden: Tensor) -> tuple[Tensor]:
        self.calls += 1
        return (hidden + self.drop(torch.tanh(self.mix(hidden.cumsum(1)))),)


class Toy(nn.Module):
    """Decoder blocks that return tuples; gated cross-attention after blocks 1 and 3."""

    def __init__(self, fused: tuple[int, ...] = (1, 3)) -> None:
        super().__init__()
        self.lm = nn.Module()
        self.lm.embed = nn.Embedding(VOCAB, HIDDEN)
        self.lm.blocks = nn.ModuleList(ToyBlock() for _ in range(4))
        self.lm.head = nn.Linear(HIDDEN, VOCAB, bias=False)
        self.lm.requires_grad_(False)
        self.adapter = nn.Module()
        self.adapter.projector = ToyProjector()
        self.adapter.cross = nn.ModuleDict({str(i): ToyCross() for i in fused})
        self.adapter.gates = nn.ParameterDict({str(i): torch.tensor([0.1 * i]) for i in fused})

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        sound: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        hidden = self.lm.embed(input_ids)
        tokens = None if sound is None else self.adapter.projector(sound)
        for index, block in enumerate(self.lm.blocks):
            (hidden,) = block(hidden)
            if tokens is not None and str(index) in self.adapter.cross:
                branch = self.adapter.cross[str(index)](hidden, tokens=tokens.to(hidden.dtype))
                hidden = hidden + torch.tanh(self.adapter.gates[str(index)]) * branch
        out = {"logits": self.lm.head(hidden)}
        if labels is not None:
            flat = out["logits"][:, :-1].flatten(0, 1).float()
            out["loss"] = F.cross_entropy(flat, labels[:, 1:].flatten(), ignore_index=-100)
        return out


def toy_batch(lengths: tuple[int, ...] = (6, 4, 3), seed: int = 0) -> dict[str, Tensor]:
    """Right-padded texts with one sound each; the first two tokens are the prompt."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    ids = torch.randint(4, VOCAB, (len(lengths), width), generator=generator)
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :2] = -100
    sound = torch.randn(len(lengths), AUDIO, generator=generator)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "sound": sound}


@pytest.fixture
def toy() -> Toy:
    torch.manual_seed(0)
    return Toy()


@pytest.fixture(scope="session")
def make_toy() -> Callable[[int], Toy]:
    """make_toy(seed) -> the toy model with other weights."""

    def make(seed: int) -> Toy:
        torch.manual_seed(seed)
        return Toy()

    return make


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., dict[str, Tensor]]:
    """make_batch(lengths, seed) -> inputs of the toy model."""
    return toy_batch


@pytest.fixture(scope="session")
def toy_path(tmp_path_factory: pytest.TempPathFactory) -> SignalPath:
    file = tmp_path_factory.mktemp("path") / "toy.yaml"
    file.write_text(TOY_YAML)
    return SignalPath.from_yaml(file)


@pytest.fixture(scope="session")
def toy_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("yaml") / "toy.yaml"
    file.write_text(TOY_YAML)
    return file


def _tiny_llava() -> Any:
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    text = LlamaConfig(
        hidden_size=HIDDEN, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=32, max_position_embeddings=64, initializer_range=0.2,
        pad_token_id=2,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        image_size=32, patch_size=16, projection_dim=16,
    )  # fmt: skip
    config = LlavaConfig(
        text_config=text, vision_config=vision, image_token_index=IMAGE, image_seq_length=4
    )
    return LlavaForConditionalGeneration(config).eval()


@pytest.fixture
def llava() -> Any:
    """A tiny random LLaVA; image tokens are id 3, four per image."""
    torch.manual_seed(1)
    return _tiny_llava()


@pytest.fixture
def llava_inputs() -> dict[str, Tensor]:
    """Two texts with an image each, the second padded."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(4, 32, (2, 10), generator=generator)
    ids[:, 1:5] = IMAGE
    mask = torch.ones(2, 10, dtype=torch.long)
    mask[1, 8:] = 0
    labels = ids.masked_fill((mask == 0) | (ids == IMAGE), -100)
    pixels = torch.randn(2, 3, 32, 32, generator=generator)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "pixel_values": pixels}


@pytest.fixture(scope="session")
def make_safe() -> Callable[..., Any]:
    """make_safe(seed=0, **fusion) -> SAFEModel on a tiny random LLaVA, fusion at layers 1 and 2."""
    from configs.schema import FusionConfig, ModelConfig, ProjectorConfig
    from safe.models.backbones import Backbone
    from safe.models.safe_model import SAFEModel

    class Tokenizer:
        pad_token_id, eos_token_id = 2, 1

    def make(seed: int = 0, **fusion: Any) -> Any:
        torch.manual_seed(seed)
        backbone = Backbone(_tiny_llava(), Tokenizer(), "tiny", "", "tiny@1")
        settings = {"layers": (1, 2), "lora_rank": 2, "gate_init": 0.3, "gate_max": 1.0} | fusion
        config = ModelConfig(
            backbone="tiny", hidden_size=HIDDEN, num_layers=4, audio_encoder="none",
            audio_dim=AUDIO, dtype="float32",
            projector=ProjectorConfig(bottleneck_dim=6, num_tokens=TOKENS, scale=2.0),
            fusion=FusionConfig(**settings),
        )  # fmt: skip
        model = SAFEModel(backbone, config)
        with torch.no_grad():
            for name, parameter in model.fusion.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.2)
        return model

    return make


@pytest.fixture
def safe_inputs() -> dict[str, Tensor]:
    """Two texts with an audio embedding each, the second padded."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(4, 32, (2, 7), generator=generator)
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 5:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :2] = -100
    audio = torch.randn(2, AUDIO, generator=generator)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "audio": audio}


@pytest.fixture(scope="module")
def process_group() -> Iterator[None]:
    """A world of one process, for DistributedDataParallel."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()

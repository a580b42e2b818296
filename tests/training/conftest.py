"""The tiny backbones of tests/models serve the training tests, too; a trainer on top of them."""

import sys
from collections.abc import Callable, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from configs.schema import OptimConfig, RetentionConfig
from safe.models.safe_model import SAFEModel
from safe.training.batches import CaptionDataset, CaptionTokens
from safe.training.callbacks import Callback
from safe.training.retention import Retention, build_retention
from safe.training.stage_a import StageA

_SOURCE = Path(__file__).resolve().parents[1] / "models" / "conftest.py"
_spec = spec_from_file_location("tiny_backbones", _SOURCE)
assert _spec is not None and _spec.loader is not None
_tiny = module_from_spec(_spec)
sys.modules["tiny_backbones"] = _tiny
_spec.loader.exec_module(_tiny)

tokenizer = _tiny.tokenizer
make_backbone = _tiny.make_backbone
make_model = _tiny.make_model
make_config = _tiny.make_config
text_batch = _tiny.text_batch
audio_batch = _tiny.audio_batch

WORDS = ("dog", "rain", "bell", "a", "the", "is", "barking", "ringing", "hard", "twice", "outside")


def caption_dataset(model: SAFEModel, clips: int = 24, seed: int = 5) -> CaptionDataset:
    """Random sentences of one to six words with random embeddings, one caption per clip."""
    rng = np.random.default_rng(seed)
    captions = [(" ".join(rng.choice(WORDS, size=int(rng.integers(1, 7)))),) for _ in range(clips)]
    return CaptionDataset(
        [f"clip{i}" for i in range(clips)],
        captions,
        rng.normal(size=(clips, model.config.audio_dim)).astype(np.float32),
        rng.uniform(1, 10, size=clips),
        CaptionTokens(model.tokenizer, model.prompt),
        max_caption_tokens=48,
    )


TrainerMaker = Callable[..., StageA]


@pytest.fixture(scope="session")
def make_dataset() -> Callable[..., CaptionDataset]:
    """make_dataset(model, clips=24, seed=5) -> CaptionDataset."""
    return caption_dataset


@pytest.fixture
def make_trainer(make_model: Callable[..., SAFEModel]) -> TrainerMaker:
    """make_trainer(model=None, dataset=None, retention=None, callbacks=(), **optim) -> StageA."""

    def make(
        model: SAFEModel | None = None,
        dataset: CaptionDataset | None = None,
        retention: RetentionConfig | None = None,
        callbacks: Sequence[Callback] = (),
        **optim: Any,
    ) -> StageA:
        model = make_model() if model is None else model
        dataset = caption_dataset(model) if dataset is None else dataset
        usual = {
            "lr_projector": 1e-2, "lr_adapter": 1e-2, "batch_size": 4, "accumulation": 2,
            "epochs": 2, "precision": "no",
        }  # fmt: skip
        config = OptimConfig(**(usual | optim))
        term = Retention([])
        if retention is not None:
            term = build_retention(
                retention, model, dataset.tokens, dataset.embeddings, config.seed
            )
        return StageA(model, dataset, config, Accelerator(cpu=True), term, callbacks)

    return make


def snapshot(model: SAFEModel) -> dict[str, torch.Tensor]:
    """A copy of every trainable by name."""
    groups = model.trainable_groups().values()
    return {name: p.detach().clone() for group in groups for name, p in group.items()}


@pytest.fixture(scope="session")
def trainables() -> Callable[[SAFEModel], dict[str, torch.Tensor]]:
    """trainables(model) -> a copy of every trainable by name."""
    return snapshot

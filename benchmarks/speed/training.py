"""A training step against its floor, and against a loop as one writes it first.

The floor does what no trainer can leave out: the frozen backbone forward and, from the first
fusion layer up, backward to its activations, on the same tokens, without adapters or optimizer.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.nn import functional as F

from benchmarks.speed.pairs import Ratio, take_turns
from benchmarks.speed.subjects import Subject, published_clap
from safe.data.synthetic import render, synthetic_scene
from safe.models.audio_encoders import load_audio_encoder
from safe.models.backbones import hidden_of, replace_hidden
from safe.models.safe_model import IGNORED
from safe.training.batches import Batch, CaptionDataset, CaptionTokens, epoch_windows
from safe.training.retention import Retention
from safe.training.stage_a import StageA

CLIPS, MICRO_BATCH, ACCUMULATION = 32, 8, 2
_RATE = 16_000
Window = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Way:
    """How a plain loop trains; every True is a step of the way to ours."""

    cached: bool = False
    """Clips were encoded once, not in every step."""
    buckets: bool = False
    """Captions of like length share a micro-batch."""
    supervised: bool = False
    """Logits of supervised positions only."""
    prefix_free: bool = False
    """No graph below the first fusion layer."""


LOOP, LOOP_GOAL = "straightforward loop", 3.0
WAYS = {
    LOOP: Way(),
    "  + embeddings from the cache": Way(cached=True),
    "  + captions of like length together": Way(True, True),
    "  + logits where there are labels": Way(True, True, True),
    "  + no graph below the first fusion layer": Way(True, True, True, True),
}


class Bench:
    """Clips, captions and a trainer of Phase 1's shape around a subject."""

    def __init__(self, subject: Subject, encoder: str) -> None:
        self.subject, self.model = subject, subject.model
        self.encoder = load_audio_encoder(encoder).to(subject.device)
        scenes = [synthetic_scene("train", i) for i in range(CLIPS)]
        sounds = [render(scene).astype(np.float32) / 32768 for scene in scenes]
        self.waves = torch.from_numpy(
            np.stack([soxr.resample(x, _RATE, self.encoder.sample_rate) for x in sounds])
        )
        embeddings = torch.cat([self.encoder.encode(wave[None]) for wave in self.waves])
        tokens = CaptionTokens(self.model.tokenizer, self.model.prompt)
        self.dataset = CaptionDataset(
            [scene.id for scene in scenes], [scene.captions for scene in scenes],
            embeddings.cpu().numpy(), np.full(CLIPS, 4.0), tokens, 48,
        )  # fmt: skip
        optim = replace(
            subject.config.optim, batch_size=MICRO_BATCH, accumulation=ACCUMULATION, epochs=1000
        )
        AcceleratorState._reset_state()  # of a bench before, in another precision
        accelerator = Accelerator(cpu=subject.device.type == "cpu", mixed_precision=optim.precision)
        self.trainer = StageA(self.model, self.dataset, optim, accelerator, Retention([]))
        lengths = self.dataset.lengths()
        self.window: Window = epoch_windows(lengths, MICRO_BATCH, ACCUMULATION, 0, 0)[0]
        self.tokens = int(sum(lengths[i] for batch in self.window for i in batch))

    def ours(self) -> float:
        """One optimizer step of stage A; its loss."""
        return self.trainer.take_step(self.window).loss

    def floor(self) -> None:
        """Frozen forward and activation backward."""
        first = self.model.layers[min(self.model.fusion.blocks())]

        def cut(_layer: Any, _args: Any, output: Any) -> Any:
            return replace_hidden(output, hidden_of(output).detach().requires_grad_())

        handle = first.register_forward_hook(cut)
        try:
            for indices in self.window:
                with self.trainer.accelerator.autocast():
                    loss = self._loss(self._batch(indices), supervised=True) / self.tokens
                loss.backward()
        finally:
            handle.remove()

    def plain_step(self, way: Way) -> float:
        """One optimizer step of a plain loop on the same examples; its loss."""
        loss = self.plain_backward(way)
        torch.nn.utils.clip_grad_norm_(self.trainer.parameters.values(), 1.0)
        self.trainer.optimizer.step()
        self.trainer.optimizer.zero_grad()
        return loss

    def plain_backward(self, way: Way) -> float:
        """Gradients of a plain loop; the mean loss of all tokens."""
        self.model.train()
        embeddings = self.model.backbone.get_input_embeddings()
        handles = []
        if not way.prefix_free:  # what enable_input_require_grads() does
            handles.append(embeddings.register_forward_hook(lambda _m, _a, o: o.requires_grad_()))
        total = 0.0
        try:
            for indices in self.window if way.buckets else _mixed(self.window):
                batch = self._batch(indices)
                audio = batch.audio if way.cached else self._encode(indices)
                with self.trainer.accelerator.autocast(), self.model.hearing(audio):
                    loss = self._loss(batch, way.supervised) / self.tokens
                loss.backward()
                total += loss.item()
        finally:
            for handle in handles:
                handle.remove()
        return total

    def _batch(self, indices: Sequence[int]) -> Batch:
        batch = self.dataset.batch(indices)
        names = ("input_ids", "attention_mask", "labels", "audio")
        return replace(batch, **{n: getattr(batch, n).to(self.subject.device) for n in names})

    def _encode(self, indices: Sequence[int]) -> Tensor:
        return self.encoder.encode(self.waves[[self.dataset.rows[i][0] for i in indices]])

    def _loss(self, batch: Batch, supervised: bool) -> Tensor:
        """Summed cross entropy, in nats."""
        backbone = self.model.backbone
        hidden = backbone.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        ).last_hidden_state[:, :-1]
        target, head = batch.labels[:, 1:], backbone.get_output_embeddings()
        if supervised:
            hidden, target = hidden[target != IGNORED], target[target != IGNORED]
        logits = head(hidden).float().flatten(0, -2)
        return F.cross_entropy(logits, target.flatten(), ignore_index=IGNORED, reduction="sum")


def _mixed(window: Window) -> Window:
    """The same examples in micro-batches of the same size, as they come: long beside short."""
    examples = [i for batch in window for i in batch]
    order = np.random.default_rng(0).permutation(len(examples))
    return [[examples[i] for i in part] for part in np.array_split(order, len(window))]


def same_losses(bench: Bench) -> dict[str, float]:
    """Loss of every way with the same parameters, before any step.

    Raises:
        AssertionError: they differ, so the times would not be those of the same work.
    """
    tolerance = 1e-3 if bench.trainer.config.precision == "no" else 2e-2  # bfloat16 has 8 bits
    losses = {name: bench.plain_backward(way) for name, way in WAYS.items()}
    bench.trainer.optimizer.zero_grad()
    losses["ours"] = bench.ours()
    for name, loss in losses.items():
        assert abs(loss - losses["ours"]) < tolerance * losses["ours"], (name, losses)
    return losses


def loop_that_hears_with_clap(subject: Subject, pairs: int) -> list[Ratio]:
    """The straightforward loop against our step, with the audio encoder of Phase 1."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(subject, published_clap(Path(folder)))
    same_losses(bench)
    table = f"{subject.name} and a CLAP of the published size: our step"
    ways = {LOOP: lambda: bench.plain_step(WAYS[LOOP])}
    noise, loop = take_turns(table, bench.ours, ways, pairs=pairs, device=subject.device)
    return [noise, replace(loop, goal=LOOP_GOAL, at_least=True)]


def training_tables(bench: Bench, pairs: int) -> list[list[Ratio]]:
    """Our step against the floor, and every other way against ours."""
    for name, loss in same_losses(bench).items():
        print(f"  loss before the first step, {name.strip():<44} {loss:.6f} nats/token")
    subject = bench.subject
    pieces = f"{subject.name} and {bench.encoder.name}"
    shape = f"{pieces}, {len(bench.window)} x {MICRO_BATCH} clips"
    floor = take_turns(
        f"{shape}: floor of a step", bench.floor, {"safe-train: step": bench.ours},
        {"safe-train: step": 1.25}, pairs, subject.device,
    )  # fmt: skip
    ways = {name: (lambda way=way: bench.plain_step(way)) for name, way in WAYS.items()}
    others = take_turns(f"{shape}: our step", bench.ours, ways, pairs=pairs, device=subject.device)
    first = replace(others[1], goal=LOOP_GOAL, at_least=True)
    return [floor, [others[0], first, *others[2:]]]

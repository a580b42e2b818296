"""The embedded audio encoder: a small CLAP audio tower that tells the built-in events apart.

It is trained to name the events of synthetic clips and their order through linear heads that are
thrown away; what stays is the 512-wide embedding. No shipped clip is among its training clips.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import ClapAudioConfig, ClapAudioModelWithProjection, ClapFeatureExtractor

from safe.data.synthetic import render, synthetic_scene
from safe.data.synthetic_events import EVENTS, RELATIONS
from safe.data.synthetic_sounds import SAMPLE_RATE

BATCH = 32
PEAK_LR = 1.5e-3
PROBE_CLIPS = 400

Say = Callable[[str], None]
Scheduler = Callable[[int, int], float]


@dataclass
class EncoderResult:
    """What the model card says about the encoder."""

    parameters: int
    clips: int
    probe_clips: int
    steps: int
    train_loss: float
    event_recall: float
    order_accuracy: float
    neighbour_recall: float


@dataclass
class Clips:
    """Features and labels of n clips."""

    features: Tensor
    """float32 [n,1,251,64] log-mel in dB."""
    present: Tensor
    """float32 [n,E], 1 where an event occurs."""
    first: Tensor
    """int64 [n], the event that comes first in a sequence; -100 (ignored) elsewhere."""
    relation: Tensor
    """int64 [n], index into RELATIONS."""


def feature_extractor() -> ClapFeatureExtractor:
    """Log-mel of 64 bands every 16 ms over four seconds; shorter clips are padded with silence."""
    return ClapFeatureExtractor(
        feature_size=64,
        sampling_rate=SAMPLE_RATE,
        hop_length=256,
        fft_window_size=1024,
        max_length_s=4,
        frequency_min=50,
        frequency_max=8000,
        truncation="rand_trunc",
        padding="pad",
    )


def new_encoder() -> ClapAudioModelWithProjection:
    """Return an untrained HTSAT of three stages on a 128 x 128 spectrogram image."""
    config = ClapAudioConfig(
        spec_size=128,
        num_mel_bins=64,
        patch_size=8,
        patch_stride=[8, 8],
        window_size=4,
        patch_embeds_hidden_size=48,
        depths=[2, 2, 2],
        num_attention_heads=[2, 4, 8],
        num_hidden_layers=3,
        hidden_size=192,
        projection_dim=512,
        hidden_dropout_prob=0.0,
        mlp_ratio=3.0,
        num_classes=len(EVENTS),
    )
    return ClapAudioModelWithProjection(config)


def make_clips(split: str, count: int, say: Say) -> Clips:
    """Render synthetic clips and compute features once."""
    extract, names = feature_extractor(), list(EVENTS)
    features = torch.empty(count, 1, 251, 64)
    present = torch.zeros(count, len(names))
    first = torch.full((count,), -100)
    relation = torch.empty(count, dtype=torch.long)
    for index in range(count):
        scene = synthetic_scene(split, index)
        samples = render(scene).astype(np.float32) / 32768
        features[index] = extract(samples, sampling_rate=SAMPLE_RATE, return_tensors="pt")[
            "input_features"
        ][0]
        for name in scene.events:
            present[index, names.index(name)] = 1
        if scene.relation == "sequence":
            first[index] = names.index(scene.events[0])
        relation[index] = RELATIONS.index(scene.relation)
        if (index + 1) % 1000 == 0:
            say(f"encoder: {index + 1}/{count} clips of {split} rendered")
    return Clips(features, present, first, relation)


def augment(features: Tensor) -> Tensor:
    """Change loudness (dB) and shift pitch by up to one band; times stay as they are."""
    gain = torch.empty(len(features), 1, 1, 1).uniform_(-10, 6)
    shift = int(torch.randint(-1, 2, ()))
    return torch.roll(features, shift, dims=3) + gain


def train(
    encoder: ClapAudioModelWithProjection, clips: Clips, steps: int, factor: Scheduler, say: Say
) -> float:
    """Train in place by naming events, the first of a sequence, and the relation."""
    events = clips.present.shape[1]
    head = nn.Linear(512, 2 * events + len(RELATIONS))
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=PEAK_LR, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(step, steps))
    encoder.train()
    running, order = None, torch.empty(0, dtype=torch.long)
    for step in range(1, steps + 1):
        if len(order) < BATCH:
            order = torch.randperm(len(clips.features))
        rows, order = order[:BATCH], order[BATCH:]
        with torch.autocast("cpu", dtype=torch.bfloat16):  # three times as fast as float32
            embeds = encoder(input_features=augment(clips.features[rows])).audio_embeds.float()
        # Only directions are trained, because users of CLAP embeddings normalise them.
        embeds = nn.functional.normalize(embeds, dim=1) * embeds.shape[1] ** 0.5
        present, first, relation = head(embeds).split([events, events, len(RELATIONS)], dim=1)
        loss = nn.functional.binary_cross_entropy_with_logits(
            present, clips.present[rows], reduction="sum"
        ) / len(rows)
        if bool((clips.first[rows] >= 0).any()):
            loss = loss + 0.3 * nn.functional.cross_entropy(first, clips.first[rows])
        loss = loss + 0.3 * nn.functional.cross_entropy(relation, clips.relation[rows])
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        value = float(loss.detach())
        running = value if running is None else 0.98 * running + 0.02 * value
        if step % 100 == 0 or step == steps:
            say(f"encoder: step {step}/{steps}, train loss {running:.3f} nats/clip")
    return float(running or 0.0)


@torch.no_grad()
def embed(encoder: ClapAudioModelWithProjection, features: Tensor) -> Tensor:
    """Return embeddings [n,512] of L2 norm 1, in eval mode."""
    encoder.eval()
    parts = [encoder(input_features=part).audio_embeds for part in features.split(50)]
    return nn.functional.normalize(torch.cat(parts), dim=1)


def ridge(x: Tensor, y: Tensor, penalty: float = 1e-5) -> Tensor:
    """Return weights [D+1,K] of a least-squares readout of y [n,K] from x [n,D]."""
    x = with_bias(x.double())
    gram = x.T @ x + penalty * len(x) * torch.eye(x.shape[1], dtype=torch.double)
    return torch.linalg.solve(gram, x.T @ y.double())


def with_bias(x: Tensor) -> Tensor:
    """Append a column of ones."""
    return torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)


def evaluate(
    encoder: ClapAudioModelWithProjection, train_clips: Clips, test_clips: Clips
) -> tuple[float, float, float]:
    """Measure the frozen embeddings on clips never seen, through a linear readout.

    Returns:
        Event recall (of all true events, the part among a clip's k best scores, k its number of
        events); accuracy at telling which of a sequence's two events came first (chance 0.5);
        event recall of the nearest neighbour (cosine): events it shares.
    """
    x, z = embed(encoder, train_clips.features), embed(encoder, test_clips.features)
    scores = with_bias(z.double()) @ ridge(x, train_clips.present)
    count = test_clips.present.sum(1)
    top = torch.zeros_like(scores)
    for row, k in enumerate(count.int().tolist()):
        top[row, scores[row].topk(k).indices] = 1
    recall = float((top * test_clips.present).sum() / count.sum())

    sequence = train_clips.first >= 0
    onehot = nn.functional.one_hot(train_clips.first[sequence], train_clips.present.shape[1])
    target = 2.0 * onehot - train_clips.present[sequence]  # 1 first, -1 second
    asked = test_clips.first >= 0
    lean = with_bias(z[asked].double()) @ ridge(x[sequence], target)
    lean = lean.masked_fill(test_clips.present[asked] == 0, -torch.inf)
    order = float((lean.argmax(1) == test_clips.first[asked]).double().mean())

    nearest = train_clips.present[(z @ x.T).argmax(1)]
    shared = float((nearest * test_clips.present).sum() / count.sum())
    return recall, order, shared


def build_encoder(
    output: Path, steps: int, clips: int, factor: Scheduler, say: Say
) -> EncoderResult:
    """Train the encoder and save it with its feature extractor to a folder."""
    pretrain = make_clips("pretrain", clips, say)
    torch.manual_seed(0)
    encoder = new_encoder()
    loss = train(encoder, pretrain, steps, factor, say)
    encoder.eval().save_pretrained(output)
    feature_extractor().save_pretrained(output)
    shipped = make_clips("train", min(clips, 1600), say)
    probe = make_clips("probe", min(clips, PROBE_CLIPS), say)
    recall, order, neighbour = evaluate(encoder, shipped, probe)
    return EncoderResult(
        parameters=sum(p.numel() for p in encoder.parameters()),
        clips=clips,
        probe_clips=len(probe.features),
        steps=steps,
        train_loss=loss,
        event_recall=recall,
        order_accuracy=order,
        neighbour_recall=neighbour,
    )

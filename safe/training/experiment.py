"""Everything a run needs before its first step: backbone, encoder, embeddings, model.

Whatever differs from the configuration as written is said, line by line, before training starts.
"""

import math
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console

from configs.adapt import adapt_to_backbone, adapt_to_encoder
from configs.errors import DataError
from configs.schema import SYNTHETIC, DataConfig, RunConfig
from safe import processes
from safe.console import progress
from safe.data import decoding
from safe.data.cache import EmbeddingCache
from safe.data.manifests import Clip, load_split
from safe.data.overlap import assert_no_overlap
from safe.data.problems import Problem
from safe.data.splits import Split
from safe.data.synthetic import SCORED_CLIPS, TRAIN_CLIPS, materialize_synthetic
from safe.models.audio_encoders import AudioEncoder, load_features
from safe.models.backbones import Backbone, load_backbone
from safe.models.safe_model import SAFEModel
from safe.paths import cache_dir
from safe.training.batches import CaptionDataset, CaptionTokens
from safe.training.interrupt import Interrupt, Interrupted
from safe.training.retention_images import WITH_PICTURES
from safe.training.sharding import shard_backbone

_ONE_THREAD_HIDDEN_SIZE = 256
"""Up to this width, threads wait for each other longer than they compute."""
_LISTED = 5
"""Unusable clips that are printed; all of them are in problems.json."""


@dataclass(frozen=True)
class Sounds:
    """The data of a run."""

    splits: Mapping[str, Split]
    """Usable clips of the training, evaluation and test split, by split name."""
    silence: np.ndarray
    """[D] or [M, D], what the encoder hears in a silent clip."""
    problems: tuple[Problem, ...]
    """Clips that cannot be used, with reasons."""


@dataclass(frozen=True)
class Experiment:
    """A run about to start."""

    config: RunConfig
    """The configuration as it will run, adapted to backbone and machine."""
    model: SAFEModel
    """Freshly initialised from the seed, on the accelerator's device."""
    tokens: CaptionTokens
    """Tokenizer and prompt."""
    sounds: Sounds
    """Embeddings and captions."""
    dataset: CaptionDataset
    """Tokenised training captions."""
    sharded: bool = False
    """Whether the backbone is split, so that processes must run forward passes in step."""

    @property
    def train(self) -> Split:
        """The training split."""
        return self.sounds.splits[self.config.data.train_split]

    @property
    def validation(self) -> Split:
        """The split scored during training, cut to evaluation.eval_clips."""
        split = self.sounds.splits[self.config.data.eval_split]
        return split.head(self.config.evaluation.eval_clips)

    @property
    def test(self) -> Split:
        """The split scored at the end."""
        return self.sounds.splits[self.config.data.test_split]

    @property
    def held_out(self) -> CaptionDataset:
        """Tokenised captions of the validation split, for measuring what was not trained on."""
        return _dataset(self.validation, self.tokens, self.config)


def prepare(
    config: RunConfig,
    accelerator: Accelerator,
    console: Console,
    explicit: Collection[str] = (),
    *,
    shard: bool = False,
    interrupt: Interrupt | None = None,
) -> Experiment:
    """Load, adapt, encode and build.

    Args:
        config: the configuration asked for.
        accelerator: device and processes, each of which encodes its share of the clips.
        console: where to say what differs.
        explicit: dotted keys that the user set and that are therefore taken literally.
        shard: split the frozen backbone over the processes.
        interrupt: ends the preparation when a signal has arrived.

    Raises:
        Interrupted: a signal arrived; what was encoded is in the cache.
        SafeError: whatever of the user's input cannot be used, see the parts.
    """
    clips = read_clips(config.data, accelerator, console)
    encoder = load_features(
        config.model.audio_encoder, config.model.audio_features, accelerator.device
    )
    backbone = load(config, console)
    config, notes = adapt_to_backbone(
        config, backbone.hidden_size, backbone.num_layers, backbone.name, explicit
    )
    config, width_notes = adapt_to_encoder(config, encoder.shape[-1], encoder.name, explicit)
    notes += width_notes
    if accelerator.device.type == "cpu" and backbone.hidden_size <= _ONE_THREAD_HIDDEN_SIZE:
        torch.set_num_threads(1)
        notes.append(f"1 processor thread: {backbone.name} is too small to be worth sharing")
    for note in notes:
        console.print(f"  {note}", markup=False)
    sounds = listen(config, clips, encoder, console, interrupt or Interrupt())
    set_seed(config.optim.seed)
    model = SAFEModel(backbone, config.model)
    if shard:  # before it moves: the device is too small for the whole backbone
        count = shard_backbone(model, accelerator)
        console.print(f"  {count} layers split over {accelerator.num_processes} processes")
    if config.model.device_map is None:
        model.to(accelerator.device)
    tokens = CaptionTokens(backbone.tokenizer, model.prompt)
    if config.retention.variant in WITH_PICTURES and not model.sees:
        console.print(f"  retention asks about texts alone: {backbone.name} is shown no pictures")
    dataset = _dataset(sounds.splits[config.data.train_split], tokens, config)
    if dataset.truncated:
        console.print(
            f"  {dataset.truncated} of {len(dataset)} training captions are cut to "
            f"data.max_caption_tokens = {config.data.max_caption_tokens} tokens"
        )
    return Experiment(config, model, tokens, sounds, dataset, shard)


def _dataset(split: Split, tokens: CaptionTokens, config: RunConfig) -> CaptionDataset:
    return CaptionDataset(
        split.clip_ids,
        split.captions,
        split.embeddings,
        split.seconds,
        tokens,
        config.data.max_caption_tokens,
    )


def load(config: RunConfig, console: Console) -> Backbone:
    """The backbone that ``config.model`` names, and its prompt, printed."""
    model = config.model
    console.print(f"loading backbone {model.backbone} ({model.dtype})", markup=False)
    backbone = load_backbone(
        model.backbone,
        dtype=model.dtype,
        device_map=model.device_map,
        quantization=model.quantization,
    )
    if model.prompt is not None:
        backbone.prompt = model.prompt
    console.print(f"  prompt: {backbone.prompt!r}", markup=False)
    return backbone


def read_clips(
    data: DataConfig, accelerator: Accelerator, console: Console
) -> dict[str, list[Clip]]:
    """The clips of the three splits, before anything is heard.

    Raises:
        DataError: no such data, or a recording in both training and evaluation data.
    """
    root = data_root(data, accelerator, console)
    clips = {name: load_split(root, name) for name in _split_names(data)}
    _refuse_overlap(data, clips, {})
    counts = ", ".join(f"{len(split)} {name}" for name, split in clips.items())
    console.print(f"data: {counts} clips in {root}", markup=False)
    return clips


def listen(
    config: RunConfig,
    clips: Mapping[str, list[Clip]],
    encoder: AudioEncoder,
    console: Console,
    interrupt: Interrupt,
) -> Sounds:
    """Embeddings of every usable clip of the three splits, from the cache where they are there.

    Raises:
        DataError: no usable clip in a split, or a sound in both training and evaluation data.
        Interrupted: a signal arrived; what was encoded is in the cache.
    """
    data = config.data
    cache = EmbeddingCache(cache_dir() / "embeddings", encoder.identity, math.prod(encoder.shape))
    every = [clip for split in clips.values() for clip in split]
    problems = _encode(cache, every, encoder, data.min_seconds, console, interrupt)
    decoding.close()
    bad = {(p.split, p.clip) for p in problems if p.unusable}
    _report_problems(problems, len(every), console)
    good = {n: [c for c in split if (c.split, c.id) not in bad] for n, split in clips.items()}
    hashes = cache.hashes([clip for split in good.values() for clip in split])
    _refuse_overlap(data, good, hashes)
    splits = {name: _split(name, split, cache, encoder.shape) for name, split in good.items()}
    if data.audio == "mean":
        splits = _deafened(splits, data.train_split)
        console.print("  data.audio = mean: no clip is heard; a blind control, not a model")
    console.print(
        ", ".join(f"{len(s)} {name}" for name, s in splits.items())
        + f" clips heard by {encoder.name} ({encoder.identity})",
        markup=False,
    )
    return Sounds(splits, silence_embedding(encoder, splits[data.train_split]), tuple(problems))


def _encode(
    cache: EmbeddingCache,
    clips: list[Clip],
    encoder: AudioEncoder,
    min_seconds: float,
    console: Console,
    interrupt: Interrupt,
) -> list[Problem]:
    """Fill the cache, each process with its share of the clips; what cannot be used, in order."""
    share, heard = clips[processes.rank() :: processes.count()], 0
    problems: list[Problem] = []
    with progress(console, f"listening with {encoder.name}") as show:

        def hear(done: int, total: int) -> None:
            nonlocal heard
            heard = done
            if interrupt.requested:
                raise Interrupted
            show(done, total)

        with suppress(Interrupted):  # all processes leave together, below
            problems = cache.fill(share, encoder, min_seconds=min_seconds, progress=hear)
    told = processes.gather((interrupt.signal_name, heard, problems))
    if signals := [name for name, _, _ in told if name is not None]:
        raise Interrupted(
            f"{signals[0]} received: {sum(done for _, done, _ in told)} of {len(clips)} clips are "
            "encoded and kept; the same command goes on"
        )
    found = {(p.split, p.clip): p for _, _, some in told for p in some}
    if processes.count() > 1:  # nothing is left, unless machines have caches of their own
        rest = [clip for clip in clips if (clip.split, clip.id) not in found]
        cache.fill(rest, encoder, min_seconds=min_seconds)
    return [found[key] for clip in clips if (key := (clip.split, clip.id)) in found]


def data_root(data: DataConfig, accelerator: Accelerator, console: Console) -> Path:
    """Folder of the clips; the built-in ones are written once, by the main process."""
    if data.root != SYNTHETIC:
        return Path(data.root)
    with accelerator.main_process_first(), progress(console, "writing synthetic clips") as show:
        folder = cache_dir() / f"{SYNTHETIC}-{TRAIN_CLIPS}-{SCORED_CLIPS}"
        return materialize_synthetic(folder, progress=show)


def silence_embedding(encoder: AudioEncoder, like: Split) -> np.ndarray:
    """[D] or [M, D], digital silence as long as the median clip of ``like``."""
    seconds = min(float(np.median(like.seconds)), encoder.max_seconds)
    silence = torch.zeros(1, max(1, round(seconds * encoder.sample_rate)))
    embedding = encoder.encode(silence, torch.tensor([silence.shape[1]]))[0]
    if not embedding.isfinite().all():
        raise DataError(f"{encoder.name} gives NaN or Inf for silence; use another audio encoder")
    return np.asarray(embedding.cpu().numpy())


def _split_names(data: DataConfig) -> tuple[str, ...]:
    return tuple(dict.fromkeys((data.train_split, data.eval_split, data.test_split)))


def _split(name: str, clips: list[Clip], cache: EmbeddingCache, shape: tuple[int, ...]) -> Split:
    if not clips:
        raise DataError(
            f"split {name!r} has no usable clip; see `safe-train data check ROOT` for the reasons"
        )
    return Split(
        name=name,
        clip_ids=tuple(clip.id for clip in clips),
        captions=tuple(clip.captions for clip in clips),
        audio_keys=tuple(cache.key(clip) for clip in clips),
        # pooled ones of all AudioCaps are 102 MB; 64 local features of each clip are 9.8 GB
        embeddings=cache.lookup(clips) if len(shape) == 1 else cache.mapped(clips, shape),
        seconds=cache.seconds(clips),
        paths=tuple(clip.path for clip in clips),
    )


def _deafened(splits: Mapping[str, Split], train: str) -> dict[str, Split]:
    """Every clip with the mean training embedding: what can be learned without listening."""
    mean = splits[train].mean
    return {
        name: replace(split, embeddings=np.broadcast_to(mean, (len(split), *mean.shape)))
        for name, split in splits.items()
    }


def _refuse_overlap(
    data: DataConfig, clips: Mapping[str, list[Clip]], hashes: Mapping[tuple[str, str], str]
) -> None:
    for name in _split_names(data)[1:]:
        assert_no_overlap(clips[data.train_split], clips[name], hashes)


def _report_problems(problems: Collection[Problem], total: int, console: Console) -> None:
    if not problems:
        return
    console.print(f"{len(problems)} of {total} clips are unusable and left out:")
    for problem in list(problems)[:_LISTED]:
        row = problem.to_dict()
        console.print(f"  {row['split']} {row['clip']}: {row['reason']}", markup=False)
    if len(problems) > _LISTED:
        console.print(f"  ... and {len(problems) - _LISTED} more, listed in problems.json")

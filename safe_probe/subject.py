"""What the command line diagnoses: a fresh model of a configuration, or a saved run.

Everything that is not what the configuration says (embedded backbone, synthetic clips) is printed.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from rich.console import Console
from torch import Tensor, nn
from torch.optim import Optimizer

from configs.errors import ConfigError
from configs.json_files import parse_json, read_json, whole_lines
from configs.overrides import dotted_fields, resolve
from configs.schema import EMBEDDED, SYNTHETIC, RunConfig
from probes.record import Record
from probes.scores import score_records
from safe.evaluation.saved import find_adapter
from safe.models.adapter_files import load_adapter
from safe.models.safe_model import SAFEModel
from safe.training.checkpoint import step_of
from safe.training.experiment import Experiment, prepare
from safe.training.launch import Launch, engine
from safe.training.retention import build_retention
from safe.training.retention_texts import TextBatch
from safe.training.run_directory import read_config
from safe.training.stage_a import StageA
from safe_probe.pictures import pictures_of
from safe_probe.watch import batches_of, gate_at_end


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    checkpoint: Path | None = None
    config: str | None = None
    assignments: Sequence[str] = ()
    """KEY=VALUE of ``--set``."""
    backbone: str | None = None
    audio_encoder: str | None = None
    data: str | None = None
    signal: str = "audio"
    batches: int = 2
    batch_size: int = 8
    device: str = "auto"


@dataclass(frozen=True)
class Subject:
    """A model with what there is to measure it with."""

    model: nn.Module
    batches: Sequence[Any]
    about: Mapping[str, Any]
    """What it is, for the output."""
    signal: str = "audio"
    optimizer: Optimizer | None = None
    step: int = 0
    start: Mapping[str, Tensor] = field(default_factory=dict)
    silence: Tensor | None = None
    pictures: TextBatch | None = None
    """For a model that sees."""
    clip_norm: float | None = None
    further: Sequence[Record] = ()
    experiment: Experiment | None = None


def build(request: Request, console: Console) -> Subject:
    """The subject of a request.

    Raises:
        SafeError: whatever of the request cannot be used.
    """
    if (request.checkpoint is None) == (request.config is None):
        raise ConfigError("give either a CHECKPOINT (or run folder) or --config NAME")
    if request.checkpoint is not None:
        subject = _saved(request.checkpoint, request, console)
    else:
        subject = _fresh(request, console)
    if request.signal == "vision":
        from safe_probe.vision import vision_subject

        return vision_subject(subject)
    return subject


def requested_config(request: Request, console: Console) -> tuple[RunConfig, frozenset[str]]:
    """The configuration of ``--config`` with embedded pieces where nothing else was asked for."""
    config, explicit = resolve(request.config, None, request.assignments)
    model, data = config.model, config.data
    backbone, encoder, root = request.backbone, request.audio_encoder, request.data
    if backbone is None and "model.backbone" not in explicit:
        backbone = EMBEDDED
        if model.backbone != EMBEDDED:
            console.print(
                f"backbone: the embedded tiny one instead of {model.backbone}; another: "
                "--backbone NAME",
                markup=False,
            )
    if encoder is None and "model.audio_encoder" not in explicit:
        encoder = EMBEDDED
        if model.audio_encoder != EMBEDDED:
            console.print(
                f"audio encoder: the embedded one instead of {model.audio_encoder}; another: "
                "--audio-encoder NAME",
                markup=False,
            )
    if root is None and "data.root" not in explicit:
        root = SYNTHETIC
        if data.root != SYNTHETIC:
            console.print("clips: the built-in synthetic ones; others: --data FOLDER", markup=False)
    model = replace(
        model, backbone=backbone or model.backbone, audio_encoder=encoder or model.audio_encoder
    )
    return replace(config, model=model, data=replace(data, root=root or data.root)), explicit


def _fresh(request: Request, console: Console) -> Subject:
    config, explicit = requested_config(request, console)
    config, accelerator = engine(config, Launch(console=console, device=request.device))
    experiment = prepare(config, accelerator, console, explicit)
    gate = experiment.model.outer_gate
    if gate.warmup_steps:
        # at the first of its steps hardly a bit would pass, and nothing could be said of the path
        experiment.model.set_gate_warmup(gate.warmup_steps, gate.warmup_steps)
        console.print(f"gate warm-up of {gate.warmup_steps} steps: measured at its end")
    about = {"config": config.name, "backbone": experiment.model.name, "step": 0}
    return _subject(experiment, accelerator, request, about | {"clips": config.data.train_split})


def _saved(checkpoint: Path, request: Request, console: Console) -> Subject:
    run, adapter = find_adapter(checkpoint)
    config = RunConfig.from_dict(read_config(run))
    if request.data is not None:
        config = replace(config, data=replace(config.data, root=request.data))
    config, accelerator = engine(config, Launch(console=console, device=request.device))
    experiment = prepare(config, accelerator, console, dotted_fields())
    blocks = experiment.model.fusion.blocks().items()
    start = {
        f"fusion.{layer}.residual.residual_scale": block.residual.residual_scale.detach().clone()
        for layer, block in blocks
    }
    load_adapter(experiment.model, adapter)
    step = step_of(adapter.parent.name)
    step = _last_step(run) if step is None else step
    about = {
        "checkpoint": str(adapter),
        "config": config.name,
        "backbone": experiment.model.name,
        "step": step,
        "clips": config.data.eval_split,
    }
    console.print(f"clips: of {config.data.eval_split!r}, which the run was not trained on")
    scores = _scores(run, step) if adapter.parent == run else []
    return _subject(experiment, accelerator, request, about, start, scores)


def _subject(
    experiment: Experiment,
    accelerator: Any,
    request: Request,
    about: Mapping[str, Any],
    start: Mapping[str, Tensor] | None = None,
    further: Sequence[Record] = (),
) -> Subject:
    """A fresh model is measured on the clips it will see; a trained one on others.

    What a trained model has learned by heart of its own clips says nothing of its hearing: after
    some epochs even captions of wrong clips are helped by them.
    """
    config, model = experiment.config, experiment.model
    trained = "checkpoint" in about
    dataset = experiment.held_out if trained else experiment.dataset
    plain = replace(config.retention, variant="no_retention")
    retention = build_retention(
        plain, model, experiment.tokens, experiment.train.embeddings, config.optim.seed
    )
    trainer = StageA(model, experiment.dataset, config.optim, accelerator, retention)
    warms_up = not trained and model.outer_gate.warmup_steps > 0
    return Subject(
        model=model,
        batches=batches_of(dataset, config.optim.seed, request.batches, request.batch_size),
        about=about,
        optimizer=trainer.optimizer,
        step=about["step"],
        start=start or {},
        silence=torch.from_numpy(experiment.sounds.silence),
        pictures=pictures_of(experiment),
        clip_norm=config.optim.clip_norm,
        further=[*further, gate_at_end(trainer)] if warms_up else further,
        experiment=experiment,
    )


def rebuild(experiment: Experiment, scale: float, gate_init: float) -> SAFEModel:
    """A fresh model with another projector scale and gate, on the same backbone."""
    model = experiment.config.model
    config = replace(
        model,
        projector=replace(model.projector, scale=scale),
        fusion=replace(model.fusion, gate_init=gate_init),
    )
    old = experiment.model
    from safe.models.backbones import Backbone

    set_seed(experiment.config.optim.seed)
    backbone = Backbone(old.backbone, old.tokenizer, old.name, old.prompt, old.identity)
    fresh = SAFEModel(backbone, config)
    if config.device_map is None:
        fresh.to(old.device)
    return fresh


def _last_step(run: Path) -> int:
    """The last optimizer step in metrics.jsonl; 0 when there is none."""
    steps = [0]
    with suppress(FileNotFoundError):
        for line in whole_lines(run / "metrics.jsonl"):
            with suppress(ValueError):  # a damaged line
                row = parse_json(line)
                if isinstance(row, dict) and isinstance(row.get("step"), int):
                    steps.append(row["step"])
    return max(steps)


def _scores(run: Path, step: int) -> list[Record]:
    """The run's evaluation, when it has one."""
    file = run / "evaluation.json"
    try:
        return score_records(read_json(file), step)
    except FileNotFoundError:
        return []
    except AttributeError as error:
        raise ConfigError(f"{file} is damaged: {error}") from None

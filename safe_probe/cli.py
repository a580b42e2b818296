"""``safe-probe``: measure the signal path and say which link is broken.

Heavy imports happen inside the commands, so that ``--help``, ``list`` and ``explain`` answer at
once.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from configs.errors import SafeError
from configs.plain_text import plain
from safe_probe.report_options import add_commands

COMMANDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "magnitude": (
        "is the signal visible next to the text?",
        ("parameters", "magnitude"),
    ),
    "gates": (
        "is each gate open, able to learn, and does turning it change anything?",
        ("parameters", "magnitude", "gates", "sensitivity"),
    ),
    "gradflow": (
        "does every part get a gradient, and does a step move it?",
        ("parameters", "magnitude", "gates", "gradflow"),
    ),
    "influence": (
        "does the sound change what the model says?",
        ("magnitude", "gates", "influence", "attention"),
    ),
    "check": ("all probes; fails on findings, so that it can stand before an sbatch line", ()),
}
"""What each measuring command asks, and the probes it runs; none for all."""

_EPILOG = """examples:
  safe-probe check --config phase1                 a fresh model, before the run
  safe-probe check runs/latest && sbatch ...       a trained one; exit code 1 on errors
  safe-probe magnitude --config phase1 --set model.projector.scale=2.0
  safe-probe magnitude --config demo --signal vision
  safe-probe params --config phase1                the true 13B numbers, without weights
  safe-probe calibrate --config phase1 --backbone smollm2
  safe-probe explain SP204
  safe-probe report runs/latest                    the verdict, and what to type next
  safe-probe watch runs/latest                     a running training, live
exit codes: 0 fine, 1 findings at or above --fail-on or a verdict of BLOCKED or UNFINISHED,
2 wrong input, 3 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0 fine, 1 findings, 2 wrong input, 3 interrupted)."""
    arguments = parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        return code
    except KeyboardInterrupt:
        print("interrupted; the model and the run are as they were", file=sys.stderr)
        return 3
    except BrokenPipeError:  # `| head` has seen enough
        sys.stderr.close()
        return 0
    except (SafeError, OSError) as error:  # also a folder that may not be read, a full disk
        print(plain(f"{type(error).__name__}: {error}"), file=sys.stderr)
        return 2


def _measure(arguments: argparse.Namespace) -> int:
    from safe_probe.commands import measure

    return measure(arguments)


def _params(arguments: argparse.Namespace) -> int:
    from safe_probe.commands import params

    return params(arguments)


def _calibrate(arguments: argparse.Namespace) -> int:
    from safe_probe.commands import run_calibrate

    return run_calibrate(arguments)


def _explain(arguments: argparse.Namespace) -> int:
    from probes.findings.catalogue import get_rule
    from probes.findings.pages import explain

    print("\n\n".join(explain(get_rule(code)) for code in arguments.code))
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from safe_probe.listing import findings_text, thresholds_text

    print(thresholds_text() if arguments.thresholds else findings_text(arguments.family))
    return 0


def _completion(arguments: argparse.Namespace) -> int:
    from safe_probe.completion import script

    print(script(arguments.shell, parser()))
    return 0


def parser() -> argparse.ArgumentParser:
    """The parser with all commands."""
    made = argparse.ArgumentParser(
        prog="safe-probe",
        description="Measure the path of a new signal through a language model, and say which "
        "link is broken.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (question, probes) in COMMANDS.items():
        command = commands.add_parser(name, help=question, description=question)
        _subject_options(command)
        _measure_options(command)
        _finding_options(command)
        command.set_defaults(run=_measure, probes=probes, question=question)
    params = commands.add_parser("params", help="what is there to train, and in how much memory?")
    _model_options(params)
    _finding_options(params)
    params.set_defaults(run=_params)
    calibrate = commands.add_parser("calibrate", help="which scale and gate to start with?")
    _subject_options(calibrate)
    calibrate.add_argument("--json", action="store_true", help="print records as JSON")
    calibrate.add_argument("--output", type=Path, metavar="FILE", help="write a config file (YAML)")
    calibrate.set_defaults(run=_calibrate)
    add_commands(commands)
    explain = commands.add_parser("explain", help="what a finding means, and what to do")
    explain.add_argument("code", nargs="+", metavar="CODE", help="e.g. SP204")
    explain.set_defaults(run=_explain)
    listing = commands.add_parser("list", help="all findings, or all thresholds")
    listing.add_argument("family", nargs="?", default="", help="beginning of the codes, e.g. SP2")
    listing.add_argument("--thresholds", action="store_true", help="the limits and their sources")
    listing.set_defaults(run=_list)
    completion = commands.add_parser("completion", help="a completion script for your shell")
    completion.add_argument("shell", choices=("bash", "zsh"))
    completion.set_defaults(run=_completion)
    return made


def _model_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--config", metavar="NAME", help="demo, full, phase1, phase2: a fresh model of it")
    add(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="override one value, e.g. model.projector.scale=2.0 (repeatable)",
    )  # fmt: skip
    add("--backbone", metavar="NAME", help="embedded, smollm2, a hub name or a folder")


def _subject_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "checkpoint", nargs="?", type=Path, metavar="CHECKPOINT", help="a run, or its checkpoint"
    )
    _model_options(command)
    add = command.add_argument
    add("--audio-encoder", metavar="NAME", help="embedded, aisfx, laion-clap:FILE, hf:NAME")
    add("--data", metavar="FOLDER", help="AudioCaps layout (default: built-in synthetic clips)")
    add("--batches", type=_positive, default=2, metavar="N", help="batches (default 2)")
    add("--batch-size", type=_positive, default=8, metavar="N", help="clips each (default 8)")
    add("--device", choices=("auto", "cpu"), default="auto")


def _measure_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--signal", choices=("audio", "vision"), default="audio",
        help="which signal; vision: the backbone's own pixels, untouched",
    )  # fmt: skip


def _finding_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--select", metavar="CODES", help="report only these, e.g. SP1,SP205")
    add("--ignore", metavar="CODES", help="leave these out")
    add("--fail-on", metavar="LEVEL", help="note, warning, error (default) or never")
    add(
        "--settings", type=Path, metavar="FILE",
        help="YAML with select, ignore, fail-on, severity, thresholds "
        "(default: [tool.safe-probe] of pyproject.toml)",
    )  # fmt: skip
    add("--json", action="store_true", help="print everything as JSON (docs/json.md)")
    add("--csv", action="store_true", help="print the records as CSV")
    add("--output", type=Path, metavar="DIR", help="write diagnosis.json and the records there")


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())

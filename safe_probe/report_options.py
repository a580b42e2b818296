"""The arguments of the commands that read a run; what they do is loaded when one of them runs."""

import argparse
from pathlib import Path
from typing import Any

_RUN = "a run's folder, or a checkpoint in it"


def add_commands(commands: Any) -> None:
    """Add report, watch, compare, criteria and checklist to the subparsers ``commands``."""
    report = _add(commands, "report", "is the score real, where does the signal die, what next?")
    report.add_argument("path", type=Path, metavar="RUN", help=_RUN)
    report.add_argument("--baseline", type=Path, metavar="RUN", help="the run to be better than")
    printed = report.add_mutually_exclusive_group()
    printed.add_argument("--json", action="store_true", help="print everything as JSON")
    printed.add_argument("--quiet", action="store_true", help="print one line")
    printed.add_argument("--markdown", action="store_true", help="print GitHub-style Markdown")
    report.add_argument("--html", action="store_true", help="write RUN/report.html")
    report.add_argument("--open", action="store_true", help="write it and open it in a browser")
    report.add_argument("--junit", type=Path, metavar="FILE", help="write criteria as JUnit XML")

    watch = _add(commands, "watch", "follow a running training; Ctrl-C leaves it alone")
    watch.add_argument("path", type=Path, metavar="RUN", help="its folder, e.g. runs/latest")
    watch.add_argument("--once", action="store_true", help="print one page and end")

    compare = _add(commands, "compare", "two or more runs side by side; the first is the measure")
    compare.add_argument("paths", type=Path, nargs="+", metavar="RUN", help=_RUN)
    compare.add_argument("--json", action="store_true", help="print everything as JSON")
    compare.add_argument("--html", type=Path, metavar="FILE", help="write a page")

    _add(commands, "criteria", "the rules of the verdict")

    checklist = _add(commands, "checklist", "the plan's checklist, ticked from what is found")
    checklist.add_argument("path", type=Path, nargs="?", metavar="RUN", help=_RUN)


def _add(commands: Any, name: str, question: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=question, description=question
    )

    def run(arguments: argparse.Namespace) -> int:
        from safe_probe import report_commands

        code: int = getattr(report_commands, name)(arguments)
        return code

    command.set_defaults(run=run)
    return command

"""``safe-train data check`` and ``safe-train data prepare``.

Outside safe/data, and with its imports inside, so that ``--help`` loads nothing heavy.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from configs.checks import MAX_UNUSABLE
from safe.training.interrupt import Interrupt


def add_commands(data: argparse.ArgumentParser) -> None:
    """Add the parsers of what can be done with data."""
    actions = data.add_subparsers(dest="action", required=True)
    check = actions.add_parser("check", help="what is there, missing, broken, or in two splits")
    check.add_argument("root", type=Path, help="folder with a data set in any known format")
    check.add_argument("--sample-rate", type=int, metavar="HZ", help="rate that files should have")
    check.set_defaults(run=_check)
    prepare = actions.add_parser(
        "prepare",
        help="make the layout that training reads",
        description="Makes the AudioCaps layout out of AudioCaps, Clotho, WavCaps, a folder with "
        "CSV or a Hugging Face data set on disk; says what is missing and what is in two places.",
    )
    prepare.add_argument("source", type=Path, metavar="SOURCE", help="the data set as it came")
    prepare.add_argument("output", type=Path, metavar="OUTPUT", help="a new folder")
    prepare.add_argument(
        "--against", type=Path, action="append", default=[], metavar="FOLDER",
        help="find clips that this other data set has too (repeatable)",
    )  # fmt: skip
    prepare.set_defaults(run=_prepare)
    for parser in (check, prepare):
        parser.add_argument(
            "--max-unusable", type=float, default=MAX_UNUSABLE, metavar="SHARE",
            help=f"exit code 1 when more of a split cannot be used (default: {MAX_UNUSABLE})",
        )  # fmt: skip
        parser.add_argument(
            "--json", metavar="FILE", help="write the whole report ('-': to the screen)"
        )


def _check(arguments: argparse.Namespace) -> int:
    from safe.console import make_console, progress
    from safe.data.check import check_root
    from safe.data.check_view import render

    console = make_console(quiet=arguments.json == "-")
    _touch(arguments.json)
    with Interrupt() as interrupt, progress(console, "reading clips") as show:
        report = check_root(
            arguments.root,
            sample_rate=arguments.sample_rate,
            max_unusable=arguments.max_unusable,
            progress=interrupt.heed(show, "nothing was written"),
        )
    console.print(render(report))
    _write(report.to_dict(), arguments.json)
    return report.exit_code


def _prepare(arguments: argparse.Namespace) -> int:
    from safe.console import make_console, progress
    from safe.data.prepare import prepare
    from safe.data.prepare_view import render

    console = make_console(quiet=arguments.json == "-")
    _touch(arguments.json)
    with Interrupt() as interrupt, progress(console, "preparing clips") as show:
        result = prepare(
            arguments.source,
            arguments.output,
            against=arguments.against,
            max_unusable=arguments.max_unusable,
            progress=interrupt.heed(show, "what was placed is kept"),
        )
    console.print(render(result))
    _write(result.to_dict(), arguments.json)
    return result.exit_code


def _touch(target: str | None) -> None:
    if target not in (None, "-"):
        Path(str(target)).touch()  # an unwritable file is better found before the reading


def _write(value: dict[str, Any], target: str | None) -> None:
    if target is None:
        return
    if target == "-":
        print(json.dumps(value, indent=2))  # ASCII only: nothing in it steers a terminal
    else:
        text = json.dumps(value, indent=2, ensure_ascii=False)
        Path(target).write_text(text + "\n", encoding="utf-8")

"""What the reading commands do: report, watch, compare, criteria, checklist. None loads torch."""

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from configs.plain_text import plain
from reports.errors import ReportError
from reports.report import Report
from reports.run import read_run, step_folder
from reports.verdict import Decision
from safe.console import PlainConsole

REFRESH_SECONDS = 2.0


def report(arguments: argparse.Namespace) -> int:
    """Judge a run and show it; 1 when the verdict is BLOCKED or UNFINISHED."""
    baseline = None if arguments.baseline is None else read_run(arguments.baseline)
    judged = Report.of(arguments.path, baseline)
    if arguments.junit is not None:
        from reports.junit import junit

        with _writing(arguments.junit):
            arguments.junit.write_text(junit(judged), encoding="utf-8")
    if arguments.html or arguments.open:
        _page(judged, arguments.open)
    try:
        _show(judged, arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough; the verdict stands all the same
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1 if judged.verdict.decision < Decision.PARTIAL else 0


def _show(judged: Report, arguments: argparse.Namespace) -> None:
    if arguments.json:
        _print_json(judged.to_json())
    elif arguments.markdown:
        from reports.markdown import markdown

        _console().out(markdown(judged), end="", highlight=False)
    elif arguments.quiet:
        from reports.console import quiet_line

        _console().out(quiet_line(judged), highlight=False)
    else:
        from reports.console import print_report

        print_report(judged, _console())


def watch(arguments: argparse.Namespace) -> int:
    """Show a training as it goes on, until it ends or Ctrl-C; one page when not on a terminal."""
    from rich.live import Live

    from reports.watch import Watched
    from reports.watch_view import frame

    watched, console = Watched(arguments.path), _console()
    if arguments.once or not console.is_terminal:
        console.print(frame(watched, height=10_000))
        return 0
    try:
        with Live(console=console, auto_refresh=False, transient=False) as live:
            while True:
                live.update(frame(watched, console.height - 1), refresh=True)
                if watched.life().over:
                    return 0
                time.sleep(REFRESH_SECONDS)
                watched.poll()
    except KeyboardInterrupt:
        return 0


def compare(arguments: argparse.Namespace) -> int:
    """Hold runs against the first of them."""
    from reports.compare import Comparison

    reports = [Report.of(path) for path in arguments.paths]
    comparison = Comparison.of(reports)
    if arguments.html is not None:
        from reports import html

        with _writing(arguments.html):
            html.write_page(html.render_comparison(reports), arguments.html)
    if arguments.json:
        _print_json(comparison.to_json())
    else:
        from reports.compare_view import comparison_view

        _console().print(comparison_view(comparison))
    return 0


def criteria(_: argparse.Namespace) -> int:
    """Print the table of rules."""
    from reports.rules_view import criteria_view

    _console().print(criteria_view())
    return 0


def checklist(arguments: argparse.Namespace) -> int:
    """Print the plan's checklist, ticked from what is found in a run."""
    from reports.checklist import checklist as plan
    from reports.rules_view import checklist_view

    items = plan() if arguments.path is None else Report.of(arguments.path).checklist
    _console().print(checklist_view(items))
    return 0


def _page(judged: Report, show: bool) -> None:
    import webbrowser

    from reports import html

    step = judged.run.checkpoint
    file = judged.run.path / ("report.html" if step is None else f"report-{step_folder(step)}.html")
    with _writing(file):
        html.write(judged, file)
    if show and not webbrowser.open(file.as_uri()):
        print("no browser found here; open the file yourself", file=sys.stderr)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Say what was written; a folder that cannot be written to is the user's to mend."""
    try:
        yield
    except OSError as error:
        raise ReportError(f"{path} cannot be written: {error.strerror}") from None
    print(plain(f"wrote {path}"), file=sys.stderr)


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=True, allow_nan=False))


class _Output(PlainConsole):
    """Leaves a reader who went away to the command line, as `print` does."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def _console() -> Console:
    """For results; what the output's encoding cannot hold becomes a question mark."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    return _Output()

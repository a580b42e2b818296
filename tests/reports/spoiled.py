"""A run and its report with one foreign text in every place that can hold text from data."""

import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

from configs.plain_text import plain
from probes.findings.finding import Finding, Link, Severity
from probes.record import Record
from reports.grade import Grade
from reports.report import Report
from reports.verdict import Decision, Verdict
from tests.reports.conftest import (
    caption_rows,
    final_scores,
    probe_records,
    step_rows,
    write_whole_run,
)

_LABELS = {"0", "1", "100"}
"""Names of gates and components, which pictures shorten."""


def spoiled(folder: Path, bad: str) -> Report:
    """A report with ``bad`` in every place, each with a number of its own behind it."""
    texts, short = _numbered(bad), _numbered(_as_name(bad), start=100)
    gate, gradient, clip = next(texts), next(texts), next(texts)
    metrics = step_rows()
    for row in metrics:
        row |= {f"gate/{gate}": 0.3, f"grad_norm/{gradient}": 0.5}
    component, records = next(short), probe_records()
    records += [Record(s, "gradflow", component, None, "norm", 0.5, "L2") for s in (0, 9, 18, 30)]
    controls = {"another clip's audio": next(texts), "silence": next(texts), next(texts): "x"}
    captions = [r | {"clip": f"{clip}{i}", "own audio": next(texts)} | controls
                for i, r in enumerate(caption_rows(9))]  # fmt: skip
    references = [{"clip": r["clip"], "captions": [next(texts), next(texts)], "audio": bad}
                  for r in captions]  # fmt: skip
    path = write_whole_run(
        folder / f"{file_name(bad)}{mark('name')}",
        metrics=metrics, records=records, captions=captions,
        references=references, evaluation=final_scores() | {"split": next(texts)},
        environment={"python": next(texts), next(texts): next(texts),
                     "packages": {next(texts): next(texts)}},
        resources={"memory": next(texts), "train_seconds": 5.0, "peak_bytes": 5},
        problems=[{"clip": next(texts), "reason": next(texts)}],
        config={"data.root": next(short)},
    )  # fmt: skip
    return _with_findings(Report.of(path), lambda: next(texts))


def _with_findings(report: Report, text: Callable[[], str]) -> Report:
    """The same with foreign text in what was judged."""
    finding = Finding(
        "SP201", Severity.ERROR, text(), 3, text(), text(), text(), text(), title=text(),
        link=Link.GATE, consequence_of=None,
    )  # fmt: skip
    outcome = replace(report.outcomes[0], shown=text(), evidence=text(), grade=Grade.UNKNOWN)
    criterion = replace(
        outcome.criterion, title=text(), source=text(), to_measure=text(), why=text()
    )
    step = replace(report.verdict.next_step, command=text(), why=text(), changes=(text(), text()))
    return replace(
        report,
        run=replace(report.run, damaged={text(): text()}),
        outcomes=(replace(outcome, criterion=criterion), *report.outcomes[1:]),
        findings=(finding, replace(finding, consequence_of=text(), component=text())),
        verdict=Verdict(
            Decision.BLOCKED, f"{text()}, {text()}".replace("; ", " "), finding, step
        ),
    )  # fmt: skip


def file_name(bad: str) -> str:
    """As much of a text as can be the name of a file."""
    return _valid(bad).replace("/", "").replace("\0", "")[:60]


def marks(shown: str) -> set[str]:
    """The places of which something is shown."""
    return set(re.findall("\u27e6(\\w+)\u27e7", shown))


def shown_as(bad: str, place: str) -> set[str]:
    """How a place may show ``bad``: whole, as Python or a shell writes it, short in a picture."""
    if place == "name":
        bad = file_name(bad)
    elif int(place) >= 100:
        bad = _as_name(bad)
    written = (bad, repr(bad)[1:-1], shlex.quote(f"{bad} ")[1:-2], bad.replace("; ", " "))
    whole = set(map(plain, written))
    cut = (37, 37 - len("layer ")) if place in _LABELS else ()
    shortened = {f"{(plain(bad) + mark(place))[:length]}..." for length in cut}
    return {text + mark(place) for text in whole} | shortened


def _as_name(text: str) -> str:
    """As much of a text as can be the name of a component; `x:y` would be a detail y of x."""
    return _valid(text).replace(":", "")[:99]


def _valid(text: str) -> str:
    """What of a text can stand in a file."""
    return "".join(c for c in text if not 0xD800 <= ord(c) < 0xE000)


def _numbered(text: str, start: int = 0) -> Iterator[str]:
    return (f"{text}{mark(number)}" for number in count(start))


def mark(number: int | str) -> str:
    """What stands behind the text of a place, to find it by."""
    return f"\u27e6{number}\u27e7"

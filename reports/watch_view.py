"""A training that may be running, as one page that fits a terminal."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from configs.plain_text import plain
from probes.findings.finding import Finding, Severity
from probes.findings.view import STYLES, grouped, measured, place
from reports.printed import as_float
from reports.run import Row, Run
from reports.sparkline import sparkline
from reports.watch import Watched


def frame(watched: Watched, height: int = 24) -> RenderableType:
    """One page; findings that do not fit into ``height`` lines are counted."""
    run, life = watched.run, watched.life()
    styles = {"running": "bold cyan", "finished": "bold green", "stopped": "bold yellow"}
    head = Text.assemble(
        (plain(run.name), "bold"), "  ", (life.word, styles.get(life.word, "bold red")),
        f" ({plain(life.detail)})",
    )  # fmt: skip
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(watched):
        table.add_row(name, value)
    if words := watched.last_words():
        table.add_row("log", Text(plain(words)))
    shown = _finding_lines(watched.findings, max(1, height - 7 - table.row_count))
    return Group(head, table, *shown)


def _rows(watched: Watched) -> list[tuple[str, RenderableType]]:
    run, steps = watched.run, watched.run.steps
    if not steps:
        return [("progress", Text("no step yet"))]
    newest = steps[-1]
    losses = [as_float(row.get("loss")) for row in steps]
    norms = [as_float(row["grad_norm/total"]) for row in steps if "grad_norm/total" in row]
    rows: list[tuple[str, RenderableType]] = [
        ("progress", _progress(watched)),
        ("loss", Text(f"{sparkline(losses)}  {losses[0]:.3g} -> {losses[-1]:.3g} nats/token")),
        ("gradients", Text(f"{sparkline(norms)}  {_gradients(newest)}")),
        ("gates", Text(_gates(newest))),
    ]
    contribution = run.facts.layers("magnitude", "fusion", "contribution_median")
    if contribution:
        layers = ", ".join(f"{layer}: {value:.2g}" for layer, value in contribution.items())
        step = run.facts.step("magnitude")
        rows.append(("contribution", Text(f"by layer {layers} (step {step})")))
    if run.probed:
        rows.append(("probed", Text(_probed(run))))
    rows.append(("CIDEr", _score(run)))
    skipped = sum(bool(row.get("skipped")) for row in steps)
    if skipped:
        rows.append(("skipped", Text(f"{skipped} not finite", "bold red")))
    return rows


def _progress(watched: Watched) -> RenderableType:
    run, total = watched.run, watched.total_steps()
    if total is None:
        return Text(f"step {run.last_step}")
    grid = Table.grid(padding=(0, 1))
    text = f"step {run.last_step} of {total}, epoch {run.epochs_done:.1f}"
    grid.add_row(ProgressBar(total=total, completed=run.last_step, width=24), Text(text))
    return grid


def _gradients(row: Row) -> str:
    found = {k.partition("/")[2]: v for k, v in row.items() if k.startswith("grad_norm/")}
    return ", ".join(f"{plain(k)} {as_float(v):.2g}" for k, v in found.items() if k != "total")


def _gates(row: Row) -> str:
    gates = {k.partition("/")[2]: v for k, v in row.items() if k.startswith("gate/")}
    layers = ", ".join(f"{plain(layer)}: {as_float(value):.3g}" for layer, value in gates.items())
    outer = as_float(row.get("outer_gate", 1.0))
    return f"by layer {layers}" + ("" if outer == 1 else f"; opened {outer:.0%} by warm-up")


def _probed(run: Run) -> str:
    """Which probes looked at which step last: a finding is as old as its measurement."""
    by_step: dict[int, list[str]] = {}
    for name in dict.fromkeys(record.probe for record in run.probed):
        by_step.setdefault(run.facts.step(name), []).append(name)
    if len(by_step) == 1:
        return f"by all at step {next(iter(by_step))}"
    newest = sorted(by_step.items(), reverse=True)
    return "; ".join(f"{plain(', '.join(names))} at step {step}" for step, names in newest)


def _score(run: Run) -> Text:
    final = run.facts.value("scores", "score", "cider")
    if final is not None:
        wrong = run.facts.value("scores", "score", "shuffled")
        aside = "" if wrong is None else f", with another clip's audio {wrong:.1f}"
        return Text(f"final {final:.1f}{aside}")
    if not run.evaluations:
        return Text("no evaluation yet")
    newest = run.evaluations[-1]
    scores = [as_float(row.get("cider")) for row in run.evaluations]
    low, high = (as_float(newest.get(f"cider_{end}")) for end in ("low", "high"))
    span = f" [{low:.1f}, {high:.1f}] at epoch {newest['epoch']:g}"
    return Text(f"{sparkline(scores, 10)}  {scores[-1]:.1f}{span}")


def _finding_lines(findings: Sequence[Finding], room: int) -> list[RenderableType]:
    groups = [g for g in grouped(findings) if g[0].severity > Severity.NOTE]
    lines: list[RenderableType] = []
    for group in groups[:room]:
        first = group[0]
        line = Text.assemble(
            (f"{first.code} {first.severity.word}", STYLES[first.severity]),
            f"  {plain(place(group))}: {plain(first.title)} ({plain(measured(group))})",
        )
        line.no_wrap, line.overflow = True, "ellipsis"
        lines.append(line)
    if len(groups) > room:
        lines.append(Text(f"and {len(groups) - room} more findings", "dim"))
    return lines or [Text("no finding so far", "dim")]

"""The table of rules and the checklist, for the terminal."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from configs.plain_text import plain
from reports.checklist import Item
from reports.console import GRADES
from reports.criteria import CRITERIA
from reports.criterion import Criterion
from reports.tables import mark, table

_RULE = """PROCEED     every deciding criterion (*) passes
PARTIAL     none fails, but one is partial or was not measured
UNFINISHED  none fails, and the training goes on or was stopped: there is no final score yet
BLOCKED     one fails, or there is no final score"""


def criteria_view() -> RenderableType:
    """Every criterion with its condition and its source, and how they make the verdict."""
    return Group(Text(_RULE), *(_rule(criterion) for criterion in CRITERIA))


def _rule(criterion: Criterion) -> RenderableType:
    head = Text.assemble(
        "\n", (criterion.title, "bold"), (" *" if criterion.decides else "", "bold"),
        (f"  ({criterion.name}, {criterion.phase} training)", "dim"),
    )  # fmt: skip
    rows = {
        "passes": str(criterion.condition),
        "why": criterion.why,
        "source": criterion.source,
        "measured by": criterion.to_measure,
    }
    body = table(rows=((Text(name, "dim"), text) for name, text in rows.items()))
    return Group(head, Padding(body, (0, 0, 0, 2)))


def checklist_view(items: Sequence[Item]) -> RenderableType:
    """The plan's checklist by phase: [x] done, [~] in part, [ ] not, [?] not known."""
    parts: list[RenderableType] = []
    for phase in ("before", "during", "after"):
        rows = ((_box(item), _item(item)) for item in items if item.phase == phase)
        parts.append(Text(f"\n{phase} training" if parts else f"{phase} training", "bold"))
        parts.append(Padding(table(rows=rows), (0, 0, 0, 2)))
    return Group(*parts)


def _box(item: Item) -> Text:
    return mark(item.mark, GRADES[item.grade][1])


def _item(item: Item) -> Text:
    return Text.assemble(plain(item.text), (f"\n{plain(item.evidence)}", "dim"))

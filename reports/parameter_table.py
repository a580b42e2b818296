"""Parameters by component: declared by the configuration, and measured."""

from dataclasses import dataclass

from configs.arithmetic import count_parameters
from reports.printed import number
from reports.run import Run

_NAMES = {
    "projector": "projector", "fusion": "fusion (LoRA)", "gate": "gates",
    "text_embeddings": "text embeddings", "decoder": "decoder", "lm_head": "lm head",
    "other": "other", "model": "all",
}  # fmt: skip


@dataclass(frozen=True)
class ParameterRow:
    """One component; counts as text."""

    name: str
    declared: str
    """Trainable, counted from the configuration."""
    trainable: str
    """Trainable, measured."""
    differs: bool
    """Whether these two are known and differ by more than a tenth."""
    total: str
    in_optimizer: str
    bytes: str


def parameter_table(run: Run) -> tuple[ParameterRow, ...]:
    """Components that the configuration declares or the probe saw, the whole model last."""
    counts = count_parameters(run.config.model)
    declared = {
        "projector": counts.projector + counts.norm, "fusion": counts.lora,
        "gate": counts.gates, "model": counts.total,
    }  # fmt: skip
    rows = []
    for component, name in _NAMES.items():
        found = {
            statistic: run.facts.value("parameters", component, statistic)
            for statistic in ("trainable", "total", "in_optimizer", "bytes")
        }
        if component not in declared and not found["total"]:
            continue
        stated, trainable = declared.get(component), found["trainable"]
        differs = (
            stated is not None and trainable is not None and abs(trainable - stated) > stated / 10
        )
        rows.append(
            ParameterRow(
                name, number(stated if component in declared else 0), number(trainable), differs,
                number(found["total"]), number(found["in_optimizer"]), _bytes(found["bytes"]),
            )
        )  # fmt: skip
    return tuple(rows)


def _bytes(value: float | None) -> str:
    if value is None or not value < float("inf"):
        return number(value)
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"

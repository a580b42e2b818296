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
    """Whether the measured number is known, and is not what was declared."""
    total: str
    in_optimizer: str
    bytes: str


def parameter_table(run: Run) -> tuple[ParameterRow, ...]:
    """Components that the configuration declares or the probe saw, the whole model last."""
    most = count_parameters(run.config.model)  # as if the keys were as wide as the hidden states
    least = count_parameters(run.config.model, kv_width=1)  # grouped-query attention: narrower
    declared = {
        "projector": (most.projector + most.norm,) * 2, "fusion": (least.lora, most.lora),
        "gate": (most.gates,) * 2, "model": (least.total, most.total),
    }  # fmt: skip
    rows = []
    for component, name in _NAMES.items():
        found = {
            statistic: run.facts.value("parameters", component, statistic)
            for statistic in ("trainable", "total", "in_optimizer", "bytes")
        }
        if component not in declared and not found["total"]:
            continue
        low, high = declared.get(component, (0, 0))
        trainable = found["trainable"]
        rows.append(
            ParameterRow(
                name=name,
                declared=f"{'at most ' if low < high else ''}{number(high)}",
                trainable=number(trainable),
                differs=trainable is not None and not low <= trainable <= high,
                total=number(found["total"]),
                in_optimizer=number(found["in_optimizer"]),
                bytes=_bytes(found["bytes"]),
            )
        )
    return tuple(rows)


def _bytes(value: float | None) -> str:
    if value is None or not value < float("inf"):
        return number(value)
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"

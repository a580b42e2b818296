"""How large a configuration's model is, and what memory its training needs, without weights."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from torch.optim import SGD, Optimizer

from configs.claims import STATED
from configs.schema import RunConfig
from probes.findings.facts import Facts
from probes.record import Record, Rows
from safe.models.safe_model import SAFEModel
from safe.plan import MemoryPart, training_memory
from safe.plan import sized_model as on_meta


def sized_model(
    name: str, assignments: Any, backbone_name: str | None, console: Console
) -> tuple[SAFEModel, RunConfig]:
    """The model of a configuration on the meta device; what differs goes to the console.

    Raises:
        SafeError: an unknown configuration, or a backbone that is not there.
    """
    return on_meta(name, assignments, backbone_name, lambda line: console.print(line, markup=False))


def planned_optimizer(model: SAFEModel, config: RunConfig) -> Optimizer:
    """The training's parameters and peak learning rates in an optimizer that holds no state."""
    members = model.trainable_groups()
    rates = {"projector": config.optim.lr_projector, "adapter": config.optim.lr_adapter}
    return SGD([{"params": list(members[name].values()), "lr": lr} for name, lr in rates.items()])


def memory_plan(model: SAFEModel, config: RunConfig, facts: Facts) -> list[MemoryPart]:
    """Bytes of a training step on one device: exact but for the activations."""
    total = int(facts.value("parameters", "model", "bytes") or 0)
    trainable = int(facts.value("parameters", "model", "trainable") or 0)
    return training_memory(total, trainable, model.backbone, config)


def claim_records(name: str, facts: Facts, plan: list[MemoryPart]) -> list[Record]:
    """Stated and measured numbers side by side (probe ``claims``); none for other configs."""
    stated = STATED.get(name)
    if stated is None:
        return []
    rows = Rows("claims", 0)
    measured: Mapping[str, tuple[float, str]] = {
        "projector": (stated.projector, "projector"),
        "fusion": (stated.lora, "fusion"),
        "model": (stated.trainable, "model"),
    }
    for component, (claim, source) in measured.items():
        rows.add(component, "stated", claim, "parameters")
        found = facts.value("parameters", source, "trainable")
        if found is not None:
            rows.add(component, "measured", found, "parameters")
    if stated.memory is not None:
        rows.add("memory", "stated_low", stated.memory[0], "bytes")
        rows.add("memory", "stated_high", stated.memory[1], "bytes")
        rows.add("memory", "measured", sum(part.bytes for part in plan), "bytes")
    return rows.records

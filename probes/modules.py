"""What the modules of a model are set to: facts that no forward pass shows.

Records by component, as found:

- ``noisy_in_training``: dropouts (with p > 0) and batch norms that are in training mode now,;
- ``lora_scaling_min``, ``lora_scaling_max``: alpha / r of PEFT's LoRA modules, by layer.
"""

from torch import nn

from probes.components import owner_finder
from probes.context import Context
from probes.names import modules_by_name
from probes.record import Record

_NOISY = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)


def measure(context: Context) -> list[Record]:
    """Look at every module once; needs no batches."""
    rows = context.rows("modules")
    noisy: dict[str, int] = {}
    scalings: dict[tuple[str, int | None], list[float]] = {}
    owner = owner_finder(context.path)
    for name, module in modules_by_name(context.path.model).items():
        component, layer = owner(name)
        if isinstance(module, _NOISY):
            noisy[component] = noisy.get(component, 0) + (module.training and _draws(module))
        scaling = getattr(module, "scaling", None)
        if isinstance(scaling, dict) and hasattr(module, "lora_A"):
            values = [float(value) for value in scaling.values()]
            scalings.setdefault((component, layer), []).extend(values)
    for component, count in noisy.items():
        rows.add(component, "noisy_in_training", count, "modules")
    for (component, layer), values in scalings.items():
        if values:
            rows.add(component, "lora_scaling_min", min(values), "factor", layer)
            rows.add(component, "lora_scaling_max", max(values), "factor", layer)
    return rows.records


def _draws(module: nn.Module) -> bool:
    """Whether training mode makes a difference: a dropout with p = 0 does nothing."""
    return float(getattr(module, "p", 1.0)) > 0

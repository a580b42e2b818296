"""What there is to train: parameters by component, once each, also on the meta device.

Records, by component and for the whole (component ``model``): ``total``, ``trainable``,
``frozen``, ``bytes``, ``dtype.<name>`` and ``shared`` (held here too, but counted with their
owner). With an optimizer: ``in_optimizer``, ``trainable_not_in_optimizer``,
``frozen_in_optimizer``, ``lr_min``, ``lr_max``; and of component ``optimizer``: ``duplicates``
(held twice) and ``strangers`` (elements of tensors that are not in the model).
"""

from collections import Counter

from torch import Tensor

from probes.components import COMPONENTS, Owned, owned_parameters
from probes.context import Context
from probes.optimizers import Place, places
from probes.record import Record, Rows


def measure(context: Context) -> list[Record]:
    """Count; neither batches nor values are needed."""
    rows = context.rows("parameters")
    owned = owned_parameters(context.path)
    held = None if context.optimizer is None else places(context.optimizer)
    for component in COMPONENTS:
        mine = [o for o in owned if o.component == component]
        guests = [o for o in owned if component in o.also_in]
        if mine or guests:
            _count(rows, component, mine, held)
            rows.add(component, "shared", _elements(guests), "parameters")
    _count(rows, "model", owned, held)
    if context.optimizer is not None and held is not None:
        known = {id(o.parameter) for o in owned}
        twice = sum(place.times > 1 for place in held.values())
        tensors = {id(p): p for g in context.optimizer.param_groups for p in g["params"]}
        strangers = sum(element_count(p) for key, p in tensors.items() if key not in known)
        rows.add("optimizer", "duplicates", twice, "tensors")
        rows.add("optimizer", "strangers", strangers, "parameters")
    return rows.records


def element_count(tensor: Tensor) -> int:
    """Number of weights; bitsandbytes packs two 4-bit weights into a byte of its storage."""
    if type(tensor).__name__ == "Params4bit":
        return tensor.numel() * 2 * tensor.element_size()
    return tensor.numel()


def _count(rows: Rows, component: str, owned: list[Owned], held: dict[int, Place] | None) -> None:
    trainable = [o for o in owned if o.parameter.requires_grad]
    total = _elements(owned)
    rows.add(component, "total", total, "parameters")
    rows.add(component, "trainable", _elements(trainable), "parameters")
    rows.add(component, "frozen", total - _elements(trainable), "parameters")
    size = sum(o.parameter.numel() * o.parameter.element_size() for o in owned)
    rows.add(component, "bytes", size, "bytes")
    dtypes: Counter[str] = Counter()
    for o in owned:
        dtypes[str(o.parameter.dtype).removeprefix("torch.")] += element_count(o.parameter)
    for name, count in sorted(dtypes.items()):
        rows.add(component, f"dtype.{name}", count, "parameters")
    if held is not None:
        _count_held(rows, component, owned, held)


def _count_held(rows: Rows, component: str, owned: list[Owned], held: dict[int, Place]) -> None:
    inside = [o for o in owned if id(o.parameter) in held]
    frozen = [o for o in inside if not o.parameter.requires_grad]
    outside = [o for o in owned if o.parameter.requires_grad and id(o.parameter) not in held]
    rows.add(component, "in_optimizer", _elements(inside), "parameters")
    rows.add(component, "trainable_not_in_optimizer", _elements(outside), "parameters")
    rows.add(component, "frozen_in_optimizer", _elements(frozen), "parameters")
    if inside:
        rates = [held[id(o.parameter)].lr for o in inside]
        rows.add(component, "lr_min", min(rates), "lr")
        rows.add(component, "lr_max", max(rates), "lr")


def _elements(owned: list[Owned]) -> int:
    return sum(element_count(o.parameter) for o in owned)

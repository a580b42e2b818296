"""Gradient norms by parameter: our ledger's tallies, and how others do it."""

from collections.abc import Callable

from torch import Tensor, nn

from benchmarks.speed.gradient_peers import gradient_peers
from benchmarks.speed.pairs import Work
from probes.gradient_tally import GradientTally

LEDGER = "safe-probe: gradient ledger"


def gradient_ways(model: nn.Module, backward: Callable[[], Tensor]) -> tuple[dict[str, Work], str]:
    """Work by name, each with a forward and backward pass, and the name of ours."""
    parameters = [p for p in model.parameters() if p.requires_grad]

    def after(norms: Callable[[], object]) -> Work:
        def work() -> None:
            backward()
            norms()

        return work

    ways = {
        LEDGER: after(lambda: ledger(parameters)),
        "loop of .grad.norm().item()": after(lambda: [_item(p) for p in parameters]),
        "clip_grad_norm_ (one norm for all)": after(
            lambda: nn.utils.clip_grad_norm_(parameters, 1e9).item()
        ),
        **gradient_peers(model, backward),
    }
    return ways, LEDGER


def ledger(parameters: list[nn.Parameter]) -> list[float]:
    """What the gradflow probe does with the gradients of a batch; the norms."""
    norms = []
    for parameter in parameters:
        tally = GradientTally()
        tally.add(parameter.grad)
        norms.append(tally.norms[0])
    return norms


def _item(parameter: nn.Parameter) -> float:
    return 0.0 if parameter.grad is None else parameter.grad.norm().item()

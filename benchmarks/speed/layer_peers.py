"""How others get the L2 norm of every layer's hidden states in one forward pass.

They do less than our probe: no masks, percentiles, sinks or largest elements. nnsight and
torchlens are measured where they are installed.
"""

import warnings
from importlib.util import find_spec

import torch
from torch import Tensor

from benchmarks.speed.layer_norms import Inputs
from benchmarks.speed.pairs import Work
from benchmarks.speed.subjects import Subject

LIBRARIES = ("nnsight", "torchlens")
MISSING = tuple(name for name in LIBRARIES if find_spec(name) is None)


def peers(subject: Subject, inputs: Inputs) -> dict[str, Work]:
    """Work by name."""
    found: dict[str, Work] = {
        "hooks with torch.norm": lambda: _hooks(subject, inputs),
        "output_hidden_states, then norms": lambda: _hidden_states(subject, inputs),
    }
    if "nnsight" not in MISSING:
        found["nnsight"] = _nnsight(subject, inputs)
    if "torchlens" not in MISSING:
        found["torchlens"] = lambda: _torchlens(subject, inputs)
    return found


def _hooks(subject: Subject, inputs: Inputs) -> list[Tensor]:
    norms: list[Tensor] = []
    handles = [
        layer.register_forward_hook(lambda _m, _a, out: norms.append(torch.norm(out, dim=-1)))
        for layer in subject.backbone.layers
    ]
    try:
        with torch.no_grad():
            subject.lm(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return norms


def _hidden_states(subject: Subject, inputs: Inputs) -> list[Tensor]:
    with torch.no_grad():
        states = subject.lm(**inputs, output_hidden_states=True).hidden_states
    return [torch.norm(state, dim=-1) for state in states[1:]]


def _nnsight(subject: Subject, inputs: Inputs) -> Work:
    from nnsight import NNsight

    model = NNsight(subject.lm)

    def work() -> list[Tensor]:
        with torch.no_grad(), model.trace(**inputs):
            norms = []
            for layer in model.model.language_model.layers:
                norms.append(torch.norm(layer.output, dim=-1))  # noqa: PERF401  # traced as written
            norms.save()
        return norms

    return work


def _torchlens(subject: Subject, inputs: Inputs) -> list[Tensor]:
    import torchlens
    from torchlens.options import CaptureOptions

    options = CaptureOptions(unwrap_when_done=True)  # or every later call of torch is slower
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        trace = torchlens.trace(subject.lm, None, dict(inputs), capture=options)
    names = (f"model.language_model.layers.{i}" for i in range(subject.backbone.num_layers))
    return [torch.norm(trace.modules[name].out, dim=-1) for name in names]

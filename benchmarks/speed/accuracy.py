"""What the speed costs: errors against float64, and memory against batch size."""

import gc
import tracemalloc

import torch
from torch import Tensor

from benchmarks.speed.layer_norms import of_states
from probes.norms import precise_norm, token_norms


def errors() -> dict[str, float]:
    """Largest relative errors against float64; plain float32 norms beside ours."""
    hidden = torch.randn(8, 64, 576, generator=torch.Generator().manual_seed(0))
    norms = torch.from_numpy(token_norms(hidden).l2)
    gradient = torch.randn(28_000, 1000, generator=torch.Generator().manual_seed(1))
    return {
        "token norms": _error(norms, torch.linalg.vector_norm(hidden.double(), dim=-1)),
        "gradient norm, 28M elements": _error(
            torch.tensor(precise_norm(gradient), dtype=torch.float64), gradient.double().norm()
        ),
        "gradient.norm() in float32": _error(gradient.norm().double(), gradient.double().norm()),
    }


def kept_bytes() -> dict[str, int]:
    """Bytes that the statistics of 30 layers keep, by batch; the hidden states are up to 35 MB.

    Those of tensors when all layers have been seen, and the most that Python and NumPy held.
    """
    found = {}
    for rows in (1, 8):
        states = [torch.zeros(rows, 64, 576)] * 30
        inputs = {"input_ids": torch.ones(rows, 64, dtype=torch.long)}
        before = _tensor_bytes()
        tracemalloc.start()
        statistics = of_states(states, inputs)
        records = statistics.records()
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        found[f"{rows} x 64 tokens"] = most + _tensor_bytes() - before
        del statistics, records
    return found


def _tensor_bytes() -> int:
    """Of all tensors that are alive: tracemalloc does not see torch's memory."""
    stores = {}
    for thing in gc.get_objects():
        if type(thing) is Tensor and not thing.is_meta:
            store = thing.untyped_storage()
            stores[store.data_ptr()] = store.nbytes()
    return sum(stores.values())


def _error(found: Tensor, true: Tensor) -> float:
    return float(((found - true) / true).abs().max())

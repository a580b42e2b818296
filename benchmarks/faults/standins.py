"""What people do by hand today: three checks of a few lines, on the same set-ups.

All three watch the same three optimizer steps on the set-up's batches. An exception counts as seen
by all of them, because training stops with it.
"""

from collections.abc import Mapping

import torch

from benchmarks.faults.bench import Bench
from safe.training.batches import Batch

STEPS = 3
NAMES = ("global norm", "norms by parameter", "parameters changed")


def stand_ins(bench: Bench) -> Mapping[str, bool]:
    """Which stand-ins cry; the set-up is used up afterwards."""
    model, before = bench.model, {n: p.clone() for n, p in bench.model.named_parameters()}
    trainable = [n for n, p in model.named_parameters() if p.requires_grad]
    totals: list[float] = []
    norms: list[float] = []
    try:
        for step in range(STEPS):
            _step(bench, bench.batches[step % len(bench.batches)], totals, norms)
    except Exception:  # whatever it is, the user sees it
        return dict.fromkeys(NAMES, True)
    after = dict(model.named_parameters())
    changed = {n: not torch.equal(before[n], after[n]) for n in before}
    right = all(moved == (name in trainable) for name, moved in changed.items())
    return dict(zip(NAMES, (_bad(totals), _bad(norms), not right), strict=True))


def _step(bench: Bench, batch: Batch, totals: list[float], norms: list[float]) -> None:
    """One step of a plain loop; ``norms`` are those of this step, by parameter without None."""
    model = bench.model
    model.train()
    bench.optimizer.zero_grad()
    output = model(batch.input_ids, batch.attention_mask, batch.audio, batch.labels, batch.seconds)
    (output.loss / batch.supervised).backward()
    norms[:] = [p.grad.norm().item() for p in model.parameters() if p.grad is not None]
    totals.append(sum(norm**2 for norm in norms) ** 0.5)
    torch.nn.utils.clip_grad_norm_(model.parameters(), bench.clip_norm)
    bench.optimizer.step()


def _bad(norms: list[float]) -> bool:
    return any(not 0 < norm < float("inf") for norm in norms)

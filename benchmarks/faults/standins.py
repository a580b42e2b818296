"""What people do by hand today: three checks of a few lines, on the same set-ups; and torchlens.

All watch the same three optimizer steps on the set-up's batches. An exception counts as seen by
all of them, because training stops with it.
"""

from collections.abc import Mapping

import torch

from benchmarks.faults import torchlens_audit
from benchmarks.faults.bench import Bench
from safe.training.batches import Batch

STEPS = 3
BY_HAND = ("global norm", "norms by parameter", "parameters changed")
NAMES = (*BY_HAND, *torchlens_audit.NAMES)
INSTALLED = NAMES if torchlens_audit.INSTALLED else BY_HAND


def stand_ins(bench: Bench) -> Mapping[str, bool | None]:
    """Which stand-ins cry, None where one has no answer; the set-up is used up afterwards."""
    model, before = bench.model, {n: p.clone() for n, p in bench.model.named_parameters()}
    trainable = [n for n, p in model.named_parameters() if p.requires_grad]
    totals: list[float] = []
    norms: list[float] = []
    try:
        for step in range(STEPS):
            _step(bench, bench.batches[step % len(bench.batches)], totals, norms)
    except Exception:  # whatever it is, the user sees it
        return {name: True if name in INSTALLED else None for name in NAMES}
    after = dict(model.named_parameters())
    changed = {n: not torch.equal(before[n], after[n]) for n in before}
    right = all(moved == (name in trainable) for name, moved in changed.items())
    by_hand = dict(zip(BY_HAND, (_bad(totals), _bad(norms), not right), strict=True))
    return {**by_hand, **torchlens_audit.torchlens_audit(bench)}


def _step(bench: Bench, batch: Batch, totals: list[float], norms: list[float]) -> None:
    """One step of a plain loop; ``norms`` are those of this step, by parameter without None."""
    model, scale = bench.model, bench.loss_scale
    model.train()
    bench.optimizer.zero_grad()
    inputs = (batch.input_ids, batch.attention_mask, batch.audio, batch.labels, batch.seconds)
    with bench.casting():
        output = model(*inputs)
    (output.loss * (scale / batch.supervised)).backward()
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad /= scale
    norms[:] = [p.grad.norm().item() for p in model.parameters() if p.grad is not None]
    totals.append(sum(norm**2 for norm in norms) ** 0.5)
    torch.nn.utils.clip_grad_norm_(model.parameters(), bench.clip_norm)
    bench.optimizer.step()


def _bad(norms: list[float]) -> bool:
    return any(not 0 < norm < float("inf") for norm in norms)

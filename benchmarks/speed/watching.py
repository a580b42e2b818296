"""What the probes of a running training cost, spread over the steps between two looks."""

from dataclasses import replace

import torch

from benchmarks.speed.pairs import Ratio, take_turns
from benchmarks.speed.training import Bench
from probes.diagnosis import diagnose
from safe_probe.watch import CHEAP, watched_batches

EVERY, AT_MOST = 50, 1.01


def watching(bench: Bench, pairs: int) -> list[Ratio]:
    """A training probed every 50 steps against one that is not.

    One look is timed against one step; 50 steps of which one is followed by a look then cost
    1 + look / 50 of 50 steps.
    """
    batches = watched_batches(bench.dataset, bench.trainer.config)

    gradients = dict.fromkeys(bench.model.fusion.blocks(), torch.ones(()))  # the step has them

    def look() -> None:
        diagnose(
            bench.model, batches, optimizer=bench.trainer.optimizer, probes=CHEAP, step=1,
            gate_gradients=gradients,
        )  # fmt: skip

    clips = sum(map(len, bench.window))
    table = f"{bench.subject.name}, {EVERY} optimizer steps of {clips} clips"
    name = f"safe-probe: {' and '.join(CHEAP)} every {EVERY} steps"
    device = bench.subject.device
    noise, found = take_turns(table, bench.ours, {name: look}, {name: AT_MOST}, pairs, device)
    low, middle, high = (1 + ratio / EVERY for ratio in (found.low, found.ratio, found.high))
    return [noise, replace(found, ratio=middle, low=low, high=high)]

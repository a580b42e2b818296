"""Healthy set-ups: configurations, seeds, fresh and trained, backbones, precisions."""

from collections.abc import Callable, Iterator
from functools import partial

from benchmarks.faults.bench import CAUSAL, LONG, Bench, build

CONFIGS = ("demo", "full", "phase1", "phase2")
TRAINED = 3


def healthy() -> dict[str, Callable[[], Bench]]:
    """Name to builder of each healthy set-up."""
    return dict(_all())


def _all() -> Iterator[tuple[str, Callable[[], Bench]]]:
    causal = list(CAUSAL)
    for i, config in enumerate(CONFIGS):
        for backbone in ("embedded", causal[i % len(causal)]):
            for dtype in ("float32", "bfloat16"):
                for seed, steps in ((0, 0), (1, 0), (2, TRAINED)):
                    name = f"{config}/{backbone}/{dtype}/seed{seed}/step{steps}"
                    yield name, partial(build, config, seed, backbone, dtype, steps)
    for seed in (0, 1):
        name = f"phase1/embedded/float32/seed{seed}/step{LONG}"
        yield name, partial(build, "phase1", seed=seed, steps=LONG)

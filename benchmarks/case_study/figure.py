"""The rows as one figure: what each run scores, on recordings it has heard and on others."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.case_study.variants import VARIANTS

_PARTS = (("heard", "recordings heard in training"), ("unheard", "recordings never heard"))


def draw(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """One dot per run and part, a line to the mean of the seeds; written to ``file``."""
    names = [name for name in VARIANTS if any(row["variant"] == name for row in rows)]
    figure, axes = plt.subplots(figsize=(8, 0.32 * len(names) + 1.2), layout="constrained")
    for offset, (part, label) in zip((-0.15, 0.15), _PARTS, strict=True):
        color = f"C{0 if part == 'heard' else 1}"
        for place, name in enumerate(names):
            values = [row[part]["value"] for row in rows if row["variant"] == name]
            axes.barh(place + offset, fmean(values), height=0.28, color=color, alpha=0.35)
            axes.plot(values, [place + offset] * len(values), "o", color=color, markersize=3.5)
        axes.plot([], [], "o", color=color, label=label)
    axes.set_yticks(range(len(names)), [VARIANTS[name].title for name in names])
    axes.invert_yaxis()
    axes.set_xlabel("CIDEr-D x 100 (a dot per seed, bars: means)")
    axes.legend(loc="lower right")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(file, dpi=110)
    plt.close(figure)

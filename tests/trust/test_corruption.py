"""A damaged checkpoint is found out before it is used, and the good one before it is named."""

import os
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from trials.damage import DAMAGES

from safe.training.checkpoint import latest_good, set_aside


@pytest.mark.sizes(1000, 5000)
def test_damaged_checkpoints(size: int, tiny_run: Any, figure: Any, tmp_path: Path) -> None:
    source, choose = tiny_run.folder / "checkpoints", random.Random(0)
    figures: Counter[str] = Counter()
    for case in range(size):
        parent = tmp_path / "run" / "checkpoints"
        shutil.copytree(source, parent, copy_function=os.link)
        newest = parent / "step-00000006"
        files = sorted(path for path in newest.rglob("*") if path.is_file())
        damage = DAMAGES[case % len(DAMAGES)]
        names = damage(newest, files, choose)
        good, rejected = latest_good(parent)
        caught = [item.path for item in rejected] == [newest]
        figures["caught"] += caught
        figures["offered"] += good == parent / "step-00000003"
        named = caught and any(name in rejected[0].reason for name in names)
        figures["named"] += named
        aside = set_aside(newest)  # as a run does that goes on
        left, none = latest_good(parent)
        figures["kept"] += aside.is_dir() and (left, none) == (good, [])
        shutil.rmtree(tmp_path / "run")
    figure(
        f"damaged checkpoints: {figures['caught']} of {size} caught, {figures['named']} with the "
        f"file named, the one before offered {figures['offered']} times, the damaged one kept "
        f"aside {figures['kept']} times"
    )
    assert figures == dict.fromkeys(("caught", "offered", "named", "kept"), size)


@pytest.mark.sizes(1, 5)
def test_well_formed_but_wrong(
    size: int, trial: Any, tiny_run: Any, figure: Any, tmp_path: Path
) -> None:
    found = trial("poison:resume", source=tiny_run.folder, folder=tmp_path, rounds=size)
    figure(
        "checkpoints with a good manifest and wrong content (NaN, Inf, other shape, backbone, "
        "config, position): {refused} of {cases} refused, {offered} with the older one "
        "named".format(**found)
    )
    assert (found["accepted"], found["crashed"]) == ([], [])
    assert found["refused"] == found["offered"] == found["cases"]

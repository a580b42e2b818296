"""What stands in, in a test, for what a reader has: weights, recordings, clusters, hours.

Everything that is replaced is written in this file.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.docs.pages import ROOT

SHORT = ("--epochs", "1", "--set", "evaluation.max_new_tokens=4",
         "--set", "evaluation.bootstrap=10", "--device", "cpu", "--probe-every", "0")  # fmt: skip
"""Behind every training: how long it takes; what watches it is tests/safe_probe/test_watch.py's."""

CLIPS = {"train": 8, "val": 2, "test": 3}
"""Of the built-in clips, and of every data set that a page downloads."""

WORDS = {
    "smollm2": "models/smollm2",
    "aisfx": "embedded",
    "FOLDER": "data/clips",
}
"""Words of a command, and what is given in their place."""

ONLY_PARSED = {
    r"make [a-z-]+": "builds an environment, or takes minutes to hours",
    r"\. \.venv/bin/activate": "there is no environment in the test's folder",
    r"(python -m )?pip install ": "installs packages",
    r"safe-train fetch ": "needs the network",
    r"(\w+=\S+ )*(torchrun|accelerate launch|srun) ": "needs several processes or GPUs",
    r"safe-train .*--slurm ": "hands the training to a cluster",
}
"""Commands that are parsed and not run, and why."""

ELSEWHERE = {
    "docs/data.md": "tests/data/test_data_page.py",
    "docs/report.md": "tests/safe_probe/test_report_commands.py",
    "docs/extend.md": "tests/test_extend.py",
}
"""Pages whose commands another test runs."""

_SHIM = """#!/usr/bin/env python3
import json, os, sys
with open(os.environ["CALLS"], "a") as calls:
    print(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]), file=calls)
"""
_SBATCH = """#!/bin/bash
while [[ ${1:-} == -* ]]; do shift; done
export SLURM_SUBMIT_DIR=$PWD
exec bash "$@"
"""
_NOTHING = "#!/bin/sh\nexit 0\n"


def programs(folder: Path) -> Path:
    """Programs for a shell: ours and ``hf`` write down their call, and sbatch starts at once."""
    folder.mkdir()
    texts = dict.fromkeys(("safe-train", "safe-probe", "hf"), _SHIM)
    texts |= {"sbatch": _SBATCH} | dict.fromkeys(("squeue", "scancel", "nvidia-smi"), _NOTHING)
    for name, text in texts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def calls(file: Path) -> list[list[str]]:
    """What the programs wrote down."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def reader(folder: Path, clips: Path, llava: Path) -> None:
    """A clone's folder as the reader has it, with the downloads that the pages begin with."""
    for name in ("scripts", "configs", "docs"):
        os.symlink(ROOT / name, folder / name)
    for place in ("data/clips", "downloads/audiocaps"):
        shutil.copytree(clips, folder / place)
    shutil.copytree(llava, folder / "models" / "smollm2")


def data_root(clips: Path) -> Callable[..., Path]:
    """Where a training's clips are: a handful of the built-in ones instead of 1,480."""
    return lambda data, *_: clips if data.root == "synthetic" else Path(data.root)


def downloads(llava: Path, clap: Path) -> Mapping[str, Callable[[Path], Any]]:
    """Hub names of ``hf download NAME [FILE] --local-dir FOLDER``, and what comes instead."""
    return {
        "llava-hf/llava-1.5-13b-hf": lambda to: shutil.copytree(llava, to, dirs_exist_ok=True),
        "laion/clap-htsat-unfused": lambda to: shutil.copytree(clap, to, dirs_exist_ok=True),
        "lukewys/laion_clap": lambda to: (to / "630k-audioset-best.pt").touch(),
    }

"""A process that has modules imported, forks once per trial and answers with its figures.

A trial may kill itself, patch the program or leak: the next one starts from the same clean
state, at the price of a fork instead of an import (a small one where torch is not imported). One
JSON object per line: {"trial": "saves:kill", "patch": name or None, "options": {...}} in, the
trial's figures or {"error": text} out.
"""

import importlib
import json
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from trials.network import attempts, refuse_network


def run(job: dict[str, Any]) -> dict[str, Any]:
    """The figures of one trial, in this very process."""
    from trials.patches import PATCHES

    if job["patch"] is not None:
        PATCHES[job["patch"]]()
    module, _, name = job["trial"].partition(":")
    trial = getattr(importlib.import_module(f"trials.{module}"), name)
    return {**trial(**job["options"]), "network": len(attempts)}


def answer(job: dict[str, Any]) -> dict[str, Any]:
    """The figures of one trial, in a fork."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "answer.json")
        pid = os.fork()
        if pid == 0:
            os.dup2(2, 1)  # what a trial prints is no answer
            try:
                figures = run(job)
            except BaseException:
                figures = {"error": traceback.format_exc()}
            file.write_text(json.dumps(figures))
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if not file.exists():
            return {"error": f"the trial's process ended with {status}"}
        found: dict[str, Any] = json.loads(file.read_text())
        return found


def main() -> None:
    """Import the modules named on the command line without network; work until the input ends."""
    sys.addaudithook(refuse_network)
    for name in sys.argv[1:]:
        importlib.import_module(name)
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()

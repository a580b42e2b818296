"""``python -m benchmarks.faults``: the scoreboard."""

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.faults.catalogue import FAULTS
from benchmarks.faults.healthy import healthy
from benchmarks.faults.scoreboard import Outcome, examine, examine_fault, to_json, totals
from benchmarks.faults.standins import NAMES
from configs.errors import did_you_mean


def main(argv: Sequence[str] | None = None) -> int:
    """Print the scoreboard; 1 when a fault is missed or a healthy set-up has an error."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all outcomes as JSON")
    parser.add_argument("--only", metavar="NAME", help="one fault or healthy set-up")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for module in ("torch", "peft"):
        warnings.filterwarnings("ignore", module=module)  # of the set-ups themselves
    set_ups = healthy()
    if args.only and args.only not in (*FAULTS, *set_ups):
        parser.error(f"no set-up {args.only!r}{did_you_mean(args.only, [*FAULTS, *set_ups])}")
    faults = [_show(examine_fault(f)) for n, f in FAULTS.items() if args.only in (None, n)]
    fine = [_show(examine(n, make)) for n, make in set_ups.items() if args.only in (None, n)]
    _summary(faults, fine)
    if args.json:
        text = json.dumps(to_json(faults, fine), indent=2)
        args.json.write_text(text + "\n", encoding="utf-8")
    return int(not all(o.hit for o in faults) or any(o.errors for o in fine))


def _show(outcome: Outcome) -> Outcome:
    """One line (two when it went wrong) as soon as it is known."""
    if outcome.expected:
        word = "root" if outcome.named else "hit" if outcome.hit else "MISS"
        good = outcome.hit
    else:
        good = not outcome.errors
        word = "quiet" if not outcome.found else "warning" if good else "ALARM"
    cried = "".join({True: "x", False: ".", None: " "}[outcome.others[name]] for name in NAMES)
    what = " or ".join(outcome.expected) or "nothing"
    print(f"{word:<8}{outcome.name:<40} {what:<36} {outcome.root or '-':<20} "
          f"{cried} {outcome.seconds:5.1f} s", flush=True)  # fmt: skip
    if not good:
        print(f"        found: {', '.join(map(_place, outcome.found.items())) or 'nothing'}")
    return outcome


def _place(found: tuple[str, tuple[int, ...]]) -> str:
    label, layers = found
    return f"{label} @ {', '.join(map(str, layers))}" if layers else label


def _summary(faults: list[Outcome], fine: list[Outcome]) -> None:
    t = totals(faults, fine)
    print(f"\nfaults found: {t['found']} of {t['faults']}; named as the root cause: "
          f"{t['named_as_root']}; by layer: {t['found_at_their_layers']} of {t['with_layers']} at "
          "the right ones")  # fmt: skip
    print(f"hard faults (an error names them) found within one step: "
          f"{t['hard_found_within_a_step']} of {t['hard']}")  # fmt: skip
    late = [f"{o.name} (step {o.step})" for o in faults if o.hard and not o.early]
    if late:
        print(f"  the others: {', '.join(late)}")
    print(f"healthy set-ups with an error: {t['healthy_with_error']} of {t['healthy']}; with a "
          f"warning: {t['healthy_with_warning']}")  # fmt: skip
    for name, count in t["others"].items():
        if count is None:
            print(f"{name:<20} not installed")
            continue
        failed = f"; it fails itself on {count['failed']} set-ups" if count["failed"] else ""
        print(f"{name:<20} cries at {count['faults']} of {t['faults']} faults and "
              f"{count['healthy']} of {t['healthy']} healthy set-ups{failed}")  # fmt: skip
    print(f"time in diagnosis: {t['seconds']} s")


if __name__ == "__main__":
    sys.exit(main())

"""``python -m benchmarks.speed``: what probes, training steps and commands cost, as ratios.

On a GPU (``--device cuda --dtype bfloat16``) the same tables are timed between events.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed import gradient_peers, layer_peers
from benchmarks.speed.accuracy import errors, kept_bytes
from benchmarks.speed.captioning import captioning
from benchmarks.speed.commands import check_command, params_command, quick_commands
from benchmarks.speed.growth import probe_curve, training_curves
from benchmarks.speed.pairs import Ratio
from benchmarks.speed.subjects import available, subject
from benchmarks.speed.tables import probe_tables
from benchmarks.speed.training import Bench, loop_that_hears_with_clap, training_tables
from benchmarks.speed.variations import variations
from benchmarks.speed.volume import data_rates, encoder_rate, report_command
from benchmarks.speed.watching import watching
from benchmarks.versions import versions
from safe.fetch import is_fetched

PARTS = ("probes", "training", "commands", "growth", "volume")
_LARGE_PAIRS = 7


def main(argv: Sequence[str] | None = None) -> int:
    """Print every table of the parts asked for; 0, whatever was reached."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; or all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures as JSON")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of torch (default 1)")
    parser.add_argument("--backbone", choices=available(), help="only this one (default: all)")
    parser.add_argument("--device", default="cpu", help="cpu (the default) or cuda")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16"),
        help="of the frozen weights (default float32)",
    )  # fmt: skip
    parser.add_argument("--run", type=Path, help="a finished run, to time reports of it")
    args = parser.parse_args(argv)
    unknown = set(args.parts) - set(PARTS)
    if unknown:
        parser.error(f"no part {min(unknown)!r}; there are {', '.join(PARTS)}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here; leave it out to measure the processor")
    parts, device = args.parts or list(PARTS), torch.device(args.device)
    torch.set_num_threads(args.threads)
    about: dict[str, Any] = {
        **versions(layer_peers.LIBRARIES + gradient_peers.LIBRARIES),
        "threads": args.threads, "dtype": args.dtype,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
    }  # fmt: skip
    print(" ".join(f"{name} {value}" for name, value in about.items()))
    names = [args.backbone] if args.backbone else available()
    found: list[dict[str, Any]] = []
    accuracy: dict[str, Any] = {}
    if "probes" in parts:
        accuracy = {"relative errors": errors(), "bytes kept": kept_bytes()}
        print(json.dumps(accuracy, indent=2))
        for name in names:
            found += _show(probe_tables(subject(name, args.device, args.dtype)))
    if "training" in parts:
        for name in names:
            encoder = "aisfx" if name != "embedded" and is_fetched("aisfx") else "embedded"
            measured = subject(name, args.device, args.dtype)
            bench = Bench(measured, encoder)
            found += _show(training_tables(bench, _LARGE_PAIRS))
            found += _show(part(bench, _LARGE_PAIRS) for part in (captioning, watching, variations))
            found += _show([loop_that_hears_with_clap(measured, _LARGE_PAIRS)])
    if "commands" in parts:
        found += _show([params_command()])
        found += _show_each(
            "commands, each in a new process", [*quick_commands(args.run), check_command()]
        )
    if "growth" in parts:
        found += _show_each("growth of an optimizer step", training_curves(device))
        found += _show_each("growth of the probes", [probe_curve(device)])
    if "volume" in parts:
        found += _show_each("data sets", chain(data_rates(), encoder_rate()))
        if args.run is not None:
            found += _show_each("reports", [report_command(args.run)])
    if args.json:
        whole = {"about": about, "accuracy": accuracy, "figures": found}
        args.json.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    return 0


def _show(tables: Iterable[list[Ratio]]) -> list[dict[str, Any]]:
    found = []
    for table in tables:
        print(f"\n1x = {table[0].table}")
        for ratio in table:
            print(ratio, flush=True)
        found += [ratio.to_json() for ratio in table]
    return found


def _show_each(title: str, lines: Iterable[Any]) -> list[dict[str, Any]]:
    print(f"\n{title}")
    found = []
    for line in lines:
        print(line, flush=True)
        found.append(line.to_json())
    return found


if __name__ == "__main__":
    sys.exit(main())

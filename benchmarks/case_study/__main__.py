"""``python -m benchmarks.case_study``: run what is missing, then print the table and draw it.

Which of the seed's five fixes does the work? Every run is a folder below OUTPUT and goes on where
it stopped; every finished one is a row of RESULTS, and is not run again.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.case_study.variants import VARIANTS, Variant

RESULTS = Path(__file__).resolve().parents[1] / "results" / "case-study.json"
Job = tuple[Variant, int]


def main(argv: Sequence[str] | None = None) -> int:
    """Everything that is asked for; 1 when a run failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.case_study", description=__doc__)
    add = parser.add_argument
    add("--data", type=Path, metavar="FOLDER", help="recordings in AudioCaps layout")
    add("--output", type=Path, default=Path("runs/case-study"), metavar="FOLDER")
    add("--results", type=Path, default=RESULTS, metavar="FILE", help="rows so far")
    add("--only", nargs="+", choices=VARIANTS, metavar="NAME", help="these variants")
    add("--seed", type=int, help="with --only: one seed")
    add("--jobs", type=int, default=1, metavar="N", help="runs side by side (default 1)")
    add("--figure", type=Path, metavar="FILE", help="draw the rows, such as docs/case-study.png")
    arguments = parser.parse_args(argv)
    if arguments.data is not None:
        arguments.data = arguments.data.resolve()
        jobs = list(_missing(arguments))
        if arguments.jobs == 1:
            failed = [job for job in jobs if not _run(job, arguments)]
        else:
            with ThreadPoolExecutor(arguments.jobs) as pool:
                done = pool.map(lambda job: _alone(job, arguments), jobs)
                failed = [job for job, fine in zip(jobs, done, strict=True) if not fine]
        for variant, seed in failed:
            print(f"{variant.name}, seed {seed}, failed; the same command goes on with it")
        if failed:
            return 1
    _show(arguments)
    return 0


def _missing(arguments: argparse.Namespace) -> Iterator[Job]:
    """What has no row yet: of every variant the first seed first."""
    have = {(row["variant"], row["seed"]) for row in rows(arguments.results)}
    chosen = [VARIANTS[name] for name in arguments.only or VARIANTS]
    for place in range(max(len(variant.seeds) for variant in chosen)):
        for variant in chosen:
            seed = dict(enumerate(variant.seeds)).get(place)
            wanted = arguments.seed in (None, seed)
            if seed is not None and wanted and (variant.name, seed) not in have:
                yield variant, seed


def _alone(job: Job, arguments: argparse.Namespace) -> bool:
    """The same in a process of its own."""
    variant, seed = job
    command = [
        sys.executable, "-m", "benchmarks.case_study", "--only", variant.name, "--seed", str(seed),
        "--data", str(arguments.data), "--output", str(arguments.output),
        "--results", str(arguments.results),
    ]  # fmt: skip
    return subprocess.run(command, check=False).returncode == 0


def _run(job: Job, arguments: argparse.Namespace) -> bool:
    """Train a variant and write its row."""
    from benchmarks.case_study.recordings import digest, layout
    from benchmarks.case_study.result import row_of
    from benchmarks.case_study.runs import Pieces, calibrate, train
    from benchmarks.versions import versions
    from configs.errors import SafeError
    from safe.console import make_console, progress
    from safe.data.append_log import file_lock
    from safe.training.interrupt import Interrupted
    from safe.training.stage_a import TrainingDiverged

    variant, seed = job
    console, output = make_console(), arguments.output
    output.mkdir(parents=True, exist_ok=True)
    with file_lock(output / "lock"):  # processes side by side find the same split and calibration
        with progress(console, "comparing recordings") as show:
            split, folder = layout(arguments.data, output / "data", show)
        pieces = Pieces(folder)
        if variant.calibrated:
            calibrate(variant, pieces, output)
    console.rule(f"{variant.title}, seed {seed}")
    try:
        run = train(variant, seed, pieces, output, console)
    except (SafeError, TrainingDiverged) as error:
        console.print(f"{type(error).__name__}: {error}", markup=False)
        return False
    except Interrupted as stop:
        console.print(str(stop), markup=False)
        raise KeyboardInterrupt from None
    row = row_of(variant.name, seed, run, split.unheard) | {"made_with": versions()}
    with file_lock(output / "rows.lock"):  # another process may be preparing for long
        about = {
            "data": digest(arguments.data),
            "unheard": list(split.unheard),
            "left_out_of_training": len(split.left_out),
        }
        _keep([*rows(arguments.results), row], arguments.results, about)
    return True


def rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a file of results; none when there is no such file."""
    if not file.exists():
        return []
    found: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["rows"]
    return found


def _keep(found: list[dict[str, Any]], file: Path, about: dict[str, Any]) -> None:
    from safe.training.durable import write_atomically

    order = list(VARIANTS)
    found.sort(key=lambda row: (order.index(row["variant"]), row["seed"]))
    write_atomically(file, json.dumps({"about": about, "rows": found}, indent=2) + "\n")


def _show(arguments: argparse.Namespace) -> None:
    from benchmarks.case_study.table import table

    found = rows(arguments.results)
    print(table(found))
    if arguments.figure is not None:
        from benchmarks.case_study.figure import draw

        draw(found, arguments.figure)


if __name__ == "__main__":
    sys.exit(main())

"""Fuzz one target by atheris, which looks for input that reaches new lines of ours.

    python -m trials.fuzz_by_coverage "csv manifests" FOLDER RUN 10000

prints the figures as JSON; a case that is not refused by a typed error ends in a traceback.
"""

import json
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["configs", "safe", "probes", "reports"]):
    from trials.fuzz import TARGETS

from hypothesis import HealthCheck, given, settings


def main() -> None:
    """Run as many cases as asked for; the process ends with the last of them."""
    name, folder, run, cases = sys.argv[1:]
    target = TARGETS[name](Path(folder), Path(run))

    @settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(target.cases)
    def one(case: object) -> None:
        target.use(case)

    left = int(cases)

    def step(data: bytes) -> None:
        nonlocal left
        one.hypothesis.fuzz_one_input(data)  # type: ignore[attr-defined]
        left -= 1
        if left == 0:
            found = {"slowest": round(target.slowest, 2), "largest": target.largest}
            figures = {**target.count, **found}
            print(json.dumps(figures), flush=True)

    limits = [f"-runs={cases}", "-timeout=60", "-rss_limit_mb=4000", "-max_len=2000"]
    crashes = f"-artifact_prefix={folder}/"
    atheris.Setup([sys.argv[0], *limits, "-len_control=0", crashes], step)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

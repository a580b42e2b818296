"""The plan's verification checklist, ticked by what is found and not by hand."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import ConfigError
from configs.model_configs import get_config
from reports.criteria import CRITERIA
from reports.criterion import Outcome
from reports.grade import Grade
from reports.run import Run

_SCRIPT = Path(__file__).parents[1] / "scripts" / "phase1_training.sh"


@dataclass(frozen=True)
class Item:
    """One line of the checklist."""

    phase: str
    """``before``, ``during`` or ``after`` training."""
    text: str
    """As the plan puts it."""
    grade: Grade
    evidence: str

    @property
    def mark(self) -> str:
        """``[x]`` done, ``[ ]`` not, ``[~]`` in part, ``[?]`` not known."""
        marks = {Grade.PASS: "x", Grade.FAIL: " ", Grade.PARTIAL: "~", Grade.UNKNOWN: "?"}
        return f"[{marks[self.grade]}]"

    def to_json(self) -> dict[str, Any]:
        """The item as JSON-safe values."""
        return {
            "phase": self.phase,
            "text": self.text,
            "grade": self.grade.value,
            "evidence": self.evidence,
        }


def checklist(run: Run | None = None, outcomes: Sequence[Outcome] = ()) -> tuple[Item, ...]:
    """The checklist; without a run, what can be known before training.

    Args:
        run: the run to look at.
        outcomes: of all criteria in that run.
    """
    by_name = {outcome.criterion.name: outcome for outcome in outcomes}
    before = [
        _item("Phase 1 config loads correctly", _config_loads),
        _item("Model kwargs are valid", lambda: _kwargs_are_valid(run)),
        _item("Script is executable", _script_runs),
        _item("Data directory exists", lambda: _data_is_there(run)),
    ]
    later = [
        ("during", "Loss converges (drops in the first 2 epochs)", "loss_drop"),
        ("during", "Gradient norms are non-zero for projector and fusion adapter", "gradients"),
        ("after", "Final CIDEr", "final_cider"),
        ("after", "Sample captions are specific", "specificity"),
    ]
    assert {name for *_, name in later} <= {criterion.name for criterion in CRITERIA}
    ticked = [_ticked(phase, text, by_name.get(name)) for phase, text, name in later]
    progress = Item("during", "CIDEr progresses", *_progress(run))
    compared = Item("after", "Compared to the baseline (was 18)", *_compared(run, by_name))
    return (*before, *ticked[:2], progress, ticked[2], compared, ticked[3])


def _progress(run: Run | None) -> tuple[Grade, str]:
    scores = [] if run is None else [row.get("cider") for row in run.evaluations]
    known = [s for s in scores if isinstance(s, int | float) and math.isfinite(s)]
    if len(known) < 2:
        return Grade.UNKNOWN, "fewer than two evaluations during training"
    grade = Grade.PASS if known[-1] > known[0] else Grade.FAIL
    return grade, f"from {known[0]:.1f} to {known[-1]:.1f} over {len(known)} evaluations"


def _compared(run: Run | None, by_name: Mapping[str, Outcome]) -> tuple[Grade, str]:
    outcome = by_name.get("baseline")
    if run is None or outcome is None:
        return Grade.UNKNOWN, "no run to look at"
    if run.baseline is None:
        return Grade.UNKNOWN, "no baseline run given: safe-probe report RUN --baseline BASELINE"
    return outcome.grade, outcome.evidence


def _ticked(phase: str, text: str, outcome: Outcome | None) -> Item:
    if outcome is None:
        return Item(phase, text, Grade.UNKNOWN, "no run to look at")
    return Item(phase, text, outcome.grade, outcome.evidence)


def _item(text: str, look: Callable[[], tuple[Grade, str]]) -> Item:
    grade, evidence = look()
    return Item("before", text, grade, evidence)


def _config_loads() -> tuple[Grade, str]:
    try:
        config = get_config("phase1")
    except ConfigError as error:
        return Grade.FAIL, str(error)
    return Grade.PASS, f"{config.name}: {config.description}"


def _kwargs_are_valid(run: Run | None) -> tuple[Grade, str]:
    # a configuration checks every value when it is made, so one that exists is valid
    model = (get_config("phase1") if run is None else run.config).model
    return Grade.PASS, f"{model.backbone}, fusion at {list(model.fusion.layers)}"


def _script_runs() -> tuple[Grade, str]:
    if not _SCRIPT.exists():
        return Grade.UNKNOWN, "scripts/ is not part of an installed package; look in a clone"
    if not os.access(_SCRIPT, os.X_OK):
        return Grade.FAIL, "not executable: chmod +x scripts/phase1_training.sh"
    return Grade.PASS, "scripts/phase1_training.sh"


def _data_is_there(run: Run | None) -> tuple[Grade, str]:
    root = (get_config("phase1") if run is None else run.config).data.root
    if root == "synthetic":
        return Grade.PASS, "built-in clips"
    if Path(root).is_dir():
        return Grade.PASS, root
    return Grade.FAIL, f"{root} is not there; another: safe-train phase1 --data FOLDER"

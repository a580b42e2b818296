"""The seed's success table, applied to a score and its control.

    > 30    connectivity verified -> Phase 2
    25-30   partial success
    < 25    still blocked

A score that another clip's audio reaches as well does not verify anything, however high it is.
"""

import math
from dataclasses import dataclass
from typing import Literal

from configs.claims import PARTIAL_FROM, VERIFIED_ABOVE
from configs.errors import MetricError
from safe.evaluation.bootstrap import Difference


@dataclass(frozen=True)
class Verdict:
    """What a final score means for the experiment."""

    outcome: Literal["VERIFIED", "PARTIAL", "BLOCKED"]
    """VERIFIED: go on to Phase 2; PARTIAL; BLOCKED: the sound does not reach the caption."""
    reason: str
    """One sentence with the numbers."""
    next_step: str
    """What to do now."""


def decide(cider: float, versus_shuffled: Difference) -> Verdict:
    """Apply the table.

    Args:
        cider: CIDEr-D x 100 of the whole split.
        versus_shuffled: own audio minus another clip's audio, paired over clips.

    Raises:
        MetricError: the score is NaN or infinite; nothing can be concluded from it.
    """
    if not math.isfinite(cider):
        raise MetricError(f"no verdict from CIDEr {cider}: it must be a finite number")
    gap = (
        f"{versus_shuffled.mean:+.1f} against another clip's audio "
        f"[95% {versus_shuffled.low:+.1f}, {versus_shuffled.high:+.1f}]"
    )
    if not versus_shuffled.significant:
        return Verdict(
            "BLOCKED",
            f"CIDEr {cider:.1f}, but {gap}: the score does not come from the sound",
            "find the broken link before training again (safe-probe check RUN)",
        )
    if cider > VERIFIED_ABOVE:
        return Verdict(
            "VERIFIED",
            f"CIDEr {cider:.1f} is above {VERIFIED_ABOVE:.0f} and {gap}: connectivity verified",
            "after Phase 1, Phase 2: remove the bottleneck and train longer (safe-train phase2)",
        )
    if cider >= PARTIAL_FROM:
        return Verdict(
            "PARTIAL",
            f"CIDEr {cider:.1f} is between {PARTIAL_FROM:.0f} and {VERIFIED_ABOVE:.0f}; {gap}",
            "partial success: train longer, or try Phase 2's fixes (safe-train phase2)",
        )
    return Verdict(
        "BLOCKED",
        f"CIDEr {cider:.1f} is below {PARTIAL_FROM:.0f}; {gap}: still blocked",
        "find the broken link (safe-probe check RUN), or roll back (safe-train rollback RUN)",
    )

"""What the probes say about a run, for the criteria."""

from math import isfinite, nan

from probes.findings.finding import Severity
from probes.findings.thresholds import Thresholds
from reports.criterion import Measurement
from reports.run import Run

_NEEDED = (
    ("magnitude", "projector", "l2_median"),
    ("magnitude", "fusion", "contribution_median"),
    ("gates", "gate", "effective"),
    ("gradflow", "projector", "norm"),
    ("influence", "signal:swapped", "kl"),
    ("data", "text", "batches"),
)
"""Probe, component and statistic without a number of which "no broken link" cannot be said."""


def influence(run: Run) -> Measurement | None:
    """How much worse another clip's audio is, in standard errors of the change of the loss."""
    if any(r.probe == "influence" for r in run.probed) and run.facts.step("influence") < run.now:
        return Measurement(None, f"measured at step {run.facts.step('influence')} only")
    change = run.facts.value("influence", "signal:swapped", "loss_change")
    error = run.facts.value("influence", "signal:swapped", "loss_change_error")
    if change is None:
        if run.facts.value("influence", "signal:swapped", "changed") == 0:
            return Measurement(0.0, "another clip's changes no bit of it")
        if run.facts.value("influence", "signal:swapped", "distinct") == 0:
            return Measurement(None, "all clips sound the same: no other audio to try")
        return None
    if error is None:
        return Measurement(None, f"costs {change:+.3f} nats/token, of unknown error")
    if error == 0:
        return Measurement(100.0 if change > 0 else 0.0, f"costs {change:+.3f}, exactly")
    certain = change / error
    kl = run.facts.value("influence", "signal:swapped", "kl")
    text = f"another clip's costs {change:+.3f} nats/token, {certain:.1f} standard errors"
    text += "" if kl is None else f", KL {kl:.2g}"
    return Measurement(certain, f"{text}, at step {run.facts.step('influence')}", f"{certain:.1f}")


def open_errors(run: Run) -> Measurement | None:
    """Number of findings of level error; unknown while a probe that finds them has not run."""
    errors = [f for f in run.findings if f.severity is Severity.ERROR]
    if errors:
        codes = ", ".join(dict.fromkeys(f.code for f in errors))
        return Measurement(
            float(len(errors)), f"{len(errors)} error{'s' * (len(errors) > 1)}: {codes}", codes
        )
    now: dict[tuple[str, str, str], list[float]] = {}
    for r in run.probed:
        if r.step == run.now:
            now.setdefault((r.probe, r.component, r.statistic), []).append(r.value)
    missing = [
        f"{probe} of {component}" for probe, component, statistic in _NEEDED
        if not all(map(isfinite, now.get((probe, component, statistic), [nan])))
    ]  # fmt: skip
    if missing:
        return Measurement(None, f"not measured at step {run.now}: {', '.join(missing)}")
    return Measurement(0.0, "no finding of level error", "none")


def contribution(run: Run) -> Measurement | None:
    """The contribution furthest from 0.1-0.3, at the start, or now if none was taken then."""
    for facts, when in ((run.start, "at the start"), (run.facts, f"at step {run.last_step}")):
        values = facts.layers("magnitude", "fusion", "contribution_median")
        if values:
            worst = max(values, key=lambda layer: _distance(values[layer]))
            text = ", ".join(f"{layer}: {value:.3g}" for layer, value in values.items())
            return Measurement(values[worst], f"by layer {text}, {when}", f"{values[worst]:.3g}")
    return None


def _distance(value: float) -> float:
    """Factor by which a contribution lies outside 0.1-0.3; NaN is furthest."""
    if not value > 0:
        return float("inf")
    return max(0.1 / value, value / 0.3)


def gates(run: Run) -> Measurement | None:
    """Percentage of gates that are open, trainable and have moved."""
    effective = run.facts.layers("gates", "gate", "effective")
    if not effective:
        return None
    trainable = run.facts.layers("gates", "gate", "trainable")
    moved = run.facts.layers("gates", "gate", "moved")
    trained = run.facts.step("gates") > 0
    quiet = Thresholds().quiet_gate
    good = [
        layer for layer, value in effective.items()
        if abs(value) >= quiet and trainable.get(layer, 0) > 0
        and (not trained or moved.get(layer, nan) > 0)
    ]  # fmt: skip
    text = ", ".join(f"{layer}: {value:.3g}" for layer, value in effective.items())
    stuck = [str(layer) for layer in effective if layer not in good]
    if stuck:
        text += f"; closed, frozen or unmoved at layer {', '.join(stuck)}"
    return Measurement(100 * len(good) / len(effective), text, f"{len(good)} of {len(effective)}")


def parity(run: Run) -> Measurement | None:
    """Share of logits that differ from the bare backbone's with all gates at 0.

    On captions or, where the model sees and more of them differ there, on pictures.
    """
    measured = {
        kind: share
        for kind in ("", "pictures_")
        if (share := run.facts.value("influence", "gate:zero", f"{kind}parity_changed")) is not None
    }
    if not measured:
        return None
    worst = max(measured, key=lambda kind: measured[kind])
    found = measured[worst]
    largest = run.facts.value("influence", "gate:zero", f"{worst}parity_max_change") or 0.0
    where = " with pictures" if worst else ""
    text = f"{found:.2%} of the logits differ{where}, by {largest:.2g} at most"
    same = "equal bit for bit" + (", with pictures too" if len(measured) > 1 else "")
    return Measurement(found, same if found == 0 else text, f"{found:.2%}")

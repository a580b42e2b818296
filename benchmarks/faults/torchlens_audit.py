"""torchlens' own audit of a traced step, when torchlens is installed (``safe-probe[bench]``).

It is asked twice, by the severity of what it reports: ``critical`` only (values or gradients that
are not finite, or far too large), and anything at all.
"""

import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from benchmarks.faults.bench import Bench

NAMES = ("torchlens, critical", "torchlens, any")
INSTALLED = find_spec("torchlens") is not None


def torchlens_audit(bench: Bench) -> Mapping[str, bool | None]:
    """Whether the audit of one forward and backward pass cries.

    The model is audited where the plain steps left it. None: torchlens is not installed, or its
    audit fails itself (2.36 on many bfloat16 models), and says nothing of the model.
    """
    if not INSTALLED:
        return dict.fromkeys(NAMES)
    try:
        with warnings.catch_warnings(action="ignore"):
            severities = _severities(bench)
    except Exception as error:
        print(f"        torchlens' audit fails: {type(error).__name__}: {str(error)[:80]}")
        return dict.fromkeys(NAMES)
    return dict(zip(NAMES, ("critical" in severities, bool(severities)), strict=True))


def _severities(bench: Bench) -> set[str]:
    import torchlens
    from torchlens.options import CaptureOptions

    batch, model = bench.batches[0], bench.model
    bench.optimizer.zero_grad()
    # torch is unwrapped again, so that what is measured next is not slowed down by it
    options = CaptureOptions(save_grads=True, backward_ready=True, unwrap_when_done=True)
    inputs = (batch.input_ids, batch.attention_mask, batch.audio, batch.labels, batch.seconds)
    with bench.casting():
        trace = torchlens.trace(model, inputs, capture=options)
    outputs: list[Any] = [trace[name].out for name in trace.output_layers]
    loss = next(out for out in outputs if out.dim() == 0)
    trace.log_backward(loss / batch.supervised)  # unscaled: it would take the scale for explosion
    audit = torchlens.debug.audit_trace(trace)
    return {finding.severity for finding in audit.findings}

"""All probes on one model, judged: ``diagnose`` and what it returns."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from torch import Tensor, nn
from torch.optim import Optimizer

from configs.errors import SafeError
from probes import all_probes, get_probe, parity
from probes.context import Context
from probes.findings.finding import Finding, Severity
from probes.findings.judge import Verdict, judge
from probes.findings.settings import Settings
from probes.findings.view import as_html, render
from probes.loss import LossFn
from probes.names import split_again
from probes.optimizers import scale_of
from probes.record import Record, RecordLog, Rows
from probes.signal_path import SignalPath

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = "safe-probe.diagnosis"
SCHEMA_VERSION = 1
_REFUSED, _MODEL_FAILED, _PROBE_FAILED = 1, 2, 3


@dataclass(frozen=True)
class Diagnosis:
    """What was measured, what it means, and what could not be measured."""

    log: RecordLog
    """Every record, in the order of measuring."""
    findings: tuple[Finding, ...] = ()
    """The root cause first, then along the chain; later symptoms name it."""
    not_measured: Mapping[str, str] = field(default_factory=dict)
    """Probe to the reason why it gave nothing."""
    settings: Settings = field(default_factory=Settings)
    """How the findings were judged."""

    @property
    def records(self) -> "pd.DataFrame":
        """The records as a tidy table: step, probe, component, layer, statistic, value, unit."""
        return self.log.frame()

    @property
    def verdict(self) -> Verdict:
        """Worst severity and root cause."""
        return Verdict.of(self.findings)

    @property
    def failed(self) -> bool:
        """Whether a finding is at or above the settings' ``fail_on``."""
        return self.settings.fails(self.findings)

    def to_json(self, **about: Any) -> dict[str, Any]:
        """Everything as JSON-safe values; ``about`` says what was diagnosed."""
        verdict = self.verdict
        return {
            "schema": SCHEMA,
            "version": SCHEMA_VERSION,
            **about,
            "verdict": {
                "text": str(verdict),
                "severity": None if verdict.severity is None else verdict.severity.word,
                "root": None if verdict.root is None else verdict.root.code,
                "failed": self.failed,
            },
            "findings": [finding.to_json() for finding in self.findings],
            "not_measured": dict(self.not_measured),
            "records": [record.to_json() for record in self.log],
        }

    def save(self, folder: Path | str, **about: Any) -> Path:
        """Write ``diagnosis.json``, ``records.jsonl`` and ``records.csv`` into ``folder``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_json(**about), indent=2, ensure_ascii=False, allow_nan=False)
        (folder / "diagnosis.json").write_text(text + "\n", encoding="utf-8")
        self.log.write(folder / "records.jsonl")
        self.log.to_csv(folder / "records.csv")
        return folder

    def __rich__(self) -> RenderableType:
        return render(self.findings, self.not_measured)

    def _repr_html_(self) -> str:
        return as_html(self.findings, self.not_measured)


def diagnose(
    model: nn.Module,
    batches: Iterable[Any] = (),
    path: SignalPath | Path | str | None = None,
    loss_fn: LossFn | None = None,
    optimizer: Optimizer | None = None,
    probes: Sequence[str] | None = None,
    *,
    signal: str = "audio",
    step: int = 0,
    start: Mapping[str, Tensor] | None = None,
    silence: Tensor | None = None,
    pictures: Any = None,
    clip_norm: float | None = None,
    loss_scale: float | None = None,
    gate_gradients: Mapping[int, Tensor | None] | None = None,
    in_step: bool = False,
    settings: Settings | None = None,
    further: Iterable[Record] = (),
    progress: Callable[[str], None] | None = None,
) -> Diagnosis:
    """Measure a model and say which link of its signal path is broken; it stays as it was.

    Args:
        model: any torch module, also wrapped by DDP, torch.compile or PEFT.
        batches: mappings of the model's keyword inputs, or dataclasses with tensor fields.
        path: a signal path, a YAML file with one, or None to infer it.
        loss_fn: (output, batch) to nats per supervised token; None takes the model's own loss.
        optimizer: of the training; one step of it is tried and undone.
        probes: names of the probes to run; None for all, also other packages'.
        signal: which signal to infer the path of, ``audio`` or ``vision``.
        step: optimizer steps done; findings about training need it.
        start: parameter values at the start of training, by name.
        silence: the signal of one silent clip; zeros when None.
        pictures: one batch with pictures beside the signal, on which ``influence`` asks once more
            whether a closed gate gives the bare backbone (SP410); None for a model that sees none.
        clip_norm: what the training clips gradients to.
        loss_scale: of a GradScaler, for float16; None takes that of an optimizer that knows its
            scaler (accelerate), or 1.
        gate_gradients: gradients of the gates by fusion layer (None for none), as the training's
            own step has them: then the gates need no backward pass of their own.
        in_step: every process calls this with the same batches at the same time, as a model needs
            whose frozen layers FSDP2 splits; each gets the same numbers.
        settings: which findings to report and from which limits on; the defaults when None.
        further: records from elsewhere (scores, claims) to judge together with the measured ones.
        progress: called with the name of each probe before it runs.

    Raises:
        PathError: the path does not fit the model or cannot be inferred.
        ProbeError: a batch is not one, or an unknown probe.
    """
    settings = settings or Settings()
    options: dict[str, dict[str, Any]] = {
        "gates": {"gradients": gate_gradients},
        "influence": {"silence": silence},
        "gradflow": {
            "clip_norm": clip_norm,
            "loss_scale": scale_of(optimizer) if loss_scale is None else loss_scale,
        },
    }
    names = all_probes() if probes is None else tuple(probes)
    chosen = {name: partial(get_probe(name), **options.get(name, {})) for name in names}
    if pictures is not None and "influence" in chosen:
        # beside the probe, so that a model that fails on pictures loses no other measurement
        chosen["influence with pictures"] = partial(parity.measure, pictures=pictures)
    context = Context.of(
        model, batches, path, signal=signal, loss_fn=loss_fn, optimizer=optimizer, step=step,
        start=start, in_step=in_step,
    )  # fmt: skip
    reasons: dict[str, str] = {}
    log = RecordLog(_measure(context, chosen, reasons, progress or (lambda _: None)))
    log.extend(further)
    return Diagnosis(log, tuple(judge(log, settings)), reasons, settings)


def assert_signal(
    model: nn.Module,
    batch: Any,
    path: SignalPath | Path | str | None = None,
    ignore: Sequence[str] = (),
    *,
    fail_on: Severity = Severity.ERROR,
    **options: Any,
) -> Diagnosis:
    """Fail a test when the signal path of ``model`` is broken.

    Args:
        model: to be diagnosed; it stays as it was.
        batch: one batch, or a list of them.
        path: as in :func:`diagnose`.
        ignore: codes, or beginnings of codes, that are fine here.
        fail_on: least severity that fails.
        options: further arguments of :func:`diagnose`.

    Raises:
        AssertionError: a finding at or above ``fail_on``; the message holds all of them.
    """
    settings = Settings(ignore=tuple(ignore), fail_on=fail_on)
    batches = batch if isinstance(batch, list | tuple) else [batch]
    diagnosis = diagnose(model, batches, path, settings=settings, **options)
    bad = [f for f in diagnosis.findings if f.severity >= fail_on]
    if bad:
        lines = "\n".join(f"  {f.code} {f.place}: {f.title} ({f.measured})" for f in bad)
        raise AssertionError(f"the signal path is {diagnosis.verdict}\n{lines}")
    return diagnosis


def _measure(
    context: Context,
    probes: Mapping[str, Callable[[Context], list[Record]]],
    reasons: dict[str, str],
    progress: Callable[[str], None],
) -> Iterator[Record]:
    """The records of all probes; one that cannot measure gives a record of that and its reason."""
    missed = Rows("diagnosis", context.step)
    failed: list[str] = []
    for name, measure in probes.items():
        progress(name)
        split_again(context.path.model)
        try:
            yield from measure(context)
        except SafeError as error:
            reasons[name] = str(error)
            missed.add(name, "not_measured", _REFUSED, "code")
        except Exception as error:  # the model's own code: the other probes may still tell why
            reasons[name] = f"{type(error).__name__}: {error}"
            failed.append(name)
    code = _PROBE_FAILED if failed and _runs(context) else _MODEL_FAILED
    for name in failed:
        missed.add(name, "not_measured", code, "code")
    yield from missed.records


def _runs(context: Context) -> bool:
    """Whether the model takes its batches as they are: forward, and one backward in training."""
    try:
        with context.session() as session:
            for batch in context.batches:
                session.forward(batch)
        if context.batches and context.has_loss:
            batch = context.batches[0]
            with context.session("train") as session:
                loss = context.loss_fn(session.forward(batch, grad=True), batch)
                if loss.requires_grad:
                    session.backward(loss)
    except Exception:  # the model's own code
        return False
    return True

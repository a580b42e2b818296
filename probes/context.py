"""What every probe is given."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from probes.batch import Batch
from probes.errors import PathError, ProbeError
from probes.infer import infer
from probes.loss import LossFn, OwnLoss
from probes.names import split_module
from probes.record import Rows
from probes.resolved_path import ResolvedPath
from probes.session import Mode, Session
from probes.signal_path import SignalPath


@dataclass(frozen=True, eq=False)
class Context:
    """A model with its signal path, and what there is to measure it with."""

    path: ResolvedPath
    """Where things are; ``path.model`` is the module to call."""
    batches: tuple[Batch, ...] = ()
    """Real batches; empty when only parameters are looked at."""
    loss_fn: LossFn = field(default_factory=OwnLoss)
    """(output, batch) to nats per supervised token."""
    optimizer: Optimizer | None = None
    """The optimizer of the training run, when there is one."""
    step: int = 0
    """Optimizer steps done so far."""
    start: Mapping[str, Tensor] = field(default_factory=dict)
    """Values of parameters at the start of training, by name; used to say how far they moved."""

    @classmethod
    def of(
        cls,
        model: nn.Module,
        batches: Iterable[Any] = (),
        path: SignalPath | Path | str | None = None,
        *,
        signal: str = "audio",
        loss_fn: LossFn | None = None,
        optimizer: Optimizer | None = None,
        step: int = 0,
        start: Mapping[str, Tensor] | None = None,
        in_step: bool = False,
    ) -> "Context":
        """Make a context.

        Args:
            model: any torch module, also wrapped by DDP, torch.compile or PEFT.
            batches: mappings of keyword inputs, or dataclasses with tensor fields.
            path: a signal path, a YAML file with one, or None to infer it.
            signal: which signal to infer the path of, ``audio`` or ``vision``.
            loss_fn: (output, batch) to a scalar; None takes the model's own ``.loss``.
            optimizer: of the training run.
            step: optimizer steps done.
            start: parameter values at the start of training, by name.
            in_step: every process measures the same at the same time, as a model needs whose
                frozen layers FSDP2 splits; alone, one would wait for the others for ever.

        Raises:
            PathError: the path does not fit the model or cannot be inferred, or the model's
                parameters are split over processes.
            ProbeError: a batch is not one.
        """
        if not in_step and (split := split_module(model)) is not None:
            raise PathError(
                f"{split} is a FSDPModule: its parameters are split over processes; diagnose in "
                "every process with in_step=True, or probe before sharding"
            )
        if path is None:
            path = infer(model, signal)
        elif not isinstance(path, SignalPath):
            path = SignalPath.from_yaml(path)
        resolved = path.resolve(model)
        made = tuple(Batch.of(raw, path.signal_input) for raw in batches)
        loss = loss_fn or OwnLoss(path.loss)
        return cls(resolved, made, loss, optimizer, step, dict(start or {}))

    def rows(self, probe: str) -> Rows:
        """An empty collection for the records of ``probe`` at this step."""
        return Rows(probe, self.step)

    def session(self, mode: Mode = "eval") -> Session:
        """A session on the model."""
        return Session(self.path.model, mode)

    @property
    def has_loss(self) -> bool:
        """Whether a loss can be taken: the batches have labels, or the caller gave a loss."""
        labelled = all(batch.labels is not None for batch in self.batches)
        return labelled or not isinstance(self.loss_fn, OwnLoss)

    def need_batches(self, probe: str) -> tuple[Batch, ...]:
        """The batches.

        Raises:
            ProbeError: there are none.
        """
        if not self.batches:
            raise ProbeError(f"the {probe} probe needs at least one batch")
        return self.batches

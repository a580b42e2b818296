"""Stage A: train projector and fusion on captions while the backbone stays frozen.

The loss of an optimizer step is the mean over all caption tokens of its window of micro-batches,
so 4 x 32 and 128 x 1 give the same gradient. Processes share the micro-batches of a window and sum
the trainable gradients once per step; the frozen backbone needs no wrapper for that.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor
from torch.optim import AdamW

from configs.errors import CheckpointError, ModelError
from configs.schema import OptimConfig
from safe.models.safe_model import SAFEModel
from safe.training.batches import CaptionDataset, epoch_windows
from safe.training.callbacks import Callback, Step, name_clips
from safe.training.retention import Retention


class TrainingDiverged(Exception):
    """Loss or gradient was not finite several steps in a row."""


@dataclass
class Position:
    """Where a training is; between two optimizer steps this is all that a resume needs to know."""

    epoch: int = 0
    """Complete epochs."""
    window: int = 0
    """Windows (optimizer steps) done in the running epoch; the accumulation phase is always 0."""
    step: int = 0
    """Optimizer steps taken, skipped ones included."""
    bad_in_a_row: int = 0
    """Steps skipped in a row because something was not finite."""
    skipped: int = 0
    """Steps skipped in all."""


class StageA:
    """Optimizer, schedule and steps; knows nothing of files.

    Args:
        model: model with a frozen backbone.
        dataset: tokenised training captions.
        config: learning rates, batch, schedule.
        accelerator: device, precision and processes.
        retention: term that keeps the model from forgetting.
        callbacks: watchers of this process.

    Raises:
        ModelError: the model's gate is shut, so there is nothing to learn from.
    """

    def __init__(
        self,
        model: SAFEModel,
        dataset: CaptionDataset,
        config: OptimConfig,
        accelerator: Accelerator,
        retention: Retention,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        if model.outer_gate.value == 0.0:
            raise ModelError(
                "the model's gate is 0, so no sound reaches the loss; open it with set_gate(1.0)"
            )
        self.model, self.dataset, self.config = model, dataset, config
        self.accelerator, self.retention = accelerator, retention
        self.callbacks = list(callbacks)
        self.position = Position()
        self.in_step = False
        """Whether every process must run the same number of forward passes (sharded backbone)."""
        self._lengths = dataset.lengths()
        self._epoch_windows: tuple[int, list[list[list[int]]]] = (-1, [])
        self.steps_per_epoch = len(self._windows(0))
        epochs_steps = self.steps_per_epoch * config.epochs
        self.total_steps = min(epochs_steps, config.max_steps or epochs_steps)
        self.parameters = {n: p for g in model.trainable_groups().values() for n, p in g.items()}
        # fused: one pass over each tensor instead of a dozen, which on a CPU is 7% of a step
        self.optimizer = AdamW(self._parameter_groups(), betas=(0.9, 0.999), eps=1e-8, fused=True)
        if accelerator.num_processes > 1:
            for parameter in self.parameters.values():
                parameter.data = broadcast(parameter.data, from_process=0)

    @property
    def done(self) -> bool:
        """Whether every step has been taken."""
        return self.position.step >= self.total_steps

    @property
    def epochs(self) -> float:
        """Epochs done so far, fractional."""
        return self.position.epoch + self.position.window / self.steps_per_epoch

    def advance(self) -> bool:
        """Take the next step of the running epoch.

        Returns:
            Whether that completed the epoch.

        Raises:
            TrainingDiverged: too many steps in a row were not finite; none of them moved anything.
        """
        windows = self._windows(self.position.epoch)
        window = windows[self.position.window]
        self.take_step(window)
        self.position.window += 1
        epoch_over = self.position.window == len(windows)
        if epoch_over:
            self.position.epoch += 1
            self.position.window = 0
        if self.position.bad_in_a_row >= self.config.max_bad_steps:
            raise TrainingDiverged(self._divergence(window))
        return epoch_over

    def take_step(self, window: Sequence[Sequence[int]]) -> Step:
        """One optimizer step on the micro-batches of ``window`` (lists of example indices).

        A step whose loss or gradient is not finite moves nothing and is counted as skipped.
        """
        start = time.perf_counter()
        number = self.position.step + 1
        self.model.train()
        self._set_learning_rates()
        if self.model.outer_gate.warmup_steps:
            self.model.set_gate_warmup(number, self.model.outer_gate.warmup_steps)
        tokens = int(sum(self._lengths[i] for batch in window for i in batch))
        # On every process, which keeps them in step, but it counts once. Summing it rather than
        # trusting it to be the same everywhere keeps the processes' parameters equal to the bit.
        retention = self.retention.backward(number)
        if not self.accelerator.is_main_process:
            self.optimizer.zero_grad(set_to_none=True)
        share = self._sum_over_processes(self._backward(window, tokens))
        for callback in self.callbacks:
            callback.on_gradients(self, number)
        loss, norms, gates, retained = self._measured(share, retention)
        lr = {
            group["name"]: group["lr"]
            for group in self.optimizer.param_groups
            if group["name"] in norms
        }
        finite = math.isfinite(loss) and math.isfinite(norms["total"])
        if finite:
            torch.nn.utils.clip_grads_with_norm_(
                self.parameters.values(), self.config.clip_norm, torch.tensor(norms["total"])
            )
            self.optimizer.step()
            self.retention.after_step()
        self.optimizer.zero_grad(set_to_none=True)
        self._count(finite)
        step = Step(
            step=number,
            epoch=self.position.epoch + (self.position.window + 1) / self.steps_per_epoch,
            loss=loss,
            tokens=tokens,
            clips=sum(len(batch) for batch in window),
            grad_norm=norms,
            lr=lr,
            gate=gates,
            outer_gate=self.model.outer_gate.effective,
            skipped=not finite,
            skipped_clips=() if finite else self._clip_ids(window),
            retention=retained,
            seconds=time.perf_counter() - start,
        )
        for callback in self.callbacks:
            callback.on_step_end(self, step)
        return step

    def state(self) -> dict[str, Any]:
        """The position as JSON values; the schedule is a function of its step."""
        return {"position": asdict(self.position)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state`; the optimizer's tensors are restored by the caller.

        Raises:
            CheckpointError: it is no position of this training.
        """
        self.position = self._checked(state.get("position"))
        if self.position.bad_in_a_row >= self.config.max_bad_steps:
            self.position.bad_in_a_row = 0  # it has stopped the run once; count anew

    def _checked(self, saved: Any) -> Position:
        names = asdict(Position()).keys()
        if isinstance(saved, dict) and saved.keys() == names:
            position = Position(**saved)
            sound = all(type(value) is int and value >= 0 for value in saved.values())
            if (
                sound
                and position.window < self.steps_per_epoch
                and position.step == position.epoch * self.steps_per_epoch + position.window
                and position.step <= self.total_steps
            ):
                return position
        raise CheckpointError(
            f"the checkpoint's position is {saved!r}, which is none of this run of "
            f"{self.total_steps} steps, {self.steps_per_epoch} per epoch"
        )

    def _backward(self, window: Sequence[Sequence[int]], tokens: int) -> Tensor:
        """Gradients of this process's share of the window; its part of the mean loss."""
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        total = torch.zeros((), device=self.accelerator.device)
        share = [(indices, 1.0) for indices in window[process::processes]]
        if self.in_step and len(share) < math.ceil(len(window) / processes):
            share.append((window[0], 0.0))  # a pass that only keeps step with the others
        for indices, weight in share:
            batch = self.dataset.batch(indices)
            ids = batch.input_ids.to(self.accelerator.device, non_blocking=True)
            with self.accelerator.autocast():
                # no mask: padding is on the right, and no token attends to what is behind it
                output = self.model(ids, None, batch.audio, batch.labels, batch.seconds)
            assert output.loss is not None
            loss = weight * output.loss / tokens
            loss.backward()
            total += loss.detach().to(total.device)
        return total

    def _sum_over_processes(self, loss: Tensor) -> Tensor:
        """Sum loss and trainable gradients over processes; the summed loss."""
        if self.accelerator.num_processes > 1:
            for parameter in self.parameters.values():
                grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = self.accelerator.reduce(grad, "sum")
            loss = self.accelerator.reduce(loss, "sum")
        return loss

    def _measured(
        self, share: Tensor, retention: Tensor | None
    ) -> tuple[float, dict[str, float], dict[int, float], float | None]:
        """Loss, norms of all gradients and of each group's, residual_scale by layer, retention.

        One transfer of all of them: for each of its own the program would wait for the device.
        """
        groups = self.model.trainable_groups()
        grads = [[p.grad for p in g.values() if p.grad is not None] for g in groups.values()]
        blocks = self.model.fusion.blocks()
        scales = [block.residual.residual_scale.detach() for block in blocks.values()]
        terms = [] if retention is None else [retention]
        scalars = [share, *map(torch.nn.utils.get_total_norm, grads), *scales, *terms]
        wide = [scalar.to(share.device, torch.float64) for scalar in scalars]
        numbers = iter(torch.stack(wide).tolist())
        loss = next(numbers)
        norms = {group: next(numbers) for group in groups}
        gates = {layer: next(numbers) for layer in blocks}
        total = {"total": math.hypot(*norms.values())}
        return loss, total | norms, gates, next(numbers, None)

    def _count(self, finite: bool) -> None:
        self.position.step += 1
        self.position.bad_in_a_row = 0 if finite else self.position.bad_in_a_row + 1
        self.position.skipped += not finite

    def _windows(self, epoch: int) -> list[list[list[int]]]:
        """The steps of an epoch, made once: shuffling 50,000 clips takes as long as a probe."""
        if self._epoch_windows[0] != epoch:
            c = self.config
            made = epoch_windows(self._lengths, c.batch_size, c.accumulation, c.seed, epoch)
            self._epoch_windows = epoch, made
        return self._epoch_windows[1]

    def _set_learning_rates(self) -> None:
        """The rates of the next step; skipped steps count, so a resumed run needs the step only."""
        factor = self._lr_factor(self.position.step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor

    def _lr_factor(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to 0; ``step`` counts from 0."""
        warmup = math.ceil(self.config.warmup_ratio * self.total_steps)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = (step - warmup) / max(1, self.total_steps - warmup)
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Two learning rates; weight decay on matrices only, so that it never closes a gate."""
        groups = []
        for name, lr in (
            ("projector", self.config.lr_projector),
            ("adapter", self.config.lr_adapter),
        ):
            members = self.model.trainable_groups()[name]
            for suffix, decay, chosen in (
                ("", self.config.weight_decay, [n for n, p in members.items() if p.dim() >= 2]),
                ("_no_decay", 0.0, [n for n, p in members.items() if p.dim() < 2]),
            ):
                groups.append(
                    {
                        "params": [members[n] for n in chosen],
                        "names": chosen,
                        "name": name + suffix,
                        "lr": lr,
                        "peak_lr": lr,
                        "weight_decay": decay,
                    }
                )
        return groups

    def _clip_ids(self, window: Sequence[Sequence[int]]) -> tuple[str, ...]:
        """Ids of the clips of a step, each once."""
        rows = (self.dataset.rows[i][0] for batch in window for i in batch)
        return tuple(dict.fromkeys(self.dataset.clip_ids[row] for row in rows))

    def _divergence(self, window: Sequence[Sequence[int]]) -> str:
        return (
            f"loss or gradient was not finite for {self.position.bad_in_a_row} steps in a row "
            f"(optim.max_bad_steps = {self.config.max_bad_steps}), last at step "
            f"{self.position.step}, clips {name_clips(self._clip_ids(window))}; lower "
            "optim.lr_projector or model.projector.scale, or check the clips with "
            "`safe-train data check ROOT`"
        )

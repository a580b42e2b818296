"""The optimizer step: its gradient, schedule, groups, skipping, and what callbacks see."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from configs.errors import ModelError, SafeError
from configs.schema import RetentionConfig
from safe.models.safe_model import SAFEModel
from safe.training.batches import CaptionDataset
from safe.training.callbacks import Callback, Step, name_clips
from safe.training.stage_a import Position, StageA, TrainingDiverged

TrainerMaker = Callable[..., StageA]
Snapshot = Callable[[SAFEModel], dict[str, Tensor]]
ModelMaker = Callable[..., SAFEModel]
DatasetMaker = Callable[..., CaptionDataset]

GRADIENT_TOLERANCE = 4e-6
"""Largest relative L2 distance between the gradients of two groupings of the same examples.

Measured: 1.2e-6 for 32 x 4 against 1 x 128, 7e-7 for a partial group (float32 sums in another
order)."""


class Recorder(Callback):
    """Keeps copies of the gradients and every step."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, Tensor]] = []
        self.steps: list[Step] = []

    def on_gradients(self, trainer: StageA, step: int) -> None:
        self.gradients.append(
            {n: p.grad.clone() for n, p in trainer.parameters.items() if p.grad is not None}
        )

    def on_step_end(self, trainer: StageA, step: Step) -> None:
        self.steps.append(step)


def gradients(trainer: StageA, window: Sequence[Sequence[int]]) -> tuple[dict[str, Tensor], Step]:
    """What one step on ``window`` sees, before clipping."""
    recorder = Recorder()
    trainer.callbacks.append(recorder)
    step = trainer.take_step(window)
    trainer.callbacks.remove(recorder)
    return recorder.gradients[0], step


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Largest relative L2 distance of a tensor pair."""
    assert one.keys() == other.keys()
    return max(((one[n] - other[n]).norm() / other[n].norm().clamp_min(1e-12)).item() for n in one)


@pytest.mark.parametrize(("clips", "size"), [(128, 4), (128, 32), (22, 4), (5, 4)])
def test_accumulated_micro_batches_give_the_gradient_of_one_large_batch(
    clips: int, size: int, make_trainer: TrainerMaker, make_model: ModelMaker,
    make_dataset: DatasetMaker,
) -> None:  # fmt: skip
    order = np.random.default_rng(0).permutation(clips).tolist()
    micro = [order[i : i + size] for i in range(0, clips, size)]  # the last one may be partial
    results = []
    for window in (micro, [order]):
        model = make_model()
        results.append(gradients(make_trainer(model, make_dataset(model, clips)), window))
    (grouped, step), (whole, reference) = results
    assert distance(grouped, whole) < GRADIENT_TOLERANCE
    assert step.loss == pytest.approx(reference.loss, rel=1e-6)
    assert step.tokens == reference.tokens and step.clips == clips


def test_loss_is_the_mean_over_the_caption_tokens_of_the_whole_window(
    make_trainer: TrainerMaker, make_model: ModelMaker, make_dataset: DatasetMaker
) -> None:
    model = make_model()
    dataset = make_dataset(model, 6)
    trainer = make_trainer(model, dataset)
    summed, tokens = 0.0, 0
    with torch.no_grad():
        for i in range(6):  # one by one: no padding, no micro-batch, plain cross entropy
            batch = dataset.batch([i])
            logits = model(batch.input_ids, audio=batch.audio, seconds=batch.seconds).logits[0]
            answer = batch.labels[0] != -100
            wanted = F.cross_entropy(logits[:-1][answer[1:]], batch.input_ids[0][answer],
                                     reduction="sum")  # fmt: skip
            summed, tokens = summed + wanted.item(), tokens + int(answer.sum())
    step = trainer.take_step([[0, 1, 2, 3], [4, 5]])
    assert step.tokens == tokens
    assert step.loss == pytest.approx(summed / tokens, rel=1e-5)


def test_last_window_of_an_epoch_is_partial_and_every_example_occurs_once(
    make_trainer: TrainerMaker, make_model: ModelMaker, make_dataset: DatasetMaker
) -> None:
    recorder, model = Recorder(), make_model()
    trainer = make_trainer(model, make_dataset(model, 19), callbacks=[recorder], epochs=1)
    assert trainer.steps_per_epoch == trainer.total_steps == 3
    assert [trainer.advance() for _ in range(3)] == [False, False, True]
    assert trainer.done and sum(step.clips for step in recorder.steps) == 19
    assert recorder.steps[-1].clips in (3, 4)  # one micro-batch is left, of what is left
    assert recorder.steps[-1].epoch == 1.0


def test_optimizer_holds_exactly_the_trainables_and_decays_matrices_only(
    make_trainer: TrainerMaker,
) -> None:
    trainer = make_trainer(lr_projector=3e-3, lr_adapter=5e-4, weight_decay=0.1)
    model = trainer.model
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    held = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    assert len(held) == len(trainable) and {id(p) for p in held} == trainable
    for group in trainer.optimizer.param_groups:
        decays = not group["name"].endswith("_no_decay")
        assert group["weight_decay"] == (0.1 if decays else 0.0)
        assert all((p.dim() >= 2) == decays for p in group["params"])
        assert group["lr"] == (3e-3 if group["name"].startswith("projector") else 5e-4)
    gates = {id(block.residual.residual_scale) for block in model.fusion.blocks().values()}
    decayed = {id(p) for g in trainer.optimizer.param_groups if g["weight_decay"]
               for p in g["params"]}  # fmt: skip
    assert gates and not gates & decayed


def test_weight_decay_never_moves_a_gate_that_has_no_gradient(
    make_trainer: TrainerMaker, make_model: ModelMaker, trainables: Snapshot
) -> None:
    class NoGradient(Callback):
        def on_gradients(self, trainer: StageA, step: int) -> None:
            for parameter in trainer.parameters.values():
                parameter.grad = torch.zeros_like(parameter)

    model = make_model()
    trainer = make_trainer(model, callbacks=[NoGradient()], weight_decay=0.5)
    before = trainables(model)
    trainer.advance()
    for name, after in trainables(model).items():
        assert torch.equal(after, before[name]) == (after.dim() < 2 or not before[name].any()), name


def test_model_whose_gate_is_shut_cannot_be_trained(
    make_trainer: TrainerMaker, make_model: ModelMaker
) -> None:
    model = make_model()
    model.set_gate(0.0)
    with pytest.raises(ModelError, match="the model's gate is 0, so no sound reaches the loss"):
        make_trainer(model)


def test_learning_rate_rises_linearly_then_falls_along_half_a_cosine(
    make_trainer: TrainerMaker,
) -> None:
    recorder = Recorder()
    trainer = make_trainer(
        callbacks=[recorder], lr_projector=1e-3, lr_adapter=5e-4, warmup_ratio=0.25, epochs=8,
        max_steps=20,
    )  # fmt: skip
    while not trainer.done:
        trainer.advance()
    rates = [step.lr["projector"] for step in recorder.steps]
    expected = [1e-3 * (n + 1) / 6 for n in range(5)]
    expected += [1e-3 * 0.5 * (1 + math.cos(math.pi * n / 15)) for n in range(15)]
    assert rates == pytest.approx(expected, rel=1e-12)
    assert [s.lr["adapter"] for s in recorder.steps] == pytest.approx([r / 2 for r in rates])
    assert max(rates) == 1e-3 and min(rates) > 0


def test_first_step_equals_plain_adamw_after_clipping(
    make_trainer: TrainerMaker, make_model: ModelMaker, trainables: Snapshot
) -> None:
    model = make_model()
    trainer = make_trainer(model, clip_norm=0.05, warmup_ratio=0.0, weight_decay=0.1)
    before, (grads, step) = trainables(model), gradients(trainer, [[0, 1], [2]])
    norm = math.sqrt(sum(g.double().square().sum().item() for g in grads.values()))
    assert step.grad_norm["total"] == pytest.approx(norm, rel=1e-5) and norm > 0.05
    for name, after in trainables(model).items():
        grad = grads[name].double() * 0.05 / norm
        decay = 0.1 if after.dim() >= 2 else 0.0
        old = before[name].double()
        wanted = old * (1 - 1e-2 * decay) - 1e-2 * grad / (grad.abs() + 1e-8)
        torch.testing.assert_close(after.double(), wanted, rtol=1e-4, atol=2e-5)


class Poison(Callback):
    """Makes the gradient of chosen steps not finite."""

    def __init__(self, value: float, *steps: int) -> None:
        self.value, self.steps = value, steps

    def on_gradients(self, trainer: StageA, step: int) -> None:
        if step in self.steps:
            parameter = next(p for p in trainer.parameters.values() if p.grad is not None)
            assert parameter.grad is not None
            parameter.grad.view(-1)[0] = self.value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_gradient_that_is_not_finite_moves_nothing_and_is_counted(
    value: float, make_trainer: TrainerMaker, trainables: Snapshot
) -> None:
    recorder = Recorder()
    trainer = make_trainer(callbacks=[Poison(value, 1, 3), recorder])
    start = trainables(trainer.model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no talk of a scheduler that steps before its optimizer
        trainer.advance()
    assert all(torch.equal(t, start[n]) for n, t in trainables(trainer.model).items())
    assert not trainer.optimizer.state and trainer.position == Position(0, 1, 1, 1, 1)
    trainer.advance()
    moved = trainables(trainer.model)
    assert not all(torch.equal(t, start[n]) for n, t in moved.items())
    assert trainer.position.bad_in_a_row == 0
    trainer.advance()
    assert all(torch.equal(t, moved[n]) for n, t in trainables(trainer.model).items())
    assert trainer.position.skipped == 2
    assert [step.skipped for step in recorder.steps] == [True, False, True]
    for step, window in zip(recorder.steps, trainer._windows(0), strict=False):
        ids = tuple(f"clip{i}" for batch in window for i in batch)  # one caption per clip
        assert step.skipped_clips == (ids if step.skipped else ())
        assert step.to_row().get("skipped_clips", ()) == step.skipped_clips
    notice = recorder.steps[0].skip_notice()
    assert notice.startswith("step 1 skipped: loss") and notice.endswith(
        "clips " + ", ".join(recorder.steps[0].skipped_clips)  # eight: all are named
    )
    assert all(p.grad is None for p in trainer.parameters.values())


def test_loss_that_is_not_finite_stops_the_run_with_the_clips_and_moves_nothing(
    make_trainer: TrainerMaker, make_model: ModelMaker, trainables: Snapshot,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    model = make_model()
    trainer = make_trainer(model, max_bad_steps=3, epochs=5)
    start = trainables(model)
    forward = model.forward

    def broken(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        assert output.loss is not None
        return output._replace(loss=output.loss * math.nan)

    monkeypatch.setattr(model, "forward", broken)
    trainer.advance()
    trainer.advance()
    window = trainer._windows(0)[2]
    with pytest.raises(TrainingDiverged, match="not finite for 3 steps in a row") as caught:
        trainer.advance()
    message = str(caught.value)
    assert "optim.max_bad_steps = 3" in message and "safe-train data check" in message
    assert f"clips clip{window[0][0]}, clip{window[0][1]}" in message
    assert not isinstance(caught.value, SafeError)  # its exit code is 1, not that of bad input
    assert trainer.position == Position(epoch=1, window=0, step=3, bad_in_a_row=3, skipped=3)
    assert all(torch.equal(t, start[n]) for n, t in trainables(model).items())


@pytest.mark.parametrize("steps", [0, 4])
def test_gate_warmup_of_training_is_the_one_of_evaluation(
    steps: int, make_trainer: TrainerMaker, make_model: ModelMaker
) -> None:
    model, seen = make_model(fusion={"gate_warmup_steps": steps}), []
    model.projector.register_forward_hook(lambda *_: seen.append(model.outer_gate.effective))
    trainer = make_trainer(model, epochs=3)
    recorder = Recorder()
    trainer.callbacks.append(recorder)
    for number in range(1, 7):
        seen.clear()
        trainer.advance()
        wanted = 1.0 if steps == 0 else min(1.0, number / steps)
        assert set(seen) == {wanted} and recorder.steps[-1].outer_gate == wanted
        model.eval()
        assert model.outer_gate.effective == wanted  # what a generation would use now
    assert recorder.steps[-1].gate.keys() == model.fusion.blocks().keys()


def test_callbacks_run_in_order_and_leave_training_as_it_is(
    make_trainer: TrainerMaker, make_model: ModelMaker, trainables: Snapshot
) -> None:
    calls: list[tuple[str, str, int]] = []

    class Named(Callback):
        def __init__(self, name: str) -> None:
            self.name = name

        def on_gradients(self, trainer: StageA, step: int) -> None:
            assert any(p.grad is not None for p in trainer.parameters.values())
            calls.append((self.name, "gradients", step))

        def on_step_end(self, trainer: StageA, step: Step) -> None:
            assert all(p.grad is None for p in trainer.parameters.values())
            calls.append((self.name, "step", step.step))

    watched, alone = make_trainer(callbacks=[Named("a"), Named("b")]), make_trainer()
    for trainer in (watched, alone):
        trainer.advance()
        trainer.advance()
    one = [("a", "gradients"), ("b", "gradients"), ("a", "step"), ("b", "step")]
    assert calls == [(*call, step) for step in (1, 2) for call in one]
    other = trainables(alone.model)
    assert all(torch.equal(t, other[n]) for n, t in trainables(watched.model).items())


def test_retention_term_joins_at_its_steps_and_changes_the_gradient(
    make_trainer: TrainerMaker, make_model: ModelMaker
) -> None:
    found = []
    for retention in (None, RetentionConfig(variant="soft_retention", weight=5.0, every=2)):
        recorder, model = Recorder(), make_model()
        trainer = make_trainer(model, retention=retention, callbacks=[recorder], epochs=3)
        for _ in range(4):
            trainer.advance()
        found.append(recorder)
    bare, retained = found
    assert [s.retention for s in bare.steps] == [None] * 4
    assert [s.retention is not None for s in retained.steps] == [False, True, False, True]
    assert all(s.retention is None or s.retention > 0 for s in retained.steps)
    assert distance(retained.gradients[0], bare.gradients[0]) == 0.0
    assert distance(retained.gradients[1], bare.gradients[1]) > 1e-3
    assert "retention" in retained.steps[1].to_row() and "retention" not in bare.steps[1].to_row()
    # what is reported as loss stays the caption loss
    assert retained.steps[1].loss == bare.steps[1].loss


def test_nothing_but_the_trainables_moves(
    make_trainer: TrainerMaker, make_model: ModelMaker
) -> None:
    model = make_model()
    trainer = make_trainer(model)
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    while not trainer.done:
        trainer.advance()
    left = {n: p for n, p in model.named_parameters() if not p.requires_grad}
    assert left.keys() == frozen.keys()
    assert all(torch.equal(p, frozen[n]) for n, p in left.items())
    assert all(p.grad is None for p in left.values())


def test_row_of_a_step_holds_no_wall_time(make_trainer: TrainerMaker) -> None:
    recorders = []
    for _ in range(2):
        recorder = Recorder()
        make_trainer(callbacks=[recorder]).advance()
        recorders.append(recorder.steps[0])
    assert recorders[0].to_row() == recorders[1].to_row()
    assert "seconds" not in recorders[0].to_row() and recorders[0].seconds > 0
    keys = "kind step epoch loss tokens clips grad_norm/total lr/adapter gate/1 gate/3 skipped"
    assert set(keys.split()) <= recorders[0].to_row().keys()


def test_messages_name_eight_clips_at_most() -> None:
    assert name_clips(["a", "b"]) == "a, b"
    assert name_clips([str(i) for i in range(9)]) == "0, 1, 2, 3, 4, 5, 6, 7, ..."


def test_state_round_trip_goes_on_at_the_same_window(make_trainer: TrainerMaker) -> None:
    trainer = make_trainer(epochs=3)
    for _ in range(4):
        trainer.advance()
    fresh = make_trainer(epochs=3)
    fresh.load_state(trainer.state())
    assert fresh.position == trainer.position == Position(epoch=1, window=1, step=4)
    assert fresh._windows(1) == trainer._windows(1) != trainer._windows(0)
    fresh._set_learning_rates()
    trainer._set_learning_rates()
    assert [g["lr"] for g in fresh.optimizer.param_groups] == [
        g["lr"] for g in trainer.optimizer.param_groups
    ]

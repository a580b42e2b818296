"""A session leaves no trace, however it ends."""

import gc
import random
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from probes.batch import Batch
from probes.session import Call, Session


def _hooks(model: nn.Module) -> list[tuple[int, ...]]:
    kinds = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_backward_hooks",
        "_forward_hooks_with_kwargs",
    )
    return [tuple(k for kind in kinds for k in getattr(m, kind)) for m in model.modules()]


def _state(model: nn.Module) -> list[Any]:
    """Everything that a session promises to leave alone, as comparable values."""
    parameters = list(model.parameters())
    return [
        _hooks(model),
        [m.training for m in model.modules()],
        [p.requires_grad for p in parameters],
        [id(p.grad) for p in parameters],
        [None if p.grad is None else p.grad.tolist() for p in parameters],
        [p.tolist() for p in parameters],
        [(id(b), b.tolist()) for b in model.buffers()],
        random.getstate(),
        str(np.random.get_state()),
        torch.get_rng_state().tolist(),
    ]


@pytest.fixture
def lived_in(toy: Any, make_batch: Callable[..., dict[str, Tensor]]) -> Any:
    """A model with mixed flags, gradients, counters and its user's own hook."""
    toy(**make_batch())["loss"].backward()
    toy.train()
    toy.lm.blocks[1].eval()
    toy.adapter.cross["1"].requires_grad_(False)
    toy.user_calls = []
    toy.adapter.projector.register_forward_hook(lambda *_: toy.user_calls.append(1))
    return toy


class Boom(Exception):
    pass


def _glance(call: Call) -> None:
    pass


def _disturb(session: Session, model: Any, batch: Batch) -> None:
    session.watch(model.adapter.projector, _glance)
    session.watch_input(model.lm.blocks[0], _glance)
    session.keep_values(model.adapter.parameters())
    session.backward(session.forward(batch, grad=True)["loss"])
    model.requires_grad_(True)
    model.lm.blocks[2].calls = torch.ones(())
    with torch.no_grad():
        for parameter in model.adapter.parameters():
            parameter.add_(1.0)
    random.random(), np.random.rand(), torch.rand(3)


@pytest.mark.parametrize("mode", ["eval", "train", "as_found"])
@pytest.mark.parametrize("error", [None, Boom, KeyboardInterrupt])
def test_everything_is_as_found(
    lived_in: Any, make_batch: Callable[..., Any], mode: Any, error: type[BaseException] | None
) -> None:
    before = _state(lived_in)
    batch = Batch.of(make_batch(), "sound")
    try:
        with Session(lived_in, mode) as session:
            _disturb(session, lived_in, batch)
            assert lived_in.adapter.projector.training == (mode != "eval")
            assert lived_in.lm.blocks[1].training == (mode == "train")
            if error is not None:
                raise error
    except (Boom, KeyboardInterrupt):
        assert error is not None
    assert _state(lived_in) == before
    assert lived_in.user_calls == [1]


@pytest.mark.parametrize("place", ["watcher", "model", "bad input"])
@pytest.mark.parametrize("error", [Boom, KeyboardInterrupt])
def test_also_when_the_forward_pass_breaks(
    lived_in: Any, make_batch: Callable[..., Any], place: str, error: type[BaseException]
) -> None:
    def fail(*_: Any) -> None:
        raise error

    inputs = make_batch()
    if place == "bad input":
        inputs["sound"] = inputs["sound"][:, :3]
        error = RuntimeError
    if place == "model":
        lived_in.lm.blocks[2].drop.register_forward_hook(fail)
    before = _state(lived_in)
    with pytest.raises(error), Session(lived_in) as session:  # noqa: PT012
        session.watch(lived_in.lm.blocks[1], fail if place == "watcher" else _glance)
        session.forward(Batch.of(inputs, "sound"))
    assert _state(lived_in) == before


def test_hooks_taken_in_an_unfinished_session_are_gone(toy: Any) -> None:
    before = _hooks(toy)
    with pytest.raises(AttributeError), Session(toy) as session:  # noqa: PT012
        session.watch(toy.lm.embed, _glance)
        session.watch(None, _glance)  # type: ignore[arg-type]
    assert _hooks(toy) == before


def test_gradients_start_as_none_inside(lived_in: Any, make_batch: Callable[..., Any]) -> None:
    with Session(lived_in) as session:
        assert all(p.grad is None for p in lived_in.parameters())
        loss = session.forward(Batch.of(make_batch(), "sound"), grad=True)["loss"]
        session.backward(loss)
        inside = lived_in.adapter.projector.linear.weight.grad
        expected = torch.autograd.grad(
            lived_in(**make_batch())["loss"], [lived_in.adapter.projector.linear.weight]
        )
    assert torch.equal(inside, expected[0])


def test_watchers_see_the_call_without_autocast_or_gradients(
    toy: Any, make_batch: Callable[..., Any]
) -> None:
    seen: list[Any] = []

    def look(call: Call) -> None:
        seen.append((call.result.dtype, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        seen.append((len(call.args), sorted(call.kwargs), [list(t.shape) for t in call.tensors]))

    with torch.autocast("cpu", torch.bfloat16), Session(toy) as session:
        session.watch(toy.adapter.cross["1"], look)
        session.forward(Batch.of(make_batch(), "sound"), grad=True)
        assert torch.is_autocast_enabled("cpu")
    assert seen == [
        (torch.bfloat16, False, False),
        (1, ["tokens"], [[3, 6, 16], [3, 3, 16]]),
    ]


def test_recomputation_is_not_seen_twice(toy: Any, make_batch: Callable[..., Any]) -> None:
    from torch.utils.checkpoint import checkpoint

    block = toy.adapter.cross["1"]
    seen: list[Call] = []

    class Recomputed(nn.Module):
        def forward(self, hidden: Tensor, *, tokens: Tensor) -> Tensor:
            return checkpoint(block, hidden, tokens=tokens, use_reentrant=False)

    toy.adapter.cross["1"] = Recomputed()
    runs = []
    block.weights.register_forward_hook(lambda *_: runs.append(1))
    with Session(toy) as session:
        session.watch(block.weights, seen.append)
        session.watch_input(block.weights, seen.append)
        session.backward(session.forward(Batch.of(make_batch(), "sound"), grad=True)["loss"])
    assert (len(seen), len(runs)) == (2, 2)


def test_first_looks_before_the_users_hook(toy: Any, make_batch: Callable[..., Any]) -> None:
    toy.lm.blocks[0].register_forward_hook(lambda *call: (call[2][0] * 0,))
    seen: list[float] = []
    with Session(toy) as session:
        session.watch(
            toy.lm.blocks[0], lambda c: seen.append(c.result.abs().max().item()), first=True
        )
        session.watch(toy.lm.blocks[0], lambda c: seen.append(c.result.abs().max().item()))
        session.forward(Batch.of(make_batch(), "sound"))
    assert seen[0] > 0
    assert seen[1] == 0


def test_replace_output_lets_gradients_through(toy: Any, make_batch: Callable[..., Any]) -> None:
    with Session(toy) as session:
        session.replace_output(toy.adapter.projector, lambda call: 0 * call.result)
        session.backward(session.forward(Batch.of(make_batch(), "sound"), grad=True)["loss"])
        assert toy.adapter.projector.linear.weight.grad.abs().max() == 0


@pytest.mark.parametrize("how", ["module", "in place"])
def test_compiled_models_run_their_hooks(
    toy: Any, make_batch: Callable[..., Any], how: str
) -> None:
    if how == "module":
        toy.adapter.projector = torch.compile(toy.adapter.projector, backend="eager")
        projector = toy.adapter.projector._orig_mod
    else:
        toy.adapter.projector.compile(backend="eager")
        projector = toy.adapter.projector
    toy(**make_batch())  # compiled without hooks
    seen: list[Call] = []
    with Session(toy) as session:
        session.watch(projector, seen.append)
        session.forward(Batch.of(make_batch(), "sound"))
    assert len(seen) == 1


def test_nothing_is_kept_alive(toy: Any, make_batch: Callable[..., Any]) -> None:
    alive: list[weakref.ref[Tensor]] = []
    session = Session(toy)
    with session:
        session.watch(toy.lm.blocks[1], lambda call: alive.append(weakref.ref(call.result)))
        session.forward(Batch.of(make_batch(), "sound"))
    gc.collect()
    assert len(alive) == 1
    assert alive[0]() is None


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_an_optimizer_in_the_backward_pass_rests(
    toy: Any, make_batch: Callable[..., Any], error: type[BaseException] | None
) -> None:
    parameter = toy.adapter.projector.linear.weight
    before, seen = parameter.detach().clone(), []

    def step(p: Tensor) -> None:
        seen.append(p)
        assert p.grad is not None
        p.data.sub_(p.grad)

    handle = parameter.register_post_accumulate_grad_hook(step)
    with pytest.raises(error) if error else nullcontext(), Session(toy) as session:
        session.backward(session.forward(Batch.of(make_batch(), "sound"), grad=True)["loss"])
        if error:
            raise error
    assert torch.equal(parameter, before) and not seen
    toy(**make_batch())["loss"].backward()
    assert len(seen) == 1 and not torch.equal(parameter, before)
    handle.remove()
    toy(**make_batch())["loss"].backward()
    assert len(seen) == 1


def test_changed_weight_counts_under_the_callers_autocast(toy: Any, make_batch: Any) -> None:
    batch = Batch.of(make_batch(), "sound")
    with torch.autocast("cpu", torch.bfloat16), Session(toy) as session:
        before = session.forward(batch, grad=True)["logits"]
        weight = toy.adapter.projector.linear.weight
        session.keep_values([weight])
        weight.data.mul_(3.0)
        after = session.forward(batch, grad=True)["logits"]
    assert not torch.equal(before, after)

"""A trial step is a real step, and then it never happened."""

import warnings
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from probes.trial_step import bare_optimizer, fingerprint, trial_step

OPTIMIZERS = [
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
    (torch.optim.AdamW, {"lr": 0.1, "amsgrad": True}),
    (torch.optim.AdamW, {"lr": torch.tensor(0.1), "foreach": False}),
    (torch.optim.AdamW, {"lr": 0.1, "fused": True}),
    (torch.optim.Adagrad, {"lr": 0.1}),
    (torch.optim.RMSprop, {"lr": 0.1, "centered": True}),
    (torch.optim.NAdam, {"lr": 0.1}),
]


def _model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).to(dtype)


def _backward(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    dtype = next(model.parameters()).dtype
    model(torch.randn(5, 3, generator=generator).to(dtype)).square().mean().backward()


def _values(optimizer: Any) -> list[Any]:
    states = [
        (k, id(v), v.tolist() if isinstance(v, Tensor) else v)
        for s in optimizer.state.values() for k, v in s.items()
    ]  # fmt: skip
    parameters = [p for g in optimizer.param_groups for p in g["params"]]
    return [
        states,
        id(optimizer.state),
        [(id(g), sorted(g)) for g in optimizer.param_groups],
        [(id(p), id(p.grad), p.tolist(), p.grad.tolist()) for p in parameters],
    ]


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS)
@pytest.mark.parametrize("past", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moves_like_a_step_and_back(
    kind: Any, options: dict[str, Any], past: int, dtype: torch.dtype
) -> None:
    model = _model(dtype)
    optimizer = kind(model.parameters(), **options)
    for seed in range(past):
        _backward(model, seed)
        optimizer.step()
        optimizer.zero_grad()
    _backward(model, 99)
    twin, stepped = deepcopy((model, optimizer))
    for p, q in zip(twin.parameters(), model.parameters(), strict=True):
        p.grad = q.grad.clone()
    stepped.step()
    before = _values(optimizer)
    with trial_step(optimizer, list(model.parameters())) as old:
        for parameter, moved in zip(model.parameters(), twin.parameters(), strict=True):
            assert torch.equal(parameter, moved)
            assert not torch.equal(parameter, old[id(parameter)])
    assert _values(optimizer) == before
    optimizer.step()  # and the real step is what it would have been
    for parameter, moved in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(parameter, moved)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_back_after_an_exception(error: type[BaseException]) -> None:
    model = _model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    _backward(model, 0)
    before = _values(optimizer)
    with pytest.raises(error), trial_step(optimizer, list(model.parameters())):
        raise error
    assert _values(optimizer) == before
    assert not optimizer.state


def test_a_scheduler_does_not_notice() -> None:
    model = _model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    _backward(model, 0)
    with trial_step(optimizer, list(model.parameters())):
        pass
    with pytest.warns(UserWarning, match="before `optimizer.step"):
        schedule.step()  # the user's first step has not been taken
    optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule.step()


def test_strangers_do_not_step_and_get_their_gradient_back() -> None:
    model, stranger = _model(), nn.Parameter(torch.ones(2))
    stranger.grad = torch.ones(2)
    gradient = stranger.grad
    optimizer = torch.optim.SGD([*model.parameters(), stranger], lr=0.1)
    _backward(model, 0)
    with trial_step(optimizer, list(model.parameters())):
        assert torch.equal(stranger, torch.ones(2))
        assert stranger.grad is None
    assert stranger.grad is gradient


def test_nan_weights_come_back_bit_for_bit() -> None:
    weight = nn.Parameter(torch.tensor([0.0, -0.0, torch.nan, torch.inf]))
    bits = weight.detach().view(torch.int32).clone()
    weight.grad = torch.ones(4)
    with trial_step(torch.optim.SGD([weight], lr=0.1), [weight]):
        pass
    assert torch.equal(weight.detach().view(torch.int32), bits)


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.uint8,
     torch.bool, torch.complex64, torch.float8_e4m3fn],
)  # fmt: skip
def test_fingerprint_sees_one_element(dtype: torch.dtype) -> None:
    tensor = torch.tensor([[0, 1, 1], [1, 0, 1]]).to(dtype)
    old = fingerprint(tensor)
    assert fingerprint(tensor.clone()) == old
    assert fingerprint(tensor.t()) == old  # the order does not count
    tensor[1, 1] = 1
    assert fingerprint(tensor) != old
    assert fingerprint(torch.empty(0, dtype=dtype)) == 0


def test_bare_optimizer_of_a_bare_optimizer() -> None:
    optimizer = torch.optim.SGD(_model().parameters(), lr=0.1)
    assert bare_optimizer(optimizer) is optimizer


def test_the_scale_of_an_optimizers_own_scaler() -> None:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer

    from probes.optimizers import scale_of

    plain = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    assert scale_of(None) == scale_of(plain) == 1
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    Accelerator(cpu=True)  # its optimizer asks for its state
    assert scale_of(AcceleratedOptimizer(plain, scaler=scaler)) == 512
    off = torch.amp.GradScaler("cpu", init_scale=512.0, enabled=False)
    assert scale_of(AcceleratedOptimizer(plain, scaler=off)) == 1

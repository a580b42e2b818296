"""A training step waits for its GPU once, shown on a machine without any.

torch's fake tensors have a device but no values: whatever would make the host wait for a GPU's
value raises. What is on the host is real and computed here, as it is beside a real GPU.

transformers itself looks once in every forward pass whether texts are packed (``masking_utils``),
unless tensors are fake: that wait is not counted here.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._pytree import tree_leaves

from configs.schema import RetentionConfig
from safe.models.safe_model import SAFEModel
from safe.training.stage_a import StageA
from tests.models.fake_parameters import place

GPU = torch.device("cuda", 0)


class BesideFakeGpu(FakeTensorMode):
    """Operations that touch ``GPU`` are fake, all others real."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        leaves = tree_leaves((args, kwargs))
        if any(isinstance(leaf, FakeTensor) or _device(leaf) == GPU for leaf in leaves):
            return super().__torch_dispatch__(func, types, args, kwargs)
        return func(*args, **(kwargs or {}))


def _device(leaf: Any) -> torch.device | None:
    return leaf if isinstance(leaf, torch.device) else None


def backward(loss: Tensor) -> None:
    """Give every leaf below ``loss`` a gradient: autograd's engine itself asks for a real GPU."""
    nodes, seen = [loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            leaf.grad = torch.zeros_like(leaf)
        nodes.extend(parent for parent, _ in node.next_functions)


@contextmanager
def transfers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.Size]]:
    """The shapes that ``tolist`` brings from the GPU, all of them ones; nothing else may come."""
    seen: list[torch.Size] = []
    real = Tensor.tolist

    def tolist(self: Tensor) -> Any:
        if not isinstance(self, FakeTensor):
            return real(self)
        seen.append(self.shape)
        return [1.0] * self.numel()

    with monkeypatch.context() as patch:
        patch.setattr(FakeTensor, "tolist", tolist, raising=False)
        patch.setattr(Tensor, "backward", backward)
        yield seen


@pytest.mark.parametrize("retention", ["no_retention", "soft_retention"])
@pytest.mark.parametrize("kind", ["mlp", "adaptive", "resampler"])
def test_a_step_reads_all_its_numbers_in_one_transfer(
    kind: str,
    retention: str,
    make_model: Callable[..., SAFEModel],
    make_trainer: Callable[..., StageA],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_model(projector={"kind": kind})
    with BesideFakeGpu(), transfers(monkeypatch) as seen:
        step = on_gpu(model, make_trainer, retention).take_step([[0, 1, 2, 3], [4, 5]])
    assert step.loss == 1.0 and not step.skipped
    assert (step.retention is None) == (retention == "no_retention")
    numbers = 3 + len(step.gate) + (step.retention is not None)  # loss, two norms
    assert seen == [(numbers,)]


@pytest.mark.parametrize("mistake", ["labels", "audio"])
def test_a_second_look_is_noticed(
    mistake: str,
    make_model: Callable[..., SAFEModel],
    make_trainer: Callable[..., StageA],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The test above can fail: what was moved to the GPU first must be looked at there."""
    model = make_model()
    with BesideFakeGpu(), transfers(monkeypatch):
        trainer = on_gpu(model, make_trainer)
        forward = model.forward

        def other(ids: Tensor, mask: None, audio: Tensor, labels: Tensor, *rest: Tensor) -> Any:
            if mistake == "labels":
                labels = labels.to(GPU)
            else:
                audio = audio.to(GPU)
            return forward(ids, mask, audio, labels, *rest)

        monkeypatch.setattr(model, "forward", other)
        with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
            trainer.take_step([[0, 1]])


def on_gpu(
    model: SAFEModel, make_trainer: Callable[..., StageA], retention: str = "no_retention"
) -> StageA:
    """A training whose model is on a GPU; to be called beside one."""
    place(model, lambda _name: str(GPU))
    trainer = make_trainer(model, retention=RetentionConfig(variant=retention, every=1))
    trainer.accelerator = SimpleNamespace(
        device=GPU, process_index=0, num_processes=1, is_main_process=True, autocast=nullcontext
    )  # type: ignore[assignment]
    return trainer

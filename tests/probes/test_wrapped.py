"""The same numbers from a wrapped model as from the bare one, and the wrapper still works."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from probes import PROBES, get_probe
from probes.batch import Batch
from probes.context import Context
from probes.record import Record
from probes.session import Call, Session
from probes.signal_path import SignalPath

Inputs = dict[str, Tensor]
FIRST = ("parameters", "magnitude", "gates")


def _all(model: nn.Module, inputs: Inputs, path: Any = None, **options: Any) -> list[Record]:
    context = Context.of(model, [inputs], path, **options)
    return [record for name in FIRST for record in get_probe(name)(context)]


def test_every_probe_has_its_place() -> None:
    assert set(FIRST) <= set(PROBES)


def test_ddp(
    toy: Any, toy_path: SignalPath, make_batch: Callable[..., Inputs], process_group: None
) -> None:
    bare = _all(toy, make_batch(), toy_path)
    wrapped = nn.parallel.DistributedDataParallel(toy)
    toy.eval()
    wrapped(**make_batch())["loss"].backward()  # in the middle of training
    before = [None if p.grad is None else p.grad.clone() for p in toy.parameters()]
    assert _all(wrapped, make_batch(), toy_path) == bare
    wrapped(**make_batch())["loss"].backward()
    for parameter, once in zip(toy.parameters(), before, strict=True):
        assert (parameter.grad is None) == (once is None)
        if once is not None:
            torch.testing.assert_close(parameter.grad, 2 * once)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT reads it
def test_peft(llava: Any, llava_inputs: Inputs) -> None:
    from peft import LoraConfig, get_peft_model

    magnitudes = [r for r in _all(llava, llava_inputs, signal="vision") if r.probe == "magnitude"]
    wrapped = get_peft_model(llava, LoraConfig(target_modules=r".*language_model.*q_proj", r=2))
    records = _all(wrapped, llava_inputs, signal="vision")
    assert [r for r in records if r.probe == "magnitude"] == magnitudes  # LoRA starts at B = 0
    trainable = {r.component: r.value for r in records if r.statistic == "trainable"}
    assert trainable["decoder"] == 4 * 2 * (16 + 16)
    assert trainable["model"] == trainable["decoder"]


def test_gradient_checkpointing_counts_once(
    make_safe: Callable[..., Any], safe_inputs: Inputs
) -> None:
    model = make_safe()
    model.backbone.activation_checkpointing_enable({"use_reentrant": False})
    model.backbone.disable_input_require_grads()
    seen: list[int] = []
    runs: list[int] = []
    norm = model.backbone.model.language_model.layers[2].post_attention_layernorm
    norm.register_forward_pre_hook(lambda *_: runs.append(1))
    with Session(model, "train") as session:
        for module in model.backbone.modules():
            module.train()  # a frozen backbone stays in eval mode, where nothing is recomputed
        session.watch(norm, lambda call: seen.append(len(call.tensors)))
        loss = session.forward(Batch.of(safe_inputs, "audio"), grad=True).loss
        session.backward(loss)
    assert (len(runs), len(seen)) == (2, 1)


def test_probes_leave_no_trace_and_keep_no_activation(
    make_safe: Callable[..., Any], safe_inputs: Inputs
) -> None:
    model = make_safe()
    model(**safe_inputs).loss.backward()
    model.train()
    alive: list[weakref.ref[Tensor]] = []
    model.layers[2].register_forward_hook(lambda *call: alive.append(weakref.ref(call[2])))
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    flags = [m.training for m in model.modules()]
    gradients = [p.grad for p in model.parameters()]
    values = [p.detach().clone() for p in model.parameters()]
    state = torch.get_rng_state()
    records = _all(model, safe_inputs)
    gc.collect()
    assert alive
    assert all(reference() is None for reference in alive)
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert [m.training for m in model.modules()] == flags
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert all(torch.equal(p, v) for p, v in zip(model.parameters(), values, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert _all(model, safe_inputs) == records


def test_generate_with_a_session_around_it(make_safe: Callable[..., Any]) -> None:
    model = make_safe()
    seen: list[tuple[int, ...]] = []

    def look(call: Call) -> None:
        seen.append(tuple(call.hidden.shape))

    with Session(model) as session:
        session.watch_input(model.layers[0], look)
        ids = torch.tensor([[5, 6, 7]])
        model.generate(ids, torch.ones_like(ids), torch.randn(1, 8), max_new_tokens=2, min_length=5)
    assert seen == [(1, 3, 16), (1, 1, 16)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_cpus_numbers(make_safe: Callable[..., Any], safe_inputs: Inputs) -> None:
    model = make_safe()
    on_cpu = _all(model, safe_inputs)
    model.to("cuda")
    state = torch.cuda.get_rng_state()
    on_gpu = _all(model, safe_inputs)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert [(r.component, r.layer, r.statistic) for r in on_gpu] == [
        (r.component, r.layer, r.statistic) for r in on_cpu
    ]
    # sums run in another order on a GPU: worst seen 1e-5
    assert [r.value for r in on_gpu] == pytest.approx([r.value for r in on_cpu], rel=1e-3, abs=1e-6)

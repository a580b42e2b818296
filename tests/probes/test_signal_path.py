"""A signal path finds the same modules in bare and wrapped models, and says what it cannot find."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from probes.context import Context
from probes.errors import PathError
from probes.infer import infer
from probes.resolved_path import ResolvedPath
from probes.signal_path import GatePath, SignalPath

BASE = {
    "projector": "adapter.projector",
    "layers": "lm.blocks.*",
    "fusion": "adapter.cross.{layer}",
}


def _same(found: ResolvedPath, toy: Any) -> None:
    assert found.projector is toy.adapter.projector
    assert found.layers == dict(enumerate(toy.lm.blocks))
    assert found.fusion == {1: toy.adapter.cross["1"], 3: toy.adapter.cross["3"]}
    assert found.branch == found.fusion
    assert found.attention[3] is toy.adapter.cross["3"].weights
    assert found.gates[3].tensor is toy.adapter.gates["3"]
    assert (found.text_embeddings, found.head) == (toy.lm.embed, toy.lm.head)
    assert found.names["projector"] == "adapter.projector"
    assert found.scale == 2.0
    assert found.outer_gate == 1.0


def test_yaml_path_in_a_foreign_model(toy: Any, toy_path: SignalPath) -> None:
    found = toy_path.resolve(toy)
    _same(found, toy)
    assert found.model is toy


def test_wrapped_by_ddp(toy: Any, toy_path: SignalPath, process_group: None) -> None:
    found = toy_path.resolve(nn.parallel.DistributedDataParallel(toy))
    _same(found, toy)
    assert found.model is toy


def test_wrapped_by_compile(toy: Any, toy_path: SignalPath) -> None:
    found = toy_path.resolve(torch.compile(toy))
    _same(found, toy)
    assert found.model is toy


def test_wrapped_by_peft(toy: Any, toy_path: SignalPath) -> None:
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(toy, LoraConfig(target_modules=["mix"]))
    found = toy_path.resolve(wrapped)
    _same(found, toy)
    assert found.model is wrapped  # PEFT's own forward has to run


def test_prefixes_written_by_the_user_are_fine(toy: Any) -> None:
    path = SignalPath.from_dict(
        {"projector": "module._orig_mod.adapter.projector", "layers": "module.lm.blocks.*",
         "fusion": "base_model.model.adapter.cross.{layer}"}
    )  # fmt: skip
    assert path.resolve(torch.compile(toy)).projector is toy.adapter.projector


def test_layers_are_in_numeric_order(toy_path: SignalPath, toy: Any) -> None:
    toy.lm.blocks = nn.ModuleList(copy.deepcopy(toy.lm.blocks[0]) for _ in range(12))
    found = toy_path.resolve(toy)
    assert list(found.layers) == list(range(12))
    assert found.layers[10] is toy.lm.blocks[10]


def test_mapping_for_another_count(toy: Any) -> None:
    path = SignalPath.from_dict(BASE | {"fusion": {2: "adapter.cross.3", 0: "adapter.cross.1"}})
    assert path.resolve(toy).fusion == {0: toy.adapter.cross["1"], 2: toy.adapter.cross["3"]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"projector": "adapter.projecter"}, r"projector: nothing .* 'adapter.projecter'; similar"
         r" names: adapter.projector"),
        ({"layers": "lm.block.*"}, r"layers: nothing .*similar names: lm.blocks.\{layer\}"),
        ({"fusion": "adapter.kross.{layer}"}, r"similar names: adapter.cross.\{layer\}"),
        ({"gates": "adapter.gate.{layer}"}, r"gates: .*similar names: adapter.gates.\{layer\}"),
        ({"gates": {"name": {1: "adapter.gates.1"}}}, r"gates is at layers \[1\] but fusion"),
        ({"fusion": {9: "adapter.cross.1"}}, "belongs to decoder layer 9, but the decoder has"),
        ({"scale": "adapter.projector.scal"}, "not a number.*similar names: adapter.projector.sc"),
        ({"scale": "adapter.projector.linear"}, "not a number"),
        ({"outer_gate": "gate.value"}, "outer_gate: Toy has no attribute 'gate'"),
        ({"outer_gate": "forward"}, "not one number"),
        ({"head": "zzz"}, "head: nothing in the model is called 'zzz'$"),
    ],
)  # fmt: skip
def test_what_matches_nothing_is_named(toy: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PathError, match=message):
        SignalPath.from_dict(BASE | changes).resolve(toy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"projektor": "x"}, "unknown key 'projektor'.*did you mean 'projector'"),
        ({"projector": None}, "needs 'projector'"),
        ({"fusion": None}, "either fusion"),
        ({"splice": 3}, "either fusion"),
        ({"fusion": None, "splice": 3, "gates": "x.{layer}"}, "belong to fusion"),
        ({"fusion": "adapter.cross"}, "must have {layer}"),
        ({"fusion": {"1": "adapter"}}, "a mapping from layer"),
        ({"layers": "lm.blocks"}, r"one \* in the place"),
        ({"head": 3}, "head: must be a name, got 3"),
        ({"fusion": None, "splice": "<image>"}, "a token id or 'prefix', got '<image>'"),
        ({"loss": "total"}, "'mean' or 'sum', got 'total'"),
        ({"gates": {"name": "x.{layer}", "transform": "relu"}}, "none, tanh, sigmoid"),
        ({"gates": {"name": "x.{layer}", "clamp": 1}}, r"\[low, high\], got 1"),
        ({"gates": {"name": "x.{layer}", "clamp": [1, 0]}}, "not below high"),
        ({"gates": {"name": "x.{layer}", "clamps": [0, 1]}}, "unknown key 'clamps'"),
    ],
)
def test_contradictions_are_errors(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PathError, match=message):
        SignalPath.from_dict(BASE | changes)


@pytest.mark.parametrize(
    ("text", "message"), [("[1]", "keys and values"), ("{", "cannot read the YAML file")]
)
def test_bad_yaml(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(PathError, match=message):
        SignalPath.from_yaml(tmp_path / "p.yaml")
    with pytest.raises(PathError, match="cannot read"):
        SignalPath.from_yaml(tmp_path / "absent.yaml")


def test_what_cannot_be_measured_says_so(toy_path: SignalPath, toy: Any) -> None:
    class FullyShardedDataParallel(nn.Module):
        pass

    toy.adapter.extra = FullyShardedDataParallel()
    with pytest.raises(PathError, match=r"adapter.extra is a FullyShardedDataParallel: its param"):
        toy_path.resolve(toy)
    with pytest.warns(FutureWarning, match="deprecated"):
        toy.adapter.extra = torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2))
    with pytest.raises(PathError, match="TorchScript"):
        toy_path.resolve(toy)


def test_what_fsdp2_splits(toy_path: SignalPath, toy: Any, process_group: None) -> None:
    toy.adapter.extra = fully_shard(nn.Linear(2, 2), mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(PathError, match=r"its trainable parameters are split over processes"):
        toy_path.resolve(toy)
    toy.adapter.extra.requires_grad_(False)
    toy_path.resolve(toy)
    with pytest.raises(PathError, match=r"adapter.extra is a FSDPModule: .* in_step=True"):
        Context.of(toy, path=toy_path)
    Context.of(toy, path=toy_path, in_step=True)


def test_gate_values(toy: Any) -> None:
    toy.adapter.gates["1"].data.fill_(-0.5)
    toy.adapter.gates["3"].data.fill_(2.0)
    name = "adapter.gates.{layer}"
    for gates, expected in (
        (GatePath(name), (-0.5, 2.0)),
        (GatePath(name, 0.0, 1.0), (0.0, 1.0)),
        (GatePath(name, transform="tanh"), (-0.46211715726, 0.96402758007)),
        (GatePath(name, transform="sigmoid"), (0.37754066879, 0.88079707797)),
    ):
        found = SignalPath(**BASE, gates=gates).resolve(toy).gates
        assert (found[1].values().item(), found[3].values().item()) == pytest.approx(expected)


def test_infer_safe_type(make_safe: Callable[..., Any]) -> None:
    model = make_safe()
    path = infer(model)
    assert path == SignalPath(
        projector="projector",
        scale="projector.amplitude.scale",
        layers="backbone.model.language_model.layers.*",
        fusion="fusion.{layer}",
        residual="fusion.{layer}.residual",
        attention="fusion.{layer}.attention",
        gates=GatePath("fusion.{layer}.residual.residual_scale", 0.0, 1.0),
        text_embeddings="backbone.model.language_model.embed_tokens",
        head="backbone.lm_head",
        outer_gate="outer_gate.effective",
        loss="sum",
    )
    found = path.resolve(model)
    assert list(found.fusion) == [1, 2]
    assert found.gates[2].values().item() == pytest.approx(0.3)
    model.set_gate(0.25)
    assert found.outer_gate == 0.25
    model.set_gate_warmup(1, 2)
    assert found.outer_gate == 0.125


def test_infer_vision_bare_and_inside_safe(llava: Any, make_safe: Callable[..., Any]) -> None:
    path = infer(llava, "vision")
    assert (path.projector, path.encoder) == ("model.multi_modal_projector", "model.vision_tower")
    assert (path.splice, path.signal_input, path.loss) == (3, "pixel_values", "mean")
    assert list(path.resolve(llava).layers) == [0, 1, 2, 3]
    inside = infer(make_safe(), "vision")
    assert inside.projector == "backbone.model.multi_modal_projector"
    assert inside.layers == "backbone.model.language_model.layers.*"
    assert inside.loss == "sum"


def test_what_cannot_be_inferred_says_so(toy: Any, llava: Any) -> None:
    for model, signal in ((toy, "audio"), (toy, "vision"), (llava, "audio")):
        with pytest.raises(PathError, match=f"where the {signal} signal of {type(model).__name__}"):
            infer(model, signal)

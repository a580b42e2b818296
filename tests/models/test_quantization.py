"""8- and 4-bit backbones by bitsandbytes' own CPU kernels: fused, trained, saved, planned."""

import copy
import json
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from configs.errors import ModelError
from configs.schema import ModelConfig
from probes.diagnosis import diagnose
from probes.findings.finding import Severity
from safe import cli
from safe.models import backbones
from safe.models.adapter_files import from_pretrained, save_pretrained
from safe.models.backbones import Backbone, load_backbone
from safe.models.fusion_adapter import PROJECTIONS
from safe.models.meta import planned_backbone
from safe.models.safe_model import IGNORED, SAFEModel
from safe.plan.memory import quantized_bytes
from tests.models.families import CAUSAL, IMAGE_TEXT, LAYERS, save

bitsandbytes = pytest.importorskip(
    "bitsandbytes", reason="needs bitsandbytes: pip install 'safe-probe[quant]'"
)
FAMILIES = {
    family.name: family
    for family in (*CAUSAL, *IMAGE_TEXT)
    if family.name in ("llama", "qwen3", "llava on llama", "qwen2_vl", "gemma3")
}
BOTH = ("llama", "llava on llama")
KINDS = ("8bit", "4bit")
TOLERANCE = {
    ("4bit", "float32"): 1e-5,  # measured 0
    ("4bit", "bfloat16"): 0.04,  # measured 0.013
    ("8bit", "float32"): 0.12,  # measured 0.041: the kernel rounds what it multiplies to 8 bits
    ("8bit", "bfloat16"): 0.12,  # measured 0.050
}
"""Of the norm of all gradients together."""
Place = Callable[[str], Path]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Place:
    """The folder of a family, its weights whole."""
    root = tmp_path_factory.mktemp("quantized")
    made = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = save(FAMILIES[name], root / name, copy.deepcopy(tokenizer))
        return made[name]

    return folder


@pytest.fixture
def fuse(make_config: Callable[..., ModelConfig]) -> Callable[..., SAFEModel]:
    """fuse(backbone, **config) -> SAFEModel with the same adapter every time."""

    def model(backbone: Backbone, **changes: Any) -> SAFEModel:
        fusion = {"layers": (1, 3)} | changes.pop("fusion", {})
        config = make_config(
            backbone=backbone.name, hidden_size=backbone.hidden_size, num_layers=LAYERS,
            fusion=fusion, **changes,
        )  # fmt: skip
        torch.manual_seed(5)
        made = SAFEModel(backbone, config)
        generator = torch.Generator().manual_seed(8)
        with torch.no_grad():
            for name, parameter in made.fusion.named_parameters():
                if "lora_" in name:
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        return made

    return model


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ids, mask, audio, labels of two texts, padded on the left."""
    generator = torch.Generator().manual_seed(6)
    ids, audio = (
        torch.randint(10, 260, (2, 7), generator=generator),
        torch.randn(2, 12, generator=generator),
    )
    mask = torch.ones_like(ids)
    ids[1, :2], mask[1, :2] = 2, 0
    labels = ids.masked_fill(mask == 0, IGNORED)
    labels[:, :3] = IGNORED
    return ids, mask, audio, labels


def gradients(model: SAFEModel) -> dict[str, Tensor]:
    ids, mask, audio, labels = batch()
    model.zero_grad()
    model(ids, mask, audio, labels).loss.backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """How far all gradients together are from the expected ones, as a part of these."""
    one, other = (
        torch.cat([g[name].flatten() for name in sorted(expected)]) for g in (found, expected)
    )
    return float((one - other).norm() / other.norm())


def dequantized(backbone: Backbone) -> Backbone:
    """The same backbone with every quantised matrix written out."""
    model = copy.deepcopy(backbone.model)
    for name, module in list(model.named_modules()):
        weight = getattr(module, "weight", None)
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            value = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
        elif isinstance(module, bitsandbytes.nn.Linear8bitLt):
            scale = weight.SCB if module.state.SCB is None else module.state.SCB
            value = weight.data.float() * scale[:, None] / 127
        else:
            continue
        linear = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
        linear.weight.data = value.to(model.dtype)
        linear.bias = module.bias
        model.set_submodule(name, linear)
    return replace(backbone, model=model)


@pytest.mark.parametrize("family", BOTH)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_are_those_of_the_weights_written_out(
    place: Place, fuse: Callable[..., SAFEModel], family: str, kind: Any, dtype: Any
) -> None:
    quantized = load_backbone(str(place(family)), dtype=dtype, quantization=kind)
    whole = gradients(fuse(dequantized(quantized)))
    model = fuse(quantized)
    assert distance(gradients(model), whole) < TOLERANCE[kind, dtype]
    for (
        module
    ) in model.backbone.modules():  # its other kernel multiplies by the weights written out
        if kind == "8bit" and isinstance(module, bitsandbytes.nn.Linear8bitLt):
            module.train()
    exact = 1e-5 if dtype == "float32" else 0.04  # measured 0 and 0.013
    assert distance(gradients(model), whole) < exact
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert whole.keys() == trained and all(g.abs().max() > 0 for g in whole.values())


@pytest.mark.parametrize("family", BOTH)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gate_off_is_the_bare_quantised_backbone_bit_for_bit(
    place: Place, fuse: Callable[..., SAFEModel], family: str, kind: Any, dtype: Any
) -> None:
    ids, mask, audio, _ = batch()
    options: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    bare, quantized = (
        load_backbone(str(place(family)), dtype=dtype, quantization=kind) for _ in range(2)
    )
    model = fuse(quantized)
    with torch.no_grad():
        expected = bare.model(input_ids=ids, attention_mask=mask).logits
        heard = model(ids, mask, audio).logits
        said = bare.model.generate(input_ids=ids, attention_mask=mask, **options)
        model.set_gate(0.0)
        assert torch.equal(model(ids, mask, audio).logits, expected)
        assert torch.equal(model.generate(ids, mask, audio, **options), said)
    assert (heard - expected).abs().max() > 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_quantised_shared_and_trained(
    place: Place, fuse: Callable[..., SAFEModel], kind: Any
) -> None:
    linear = {"8bit": bitsandbytes.nn.Linear8bitLt, "4bit": bitsandbytes.nn.Linear4bit}[kind]
    model = fuse(load_backbone(str(place("llama")), dtype="bfloat16", quantization=kind))
    for index, block in model.fusion.blocks().items():
        for name in PROJECTIONS:
            own = getattr(model.layers[index].self_attn, name)
            assert isinstance(own, linear) and getattr(block, name).base_layer is own
    assert type(model.backbone.get_output_embeddings()) is nn.Linear
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    if kind == "4bit":
        assert model.layers[0].mlp.up_proj.weight.quant_state.quant_type == "nf4"


@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_without_gradients_takes_none_away(
    place: Place, fuse: Callable[..., SAFEModel], kind: Any
) -> None:
    """bitsandbytes would repack 4-bit weights for some CPUs, and then know no gradient any more."""
    fresh, used = (
        fuse(load_backbone(str(place("llama")), dtype="float32", quantization=kind))
        for _ in range(2)
    )
    ids, mask, audio, _ = batch()
    used.generate(ids, mask, audio, max_new_tokens=2, do_sample=False)
    expected = gradients(fresh)
    found = gradients(used)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


@pytest.mark.parametrize("kind", KINDS)
def test_offloaded_weights_cannot_be_quantised(
    place: Place, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    given = backbones._load_options("float32", None, kind) | {"device_map": {"": "disk"}}
    monkeypatch.setattr(backbones, "_load_options", lambda *_: given)
    with pytest.raises(
        ModelError, match="can be loaded .Some modules are dispatched on the CPU or"
    ):
        load_backbone(str(place("llama")), quantization=kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_random_base_computes_in_the_backbones_type(
    place: Place, fuse: Callable[..., SAFEModel], kind: Any, dtype: Any
) -> None:
    quantized = load_backbone(str(place("qwen3")), dtype=dtype, quantization=kind)
    model = fuse(quantized, fusion={"base": "random"})
    block = model.fusion.blocks()[1]
    assert str(block.q_proj.base_layer.weight.dtype) == f"torch.{dtype}"
    assert all(gradient.abs().max() > 0 for gradient in gradients(model).values())


@pytest.mark.parametrize("kind", KINDS)
def test_adapter_comes_back(
    place: Place, fuse: Callable[..., SAFEModel], tmp_path: Path, kind: Any
) -> None:
    quantized = load_backbone(str(place("llava on llama")), dtype="float32", quantization=kind)
    model, (ids, mask, audio, _) = fuse(quantized, quantization=kind, dtype="float32"), batch()
    save_pretrained(model, tmp_path)
    again = from_pretrained(tmp_path)
    assert again.config.quantization == kind
    assert type(again.layers[1].mlp.up_proj) is type(model.layers[1].mlp.up_proj)
    with torch.no_grad():
        assert torch.equal(again(ids, mask, audio).logits, model(ids, mask, audio).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_what_backward_keeps_of_a_frozen_matrix(
    place: Place, fuse: Callable[..., SAFEModel], kind: Any
) -> None:
    """As the plan counts: 8 bits keep their input, 4 bits nothing."""
    model = fuse(load_backbone(str(place("llama")), dtype="bfloat16", quantization=kind))
    inputs: list[weakref.ref[Tensor]] = []
    norm = model.layers[2].post_attention_layernorm
    handle = norm.register_forward_hook(lambda _m, _a, out: inputs.append(weakref.ref(out)))
    ids, mask, audio, labels = batch()
    loss = model(ids, mask, audio, labels).loss
    handle.remove()
    assert loss.requires_grad and len(inputs) == 1
    assert (inputs[0]() is not None) == (kind == "8bit")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_probes_find_nothing_wrong_with_it(
    place: Place, fuse: Callable[..., SAFEModel], kind: Any, dtype: Any
) -> None:
    """Rounded weights and inputs are no broken gradient, and every weight is counted."""
    quantized = load_backbone(str(place("llama")), dtype=dtype, quantization=kind)
    model = fuse(quantized, projector={"scale": 1.0})
    ids, mask, audio, labels = batch()
    inputs = {"input_ids": ids, "attention_mask": mask, "audio": audio, "labels": labels}
    found = diagnose(model, [inputs], probes=("parameters", "magnitude", "gates", "gradflow"))
    assert not found.not_measured
    assert not [f for f in found.findings if f.code.startswith(("SP3", "SP5"))]
    assert found.verdict.severity is not Severity.ERROR
    whole = planned_backbone(str(place("llama")), dtype).model
    wanted = sum(p.numel() for p in whole.parameters())
    assert found.log.value(probe="parameters", component="model", statistic="frozen") == wanted


def held(model: nn.Module) -> int:
    """Bytes of all storages that parameters and bitsandbytes' statistics lie in."""
    found: dict[int, int] = {}
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        weight = getattr(module, "weight", None)
        state = getattr(weight, "quant_state", None)
        extra = [getattr(weight, "SCB", None)] if state is None else [state.absmax, state.code]
        extra += [s.SCB for s in [getattr(module, "state", None)] if s is not None]
        for tensor in (*own, *(t for t in extra if t is not None)):
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(found.values())


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("kind", KINDS)
def test_planned_bytes_are_the_real_ones(place: Place, family: str, kind: Any) -> None:
    real = load_backbone(str(place(family)), dtype="bfloat16", quantization=kind).model
    planned = planned_backbone(str(place(family)), "bfloat16").model
    assert quantized_bytes(planned, kind) == held(real)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("in_small_world")
def test_a_whole_run(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """The command line: trained, scored, loaded; and planned with the bytes that it had."""
    words = [
        f"model.quantization={kind}", "optim.epochs=2", "optim.batch_size=11",
        "evaluation.max_new_tokens=4", "evaluation.bootstrap=20",
    ]  # fmt: skip
    options = [option for word in words for option in ("--set", word)]
    where = ["--data", str(tiny_data), "--output", str(tmp_path), "--name", "run"]
    how = ["--device", "cpu", "--probe-every", "0"]
    assert cli.main(["demo", *where, *options, *how]) in (0, 1)
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    losses = [row["loss"] for row in map(json.loads, text.splitlines()) if "loss" in row]
    assert len(losses) == 4 and losses[-1] < losses[0]
    model = from_pretrained(tmp_path / "run" / "adapter")
    assert type(model.layers[2].self_attn.q_proj).__module__ == "bitsandbytes.nn.modules"
    capsys.readouterr()
    assert cli.main(["plan", "demo", "--json", "--set", f"model.quantization={kind}"]) == 0
    weights = json.loads(capsys.readouterr().out)["memory"][0]["bytes"]
    assert weights == held(model)

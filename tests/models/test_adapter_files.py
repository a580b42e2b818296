"""The adapter on disk: what comes back is what was saved, or an error that says why not."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

from configs.errors import CheckpointError
from safe.checkpoint_manifest import write_manifest
from safe.models.adapter_files import from_pretrained, load_adapter, read_header, save_pretrained
from safe.models.fusion_adapter import PROJECTIONS

FILES = [
    "adapter_config.json",
    "adapter_model.safetensors",
    "safe_adapter.safetensors",
    "safe_config.json",
]


@pytest.fixture
def saved(make_model, tmp_path):
    """A folder with an adapter of which every value differs from a fresh model's."""
    model = make_model(seed=1)
    model.set_gate(0.75)
    model.set_gate_warmup(30, 100)
    save_pretrained(model, tmp_path / "adapter")
    return tmp_path / "adapter"


def edit_header(folder, change):
    path = folder / "safe_config.json"
    header = json.loads(path.read_text())
    change(header)
    path.write_text(json.dumps(header))


def edit_tensors(folder, file, change):
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file)


# ---- round trip


@pytest.mark.parametrize("kind", ["llava", "causal"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("base", ["shared", "random"])
def test_round_trip_is_exact(
    make_model, make_backbone, text_batch, audio_batch, tmp_path, kind, dtype, base
):
    ids, mask = text_batch()
    changes = {
        "fusion": {"base": base, "lora_alpha": 2.0, "gate_warmup_steps": 100},
        "projector": {"kind": "adaptive", "bottleneck_dim": None},
    }
    model = make_model(kind, dtype=dtype, seed=1, **changes)
    model.set_gate(0.75)
    model.set_gate_warmup(30, 100)
    save_pretrained(model, tmp_path)
    torch.manual_seed(5)
    again = from_pretrained(tmp_path, make_backbone(kind, dtype=dtype))
    assert again.config == model.config
    assert again.gate_state() == {"value": 0.75, "warmup_step": 30, "warmup_steps": 100}
    state = again.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name], tensor), name
    assert {n for n, p in again.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }
    seconds = torch.tensor([1.0, 5.0, 10.0])
    one, other = (m(ids, mask, audio_batch(3), seconds=seconds).logits for m in (model, again))
    assert torch.equal(one, other)


def test_the_backbone_is_not_saved(saved):
    assert sorted(p.name for p in saved.iterdir()) == FILES
    names = set(load_file(saved / "safe_adapter.safetensors"))
    assert names == {
        "projector.norm.weight", "projector.norm.bias", "projector.mlp.0.weight",
        "projector.mlp.0.bias", "projector.mlp.2.weight", "projector.mlp.2.bias",
        "fusion.1.residual.residual_scale", "fusion.3.residual.residual_scale",
    }  # fmt: skip
    assert len(load_file(saved / "adapter_model.safetensors")) == 2 * 4 * 2


def test_saving_twice_gives_the_same_bytes(make_model, tmp_path):
    model = make_model()
    save_pretrained(model, tmp_path / "a")
    save_pretrained(model, tmp_path / "b")
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    modules = json.loads((tmp_path / "a" / "adapter_config.json").read_text())["target_modules"]
    assert modules == sorted(PROJECTIONS)  # a set's order would change with every process


def test_load_adapter_into_a_running_model(make_model, saved):
    model = make_model(seed=2)
    own = {n: p for n, p in model.named_parameters() if p.requires_grad}
    load_adapter(model, saved)
    assert own.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    for name, parameter in model.named_parameters():  # an optimizer's references stay good
        assert name not in own or own[name] is parameter
    assert model.gate_state()["warmup_step"] == 30


# ---- PEFT's own tools


def test_lora_is_readable_by_peft(make_model, saved):
    model = make_model(seed=1)
    config = PeftConfig.from_pretrained(str(saved))
    assert isinstance(config, LoraConfig)
    assert (config.r, config.lora_alpha) == (4, 4)
    assert set(config.target_modules) == set(PROJECTIONS)
    torch.manual_seed(1)
    attention = {
        str(i): nn.ModuleDict(
            {
                name: nn.Linear(*getattr(model.layers[i].self_attn, name).weight.shape[::-1])
                for name in PROJECTIONS
            }
        )
        for i in (1, 3)
    }
    host = PeftModel.from_pretrained(nn.ModuleDict(attention), str(saved))
    loaded = {
        name.removeprefix("base_model.model."): tensor
        for name, tensor in host.state_dict().items()
        if "lora_" in name
    }
    own = {n: t for n, t in model.fusion.state_dict().items() if "lora_" in n}
    assert len(own) == 16
    assert loaded.keys() == own.keys()
    for name, tensor in own.items():
        assert torch.equal(loaded[name], tensor), name


# ---- sums


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("place", ["finished", "checkpoint", "copy"])
def test_a_flipped_bit_is_found(make_model, make_backbone, tmp_path, file, place):
    whole = tmp_path / "run" / "adapter"
    if place != "finished":
        whole = tmp_path / "run" / "checkpoints" / "step-00000001"
    adapter = whole if place == "finished" else whole / "adapter"
    save_pretrained(make_model(seed=1), adapter)
    write_manifest(whole, whole.name, {})
    if place == "copy":
        adapter = Path(shutil.copytree(whole, tmp_path / "best")) / "adapter"
    from_pretrained(adapter, make_backbone())
    load_adapter(make_model(seed=2), adapter)
    flip_a_bit(adapter / file)
    model = make_model(seed=2)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    for load in (
        lambda: from_pretrained(adapter, make_backbone()),
        lambda: load_adapter(model, adapter),
    ):
        with pytest.raises(CheckpointError, match=f"{file}: sha256 is"):
            load()
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_a_finished_run_without_its_sums_is_refused(make_model, make_backbone, tmp_path):
    adapter = tmp_path / "run" / "adapter"
    save_pretrained(make_model(seed=1), adapter)
    from_pretrained(adapter, make_backbone())  # made elsewhere: there are no sums to go by
    (tmp_path / "run" / "run.lock").touch()
    with pytest.raises(CheckpointError, match="manifest.json"):
        from_pretrained(adapter, make_backbone())


def test_an_adapter_reads_only_its_part_of_a_checkpoint(make_model, make_backbone, tmp_path):
    whole = tmp_path / "checkpoints" / "step-00000001"
    save_pretrained(make_model(), whole / "adapter")
    (whole / "optimizer.safetensors").write_bytes(b"1")
    write_manifest(whole, whole.name, {})
    flip_a_bit(whole / "optimizer.safetensors")
    from_pretrained(whole / "adapter", make_backbone())


# ---- errors


def test_no_adapter(tmp_path, make_model):
    with pytest.raises(CheckpointError, match="holds no adapter: safe_config.json is missing"):
        from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="holds no adapter"):
        load_adapter(make_model(), tmp_path / "absent")


@pytest.mark.parametrize("text", ["{", "", "\x00"])
def test_damaged_header(saved, text):
    (saved / "safe_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"safe_config\.json cannot be read"):
        read_header(saved)


@pytest.mark.parametrize(
    ("text", "found"), [('{"format": 2}', "2"), ("[]", "None"), ("{}", "None")]
)
def test_other_format(saved, text, found):
    (saved / "safe_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=f"has format {found}; this version reads 1"):
        read_header(saved)


@pytest.mark.parametrize("key", ["model", "outer_gate", "backbone"])
def test_header_without_a_part(saved, key):
    edit_header(saved, lambda header: header.pop(key))
    with pytest.raises(CheckpointError, match=f"lacks {key}; it was edited or cut short"):
        from_pretrained(saved)


def test_other_backbone(saved, make_backbone):
    with pytest.raises(
        CheckpointError,
        match=r"trained on backbone 'tiny-llava' \(tiny-llava@1\), not on 'tiny-causal'",
    ):
        from_pretrained(saved, make_backbone("causal"))


@pytest.mark.parametrize("file", ["safe_adapter.safetensors", "adapter_model.safetensors"])
class TestTensorFiles:
    def test_missing(self, saved, make_backbone, file):
        (saved / file).unlink()
        with pytest.raises(CheckpointError, match=f"{file} cannot be read"):
            from_pretrained(saved, make_backbone())

    def test_cut_short(self, saved, make_backbone, file):
        data = (saved / file).read_bytes()
        (saved / file).write_bytes(data[: len(data) // 2])
        with pytest.raises(CheckpointError, match=f"{file} cannot be read"):
            from_pretrained(saved, make_backbone())

    def test_not_finite(self, saved, make_backbone, file):
        name = min(load_file(saved / file))
        edit_tensors(saved, file, lambda tensors: tensors[name].view(-1)[0].fill_(float("nan")))
        with pytest.raises(CheckpointError, match=f"{file} holds NaN or Inf in {name}"):
            from_pretrained(saved, make_backbone())

    def test_lacking(self, saved, make_backbone, file):
        edit_tensors(saved, file, lambda tensors: tensors.pop(min(tensors)))
        with pytest.raises(CheckpointError, match=f"{file} lacks 1 tensors: "):
            from_pretrained(saved, make_backbone())

    def test_unknown(self, saved, make_backbone, file):
        edit_tensors(saved, file, lambda tensors: tensors.update(odd=torch.zeros(1)))
        with pytest.raises(CheckpointError, match=f"{file} has unknown 1 tensors: odd"):
            from_pretrained(saved, make_backbone())

    def test_other_shape(self, saved, make_backbone, file):
        name = max(load_file(saved / file))
        edit_tensors(saved, file, lambda tensors: tensors.update({name: torch.zeros(2, 3)}))
        with pytest.raises(CheckpointError, match=r"has shape \[2, 3\], the model needs \["):
            from_pretrained(saved, make_backbone())

    def test_a_refused_file_changes_nothing(self, saved, make_model, file):
        edit_tensors(saved, file, lambda tensors: tensors.pop(min(tensors)))
        model = make_model(seed=2)
        before = {n: t.clone() for n, t in model.state_dict().items()}
        with pytest.raises(CheckpointError):
            load_adapter(model, saved)
        assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())

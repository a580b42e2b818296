"""The trained adapter on disk: safetensors and JSON, without the backbone.

adapter_config.json, adapter_model.safetensors   LoRA of the fusion, PEFT's own format
safe_adapter.safetensors                         projector, residual gates, a random base
safe_config.json                                 model configuration, outer gate, backbone

A finished run's has a manifest.json, too; one in a checkpoint stands in the checkpoint's. Their
sums are checked before anything is used.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from configs.errors import CheckpointError, FileError
from configs.json_files import read_json
from configs.schema import ModelConfig
from safe.checkpoint_manifest import MANIFEST_NAME, verify
from safe.models.backbones import Backbone, load_backbone
from safe.models.fusion_adapter import PROJECTIONS
from safe.models.safe_model import SAFEModel

FORMAT = 1
_HEADER_KEYS = ("model", "outer_gate", "backbone")
_PEFT_PREFIX = "base_model.model."


def save_pretrained(model: SAFEModel, folder: Path) -> None:
    """Write the adapter of ``model`` into ``folder`` (created when missing)."""
    folder.mkdir(parents=True, exist_ok=True)
    lora = get_peft_model_state_dict(model.fusion)
    config = model.fusion.lora_config.to_dict()
    # PEFT holds target_modules as a set, whose order changes from process to process
    config = {key: sorted(v) if isinstance(v, set) else v for key, v in config.items()}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
    save_file(
        {_PEFT_PREFIX + k: v.contiguous() for k, v in lora.items()},
        folder / "adapter_model.safetensors",
    )
    save_file(_own_tensors(model), folder / "safe_adapter.safetensors")
    header = {
        "format": FORMAT,
        "model": asdict(model.config),
        "outer_gate": model.gate_state(),
        "backbone": {"name": model.name, "identity": model.identity},
    }
    (folder / "safe_config.json").write_text(json.dumps(header, indent=2) + "\n")


def from_pretrained(folder: Path, backbone: Backbone | None = None) -> SAFEModel:
    """A model with the adapter that :func:`save_pretrained` wrote.

    Args:
        folder: the adapter's folder.
        backbone: an already loaded backbone; loaded by its recorded name when None.

    Raises:
        CheckpointError: files missing, damaged, other than their manifest says, of another format,
            for another backbone, or with tensors that do not fit.
    """
    _check_sums(folder)
    header = read_header(folder)
    config = ModelConfig.from_dict(header["model"])
    backbone = backbone or load_backbone(
        config.backbone, dtype=config.dtype, device_map=config.device_map,
        quantization=config.quantization,
    )  # fmt: skip
    _require_backbone(folder, header, backbone)
    model = SAFEModel(backbone, config)
    _load(model, folder)
    return model


def load_adapter(model: SAFEModel, folder: Path) -> None:
    """Put the tensors and the gate of ``folder`` into ``model``; every tensor must fit.

    Raises:
        CheckpointError: as :func:`from_pretrained`; ``model`` is unchanged then.
    """
    _check_sums(folder)
    _load(model, folder)


def _check_sums(folder: Path) -> None:
    """Verify an adapter by its manifest, or its checkpoint's; one made elsewhere has none."""
    folder = folder.resolve()
    around = folder.parent
    finished = folder.name == "adapter" and (around / "run.lock").exists()
    if (around / MANIFEST_NAME).exists() or around.parent.name == "checkpoints":
        verify(around, f"{folder.name}/")
    elif finished or (folder / MANIFEST_NAME).exists():
        verify(folder)


def _load(model: SAFEModel, folder: Path) -> None:
    header = read_header(folder)
    _require_backbone(folder, header, model)
    _require_settings(folder, header, model)
    gate = _gate_of(folder, header)
    own = _read_tensors(folder / "safe_adapter.safetensors")
    lora = {
        name.removeprefix(_PEFT_PREFIX): tensor
        for name, tensor in _read_tensors(folder / "adapter_model.safetensors").items()
    }
    _require_same(folder / "safe_adapter.safetensors", own, _own_tensors(model))
    expected = get_peft_model_state_dict(model.fusion)
    _require_same(folder / "adapter_model.safetensors", lora, expected)
    model.load_state_dict(own, strict=False)
    set_peft_model_state_dict(model.fusion, lora)
    model.load_gate_state(gate)


def _require_settings(folder: Path, header: dict[str, Any], model: SAFEModel) -> None:
    """Tensors of another scale or gate would fit, and be another model."""
    saved, own = header.get("model"), json.loads(json.dumps(model.config.to_dict()))
    for key in ("projector", "fusion", "audio_features"):
        found = saved.get(key) if isinstance(saved, dict) else None
        if found != own[key]:
            raise CheckpointError(
                f"{folder} was made with model.{key} = {found}, and the configuration says "
                f"{own[key]}: go on with the one that it was made with"
            )


def read_header(folder: Path) -> dict[str, Any]:
    """``safe_config.json`` of an adapter folder, its format checked."""
    path = folder / "safe_config.json"
    try:
        header: dict[str, Any] = read_json(path)
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} holds no adapter: {path.name} is missing; give the folder of a checkpoint "
            "or of a finished run"
        ) from None
    except FileError as error:
        raise CheckpointError(str(error)) from error
    found = header.get("format") if isinstance(header, dict) else None
    if found != FORMAT:
        raise CheckpointError(f"{path} has format {found!r}; this version reads {FORMAT}")
    if lacking := [key for key in _HEADER_KEYS if not isinstance(header.get(key), dict)]:
        raise CheckpointError(f"{path} lacks {', '.join(lacking)}; it was edited or cut short")
    return header


def _require_backbone(folder: Path, header: dict[str, Any], here: Backbone | SAFEModel) -> None:
    """Raise CheckpointError unless the adapter was trained on these very weights."""
    trained_on = header["backbone"]
    if here.identity != trained_on["identity"]:
        raise CheckpointError(
            f"the adapter in {folder} was trained on backbone {trained_on['name']!r} "
            f"({trained_on['identity']}), not on {here.name!r} ({here.identity})"
        )


def _gate_of(folder: Path, header: dict[str, Any]) -> dict[str, Any]:
    """The outer gate's state; raise CheckpointError unless it is one."""
    gate: dict[str, Any] = header["outer_gate"]
    counts = [gate.get(key) for key in ("warmup_step", "warmup_steps")]
    value = gate.get("value")
    if type(value) not in (int, float) or not all(type(c) is int and c >= 0 for c in counts):
        raise CheckpointError(
            f"{folder / 'safe_config.json'}: outer_gate is {gate!r}; it needs a number as value, "
            "and warmup_step and warmup_steps of 0 or more"
        )
    return gate


def _own_tensors(model: SAFEModel) -> dict[str, Tensor]:
    """Projector, residual gates and a random base (no seed gives it back) by name."""
    tensors = {f"projector.{name}": t for name, t in model.projector.state_dict().items()}
    for index, block in model.fusion.blocks().items():
        tensors |= block.residual.state_dict(prefix=f"fusion.{index}.residual.")
        if model.config.fusion.base == "random":
            for name in PROJECTIONS:
                weight = getattr(block, name).base_layer.weight
                tensors[f"fusion.{index}.{name}.base_layer.weight"] = weight.detach()
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    bad = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if bad:
        raise CheckpointError(f"{path} holds NaN or Inf in {', '.join(bad[:4])}")
    return tensors


def _require_same(path: Path, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raise CheckpointError unless names and shapes agree."""
    for problem, names in (
        ("lacks", sorted(expected.keys() - found.keys())),
        ("has unknown", sorted(found.keys() - expected.keys())),
    ):
        if names:
            raise CheckpointError(f"{path} {problem} {len(names)} tensors: {', '.join(names[:4])}")
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            raise CheckpointError(
                f"{path}: {name} has shape {list(found[name].shape)}, "
                f"the model needs {list(tensor.shape)}"
            )

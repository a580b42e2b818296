"""The signal path of models whose structure we know: SAFE-type models and the LLaVA family.

A model is recognised by its structure, never by its class, so that this room needs to know nobody.
"""

from typing import Any

from torch import nn

from probes.errors import PathError
from probes.names import modules_by_name
from probes.signal_path import GatePath, SignalPath


def infer(model: nn.Module, signal: str = "audio") -> SignalPath:
    """The signal path of ``model``.

    Args:
        model: it may be wrapped (DDP, torch.compile, PEFT).
        signal: ``audio`` for a model with ``projector``, ``fusion`` (a ModuleDict keyed by decoder
            layer) and ``backbone``; ``vision`` for a model with, or around, a
            ``multi_modal_projector`` and ``config.image_token_id``.

    Raises:
        PathError: the model does not have this structure.
    """
    modules = modules_by_name(model)
    bare = modules[""]
    if signal == "audio" and _is_safe_type(bare):
        return _safe_path(bare, modules)
    if signal == "vision":
        path = _vision_path(modules)
        if path is not None:
            return path
    raise PathError(
        f"cannot tell where the {signal} signal of {type(bare).__name__} travels; describe it with "
        "a SignalPath (projector, layers, fusion or splice, ...), in Python or YAML"
    )


def _is_safe_type(model: nn.Module) -> bool:
    fusion = getattr(model, "fusion", None)
    return (
        isinstance(getattr(model, "projector", None), nn.Module)
        and isinstance(fusion, nn.ModuleDict)
        and len(fusion) > 0
        and all(key.isdigit() for key in fusion)
        and hasattr(getattr(model, "backbone", None), "get_decoder")
    )


def _safe_path(model: Any, modules: dict[str, nn.Module]) -> SignalPath:
    parts: dict[str, Any] = {}
    block = next(iter(model.fusion.values()))
    for what in ("residual", "attention"):
        if isinstance(getattr(block, what, None), nn.Module):
            parts[what] = f"fusion.{{layer}}.{what}"
    if "residual" not in parts and hasattr(block, "o_proj"):
        parts["branch"] = "fusion.{layer}.o_proj"
    residual = getattr(block, "residual", block)
    gates = [name for name, _ in residual.named_parameters(recurse=False)]
    if len(gates) == 1:
        high = getattr(residual, "maximum", None)
        owner = "fusion.{layer}.residual" if residual is not block else "fusion.{layer}"
        low = None if high is None else 0.0
        parts["gates"] = GatePath(f"{owner}.{gates[0]}", low, high)
    for name in ("projector.amplitude", "projector"):
        if name in modules and isinstance(getattr(modules[name], "scale", None), float):
            parts.setdefault("scale", f"{name}.scale")
    if hasattr(getattr(model, "outer_gate", None), "effective"):
        parts["outer_gate"] = "outer_gate.effective"
    return SignalPath(
        projector="projector",
        fusion="fusion.{layer}",
        loss="sum",
        **_language_model(model.backbone, modules),
        **parts,
    )


def _vision_path(modules: dict[str, nn.Module]) -> SignalPath | None:
    owners = [(name, m) for name, m in modules.items() if hasattr(m, "get_decoder")]
    for prefix, owner in owners:
        config = getattr(owner, "config", None)
        token = getattr(config, "image_token_id", getattr(config, "image_token_index", None))
        inside = [n for n in modules if n.startswith(prefix)]
        projector = [n for n in inside if n.rpartition(".")[2] == "multi_modal_projector"]
        tower = [n for n in inside if n.rpartition(".")[2] == "vision_tower"]
        if isinstance(token, int) and len(projector) == 1:
            return SignalPath(
                projector=projector[0],
                signal="vision",
                signal_input="pixel_values",
                encoder=tower[0] if tower else None,
                splice=token,
                loss="sum" if _is_safe_type(modules[""]) else "mean",
                **_language_model(owner, modules),
            )
    return None


def _language_model(model: Any, modules: dict[str, nn.Module]) -> dict[str, Any]:
    """Names of the decoder layers, text embeddings and output head of a transformers model."""
    name_of = {id(module): name for name, module in reversed(modules.items())}
    layers = getattr(model.get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise PathError(f"{type(model).__name__}.get_decoder() has no list of .layers")
    names: dict[str, Any] = {"layers": f"{name_of[id(layers)]}.*"}
    for what, module in (
        ("text_embeddings", model.get_input_embeddings()),
        ("head", model.get_output_embeddings()),
    ):
        if id(module) in name_of:
            names[what] = name_of[id(module)]
    return names

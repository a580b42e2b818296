"""Backbones on torch's meta device: names and shapes without weights, for counting and planning."""

from pathlib import Path
from typing import Any

import torch

from configs.errors import ModelError
from safe.models.backbones import Backbone, Dtype, backbone_from_causal_lm, meta_backbone
from safe.models.hub import config_folder, quiet_transformers
from safe.models.named import named_folder
from safe.models.prompts import SMOLLM2, family_prompt, load_tokenizer, prompt_in


def planned_backbone(name: str, dtype: Dtype) -> Backbone:
    """Return the backbone that ``load_backbone(name)`` would load, without its weights.

    LLaVA-1.5 7B and 13B are built in; of any other, config.json (and the tokenizer, where it is
    there, for the prompt) is read from the folder, this machine's cache or the hub. The prompt is
    "" where only the tokenizer could tell.

    Args:
        name: as for ``load_backbone``.
        dtype: of the weights.

    Raises:
        ModelError: no such model, or not one that can be a backbone.
    """
    try:
        backbone = meta_backbone(name)
    except ModelError as unknown:
        backbone = _from_folder(name, named_folder(name) or config_folder(name, str(unknown)))
    backbone.model.to(getattr(torch, dtype))
    return backbone


def _from_folder(name: str, folder: Path) -> Backbone:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    try:
        with quiet_transformers(), torch.device("meta"):
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            architecture = str((config.architectures or ["unnamed"])[0])
            if not architecture.endswith(("ForConditionalGeneration", "ForCausalLM")):
                raise ValueError(f"its config.json says architecture {architecture}")
            sees = architecture.endswith("ForConditionalGeneration")
            loader: Any = AutoModelForImageTextToText if sees else AutoModelForCausalLM
            model = loader.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"{name}: not a backbone that can be planned ({reason}); it must be a LLaVA-type model "
            "or a causal language model of transformers"
        ) from error
    tokenizer = _tokenizer(folder)
    prompt = prompt_in(folder) or (SMOLLM2 if name == "smollm2" else None)
    if prompt is None:
        types = (config.model_type, config.get_text_config(decoder=True).model_type)
        prompt = family_prompt(*types, tokenizer)
    if not sees:
        return backbone_from_causal_lm(model, tokenizer, name, prompt=prompt)
    return Backbone(model, tokenizer, name, prompt, f"{name}@meta")


def _tokenizer(folder: Path) -> Any:
    """Return the folder's tokenizer; None where there is none."""
    try:
        with quiet_transformers():
            return load_tokenizer(folder)
    except (OSError, ValueError, KeyError):
        return None

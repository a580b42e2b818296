"""The frozen model that learns to hear: loading it, and knowing where its parts are."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from configs.errors import ModelError
from safe.fetch import fetched_path, is_fetched
from safe.models.digest import file_digest
from safe.models.hub import (
    EMBEDDED,
    cached_folder,
    check_shards,
    looks_like_folder,
    model_folder,
    quiet_transformers,
    weight_files,
)
from safe.models.layer_output import hidden_of, replace_hidden
from safe.models.named import named_folder
from safe.models.prompts import LLAVA_15, SMOLLM2, family_prompt, load_tokenizer, prompt_in
from safe.plugins import BACKBONES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "Backbone",
    "backbone_from_causal_lm",
    "check_backbone",
    "hidden_of",
    "load_backbone",
    "meta_backbone",
    "replace_hidden",
    "weights_available",
]

Dtype = Literal["float32", "bfloat16"]
Quantization = Literal["8bit", "4bit"]
_EDGE_BYTES = 32 << 20


@dataclass(eq=False)
class Backbone:
    """A frozen vision-language model in eval mode, its tokenizer and its prompt.

    Raises:
        ModelError: the model has no decoder layers where ``get_decoder()`` points.
    """

    model: "PreTrainedModel"
    """A ``*ForConditionalGeneration`` with ``get_decoder()``, usually LLaVA's."""
    tokenizer: Any
    """Its tokenizer, with a pad token; None only for a backbone on the meta device."""
    name: str
    """The name it was asked for."""
    prompt: str
    """The text that ends right before the caption."""
    identity: str
    """Name and content hash of the weights, to recognise the same backbone again."""
    sees: bool = False
    """Whether pictures mean something to it: a LLaVA with the vision tower it was trained with."""

    def __post_init__(self) -> None:
        self.model.requires_grad_(requires_grad=False)
        self.model.eval()
        if self.tokenizer is not None:
            if self.tokenizer.pad_token_id is None:
                self.tokenizer.pad_token = self.tokenizer.eos_token
            # Left unset, generate() warns on every call.
            self.model.generation_config.pad_token_id = self.tokenizer.pad_token_id
        if not isinstance(getattr(self.model.get_decoder(), "layers", None), nn.ModuleList):
            raise ModelError(
                f"{self.name}: {type(self.model).__name__}.get_decoder() has no list of .layers; "
                "use a model with a Llama-type decoder"
            )

    @property
    def layers(self) -> list[nn.Module]:
        """Return the L decoder layers, first to last."""
        return list(self.model.get_decoder().layers)

    @property
    def text_config(self) -> Any:
        """Return the configuration of the decoder."""
        return self.model.config.get_text_config(decoder=True)

    @property
    def hidden_size(self) -> int:
        """Return H, the width of the decoder's hidden states."""
        return int(self.text_config.hidden_size)

    @property
    def num_layers(self) -> int:
        """Return L, the number of decoder layers."""
        return len(self.layers)

    @property
    def num_attention_heads(self) -> int:
        """Return the number of query heads."""
        return int(self.text_config.num_attention_heads)

    @property
    def num_key_value_heads(self) -> int:
        """Return the number of key/value heads (fewer than query heads when grouped)."""
        return int(
            getattr(self.text_config, "num_key_value_heads", None) or self.num_attention_heads
        )

    @property
    def head_dim(self) -> int:
        """Return the width of one attention head."""
        own = getattr(self.text_config, "head_dim", None)
        return int(own or self.hidden_size // self.num_attention_heads)

    def assert_frozen(self) -> None:
        """Check that no parameter can be trained.

        Raises:
            ModelError: some can; the first names are listed.
        """
        loose = [name for name, param in self.model.named_parameters() if param.requires_grad]
        if loose:
            some = ", ".join(loose[:3])
            raise ModelError(
                f"backbone {self.name}: {len(loose)} parameters are not frozen ({some}, ...); "
                "call model.requires_grad_(False)"
            )


def load_backbone(
    name: str,
    *,
    dtype: Dtype = "bfloat16",
    device_map: str | None = None,
    quantization: Quantization | None = None,
) -> Backbone:
    """Load a backbone and freeze it.

    Args:
        name: ``embedded`` (comes with the package), ``smollm2`` (after ``safe-train fetch
            smollm2``), what another package adds (docs/extend.md), a folder, or a hub name; a
            LLaVA-type model or a causal language model.
        dtype: of the frozen weights. bfloat16 is also the faster one on CPUs that know it
            (1.7 times for SmolLM2 with avx512_bf16).
        device_map: passed to transformers, e.g. ``auto``; None puts everything on the CPU.
        quantization: ``8bit`` (LLM.int8) or ``4bit`` (NF4) by bitsandbytes, which holds all linear
            layers but the output head (``pip install safe-probe[quant]``).

    Raises:
        ModelError: nothing under this name, weights missing, or bitsandbytes not installed.
    """
    options = _load_options(dtype, device_map, quantization)
    folder = named_folder(name) or model_folder(name, _ways_out(name))
    model, tokenizer = _load_folder(name, folder, options)
    types = (model.config.model_type, model.config.get_text_config(decoder=True).model_type)
    prompt = prompt_in(folder) or (
        SMOLLM2 if name == "smollm2" else family_prompt(*types, tokenizer)
    )
    # A folder may move: its own name is enough beside the hash of what lies in it.
    by_name = name in BACKBONES.builtin + BACKBONES.names() or not looks_like_folder(name)
    label = name if by_name else folder.name
    identity = f"{label}@{file_digest(weight_files(folder), edge_bytes=_EDGE_BYTES)}"
    if not _is_llava(model):
        return backbone_from_causal_lm(model, tokenizer, name, prompt=prompt, identity=identity)
    return Backbone(model, tokenizer, name, prompt, identity, _sees(model, tokenizer, folder))


def backbone_from_causal_lm(
    lm: "PreTrainedModel",
    tokenizer: Any,
    name: str,
    *,
    prompt: str | None = None,
    identity: str | None = None,
) -> Backbone:
    """Make a backbone of a causal language model, sharing its weights.

    Args:
        lm: a decoder-only ``*ForCausalLM``; it is frozen.
        tokenizer: its tokenizer.
        name: how to call the backbone.
        prompt: text before every caption; None takes the family's (see ``prompts``).
        identity: what distinguishes these weights; None takes the name.

    Raises:
        ModelError: the model has no decoder layers or no output head.
    """
    from safe.models.causal_lm import llava_from_causal_lm

    model_type = lm.config.model_type
    return Backbone(
        llava_from_causal_lm(lm, tokenizer),
        tokenizer,
        name,
        family_prompt(model_type, model_type, tokenizer) if prompt is None else prompt,
        identity or name,
    )


def meta_backbone(name: str) -> Backbone:
    """Return LLaVA-1.5 7B or 13B without weights or tokenizer, to count and to plan.

    Raises:
        ModelError: another name.
    """
    from safe.models.llava_meta import llava_15_on_meta

    return Backbone(llava_15_on_meta(name), None, name, LLAVA_15, f"{name}@meta")


def weights_available(name: str) -> bool:
    """Say whether ``load_backbone(name)`` would find weights on this machine, without torch."""
    if name == "smollm2":
        return is_fetched(name)
    if name in BACKBONES.names():
        return True
    if name == "embedded" or looks_like_folder(name):
        folder = EMBEDDED / "backbone" if name == "embedded" else Path(name).expanduser()
        return (folder / "config.json").is_file() and bool(weight_files(folder))
    return cached_folder(name) is not None


def check_backbone(name: str) -> None:
    """Look for a backbone's files without opening them, as ``load_backbone(name)`` would.

    A hub name passes, since it can be downloaded, and so does what another package adds.

    Raises:
        ModelError: no such folder, no weights or not all of them in it, or SmolLM2 not fetched.
    """
    if name == "smollm2":
        fetched_path(name)
    elif name not in BACKBONES.builtin + BACKBONES.names() and looks_like_folder(name):
        check_shards(name, model_folder(name, _ways_out(name)))


def _ways_out(name: str) -> str:
    return (
        f"get it with `hf download {name}`, or give --backbone FOLDER, --backbone smollm2 "
        "(after `safe-train fetch smollm2`) or --backbone embedded"
    )


def _load_options(dtype: str, device_map: str | None, quantization: str | None) -> dict[str, Any]:
    """Return the keyword arguments for from_pretrained."""
    import torch

    if dtype not in ("float32", "bfloat16"):
        raise ModelError(f"dtype = {dtype!r}: must be 'float32' or 'bfloat16'")
    options: dict[str, Any] = {"dtype": getattr(torch, dtype), "device_map": device_map}
    if quantization is None:
        return options
    if quantization not in ("8bit", "4bit"):
        raise ModelError(f"quantization = {quantization!r}: must be '8bit', '4bit' or None")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            f"quantization = {quantization!r} needs bitsandbytes: pip install safe-probe[quant]"
        )
    from transformers import BitsAndBytesConfig

    kinds = {"load_in_8bit": quantization == "8bit", "load_in_4bit": quantization == "4bit"}
    options["quantization_config"] = BitsAndBytesConfig(
        **kinds, bnb_4bit_compute_dtype=getattr(torch, dtype), bnb_4bit_quant_type="nf4"
    )
    return options


def _is_llava(model: "PreTrainedModel") -> bool:
    return type(model).__name__.endswith("ForConditionalGeneration")


def _sees(model: "PreTrainedModel", tokenizer: Any, folder: Path) -> bool:
    """Say whether a LLaVA-type model can be shown pictures: not with a random vision tower.

    Only LLaVA itself: its relatives cut pictures into tiles in ways of their own.
    """
    if model.config.model_type != "llava" or folder.resolve() == EMBEDDED / "backbone":
        return False
    image = model.config.image_token_id
    mark = tokenizer.convert_ids_to_tokens(image)
    return mark is not None and image in tokenizer(mark).input_ids


def _load_folder(name: str, folder: Path, options: dict[str, Any]) -> tuple[Any, Any]:
    """Load model and tokenizer of a folder by the architecture in its config.json."""
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    check_shards(name, folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        architecture = str((config.architectures or ["unnamed"])[0])
        if not architecture.endswith(("ForConditionalGeneration", "ForCausalLM")):
            raise ValueError(f"its config.json says architecture {architecture}")
        sees = architecture.endswith("ForConditionalGeneration")
        loader: Any = AutoModelForImageTextToText if sees else AutoModelForCausalLM
        with quiet_transformers():
            model, info = loader.from_pretrained(
                folder,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
            tokenizer = load_tokenizer(folder)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"{name}: not a backbone that can be loaded ({reason}); it must be a LLaVA-type "
            "model or a causal language model of transformers, with its tokenizer"
        ) from error
    if info["missing_keys"]:
        some = ", ".join(sorted(info["missing_keys"])[:3])
        raise ModelError(f"{name}: weights are missing in {folder}: {some}, ...")
    for module in model.modules():
        # on some CPUs bitsandbytes repacks 4-bit weights at their first use without a gradient, and
        # then gives none any more: but the fusion uses the same weights with one
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model, tokenizer

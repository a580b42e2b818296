"""A text-only language model put into the LLaVA class, so that one trainer serves both."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModel,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
)
from transformers.modeling_outputs import MoeModelOutputWithPast
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from configs.errors import ModelError
from safe.models.placement import execution_device

_TINY_VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
    "projection_dim": 16,
}


def unused_token(tokenizer: Any, vocab_size: int) -> int:
    """Return a token id that ordinary text never contains (without a tokenizer: the last).

    An embedding row beyond the tokenizer's vocabulary if the model has one, else the last
    special token that has no role (bos, eos, pad, unk, or a mark of the chat template), else the
    last id of the vocabulary.
    """
    if tokenizer is None or len(tokenizer) < vocab_size:
        return vocab_size - 1
    with_role = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token}
    template = str(tokenizer.chat_template or "")
    free = [
        index
        for index, token in tokenizer.added_tokens_decoder.items()
        if token.special and str(token) not in with_role and str(token) not in template
    ]
    return max(free, default=vocab_size - 1)


def llava_from_causal_lm(lm: PreTrainedModel, tokenizer: Any) -> LlavaForConditionalGeneration:
    """Put a causal language model into the LLaVA class with a tiny random vision tower.

    The decoder and the output head are the given modules themselves: nothing is copied, tied
    weights stay tied, and text logits are bitwise those of ``lm``; what its family does to them
    behind the head is done by a hook on the head. The vision tower and its projector are random
    (seed 0), untrained, and only there so that the class is complete (``text_only`` says so).

    Args:
        lm: a Llama, Qwen2, Mistral or similar ``*ForCausalLM`` with ``get_decoder()``.
        tokenizer: its tokenizer, to find a token that can stand for an image.

    Raises:
        ModelError: the model has no decoder or no output embeddings, or does something to its
            logits that is not known here.
    """
    decoder, head = lm.get_decoder(), lm.get_output_embeddings()
    if not hasattr(decoder, "layers") or head is None:
        raise ModelError(
            f"{type(lm).__name__} has no decoder with .layers and an output head; "
            "use a decoder-only language model such as Llama, Qwen2, Mistral or SmolLM2"
        )
    text_config = lm.config.get_text_config(decoder=True)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**_TINY_VISION),
        text_config=text_config,
        image_token_index=unused_token(tokenizer, text_config.vocab_size),
        image_seq_length=4,
        tie_word_embeddings=bool(text_config.tie_word_embeddings),
    )
    try:
        with torch.device("meta"):  # the decoder's weights are never allocated a second time
            model: Any = LlavaForConditionalGeneration(config)
    except ValueError as error:
        kind = type(text_config).__name__
        raise ModelError(
            f"{type(lm).__name__} cannot be put into LLaVA's class: transformers knows no decoder "
            f"for its {kind}; a model class of your own needs AutoModel.register({kind}, ...) too"
        ) from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        place = execution_device(head), head.weight.dtype
        model.model.vision_tower = AutoModel.from_config(
            config.vision_config, trust_remote_code=False
        ).to(*place)
        model.model.multi_modal_projector = LlavaMultiModalProjector(config).to(*place)
    model.model.language_model = decoder
    model.lm_head = head
    model.text_only = True
    if execution_device(head).type == "meta":
        _do_behind_the_head(model, text_config)
    else:
        expected = _logits(lm)
        _do_behind_the_head(model, text_config)
        if not torch.equal(_logits(model), expected):
            raise ModelError(
                f"{type(lm).__name__} does something to its logits behind the output head that is "
                "not known here; use a model of one of the families in docs/backbones.md"
            )
    if lm.generation_config is not None:
        model.generation_config = lm.generation_config
    return model


def _do_behind_the_head(model: Any, config: Any) -> None:
    """Let a hook cap (Gemma 2), divide (Granite) or scale (Cohere) what leaves the head."""
    change: Callable[[Tensor], Tensor] | None = None
    if cap := getattr(config, "final_logit_softcapping", None):
        change = lambda logits: torch.tanh(logits / cap) * cap  # noqa: E731
    elif divisor := getattr(config, "logits_scaling", None):
        change = lambda logits: logits / divisor  # noqa: E731
    elif factor := getattr(config, "logit_scale", None):
        change = lambda logits: logits * factor  # noqa: E731
    if change is not None:
        model.lm_head.register_forward_hook(lambda _head, _args, logits: change(logits))


@torch.no_grad()
def _logits(model: Any) -> Tensor:
    """Logits of a fixed hidden state by the model's own forward, its decoder left out.

    Raises:
        ModelError: the model cannot do without what its decoder would return besides.
    """
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    hidden = torch.linspace(-1, 1, head.weight.shape[-1])[None, None]
    hidden = hidden.to(execution_device(model.get_input_embeddings()), head.weight.dtype)
    found = vars(decoder).get("forward")  # accelerate's, when it has put one there
    decoder.forward = lambda *_, **__: MoeModelOutputWithPast(last_hidden_state=hidden)
    try:
        ids = torch.zeros(1, 1, dtype=torch.long, device=hidden.device)
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
    except (AttributeError, IndexError, RuntimeError, TypeError) as error:
        raise ModelError(
            f"{type(model).__name__} cannot be put into LLaVA's class ({error}); use a model of "
            "one of the families in docs/backbones.md"
        ) from error
    finally:
        del decoder.forward
        if found is not None:
            decoder.forward = found
    return logits.cpu()  # of two models that may end on different devices

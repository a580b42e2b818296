"""Gated LoRA cross-attention from the text's hidden states to the audio tokens.

After decoder layer L: ``hidden + gate * clamp(residual_scale, 0, max) * branch``, where the branch
attends from the hidden states (query) to the audio tokens (key, value) through the decoder layer's
own self-attention projections, frozen and shared, each with a LoRA. Whatever else the layer does
to its queries, keys and scores (norms, scaling, a cap) is done here too, because the projections
were trained under it; but for positions, which audio tokens do not have. Nothing normalises the
values or the branch: the projector's scale and the gate keep their effect.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from configs.errors import ModelError
from configs.schema import FusionConfig
from safe.models.placement import execution_device

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
_NORMS = ("q_norm", "k_norm")
_QUANTIZED = {"Linear8bitLt": "is_loaded_in_8bit", "Linear4bit": "is_loaded_in_4bit"}


class AudioAttention(nn.Module):
    """Softmax attention over the audio tokens; parameter-free, so a probe can read its output.

    Args:
        scaling: factor of the scores; None for 1 / sqrt(d).
        cap: the scores' bound, reached smoothly as ``tanh(scores / cap) * cap``; None for none.
    """

    def __init__(self, scaling: float | None = None, cap: float | None = None) -> None:
        super().__init__()
        self.scaling, self.cap = scaling, cap

    def forward(self, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
        """Attention weights [B, heads, T, N], summing to 1 over N.

        Args:
            query: [B, heads, T, d].
            key: [B, heads, N, d].
            mask: [B, N] bool, False for an audio token that must not be attended to, or None.
        """
        scaling = query.shape[-1] ** -0.5 if self.scaling is None else self.scaling
        scores = query @ key.transpose(-1, -2) * scaling
        if self.cap is not None:
            scores = torch.tanh(scores / self.cap) * self.cap
        if mask is not None:
            unused = ~mask[:, None, None, :].to(scores.device)  # layers may be on many devices
            scores = scores.masked_fill(unused, float("-inf"))
        return torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)


class GatedResidual(nn.Module):
    """``hidden + gate * clamp(residual_scale, 0, maximum) * branch``; the only trainable gate.

    Args:
        initial: start value of ``residual_scale``.
        maximum: upper end of the clamp; outside [0, maximum] the gate gets no gradient.
    """

    def __init__(self, initial: float, maximum: float) -> None:
        super().__init__()
        self.maximum = float(maximum)
        self.residual_scale = nn.Parameter(torch.tensor(float(initial)))

    def forward(self, hidden: Tensor, branch: Tensor, gate: float) -> Tensor:
        """Add the gated branch.

        Args:
            hidden: [B, T, H] hidden states that leave the decoder layer.
            branch: [B, T, H] output of the cross-attention.
            gate: outer gate times warm-up factor, 0 to 1.
        """
        scale, clamped = self.residual_scale, self.residual_scale.detach().clamp(0.0, self.maximum)
        # torch's own clamp has no gradient on its very edges, where a gate may start
        strength = gate * torch.where(scale == clamped, scale, clamped)
        return hidden + (strength * branch).to(hidden.dtype)

    def extra_repr(self) -> str:
        """Show the clamp's upper end in the printed model."""
        return f"maximum={self.maximum}"


class FusionBlock(nn.Module):
    """The cross-attention of one decoder layer.

    Args:
        layer: the decoder layer, whose ``self_attn`` has q_proj, k_proj, v_proj and o_proj, and
            q_norm and k_norm in some families. Its ``input_layernorm`` prepares the query as those
            projections are used to; families that normalise only after the attention have none.
        config: rank, base, gate.

    Raises:
        ModelError: the layer has no such projections, or an attention of a kind of its own.
    """

    def __init__(self, layer: Any, config: FusionConfig) -> None:
        super().__init__()
        attention = _attention_of(layer)
        own = {name: getattr(attention, name) for name in PROJECTIONS}
        base = own
        if config.base == "random":
            base = {name: _random_like(linear, _dtype(layer)) for name, linear in own.items()}
        self.q_proj: Any = base["q_proj"]
        self.k_proj: Any = base["k_proj"]
        self.v_proj: Any = base["v_proj"]
        self.o_proj: Any = base["o_proj"]
        self.q_norm, self.k_norm = (getattr(attention, name, nn.Identity()) for name in _NORMS)
        self.head_dim = int(attention.head_dim)
        self.query_norm = getattr(layer, "input_layernorm", nn.Identity())
        self.attention = AudioAttention(
            getattr(attention, "scaling", None),
            getattr(attention, "attn_logit_softcapping", None),
        )
        self.residual = GatedResidual(config.gate_init, config.gate_max)

    def keys_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the audio tokens, computed once per clip.

        Args:
            tokens: [B, N, H] audio tokens as the projector made them.

        Returns:
            key and value, each [B, heads, N, d]: where queries share them, once per query head.
        """
        tokens = tokens.to(self.residual.residual_scale.device)
        if not torch.is_autocast_enabled(tokens.device.type):
            tokens = tokens.to(_dtype(self))
        key, value = self._heads(self.k_proj(tokens), self.k_norm), self._heads(self.v_proj(tokens))
        groups = self.q_proj.out_features // self.k_proj.out_features
        if groups > 1:  # here and not in forward: captions are generated token by token
            key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        return key, value

    def forward(
        self,
        hidden: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        gate: float,
        skipped: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [B, T, H] with the audio added.

        Args:
            hidden: [B, T, H] hidden states that leave the decoder layer.
            key: [B, heads, N, d] from :meth:`keys_values`.
            value: [B, heads, N, d].
            mask: [B, N] bool or None, tokens in use.
            gate: outer gate times warm-up factor.
            skipped: [B, T] or [1, T] bool, True for tokens that hear nothing; None for none.
        """
        query = self._heads(self.q_proj(self.query_norm(hidden)), self.q_norm)
        weights = self.attention(query, key, mask)
        heard = (weights @ value).transpose(1, 2).flatten(-2)
        branch = self.o_proj(heard)
        if skipped is not None:
            branch = branch.masked_fill(skipped[..., None], 0.0)
        return self.residual(hidden, branch, gate)

    def _heads(self, x: Tensor, norm: nn.Module | None = None) -> Tensor:
        """[B, S, heads*d] to [B, heads, S, d], normalised over heads*d or d as ``norm`` is wide."""
        weight = getattr(norm, "weight", None)
        if norm is not None and weight is not None and weight.shape == x.shape[-1:]:
            return self._heads(norm(x))
        x = x.unflatten(-1, (-1, self.head_dim))
        return (x if norm is None else norm(x)).transpose(1, 2)


def _attention_of(layer: Any) -> Any:
    """The self-attention of a decoder layer.

    Raises:
        ModelError: it lacks a projection or the norm before it, or has parts of its own, with
            which the branch would not be what the projections were trained for.
    """
    attention: Any = getattr(layer, "self_attn", None)
    missing = [f"self_attn.{name}" for name in PROJECTIONS if not hasattr(attention, name)]
    # a family without the norm before the attention has one after the MLP (OLMo 2, EXAONE 4)
    if not (hasattr(layer, "input_layernorm") or hasattr(layer, "post_feedforward_layernorm")):
        missing.append("input_layernorm")
    why = f"has no {', '.join(missing)}"
    if not missing:
        known = (*PROJECTIONS, *_NORMS)
        parts = {name.partition(".")[0] for name, _ in attention.named_parameters()}
        strange = [f"self_attn.{name}" for name in sorted(parts.difference(known))]
        if attention.q_proj.out_features != attention.o_proj.in_features:
            strange.append("self_attn.q_proj of another width than o_proj")
        why = f"has {', '.join(strange)}, which fusion does not know"
        if not strange:
            if getattr(attention, "is_causal", True):
                return attention
            why = (
                "attends to later tokens, too (self_attn.is_causal is False): a caption's words "
                "would be seen before they are predicted"
            )
    raise ModelError(
        f"decoder layer {type(layer).__name__} {why}; fusion supports attention as Llama, Qwen, "
        "Mistral, Gemma and OLMo have it (docs/backbones.md)"
    )


class FusionStack(nn.ModuleDict):
    """One :class:`FusionBlock` per fusion layer, keyed by the layer's number as text.

    Trainable: the LoRA factors and each block's ``residual_scale``; all else is frozen.

    Args:
        layers: decoder layers by index.
        config: fusion configuration.

    Raises:
        ModelError: a fusion layer lies beyond the decoder.
    """

    def __init__(self, layers: Mapping[int, nn.Module], config: FusionConfig) -> None:
        beyond = [index for index in config.layers if index not in layers]
        if beyond:
            raise ModelError(
                f"fusion layers {beyond} do not exist: the decoder has layers 0 to "
                f"{max(layers, default=-1)}"
            )
        super().__init__({str(i): FusionBlock(layers[i], config) for i in config.layers})
        self.lora_config = LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.alpha,  # type: ignore[arg-type]  # PEFT only divides it by r
            target_modules=list(PROJECTIONS),
            lora_dropout=0.0,
            bias="none",
        )
        for block in self.values():  # PEFT chooses its quantised LoRA layers by these flags
            flag = _QUANTIZED.get(type(block.q_proj).__name__)
            if flag:
                setattr(self, flag, True)
        inject_adapter_in_model(self.lora_config, self)
        self._bring_back_offloaded()
        self._restore_trainables()

    def blocks(self) -> dict[int, FusionBlock]:
        """Fusion blocks by decoder layer index, in ascending order."""
        blocks = {int(key): cast(FusionBlock, block) for key, block in self.items()}
        return dict(sorted(blocks.items()))

    def _bring_back_offloaded(self) -> None:
        """Give a LoRA values where its base has none: PEFT makes it where the weights lie."""
        for block in self.blocks().values():
            for name in PROJECTIONS:
                lora: Any = getattr(block, name)
                device = execution_device(lora.base_layer)
                if lora.lora_A["default"].weight.is_meta and device.type != "meta":
                    for part in (lora.lora_A, lora.lora_B):
                        part.to_empty(device=device)
                    lora.reset_lora_parameters("default", True)

    def _restore_trainables(self) -> None:
        """Thaw the gates, which PEFT froze, and keep every trainable in float32."""
        for name, parameter in self.named_parameters():
            own = "lora_" in name or name.endswith("residual_scale")
            parameter.requires_grad_(own)
            if own and parameter.dtype != torch.float32:
                parameter.data = parameter.data.float()
        for block in self.blocks().values():
            device = next(block.q_proj.lora_A.parameters()).device
            block.residual.to(device)


def _dtype(module: nn.Module) -> torch.dtype:
    """What a layer or block computes in: a quantised weight's own type does not tell."""
    frozen = (p for p in module.parameters() if not p.requires_grad)
    return next(p.dtype for p in frozen if p.is_floating_point())


def _random_like(base: Any, dtype: torch.dtype) -> nn.Linear:
    """A frozen linear layer of the shape of ``base`` with variance-preserving random weights."""
    linear = nn.Linear(
        base.in_features,
        base.out_features,
        bias=False,
        device=execution_device(base),
        dtype=dtype,
    )
    nn.init.normal_(linear.weight, std=base.in_features**-0.5)
    return linear.requires_grad_(False)

"""SAFEModel: a frozen vision-language model that hears through gated cross-attention.

The backbone is never edited: fusion enters by forward hooks that exist only while a clip is being
heard, so with the gate at 0, or without audio, the logits are the backbone's own, bit for bit.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configs.errors import ModelError
from configs.schema import ModelConfig
from safe.models.backbones import Backbone
from safe.models.build_projector import build_projector
from safe.models.fusion_adapter import FusionStack
from safe.models.layer_output import hidden_of, replace_hidden
from safe.models.placement import execution_device
from safe.models.projectors import AdaptiveAudioProjector, check_finite

IGNORED = -100
"""Label of a position that is not supervised."""


@dataclass
class OuterGate:
    """The model-wide gate in front of every fusion layer; part of the checkpoint.

    Training and evaluation use the same value: a warm-up that has reached 30% is evaluated at 30%.
    """

    value: float = 1.0
    """0 silences the audio altogether, 1 leaves the residual gates alone."""
    warmup_step: int = 0
    """Optimizer steps taken so far, counted from 1 at the first step."""
    warmup_steps: int = 0
    """Steps over which the gate opens linearly; 0 for no warm-up."""

    @property
    def effective(self) -> float:
        """``value`` times the warm-up factor, between 0 and 1."""
        if self.warmup_steps == 0:
            return self.value
        return self.value * min(1.0, self.warmup_step / self.warmup_steps)


class FusedOutput(NamedTuple):
    """What :meth:`SAFEModel.forward` returns."""

    logits: Tensor
    """[B, T, V], or [M, V] at the M supervised positions when labels were given."""
    loss: Tensor | None
    """Cross entropy in nats summed (not averaged) over the M supervised tokens."""


class SAFEModel(nn.Module):
    """Frozen backbone, trainable projector and fusion.

    Args:
        backbone: a loaded, frozen backbone.
        config: projector and fusion sizes; ``hidden_size`` and ``num_layers`` must be the
            backbone's (see ``configs.adapt``).

    Raises:
        ModelError: the configuration was made for another backbone size.
    """

    def __init__(self, backbone: Backbone, config: ModelConfig) -> None:
        super().__init__()
        made_for = (config.hidden_size, config.num_layers)
        actual = (backbone.hidden_size, backbone.num_layers)
        if made_for != actual:
            raise ModelError(
                f"the configuration is for hidden size {made_for[0]} and {made_for[1]} layers, but "
                f"backbone {backbone.name!r} has {actual[0]} and {actual[1]}; adapt it with "
                "configs.adapt.adapt_to_backbone"
            )
        self.config = config
        self.tokenizer, self.prompt, self.name = backbone.tokenizer, backbone.prompt, backbone.name
        self.identity, self.sees = backbone.identity, backbone.sees
        self.backbone: Any = backbone.model
        self.layers = dict(enumerate(backbone.layers))
        self.projector = build_projector(config)
        self.fusion = FusionStack(self.layers, config.fusion)
        first = next(iter(self.fusion.blocks().values()))
        self.projector.to(first.residual.residual_scale.device)
        self.outer_gate = OuterGate(warmup_steps=config.fusion.gate_warmup_steps)
        if config.gradient_checkpointing:
            self.backbone.activation_checkpointing_enable({"use_reentrant": False})
            self.backbone.disable_input_require_grads()  # or the frozen prefix joins the graph
        backbone.assert_frozen()

    @property
    def device(self) -> torch.device:
        """Where token ids must be: the device of the text embeddings."""
        return execution_device(self.backbone.get_input_embeddings())

    def train(self, mode: bool = True) -> "SAFEModel":
        """Switch the trainable parts; the frozen backbone always stays in eval mode."""
        super().train(mode)
        self.backbone.eval()
        if self.config.gradient_checkpointing:
            for index, layer in self.layers.items():
                # transformers recomputes a layer only when the layer itself (not its dropouts)
                # is in training mode; below the first fusion there is nothing to recompute
                layer.training = mode and index > min(self.fusion.blocks())
        return self

    def set_gate(self, value: float) -> None:
        """Set the model-wide gate, 0 (bare backbone) to 1."""
        if not 0.0 <= value <= 1.0:
            raise ModelError(f"the gate must be between 0 and 1, got {value}")
        self.outer_gate.value = float(value)

    def set_gate_warmup(self, step: int, steps: int) -> None:
        """Set the warm-up factor to ``step / steps`` (at most 1); ``steps`` 0 turns it off."""
        if step < 0 or steps < 0:
            raise ModelError(f"warm-up step and steps must not be negative, got {step} of {steps}")
        self.outer_gate.warmup_step, self.outer_gate.warmup_steps = step, steps

    def trainable_groups(self) -> dict[str, dict[str, nn.Parameter]]:
        """Trainable parameters by name for the two learning rates: ``projector``, ``adapter``."""
        return {
            group: {f"{part}.{n}": p for n, p in module.named_parameters() if p.requires_grad}
            for group, part, module in (
                ("projector", "projector", self.projector),
                ("adapter", "fusion", self.fusion),
            )
        }

    @contextmanager
    def hearing(
        self, audio: Tensor | None, seconds: Tensor | None = None, first: Tensor | None = None
    ) -> Iterator[None]:
        """Let the backbone hear ``audio`` in every forward pass inside the ``with`` block.

        Audio tokens, keys and values are computed once, on entry. A batch that beam search
        repeated (B * beams rows, each clip's beams adjacent) hears each clip in all its beams.

        Args:
            audio: [B, D] audio embeddings ([B, M, D] local features), or None for no audio.
            seconds: [B] clip lengths in seconds, used by the adaptive projector only.
            first: [B, T] booleans, the tokens that ``skip_first_token`` leaves alone; by default
                those of position 0, as the decoder tells its layers.
        """
        gate = self.outer_gate.effective
        handles = []
        try:
            if audio is not None and gate != 0.0:
                tokens, mask = self.audio_tokens(audio, seconds)
                skip = self.config.fusion.skip_first_token
                for index, block in self.fusion.blocks().items():
                    hook = _FusionHook(block, *block.keys_values(tokens), mask, gate, skip, first)
                    # first in the row: every other hook sees what really leaves the layer
                    handle = self.layers[index].register_forward_hook(
                        hook, prepend=True, with_kwargs=True
                    )
                    handles.append(handle)
            yield
        finally:
            for handle in handles:
                handle.remove()

    def audio_tokens(
        self, audio: Tensor, seconds: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Audio tokens [B, N, H] and the mask [B, N] of those in use (None: all are).

        Raises:
            ModelError: embeddings that the projector does not take, or NaN or infinity in them.
        """
        check_finite(audio)  # where it is: on the host nobody has to wait for that
        tokens = self.projector(audio.to(self.projector.norm.weight.device, non_blocking=True))
        if isinstance(self.projector, AdaptiveAudioProjector) and seconds is not None:
            seconds = seconds.to(tokens.device, non_blocking=True)
            return tokens, self.projector.token_mask(seconds)
        return tokens, None

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        audio: Tensor | None = None,
        labels: Tensor | None = None,
        seconds: Tensor | None = None,
        **backbone_inputs: Any,
    ) -> FusedOutput:
        """Next-token logits of the text, heard or unheard.

        Audio, labels and lengths may lie on the CPU whatever the model's device is, and a GPU then
        never has to be waited for: what is looked at here is looked at there.

        Args:
            input_ids: [B, T] token ids.
            attention_mask: [B, T], 0 for padding; None for no padding.
            audio: [B, D] audio embeddings ([B, M, D] local features); None for the bare backbone.
            labels: [B, T] target ids aligned with ``input_ids`` (position t is predicted from
                t-1), -100 where unsupervised. With labels, logits exist at supervised positions
                only and ``loss`` is their summed cross entropy.
            seconds: [B] clip lengths in seconds (adaptive projector).
            backbone_inputs: passed to the backbone, e.g. ``pixel_values``.
        """
        _check_count(input_ids, audio, seconds)
        # position 0 is that of the first token behind padding on the left, as in generate()
        first = None if attention_mask is None else attention_mask.long().cumsum(-1) <= 1
        supervised = None if labels is None else (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
        with self.hearing(audio, seconds, first), self._head_sees(supervised):
            logits = self.backbone(
                input_ids=input_ids, attention_mask=attention_mask, use_cache=False,
                **backbone_inputs,
            ).logits  # fmt: skip
        if labels is None or supervised is None:
            return FusedOutput(logits, None)
        target = labels[:, 1:][supervised].to(logits.device, non_blocking=True)
        return FusedOutput(logits, F.cross_entropy(logits.float(), target, reduction="sum"))

    @contextmanager
    def _head_sees(self, supervised: tuple[Tensor, ...] | None) -> Iterator[None]:
        """Give the output head [M, H], the M supervised positions (rows, columns; None: all).

        The backbone's own forward then does to the logits what its family does (Gemma caps them).
        """
        if supervised is None:
            yield
            return
        head = self.backbone.get_output_embeddings()

        def choose(_head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
            hidden = args[0]
            rows, columns = (i.to(hidden.device, non_blocking=True) for i in supervised)
            return (hidden[rows, columns],)

        handle = head.register_forward_pre_hook(choose)
        try:
            yield
        finally:
            handle.remove()

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        audio: Tensor | None = None,
        seconds: Tensor | None = None,
        **generation: Any,
    ) -> Tensor:
        """Continue left-padded prompts with the audio heard; [B, T + new] token ids.

        ``generation`` goes to transformers' ``generate`` (num_beams, max_new_tokens, ...).
        """
        _check_count(input_ids, audio, seconds)
        with self.hearing(audio, seconds):
            ids: Tensor = self.backbone.generate(
                input_ids=input_ids, attention_mask=attention_mask, **generation
            )
        return ids

    def gate_state(self) -> dict[str, float | int]:
        """The outer gate as plain numbers, for a checkpoint."""
        return asdict(self.outer_gate)

    def load_gate_state(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`gate_state` returned."""
        self.set_gate(float(state["value"]))
        self.set_gate_warmup(int(state["warmup_step"]), int(state["warmup_steps"]))


def _check_count(input_ids: Tensor, audio: Tensor | None, seconds: Tensor | None) -> None:
    """Raise ModelError unless there is one audio embedding, and one length, per text."""
    for what, given in (("audio embeddings", audio), ("clip lengths", seconds)):
        if given is not None and given.shape[:1] != input_ids.shape[:1]:
            count = given.shape[0] if given.dim() else 0
            raise ModelError(f"{count} {what} for {input_ids.shape[0]} texts; give one per text")


class _FusionHook:
    """Forward hook of one decoder layer: adds the audio to the hidden states that leave it."""

    def __init__(
        self,
        block: nn.Module,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        gate: float,
        skip_first_token: bool,
        first: Tensor | None,
    ) -> None:
        self.block, self.gate, self.skip_first_token = block, gate, skip_first_token
        self.first = first
        self.clips: tuple[Tensor, Tensor, Tensor | None] = (key, value, mask)
        self.audio = self.clips

    def __call__(
        self, _layer: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        hidden = hidden_of(output)
        if hidden.shape[0] != self.audio[0].shape[0]:
            self.audio = self._repeated(hidden.shape[0])
        skipped = self._first(kwargs, hidden) if self.skip_first_token else None
        return replace_hidden(output, self.block(hidden, *self.audio, self.gate, skipped))

    def _first(self, kwargs: dict[str, Any], hidden: Tensor) -> Tensor:
        """[B or 1, T] the tokens at position 0; padding on the left counts as such, too."""
        positions = kwargs.get("position_ids")
        if positions is None:
            raise ModelError(
                "model.fusion.skip_first_token = True: this decoder does not tell its layers the "
                "positions of their tokens; set it to false"
            )
        first = positions == 0 if self.first is None else self.first
        return first.to(hidden.device)

    def _repeated(self, batch: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Each clip's audio for ``batch / clips`` adjacent texts, as beam search lays them out."""
        key, value, mask = self.clips
        clips = key.shape[0]
        if batch % clips:
            raise ModelError(f"{batch} texts cannot share the audio of {clips} clips evenly")
        beams = batch // clips
        mask = None if mask is None else mask.repeat_interleave(beams, dim=0)
        return key.repeat_interleave(beams, dim=0), value.repeat_interleave(beams, dim=0), mask

"""Faults of the wiring: hooks, masks, attention, checkpointing, evaluation."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from benchmarks.faults.bench import LONG, Bench
from benchmarks.faults.gate_faults import blocks, new_residual
from benchmarks.faults.registry import TRAINED, fault
from probes.infer import infer
from safe.models.fusion_adapter import AudioAttention, GatedResidual


def _hook_layers(bench: Bench, places: list[tuple[int, int]]) -> None:
    """Register hooks of fusion block b on decoder layer l, for each (b, l)."""
    model: Any = bench.model

    @contextmanager
    def hearing(
        self: Any, audio: Tensor | None, seconds: Tensor | None = None, *_: Any
    ) -> Iterator[None]:
        handles = []
        if audio is not None and self.outer_gate.effective != 0:
            tokens, mask = self.audio_tokens(audio, seconds)
            for index, layer in places:
                block = self.fusion.blocks()[index]
                key, value = block.keys_values(tokens)
                hook = _hook(block, key, value, mask, self.outer_gate.effective)
                handles.append(self.layers[layer].register_forward_hook(hook))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    model.hearing = MethodType(hearing, model)


def _hook(block: Any, *heard: Any) -> Any:
    return lambda _layer, _args, output: block(output, *heard)


def _new_attention(bench: Bench, forward: Any) -> None:
    for block in blocks(bench).values():
        block.attention.forward = MethodType(forward, block.attention)


@fault("transformers #2461: hidden_states[0] is the embedding's output", "SP403 fusion")
def hook_on_previous_layer(bench: Bench) -> None:
    """Every fusion block hangs on the layer before its own."""
    _hook_layers(bench, [(i, i - 1) for i in blocks(bench)])


@fault(
    "numenta/nupic.torch PR #51: hooks are ignored where forward is called directly",
    "SP401 fusion",
    layers="first",
)
def hook_never_called(bench: Bench) -> None:
    """The hook of one fusion layer is not registered."""
    _hook_layers(bench, [(i, i) for i in list(blocks(bench))[1:]])


@fault("PEFT PR #2761: forward hooks accumulate in generate", "SP402 fusion")
def hook_called_twice(bench: Bench) -> None:
    """Every hook is registered twice."""
    _hook_layers(bench, [(i, i) for i in blocks(bench) for _ in range(2)])


@fault("textbook: torch keeps the output when a hook returns None", "SP411 fusion")
def hook_returns_none(bench: Bench) -> None:
    """The fused hidden states are computed and thrown away."""
    model: Any = bench.model

    def dropped(block: Any) -> Any:
        compute = block.forward

        def forward(_self: Any, hidden: Tensor, *rest: Any) -> Tensor:
            compute(hidden, *rest)
            return hidden

        return MethodType(forward, block)

    for block in model.fusion.blocks().values():
        block.forward = dropped(block)


@fault("textbook: transformers' forward takes keywords that nobody reads", "SP405 projector")
def signal_swallowed(bench: Bench) -> None:
    """The audio is passed under a name that nobody reads."""
    model: Any = bench.model
    original = model.hearing
    model.hearing = MethodType(lambda _self, *_: original(None), model)


@fault("LLaVA-pp #14: None of the inputs have requires_grad=True", "SP301 projector")
def checkpointing_without_input_gradients(bench: Bench) -> None:
    """The projector is checkpointed the reentrant way, but embeddings need no gradient."""
    projector: Any = bench.model.projector
    compute = projector.forward
    projector.forward = lambda audio: checkpoint(compute, audio, use_reentrant=True)


@fault(
    "labmlai/annotated_deep_learning_paper_implementations #146: softmax over the queries",
    "SP418 fusion",
)
def softmax_over_the_text(bench: Bench) -> None:
    """Attention is normalised over text positions, not over audio tokens."""

    def forward(_self: AudioAttention, query: Tensor, key: Tensor, _mask: Any) -> Tensor:
        return torch.softmax(query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5, dim=-2)

    _new_attention(bench, forward)


@fault("mlwithme/TransformerTranslation #6: masked_fill, the mask the wrong way round",
       "SP417 fusion", model__projector__kind="adaptive")  # fmt: skip
def all_tokens_masked(bench: Bench) -> None:
    """The mask says that no audio token may be attended to."""
    projector: Any = bench.model.projector
    count = projector.num_tokens
    projector.token_mask = lambda seconds: torch.zeros(len(seconds), count, dtype=torch.bool)


@fault("textbook: an arange that begins at 1 where the tokens begin at 0", "SP429 fusion",
       model__projector__kind="adaptive", model__projector__min_tokens=2)  # fmt: skip
def audio_mask_shifted(bench: Bench) -> None:
    """The mask of audio tokens in use is shifted by one token."""
    projector: Any = bench.model.projector
    token_mask = projector.token_mask
    projector.token_mask = lambda seconds: token_mask(seconds).roll(1, 1)


@fault("jingyaogong/minimind-v #76: no attention mask in the forward pass", "SP416 fusion",
       model__projector__kind="adaptive", model__projector__min_tokens=2)  # fmt: skip
def mask_ignored(bench: Bench) -> None:
    """Attention ignores the mask of unused audio tokens."""

    def forward(_self: AudioAttention, query: Tensor, key: Tensor, _mask: Any) -> Tensor:
        return torch.softmax(query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5, dim=-1)

    _new_attention(bench, forward)


@fault("lit-llama PR #106: scores divided by another width", "SP414 fusion")
def attention_one_hot(bench: Bench) -> None:
    """Scores are a thousand times too large, attention hears one token."""

    def forward(_self: AudioAttention, query: Tensor, key: Tensor, _mask: Any) -> Tensor:
        return torch.softmax(query @ key.transpose(-1, -2) * 1000, dim=-1)

    _new_attention(bench, forward)


@fault("textbook: F.dropout is on unless training=self.training is passed", "SP419 model")
def dropout_in_evaluation(bench: Bench) -> None:
    """Dropout on the branch stays on in evaluation."""

    def forward(self: GatedResidual, hidden: Tensor, branch: Tensor, gate: float) -> Tensor:
        return hidden + gate * self.residual_scale * F.dropout(branch, 0.3)

    new_residual(bench, forward)


@fault("LLaVA #474: tuned weights not loaded", "SP408 model", "SP212 gate")
def adapter_not_loaded(bench: Bench) -> None:
    """The checkpoint's keys did not match: the weights are those of the start."""
    bench.start = {n: p.detach().clone() for n, p in bench.trainer.parameters.items()}
    bench.step = 500


@fault(
    "pgniewko/gt-pyg #112: train() puts the frozen batch norms back into training", "SP510 encoder"
)
def encoder_in_training_mode(bench: Bench) -> None:
    """The frozen encoder inside the model is in training mode."""
    _with_encoder(bench, nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.Dropout(0.1)))
    bench.model.get_submodule("encoder").train()


@fault(
    "torchgeo/torchgeo #4036: strict=False, and no pretrained weight was loaded", "SP610 encoder"
)
def encoder_collapsed(bench: Bench) -> None:
    """The encoder inside the model gives one embedding for every clip."""
    linear = nn.Linear(512, 512)
    linear.weight.data.zero_()
    _with_encoder(bench, linear)


def _with_encoder(bench: Bench, encoder: nn.Module) -> None:
    model: Any = bench.model
    model.encoder = encoder.requires_grad_(False).eval()
    original = model.audio_tokens

    def audio_tokens(self: Any, audio: Tensor, seconds: Tensor | None = None) -> Any:
        return original(self.encoder(audio), seconds)

    model.audio_tokens = MethodType(audio_tokens, model)
    bench.path = replace(infer(model), encoder="encoder")


@fault("binli123/dsmil-wsi #19: features computed in a shuffled order", "SP408 model",
       "SP422 model", **TRAINED)  # fmt: skip
def clips_rolled_inside_the_model(bench: Bench) -> None:
    """Every text hears the clip of its neighbour in the batch, in training too."""
    model: Any = bench.model
    original = model.audio_tokens

    def audio_tokens(_self: Any, audio: Tensor, seconds: Tensor | None = None) -> Any:
        return original(audio.roll(1, 0), seconds)

    model.audio_tokens = MethodType(audio_tokens, model)
    bench.train(LONG)


@fault(
    "textbook: float16 ends at 65,504",
    "SP102 fusion",
    "SP102 decoder",
    model__projector__scale=1e6,
    layers="first",
)
def float16_overflow(bench: Bench) -> None:
    """The backbone is float16 and the scale makes it overflow."""
    bench.model.backbone.half()


@fault("open_flamingo #286: repeat() where beams need repeat_interleave()", "SP423 model")
def clips_tiled_under_beams(bench: Bench) -> None:
    """Under beam search the clips are laid out 0, 1, 0, 1 beside the texts' 0, 0, 1, 1."""
    _laid_out_for_beams(bench, lambda x, beams: x.repeat(beams, *[1] * (x.dim() - 1)))


@fault("textbook: expand() and reshape give every beam the first clip", "SP423 model")
def first_clip_under_beams(bench: Bench) -> None:
    """Under beam search every text hears the first clip."""
    _laid_out_for_beams(bench, lambda x, beams: x[:1].expand(len(x) * beams, *x.shape[1:]))


def _laid_out_for_beams(bench: Bench, lay_out: Any) -> None:
    """Compute keys and values for as many rows as beam search has, before the hooks see them."""
    model: Any = bench.model

    def laid_out(block: Any) -> Any:
        original = block.forward

        def forward(_self: Any, hidden: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
            beams = hidden.shape[0] // model.clips
            if beams > 1:
                key, value = lay_out(key[::beams], beams), lay_out(value[::beams], beams)
            fused: Tensor = original(hidden, key, value, *rest)
            return fused

        return MethodType(forward, block)

    tokens = model.audio_tokens

    def audio_tokens(self: Any, audio: Tensor, seconds: Tensor | None = None) -> Any:
        self.clips = len(audio)
        return tokens(audio, seconds)

    model.audio_tokens = MethodType(audio_tokens, model)
    for block in blocks(bench).values():
        block.forward = laid_out(block)


@fault(
    "textbook: mean(0) where mean(1) was meant mixes the clips of a batch",
    "SP422 model",
    "SP111 projector",
)
def mean_over_the_batch(bench: Bench) -> None:
    """Every text hears the mean of the batch's clips beside its own."""
    model: Any = bench.model
    original = model.audio_tokens

    def audio_tokens(_self: Any, audio: Tensor, seconds: Tensor | None = None) -> Any:
        tokens, mask = original(audio, seconds)
        return tokens + tokens.mean(0, keepdim=True), mask

    model.audio_tokens = MethodType(audio_tokens, model)


@fault("textbook: batch norm without running statistics sees the other clips", "SP422 model")
def batch_norm_over_clips(bench: Bench) -> None:
    """Embeddings pass a batch norm that takes its statistics from the batch, in evaluation too."""
    _with_encoder(bench, nn.BatchNorm1d(512, affine=False, track_running_stats=False))


@fault("textbook: with a cache, later steps have one token, which a hook may skip", "SP424 model")
def generation_hears_the_prompt_only(bench: Bench) -> None:
    """With a key/value cache, what is generated after the first token hears no audio."""

    def forward(self: GatedResidual, hidden: Tensor, branch: Tensor, gate: float) -> Tensor:
        heard = 0.0 if hidden.shape[1] == 1 else gate
        return hidden + heard * self.residual_scale * branch

    new_residual(bench, forward)


@fault("textbook: an own mask with diagonal=2 lets a position see its label", "SP426 model")
def causal_mask_off_by_one(bench: Bench) -> None:
    """Every token may look at the next one, too."""
    model: Any = bench.model
    original = model.backbone.model.forward

    def forward(*args: Any, attention_mask: Tensor | None = None, **rest: Any) -> Any:
        if attention_mask is not None and not rest.get("use_cache"):
            real = attention_mask.bool()[:, None, None, :]
            width = real.shape[-1]
            attention_mask = torch.ones(width, width, dtype=torch.bool).tril(1) & real
        return original(*args, attention_mask=attention_mask, **rest)

    model.backbone.model.forward = forward


@fault("textbook: a mask made for ids[:, 1:] in the model", "SP428 model", "SP427 model")
def text_mask_shifted_in_the_model(bench: Bench) -> None:
    """The decoder gets the text's mask shifted to the right by one place."""
    model: Any = bench.model
    original = model.backbone.model.forward

    def forward(*args: Any, attention_mask: Tensor | None = None, **rest: Any) -> Any:
        if attention_mask is not None and attention_mask.shape[1] > 1:
            attention_mask = F.pad(attention_mask[:, :-1], (1, 0), value=0)
        return original(*args, attention_mask=attention_mask, **rest)

    model.backbone.model.forward = forward

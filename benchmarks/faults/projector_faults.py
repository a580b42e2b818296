"""Faults of the projector: scale, collapse, saturation, gradients that stop."""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.faults.bench import Bench
from benchmarks.faults.registry import fault


def _last(bench: Bench) -> nn.Linear:
    layer = bench.model.projector.mlp[-1]
    assert isinstance(layer, nn.Linear)
    return layer


def _after_projector(bench: Bench, change: Any) -> None:
    """Let ``change(tokens)`` follow the projector inside the model, where no hook looks."""
    model = bench.model
    original = model.audio_tokens

    def audio_tokens(_self: Any, audio: Tensor, seconds: Tensor | None = None) -> Any:
        tokens, mask = original(audio, seconds)
        return change(tokens), mask

    model.audio_tokens = MethodType(audio_tokens, model)  # type: ignore[method-assign]


@fault(
    "a real run: scale 10 over-drove a small model; here x100",
    "SP105 fusion",
    "SP106 fusion",
    layers="any",
)
def scale_times_100(bench: Bench) -> None:
    """The projector's scale is a hundred times too large."""
    bench.model.projector.amplitude.scale *= 100


@fault("a real run: contribution 0.01-0.03 was nearly silent", "SP104 fusion")
def scale_times_001(bench: Bench) -> None:
    """The projector's scale is a hundred times too small."""
    bench.model.projector.amplitude.scale *= 0.01


@fault("a real run: scale 2 and 10 gave the same tokens", "SP413 projector")
def layernorm_after_scale(bench: Bench) -> None:
    """A LayerNorm after tanh * scale cancels the scale."""
    projector: Any = bench.model.projector
    projector.output_norm = nn.LayerNorm(projector.hidden_size)

    def forward(self: Any, embeddings: Tensor) -> Tensor:
        flat = self.amplitude(self.mlp(self.norm(embeddings)))
        tokens: Tensor = self.output_norm(flat.reshape(len(flat), self.num_tokens, -1))
        return tokens

    projector.forward = MethodType(forward, projector)


@fault(
    "finegrain-ai/refiners PR #299: set_scale did not reach the layers, the first value was used",
    "SP412 projector",
)
def scale_not_connected(bench: Bench) -> None:
    """The forward pass uses a copy of the scale; the attribute does nothing."""
    amplitude: Any = bench.model.projector.amplitude
    fixed = amplitude.scale
    amplitude.forward = MethodType(lambda _self, x: torch.tanh(x) * fixed, amplitude)


@fault("a real run: 36-62% saturated", "SP109 projector")
def tanh_saturated(bench: Bench) -> None:
    """Pre-activations are so large that tanh is at its ends."""
    _last(bench).weight.data *= 1000


@fault("textbook: with zero weights a layer returns its bias for every input", "SP111 projector")
def projector_collapsed(bench: Bench) -> None:
    """The projector gives the same tokens for every clip."""
    _last(bench).weight.data.zero_()


@fault("textbook: expand() of one vector to N tokens gives N equal ones", "SP112 projector")
def tokens_all_the_same(bench: Bench) -> None:
    """All tokens of a clip are the same vector."""
    layer, projector = _last(bench), bench.model.projector
    for tensor in (layer.weight, layer.bias):
        shared = tensor.data.unflatten(0, (projector.num_tokens, -1))
        shared[:] = shared[:1].clone()


@fault("jaywalnut310/vits #215: weight and bias of the projection are all zeros", "SP103 projector")
def projector_zero(bench: Bench) -> None:
    """The projector's last layer is all zeros."""
    _last(bench).weight.data.zero_()
    _last(bench).bias.data.zero_()


@fault(
    "lucidrains/CoCa-pytorch #6: the extractor detaches, the encoder gets no gradient",
    "SP301 projector",
)
def detached_before_fusion(bench: Bench) -> None:
    """The tokens are detached between projector and fusion."""
    _after_projector(bench, lambda tokens: tokens.detach())


@fault("RupertLuo/Valley #13: mm_projector is called under no_grad", "SP301 projector")
def projector_under_no_grad(bench: Bench) -> None:
    """The projector runs under no_grad."""
    projector: Any = bench.model.projector
    projector.forward = torch.no_grad()(projector.forward)


@fault("hiyouga/LlamaFactory #6891: a length limit cuts visual tokens", "SP421 fusion")
def tokens_truncated(bench: Bench) -> None:
    """Only half of the clip's tokens reach the fusion."""
    half = bench.model.projector.num_tokens // 2
    _after_projector(bench, lambda tokens: tokens[:, :half])


@fault("transformers #46002: NaN in newly initialised heads", "SP101 projector")
def nan_in_projector(bench: Bench) -> None:
    """One element of the projector's last layer is NaN."""
    _last(bench).weight.data[0, 0] = float("nan")

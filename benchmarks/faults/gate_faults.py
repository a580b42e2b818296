"""Faults of gates, LoRA and initial values."""

from types import MethodType
from typing import Any

import torch
from torch import Tensor

from benchmarks.faults.bench import Bench
from benchmarks.faults.registry import fault
from safe.models.fusion_adapter import PROJECTIONS, GatedResidual


def blocks(bench: Bench) -> dict[int, Any]:
    """Fusion blocks by layer."""
    return dict(bench.model.fusion.blocks())


def set_gates(bench: Bench, value: float) -> None:
    """Set every gate."""
    for block in blocks(bench).values():
        block.residual.residual_scale.data.fill_(value)


def new_residual(bench: Bench, forward: Any) -> None:
    """Give every fusion block another ``forward(residual, hidden, branch, gate)``."""
    for block in blocks(bench).values():
        block.residual.forward = MethodType(forward, block.residual)


def _zero_branch(bench: Bench) -> None:
    for block in blocks(bench).values():
        base = block.o_proj.base_layer
        base.weight = torch.nn.Parameter(torch.zeros_like(base.weight), requires_grad=False)


def _set_scaling(bench: Bench, value: float) -> None:
    for block in blocks(bench).values():
        for name in PROJECTIONS:
            getattr(block, name).scaling["default"] = value


@fault("PEFT #2494: add_adapter freezes what was trainable", "SP203 gate")
def gate_frozen(bench: Bench) -> None:
    """PEFT froze the residual gates."""
    for block in blocks(bench).values():
        block.residual.residual_scale.requires_grad_(False)


@fault("PEFT #2494: trainable parameters frozen by add_adapter", "SP203 gate", "SP305 fusion")
def gate_frozen_at_zero(bench: Bench) -> None:
    """The gates are 0 and frozen."""
    set_gates(bench, 0.0)
    gate_frozen(bench)


@fault("LAVT-RIS #25: two zero initialisations in a row", "SP211 gate")
def gate_and_branch_zero(bench: Bench) -> None:
    """Gate 0 before a branch whose base and LoRA B are 0."""
    set_gates(bench, 0.0)
    _zero_branch(bench)


@fault("relora #18, litgpt #1229: A and B both zero", "SP304 fusion")
def lora_both_zero(bench: Bench) -> None:
    """LoRA's A was initialised with zeros, like its B."""
    for name, parameter in bench.model.fusion.named_parameters():
        if "lora_A" in name:
            parameter.data.zero_()


@fault("textbook: a clamp has no slope outside its range", "SP205 gate")
def gate_outside_clamp(bench: Bench) -> None:
    """The gates start above the clamp's upper end."""
    set_gates(bench, 1.5)


@fault("a real run: gate 0.05 was nearly silent", "SP204 gate")
def gate_nearly_closed(bench: Bench) -> None:
    """The gates start at 0.001."""
    set_gates(bench, 1e-3)


@fault(
    "textbook: a control sets the gate to 0, and an exception skips setting it back", "SP201 gate"
)
def outer_gate_zero(bench: Bench) -> None:
    """The outer gate was set to 0 for a control and stayed there."""
    bench.train(3)
    bench.model.set_gate(0.0)


@fault("the seed's own counter of warm-up steps, left out", "SP202 gate")
def warmup_never_ends(bench: Bench) -> None:
    """The warm-up's step is never advanced."""
    bench.model.set_gate_warmup(1, 2000)
    bench.step = 5000


@fault(
    "shenweichen/DeepCTR-Torch #93: a learnable alpha that stays at its first value", "SP209 gate"
)
def gate_detached(bench: Bench) -> None:
    """The forward pass reads the gate's number, not the parameter."""

    def forward(self: GatedResidual, hidden: Tensor, branch: Tensor, gate: float) -> Tensor:
        return hidden + gate * self.residual_scale.detach().clamp(0, self.maximum) * branch

    new_residual(bench, forward)


@fault("a real run: the gate drifted on gradients below 1e-6", "SP413 gate")
def layernorm_after_gate(bench: Bench) -> None:
    """A LayerNorm after gate * branch cancels the gate."""
    width = bench.model.config.hidden_size
    for block in blocks(bench).values():
        block.residual.output_norm = torch.nn.LayerNorm(width)

    def forward(self: Any, hidden: Tensor, branch: Tensor, gate: float) -> Tensor:
        normed: Tensor = self.output_norm(gate * self.residual_scale * branch)
        return hidden + normed

    new_residual(bench, forward)


@fault("LLaMA-Adapter #39: tanh on the gate in training, none in inference", "SP404 fusion")
def gate_differs_in_evaluation(bench: Bench) -> None:
    """Evaluation uses a third of the training's gate."""

    def forward(self: GatedResidual, hidden: Tensor, branch: Tensor, gate: float) -> Tensor:
        factor = 1.0 if self.training else 1 / 3
        return hidden + factor * gate * self.residual_scale * branch

    new_residual(bench, forward)


@fault("textbook: a skip connection added beside the gate, so that 0 is not off", "SP410 fusion")
def second_way_in(bench: Bench) -> None:
    """A part of the branch is added past the gate."""

    def forward(self: GatedResidual, hidden: Tensor, branch: Tensor, gate: float) -> Tensor:
        return hidden + gate * self.residual_scale * branch + 0.02 * branch

    new_residual(bench, forward)


@fault(
    "kohya-ss/sd-webui-additional-networks #49: alpha / r applied otherwise than in training",
    "SP509 fusion",
)
def lora_scaling_wrong(bench: Bench) -> None:
    """LoRA's alpha / r is 100."""
    _set_scaling(bench, 100.0)


@fault("invergent-ai/surogate #173: a missing lora_alpha became scale 0", "SP509 fusion")
def lora_scaling_zero(bench: Bench) -> None:
    """LoRA's alpha / r is 0: it adds nothing."""
    _set_scaling(bench, 0.0)


@fault(
    "TransformerLensOrg/TransformerLens #902: parts of new weights are NaN, never initialised",
    "SP102 fusion",
    layers="last",
)
def nan_in_one_adapter(bench: Bench) -> None:
    """One element of one LoRA matrix is NaN."""
    last = max(blocks(bench))
    blocks(bench)[last].v_proj.lora_A["default"].weight.data[0, 0] = float("nan")

"""Faults of the optimizer and of what is trainable."""

import copy
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.faults.bench import Bench
from benchmarks.faults.registry import fault


def _drop(bench: Bench, unwanted: set[int]) -> None:
    for group in bench.optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in unwanted]


def _ids(module: nn.Module) -> set[int]:
    return {id(p) for p in module.parameters()}


def _gates(bench: Bench) -> list[nn.Parameter]:
    return [b.residual.residual_scale for b in bench.model.fusion.blocks().values()]


@fault(
    "zjunlp/HVPNeT #5: two modules were never appended to the optimizer's groups", "SP308 projector"
)
def projector_not_in_optimizer(bench: Bench) -> None:
    """The optimizer was built before the projector existed."""
    _drop(bench, _ids(bench.model.projector))


@fault(
    "LaurentMazare/ocaml-torch #36: the optimizer was made before the layer, and did nothing",
    "SP308 fusion",
)
def lora_not_in_optimizer(bench: Bench) -> None:
    """The optimizer was built before PEFT put the LoRA in."""
    _drop(bench, {id(p) for n, p in bench.model.fusion.named_parameters() if "lora_" in n})


@fault(
    "ACEsuit/mace #525: a new parameter is in none of the groups that are listed by hand",
    "SP207 gate",
)
def gates_not_in_optimizer(bench: Bench) -> None:
    """The gates are trainable, but in no parameter group."""
    _drop(bench, {id(p) for p in _gates(bench)})


@fault(
    "textbook: LambdaLR takes one factor per group, and one of them returns 0",
    "SP312 fusion",
    "SP312 gate",
)
def lr_zero_adapter(bench: Bench) -> None:
    """The learning rate of the adapter's groups is 0."""
    for group in bench.optimizer.param_groups:
        group["lr"] *= "adapter" not in group["name"]


@fault("textbook: a rate of 0 meant to freeze in one stage stays in the next", "SP312 projector")
def lr_zero_projector(bench: Bench) -> None:
    """The learning rate of the projector's groups is 0."""
    for group in bench.optimizer.param_groups:
        group["lr"] *= "projector" not in group["name"]


@fault("transformers #26827: the rate is 0 after half of the steps", "SP312 model", "SP313 model")
def lr_zero_everywhere(bench: Bench) -> None:
    """The schedule has arrived at 0 while training goes on."""
    bench.train(3)
    for group in bench.optimizer.param_groups:
        group["lr"] = 0.0


@fault("textbook: torch only warns of a tensor twice in one group", "SP310 optimizer")
def parameter_twice(bench: Bench) -> None:
    """One weight is twice in its parameter group."""
    group = bench.optimizer.param_groups[0]
    group["params"].append(group["params"][0])


@fault("ServiceNow/Fast-LLM PR #545: scales decayed since a default had changed", "SP208 gate")
def weight_decay_on_gates(bench: Bench) -> None:
    """All parameters decay, the gates among them."""
    for group in bench.optimizer.param_groups:
        group["weight_decay"] = 0.1


@fault(
    "harubaru/waifu-diffusion #64: clipped before the loss scale was divided out",
    "SP313 gate",
    "SP313 projector",
    "SP313 fusion",
)
def clip_norm_too_small(bench: Bench) -> None:
    """Gradients are clipped so hard that nothing moves."""
    bench.clip_norm = 1e-12


@fault(
    "LLaVA #1301: the loss jumps up until the rate is ten times lower",
    "SP315 projector",
    "SP315 fusion",
)
def lr_too_large(bench: Bench) -> None:
    """The learning rate is a thousand times too large."""
    for group in bench.optimizer.param_groups:
        group["lr"] *= 1000


@fault(
    "microsoft/nni #4521: the layers were replaced, the optimizer held the old ones",
    "SP311 optimizer",
    "SP308 projector",
)
def optimizer_of_a_copy(bench: Bench) -> None:
    """The optimizer holds the parameters of another copy of the model."""
    copies = {id(p): copy.deepcopy(p) for p in bench.trainer.parameters.values()}
    for group in bench.optimizer.param_groups:
        group["params"] = [copies[id(p)] for p in group["params"]]


@fault("csuhan/OneLLM #19: the code that freezes the language model was left out", "SP501 decoder")
def decoder_trainable(bench: Bench) -> None:
    """The backbone was never frozen, and the optimizer holds it."""
    decoder = bench.model.backbone.get_decoder()
    decoder.requires_grad_(True)
    bench.optimizer.add_param_group({"params": list(decoder.layers.parameters()), "lr": 1e-4})


@fault(
    "LLaVA #195: embed_tokens trained in the stage of the projector alone", "SP501 text_embeddings"
)
def embeddings_trainable(bench: Bench) -> None:
    """The token embeddings were left trainable, and the optimizer holds them."""
    weight = bench.model.backbone.get_input_embeddings().weight.requires_grad_(True)
    bench.optimizer.add_param_group({"params": [weight], "lr": 1e-4})


@fault("LLaVA #856: the linear layer frozen in the second stage", "SP504 projector")
def projector_frozen(bench: Bench) -> None:
    """The projector was frozen at its random start."""
    bench.model.projector.requires_grad_(False)


@fault("PEFT #282: from_pretrained loads frozen", "SP505 fusion", "SP309 fusion")
def lora_frozen(bench: Bench) -> None:
    """The LoRA was loaded for inference: it is frozen."""
    for name, parameter in bench.model.fusion.named_parameters():
        if "lora_" in name:
            parameter.requires_grad_(False)


@fault("textbook: one factor of a product thawed, the other not", "SP322 fusion", "SP309 fusion")
def lora_b_frozen_at_zero(bench: Bench) -> None:
    """LoRA's B is frozen where it starts, at zero; A is trained."""
    for name, parameter in bench.model.fusion.named_parameters():
        if "lora_B" in name:
            parameter.requires_grad_(False)


@fault(
    "keras-team/keras-hub #2629: LoRA in bfloat16 does not move under Adam",
    "SP508 projector",
    "SP508 fusion",
)
def trainables_in_bfloat16(bench: Bench) -> None:
    """The whole model was cast to bfloat16, what trains too."""
    for parameter in bench.trainer.parameters.values():
        parameter.data = parameter.data.to(torch.bfloat16)


@fault("textbook: a gradient reversal layer left from adversarial training", "SP318 projector")
def projector_gradient_reversed(bench: Bench) -> None:
    """A hook turns every gradient of the projector round."""
    for parameter in bench.model.projector.parameters():
        parameter.register_hook(torch.neg)


@fault("textbook: the loss scale divided out twice, in one part", "SP318 projector")
def projector_gradient_too_small(bench: Bench) -> None:
    """A hook makes every gradient of the projector a thousand times too small."""
    for parameter in bench.model.projector.parameters():
        parameter.register_hook(lambda g: g * 1e-3)


@fault("textbook: gradient noise instead of added gradient noise", "SP318 fusion")
def fusion_gradient_noise(bench: Bench) -> None:
    """A hook puts noise of the same spread in the place of LoRA's gradients."""
    for name, parameter in bench.model.fusion.named_parameters():
        if "lora_B" in name:
            parameter.register_hook(lambda g: torch.randn_like(g) * g.square().mean().sqrt())


@fault("textbook: keys detached, values not", "SP319 projector")
def keys_detached(bench: Bench) -> None:
    """Keys are made of detached tokens: the projector cannot learn where attention looks."""

    def detached(block: Any) -> Any:
        def keys_values(_self: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
            tokens = tokens.to(block.query_norm.weight.dtype)
            return block._heads(block.k_proj(tokens.detach())), block._heads(block.v_proj(tokens))

        return MethodType(keys_values, block)

    model: Any = bench.model
    for block in model.fusion.blocks().values():
        block.keys_values = detached(block)


@fault("textbook: maximize=True left from an ascent", "SP320 projector", "SP320 fusion")
def step_uphill(bench: Bench) -> None:
    """The optimizer maximizes the loss, after some right steps."""
    bench.train(3)
    for group in bench.optimizer.param_groups:
        group["maximize"] = True


@fault("textbook: an average that met one NaN keeps it", "SP321 projector", "SP321 fusion")
def average_is_nan(bench: Bench) -> None:
    """Adam's average of one tensor is NaN, its gradients are finite."""
    bench.train(2)
    next(iter(bench.optimizer.state.values()))["exp_avg"].fill_(float("nan"))

"""Keeping the answers to other prompts what they were, with audio playing.

Without audio our model is the untouched backbone, bit for bit, so it cannot forget in the usual
sense. What it can lose is the ability to ignore a sound: asked for the capital of France while a
dog barks, it should answer as before. Every variant therefore works on everyday texts that are
heard together with a clip that has nothing to do with them.

A backbone that sees (``Backbone.sees``: a LLaVA with its trained vision tower) is asked about drawn
pictures as well, by soft, fisher and full retention. The embedded model and language models put
into the LLaVA class have a random tower, whose pictures mean nothing: for them it is texts alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configs.errors import CheckpointError, ModelError
from configs.schema import RetentionConfig
from safe.data.mapped_rows import MappedRows
from safe.models.layer_output import hidden_of
from safe.models.safe_model import SAFEModel
from safe.training.batches import CaptionTokens
from safe.training.retention_images import RetentionImages
from safe.training.retention_texts import RetentionTexts, TextBatch

_ENERGY = 0.95
"""Share of the query inputs' energy that the protected subspace holds."""


class Term:
    """One way to retain; ``tensors`` is what a resumed run must have again."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def backward(self, step: int) -> Tensor | None:  # noqa: ARG002
        """Add the term's gradient; its unweighted value when it was evaluated at ``step``.

        A scalar that is still on its device: the step reads all of its numbers at once.
        """
        return None

    def after_step(self) -> None:
        """Restore what the optimizer's step may have broken."""


class Retention:
    """The terms of a retention variant, as the training loop sees them.

    Args:
        terms: none for ``no_retention``.
    """

    def __init__(self, terms: list[Term]) -> None:
        self.terms = terms

    def backward(self, step: int) -> Tensor | None:
        """Add the gradient of every term that is due at ``step`` to the parameters' ``.grad``.

        Returns:
            Sum of the unweighted values of these terms, a scalar; None when none was due.
        """
        values = [value for term in self.terms if (value := term.backward(step)) is not None]
        return _sum(values) if values else None

    def after_step(self) -> None:
        """To be called after every optimizer step."""
        for term in self.terms:
            term.after_step()

    def state(self) -> dict[str, Tensor]:
        """What cannot be derived again once training has begun, by unique names."""
        return {name: tensor for term in self.terms for name, tensor in term.tensors.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state` returned.

        Raises:
            CheckpointError: it is the state of another retention variant or adapter, or not finite.
        """
        expected = self.state()
        if odd := sorted(expected.keys() ^ state.keys()):
            raise CheckpointError(
                f"the saved retention state does not fit this run's: {len(odd)} tensors differ, "
                f"{', '.join(odd[:3])}; resume with the retention.variant of the checkpoint"
            )
        for name, tensor in expected.items():
            if state[name].shape != tensor.shape or not state[name].isfinite().all():
                raise CheckpointError(
                    f"the saved retention state {name!r} has another shape than "
                    f"{list(tensor.shape)} or holds NaN or infinity"
                )
        for term in self.terms:
            for name, tensor in term.tensors.items():
                term.tensors[name] = state[name].to(tensor)


def build_retention(
    config: RetentionConfig,
    model: SAFEModel,
    tokens: CaptionTokens,
    embeddings: np.ndarray | MappedRows,
    seed: int,
) -> Retention:
    """The retention of a run.

    To be built on the model as it was initialised; a resumed run loads its checkpoint afterwards,
    then calls ``load_state``. Which texts, pictures and clips are used depends on ``seed`` and step
    alone.

    Args:
        config: variant, weight, interval.
        model: the model to be trained; nullspace_retention projects its LoRA at once.
        tokens: the run's tokenizer and prompt.
        embeddings: [n, D] audio embeddings of the training clips, used as distractors.
        seed: of the run.

    Raises:
        ModelError: fisher_retention or full_retention on a model whose gate is shut.
    """
    if config.variant == "no_retention":
        return Retention([])
    texts = RetentionTexts(tokens, embeddings, seed, model.device)
    sources = [texts]
    if model.sees:
        sources.append(RetentionImages(model, tokens, embeddings, seed))
    terms: list[Term] = []
    # first the projection: the others must see the weights that training starts from
    if config.variant in ("nullspace_retention", "full_retention"):
        terms.append(NullspaceTerm(model, texts))
    if config.variant in ("soft_retention", "full_retention"):
        terms.append(SoftTerm(model, sources, config.weight, config.every))
    if config.variant in ("fisher_retention", "full_retention"):
        terms.append(FisherTerm(model, sources, config.weight))
    return Retention(terms)


class SoftTerm(Term):
    """``weight * KL(untouched || fused)`` per answer token, every ``every`` steps.

    The mean over a batch of texts and, where the model sees, one of pictures.
    Source: Li and Hoiem 2016, "Learning without Forgetting" (distillation from the old model).
    """

    def __init__(
        self, model: SAFEModel, sources: Sequence[RetentionTexts], weight: float, every: int
    ) -> None:
        super().__init__()
        self.model, self.sources, self.weight, self.every = model, sources, weight, every

    def backward(self, step: int) -> Tensor | None:
        """Add the gradient at every ``every``-th step; the KL in nats per token."""
        if step % self.every:
            return None
        values = []
        for source in self.sources:  # one after the other: less memory
            kl = divergence(self.model, source.draw(step, source.SIZE)) / len(self.sources)
            if kl.requires_grad:  # not while the gate is still shut
                (self.weight * kl).backward()
            values.append(kl.detach())
        return _sum(values)


class FisherTerm(Term):
    """``weight * sum_i F_i (theta_i - theta_i^0)^2`` over all trainables, every step.

    F is the diagonal of the Fisher information at the start, for answer tokens drawn from the
    model itself, scaled to a mean of 1. LoRA's A matrices have none, because B is still zero.
    Source: Kirkpatrick et al. 2017, "Overcoming catastrophic forgetting" (EWC).
    """

    def __init__(self, model: SAFEModel, sources: Sequence[RetentionTexts], weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.parameters = {n: p for g in model.trainable_groups().values() for n, p in g.items()}
        for name, importance in fisher_diagonal(model, *sources).items():
            self.tensors[f"fisher.{name}"] = importance
            self.tensors[f"start.{name}"] = self.parameters[name].detach().clone()

    def backward(self, step: int) -> Tensor:  # noqa: ARG002
        """Add the gradient; the unweighted penalty."""
        values = []
        for name, parameter in self.parameters.items():
            drift = parameter - self.tensors[f"start.{name}"]
            penalty = (self.tensors[f"fisher.{name}"] * drift.square()).sum()
            (self.weight * penalty).backward()
            values.append(penalty.detach())
        return _sum(values)


class NullspaceTerm(Term):
    """Keeps the LoRA of q_proj from changing the queries that the texts make.

    U spans the query inputs of the texts at a fusion layer (95% of their energy, at most half the
    width), collected on the untouched model; ``A <- A (I - U U^T)`` makes ``B A x = 0`` for every
    x in that span. Source: Wang et al. 2021, "Training networks in null space of feature
    covariance for continual learning".
    """

    def __init__(self, model: SAFEModel, texts: RetentionTexts) -> None:
        super().__init__()
        self.loras: dict[str, nn.Parameter] = {}
        for index, inputs in query_inputs(model, texts).items():
            lora = model.fusion.blocks()[index].q_proj.lora_A["default"].weight
            self.loras[f"basis.{index}"] = lora
            self.tensors[f"basis.{index}"] = _principal_directions(inputs).to(lora)
        self.after_step()

    @torch.no_grad()
    def after_step(self) -> None:
        """Project A out of the protected subspace."""
        for name, lora in self.loras.items():
            basis = self.tensors[name]
            lora.sub_((lora @ basis) @ basis.T)


def _sum(values: Sequence[Tensor]) -> Tensor:
    """Sum of scalars, which may lie on several devices."""
    return torch.stack([value.double().to(values[0].device) for value in values]).sum()


def divergence(model: SAFEModel, batch: TextBatch) -> Tensor:
    """KL(untouched || fused) in nats per answer token, a scalar with a graph."""
    inputs = batch.input_ids, batch.attention_mask
    with torch.no_grad():
        untouched = model(*inputs, None, batch.labels, **batch.sights).logits
    fused = model(*inputs, batch.audio, batch.labels, **batch.sights).logits
    untouched, fused = (logits.float().log_softmax(-1) for logits in (untouched, fused))
    return F.kl_div(fused, untouched, reduction="batchmean", log_target=True)


def fisher_diagonal(model: SAFEModel, *sources: RetentionTexts) -> dict[str, Tensor]:
    """Diagonal Fisher information of every trainable, with a mean of 1 over all elements.

    One text at a time: the answer tokens drawn at its positions are independent given the text,
    so the square of the summed gradient is unbiased for the sum over positions.

    Raises:
        ModelError: all zero, because no audio reaches the texts.
    """
    parameters = {n: p for g in model.trainable_groups().values() for n, p in g.items()}
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    generator = torch.Generator().manual_seed(sources[0].seed)
    with _warmed_up(model):
        for batch in chain.from_iterable(source.all(1) for source in sources):
            inputs = batch.input_ids, batch.attention_mask, batch.audio, batch.labels
            logits = model(*inputs, **batch.sights).logits.float()
            if not logits.requires_grad:
                break
            chances = logits.detach().softmax(-1).cpu()
            drawn = torch.multinomial(chances, 1, generator=generator)[:, 0].to(logits.device)
            loss = F.cross_entropy(logits, drawn, reduction="sum")
            gradients = torch.autograd.grad(loss, list(parameters.values()))
            for name, gradient in zip(parameters, gradients, strict=True):
                total[name] += gradient.square()
    mean = sum(t.double().sum().item() for t in total.values()) / sum(
        t.numel() for t in total.values()
    )
    if mean == 0.0:
        raise ModelError(
            "fisher_retention found no gradient: with the model's gate at "
            f"{model.outer_gate.value} no audio reaches the texts; open the gate before training"
        )
    return {name: tensor / mean for name, tensor in total.items()}


def query_inputs(model: SAFEModel, texts: RetentionTexts) -> dict[int, Tensor]:
    """What q_proj of each fusion layer gets to see of the texts, [positions, H] by layer.

    From the untouched model, padding left out.
    """
    seen: dict[int, list[Tensor]] = {index: [] for index in model.fusion.blocks()}
    for batch in texts.all(texts.SIZE):
        real = batch.attention_mask.bool()
        with _recorded(model) as hidden, torch.no_grad():
            model(batch.input_ids, batch.attention_mask)
            for index, block in model.fusion.blocks().items():
                inputs = block.query_norm(hidden[index])
                seen[index].append(inputs[real.to(inputs.device)].cpu())
    return {index: torch.cat(parts) for index, parts in seen.items()}


@contextmanager
def _recorded(model: SAFEModel) -> Iterator[dict[int, Tensor]]:
    """Hidden states [B, T, H] that leave the fusion layers, while inside."""
    hidden: dict[int, Tensor] = {}

    def keep(index: int, _layer: nn.Module, _args: object, output: object) -> None:
        hidden[index] = hidden_of(output)

    with ExitStack() as hooks:
        for index in model.fusion.blocks():
            handle = model.layers[index].register_forward_hook(partial(keep, index))
            hooks.callback(handle.remove)
        yield hidden


@contextmanager
def _warmed_up(model: SAFEModel) -> Iterator[None]:
    """The gate as it will be after its warm-up, while inside."""
    gate = model.gate_state()
    try:
        model.set_gate_warmup(0, 0)
        yield
    finally:
        model.load_gate_state(gate)


def _principal_directions(inputs: Tensor) -> Tensor:
    """Orthonormal [H, k] that holds 95% of the energy of ``inputs`` [n, H], k at most H / 2."""
    _, singular, directions = torch.linalg.svd(inputs.double(), full_matrices=False)
    energy = singular.square().cumsum(0)
    needed = int((energy < _ENERGY * energy[-1]).sum()) + 1
    return directions[: min(needed, inputs.shape[1] // 2)].T.contiguous()

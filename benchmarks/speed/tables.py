"""Which works are held against which, and the goals of each."""

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.speed.gradients import gradient_ways
from benchmarks.speed.layer_norms import in_one_forward, of_states, states_of
from benchmarks.speed.layer_peers import peers
from benchmarks.speed.pairs import Ratio, take_turns
from benchmarks.speed.subjects import SHAPES, Subject
from probes.context import Context
from probes.magnitude import measure
from probes.session import Session
from safe.models.safe_model import SAFEModel

LAYERS = 30
STATISTICS = "safe-probe: full statistics of every layer"


def probe_tables(subject: Subject) -> Iterator[list[Ratio]]:
    """Every table of probe overhead on one backbone."""
    for shape in SHAPES:
        yield statistics_in_a_forward(subject, *shape)
    yield statistics_alone(subject)
    yield audio_probe(subject)
    yield gradients(subject)


def statistics_in_a_forward(subject: Subject, rows: int, length: int) -> list[Ratio]:
    """All layers in one forward pass against the bare forward pass."""
    ids = subject.ids(rows, length)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def bare() -> None:
        with torch.no_grad():
            subject.lm(**inputs)

    def session() -> None:
        with Session(subject.lm), torch.no_grad():
            subject.lm(**inputs)

    ways = {
        STATISTICS: lambda: in_one_forward(subject, inputs),
        "  of that, an empty session": session,
        **peers(subject, inputs),
    }
    table = f"{subject.name}, forward pass at {rows} x {length}"
    return take_turns(table, bare, ways, {STATISTICS: 1.05}, device=subject.device)


def statistics_alone(subject: Subject) -> list[Ratio]:
    """The full statistic set on ready hidden states against plain norms of the same."""
    ids = subject.ids(8, 64)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    states = (states_of(subject, inputs) * LAYERS)[:LAYERS]
    out = torch.empty_like(states[0][..., 0])

    def plain() -> None:
        for state in states:
            torch.linalg.vector_norm(state, dim=-1, out=out)

    ways = {
        STATISTICS: lambda: of_states(states, inputs).records(),
        "clone": lambda: [state.clone() for state in states],
        "var_mean": lambda: [torch.var_mean(state, dim=-1) for state in states],
        "norm, RMS, max|h| and median, one by one": lambda: [_one_by_one(s) for s in states],
    }
    table = f"{subject.name}, {LAYERS} x vector_norm(out=) of 8 x 64 x {states[0].shape[-1]}"
    return take_turns(table, plain, ways, {STATISTICS: 3.0}, device=subject.device)


def _one_by_one(state: Tensor) -> tuple[Tensor, ...]:
    norm = torch.norm(state, dim=-1)
    rms = state.pow(2).mean(-1).sqrt()
    return norm, rms, state.abs().max(-1).values, norm.median()


def audio_probe(subject: Subject) -> list[Ratio]:
    """The magnitude probe as it is called in a training, on a model that hears."""
    model = subject.model
    inputs = subject.batch(8, 64)
    context = Context.of(model, [inputs])

    def bare() -> None:
        with torch.no_grad():
            model(**inputs)

    table = f"{subject.name} with audio, forward pass at 8 x 64"
    ways = {"safe-probe: magnitude probe": lambda: measure(context)}
    return take_turns(table, bare, ways, device=subject.device)


def gradients(subject: Subject) -> list[Ratio]:
    """Gradient norms of all trainable parameters in one forward and backward pass."""
    model: SAFEModel = subject.model
    inputs = subject.batch(8, 64)

    def bare() -> Tensor:
        model.zero_grad(set_to_none=True)
        loss = model(**inputs).loss
        assert loss is not None
        loss.backward()
        return loss

    ways, ours = gradient_ways(model, bare)
    table = f"{subject.name} with audio, forward and backward pass at 8 x 64"
    return take_turns(table, bare, ways, {ours: 1.03}, device=subject.device)

"""The running statistics of gradients against NumPy on all gradients kept."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from probes.gradient_tally import GradientTally
from probes.ledger import State


@given(
    st.integers(0, 2**20),
    st.lists(st.sampled_from(["none", "zero", "some"]), min_size=1, max_size=6),
    st.sampled_from([(), (1,), (7,), (3, 5), (2, 3, 4)]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    st.sampled_from([1.0, 1024.0]),
)  # fmt: skip
def test_any_sequence(
    seed: int, kinds: list[str], shape: tuple[int, ...], dtype: torch.dtype, scale: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    tally, kept = GradientTally(), []
    for kind in kinds:
        gradient = torch.randn(shape, generator=generator).to(dtype) * (kind == "some")
        tally.add(None if kind == "none" else gradient, scale)
        kept.append(gradient.double().numpy().ravel() / scale)
    rows = np.stack(kept)
    np.testing.assert_allclose(tally.norms, np.linalg.norm(rows, axis=1), rtol=1e-6)
    scatter = ((rows - rows.mean(0)) ** 2).sum()
    assert tally.scatter == pytest.approx(scatter, rel=1e-5, abs=1e-12 / scale**2)
    expected = max({"none": State.NONE, "zero": State.ZERO, "some": State.FINITE}[k] for k in kinds)
    assert tally.state == expected
    assert tally.silent == pytest.approx(sum(k != "some" for k in kinds) / len(kinds))
    mean = tally.take_mean()
    assert tally.mean is None and tally.state == expected
    assert (mean is None) == (expected is State.NONE)
    if mean is not None:
        assert mean.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        np.testing.assert_allclose(
            mean.double().numpy().ravel(), rows.mean(0), rtol=1e-5, atol=1e-7
        )


def test_gradient_given_is_neither_kept_nor_changed() -> None:
    gradient = torch.ones(3)
    tally = GradientTally()
    tally.add(gradient, 2.0)
    tally.add(gradient, 2.0)
    assert torch.equal(gradient, torch.ones(3))
    assert tally.mean is not None
    assert tally.mean.data_ptr() != gradient.data_ptr()
    assert tally.scatter == 0


def test_large_gradient_is_exact_to_a_millionth() -> None:
    gradient = torch.randn(3000, 1000, generator=torch.Generator().manual_seed(0)) * 1e-3 + 1e-2
    tally = GradientTally()
    tally.add(gradient)
    assert tally.norms[0] == pytest.approx(gradient.double().norm().item(), rel=1e-6)


def test_sparse_gradient() -> None:
    embedding = torch.nn.Embedding(10, 4, sparse=True)
    embedding(torch.tensor([2, 2, 5])).square().sum().backward()
    dense = embedding.weight.grad.to_dense()
    tally = GradientTally()
    tally.add(embedding.weight.grad)
    assert tally.norms[0] == pytest.approx(dense.norm().item())
    assert tally.state is State.FINITE


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_one_bad_element_in_one_batch(bad: float) -> None:
    tally = GradientTally()
    for value in (0.0, bad, 1.0):
        tally.add(torch.tensor([1.0, value]))
    assert tally.state is State.NONFINITE


def test_smallest_numbers_are_not_zero_and_large_ones_not_infinite() -> None:
    for value in (1e-45, 1e-30, 3e38):
        tally = GradientTally()
        tally.add(torch.full((4, 4), value))
        assert tally.state is State.FINITE
        assert tally.norms[0] == pytest.approx(torch.full((16,), value).double().norm().item())


def test_two_parameters_may_be_given_one_gradient() -> None:
    """As autograd does for a sum of two views: a tally that changed it would change the other's."""
    pair = [torch.nn.Parameter(torch.randn(2, 2)) for _ in range(2)]
    tallies = [GradientTally(), GradientTally()]
    for scale in (1.0, 3.0):
        (pair[0].view(4) + pair[1].view(4)).square().sum().mul(scale).backward()
        first, second = (p.grad for p in pair)
        assert first is not None and second is not None
        assert first.data_ptr() == second.data_ptr()
        for parameter, tally in zip(pair, tallies, strict=True):
            tally.add(parameter.grad)
            parameter.grad = None
    means = [tally.take_mean() for tally in tallies]
    right = 2 * 2 * (pair[0] + pair[1]).detach()
    for mean in means:
        assert mean is not None
        torch.testing.assert_close(mean, right)
    assert tallies[0].norms == tallies[1].norms and tallies[0].scatter == tallies[1].scatter

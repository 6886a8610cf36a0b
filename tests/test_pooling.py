"""Pooling: one sum, divided once, for all sequences and for resamples of them; against plain loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils.metrics import defined_ratio, interval, mean_and_error
from course_utils.passes import Pooled, put_back


def drawn(seed, n, length):
    """Values, and a mask with holes that counts at least one position."""
    rng = torch.Generator().manual_seed(seed)
    values, counted = torch.randn(n, length, generator=rng).double(), torch.rand(n, length, generator=rng) < 0.6
    counted[0, 0] = True
    return values, counted


def filled(pooled, values, counted, batch_size=100):
    for rows in torch.arange(len(values)).split(batch_size):
        pooled.add(rows, counted[rows], {"values": values[rows], "twice": 2 * values[rows]})
    return pooled


SIZES = {"seed": st.integers(0, 10**6), "n": st.integers(1, 12), "length": st.integers(1, 6)}


@settings(max_examples=40, deadline=None)
@given(**SIZES, batch_size=st.integers(1, 13))
def test_means_equal_loops_over_the_same_draws(seed, n, length, batch_size):
    values, counted = drawn(seed, n, length)
    pooled = filled(Pooled(n, 7, seed), values, counted, batch_size)
    assert pooled.weights.shape == (8, n) and (pooled.weights[0] == 1).all()
    assert (pooled.weights >= 0).all() and (pooled.weights.sum(dim=1) == n).all()
    means = (pooled.mean(name).tolist() for name in ("values", "twice"))
    for times, mean, twice in zip(pooled.weights.tolist(), *means):
        pool = [values[i, j].item() for i in range(n) for _ in range(times[i]) for j in range(length) if counted[i, j]]
        assert mean == pytest.approx(sum(pool) / len(pool) if pool else math.nan, rel=1e-10, abs=1e-12, nan_ok=True)
        assert twice == pytest.approx(2 * mean, rel=1e-10, nan_ok=True)
    for j, mean in enumerate(pooled.by_position("values").tolist()):
        column = [values[i, j].item() for i in range(n) if counted[i, j]]
        assert mean == pytest.approx(sum(column) / len(column) if column else math.nan, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_counted_does_not_matter(value):
    values, counted = drawn(3, 6, 5)
    spoiled = torch.where(counted, values, value)
    one, other = (filled(Pooled(6, 5, 0), each, counted, 4) for each in (values, spoiled))
    assert not counted.all() and torch.equal(one.mean("values"), other.mean("values"))


def test_a_position_that_is_never_counted_has_no_mean():
    values, counted = drawn(0, 6, 5)
    counted[:, 2] = False
    assert filled(Pooled(6, 2, 0), values, counted).by_position("values").isnan().tolist() == [j == 2 for j in range(5)]


def test_single_precision_is_summed_in_double():
    values, counted = torch.full((40, 50), 0.1), torch.ones(40, 50, dtype=torch.bool)
    mean = filled(Pooled(40, 1, 0), values, counted, 1).mean("values")[0].item()
    assert mean == pytest.approx(values[0, 0].item(), rel=1e-12)


def test_draws_are_fair_and_come_from_the_seed():
    one, again, other = (Pooled(8, 4000, seed).weights for seed in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)
    share = one[1:].double().mean(dim=0)                            # of a binomial: 8 draws, one chance in 8
    assert (share - 1).abs().max() < 5 * (7 / 8 / 4000) ** 0.5
    assert one[1:].double().var(dim=0).mean() == pytest.approx(7 / 8, rel=0.1)
    values, counted = drawn(0, 200, 3)
    counted[:] = True
    means = filled(Pooled(200, 1000, 0), values, counted).mean("values")[1:]
    assert means.std().item() == pytest.approx(values.mean(dim=1).std().item() / 200**0.5, rel=0.1)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 50))
def test_the_interval_is_the_middle_95_percent(seed, n):
    values = torch.randn(n, generator=torch.Generator().manual_seed(seed)).double()
    expected = pytest.approx(tuple(np.quantile(values.numpy(), [0.025, 0.975])))
    assert interval(values) == expected == interval(torch.cat([values, torch.tensor([math.nan])]))


@pytest.mark.parametrize("low, high, defined", [
    (1.0, 3.0, True), (-3.0, -1.0, True), (-0.1, 3.0, False), (-3.0, 0.1, False), (0.0, 0.0, False),
    (1e-7, 9e-7, False)])
def test_what_may_be_0_divides_nothing(low, high, defined):
    """`below` is not 0 itself; what counts are the middle 95 % of its resamples, here 0.025 (high − low) further in."""
    below = torch.cat([torch.tensor([0.5]), torch.linspace(low, high, 41)]).double()
    above = torch.arange(42.0).double()
    ratio = defined_ratio(above, below)
    assert torch.equal(ratio, above / below) if defined else ratio.isnan().all()
    outlier = torch.cat([below, torch.full((1,), -9.0)])            # one resample of 42 is no reason
    assert defined_ratio(torch.cat([above, above[:1]]), outlier).isnan().any() != defined


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 12), length=st.integers(1, 6))
def test_the_standard_error_is_over_sequences(seed, n, length):
    values = drawn(seed, n, length)[0].numpy()
    by_sequence = [sum(row) / length for row in values]
    mean = sum(by_sequence) / n
    error = (sum((each - mean) ** 2 for each in by_sequence) / (n - 1) / n) ** 0.5
    assert mean_and_error(torch.tensor(values)) == pytest.approx((mean, error))


@pytest.mark.parametrize("size", [1, 2, 100])
def test_chunks_of_counted_values_come_to_their_places(size):
    counted = torch.tensor([[False, True, True, False], [True, False, False, True]])
    values = torch.tensor([5.0, 6, 7, 8], dtype=torch.float64)
    found = put_back(values.split(size), counted)
    assert found.tolist() == [[0, 5, 6, 0], [7, 0, 0, 8]] and found.dtype == torch.float64
    assert put_back([], counted & False).tolist() == [[0] * 4] * 2                          # a batch without any

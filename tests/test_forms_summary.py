"""Statistics of the training rows, against NumPy and pandas."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from skvae.forms import Summary
from skvae.forms.base import MAX_DISTINCT

STATISTICS = ("mean", "variance", "deviation", "low", "high", "missing")


@pytest.fixture
def X():
    return np.random.default_rng(0).normal([5, -300, 0], [0.1, 40, 1e-3], (5000, 3))


@pytest.fixture
def weights():
    return np.random.default_rng(1).integers(1, 5, 5000).astype(float)


@pytest.fixture
def observed():
    return np.random.default_rng(2).random((5000, 3)) < [0.9, 0.5, 1]


def assert_equal(one, other, rtol=1e-9):
    for name in STATISTICS:
        got, expected = getattr(one, name), getattr(other, name)
        np.testing.assert_allclose(got, expected, rtol=rtol, atol=1e-12, err_msg=name)


# ------------------------------------------------------------------ moments


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_of_all_rows_it_is_numpys(X, dtype):
    X = X.astype(dtype)
    summary, exact = Summary(X), X.astype(np.float64)
    np.testing.assert_allclose(summary.mean, exact.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(summary.variance, exact.var(axis=0), rtol=1e-10)
    np.testing.assert_allclose(summary.deviation, exact.std(axis=0), rtol=1e-10)
    np.testing.assert_array_equal(summary.low, exact.min(axis=0))
    np.testing.assert_array_equal(summary.high, exact.max(axis=0))
    assert summary.missing.tolist() == [0, 0, 0]
    assert all(getattr(summary, name).dtype == np.float64 for name in STATISTICS)
    assert not summary.is_constant.any()


def test_weights_count_rows(X, weights):
    repeated = Summary(np.repeat(X, weights.astype(int), axis=0))
    assert_equal(Summary(X, weights), repeated)
    assert_equal(Summary(X, 1e-6 * weights), repeated)
    np.testing.assert_allclose(
        Summary(X, weights).mean, np.average(X, axis=0, weights=weights)
    )


def test_missing_entries_count_nowhere_else(X, observed):
    given = np.where(observed, X, np.nan)
    frame, summary = pd.DataFrame(given), Summary(given, observed=observed)
    np.testing.assert_allclose(summary.mean, frame.mean())
    np.testing.assert_allclose(summary.variance, frame.var(ddof=0))
    np.testing.assert_array_equal(summary.low, frame.min())
    np.testing.assert_array_equal(summary.high, frame.max())
    np.testing.assert_allclose(summary.missing, frame.isna().mean())
    # Whatever stands in their place.
    assert_equal(Summary(np.where(observed, X, 1e30), observed=observed), summary)


def test_weights_and_missing_entries(X, weights, observed):
    summary = Summary(np.where(observed, X, np.nan), weights, observed)
    for d in range(3):
        seen = observed[:, d]
        alone = Summary(X[seen, d : d + 1], weights[seen])
        assert summary.mean[d] == pytest.approx(alone.mean[0])
        assert summary.variance[d] == pytest.approx(alone.variance[0])
        missing = weights[~seen].sum() / weights.sum()
        assert summary.missing[d] == pytest.approx(missing, abs=1e-12)


def test_a_column_without_an_entry(X):
    observed = np.ones(X.shape, bool)
    observed[:, 1] = False
    summary = Summary(X, observed=observed)
    for name in ("mean", "variance", "low", "high"):
        assert getattr(summary, name)[1] == 0
    assert summary.missing.tolist() == [0, 1, 0]
    values, shares = summary.distinct(1)
    assert len(values) == len(shares) == 0
    assert summary.frequencies(1, 3).tolist() == [0, 0, 0]


def test_blocks_are_a_matter_of_memory_alone(X, weights, observed, monkeypatch):
    whole = Summary(X, weights, observed)
    monkeypatch.setattr("skvae.forms.base.BLOCK", 7)
    assert_equal(Summary(X, weights, observed), whole)


@pytest.mark.parametrize("location", [1e8, -1e12, 1000.0])
def test_far_from_zero(location):
    noise = np.random.default_rng(0).normal(size=(1000, 1))
    X = location + noise
    summary = Summary(X)
    assert summary.deviation[0] == pytest.approx(X.std(), rel=1e-6)
    assert summary.deviation[0] == pytest.approx(noise.std(), rel=1e-3)


def test_narrow_float32_columns():
    """Finding 8: the sums are those of float64."""
    X = (1000 + 1e-3 * np.random.default_rng(0).normal(size=(500, 1))).astype("f4")
    assert_equal(Summary(X), Summary(X.astype(np.float64)))
    assert Summary(X).deviation[0] == pytest.approx(1e-3, rel=0.1)
    assert not Summary(X).is_constant[0]


@pytest.mark.parametrize("scale", [1e-310, 1e-170, 1e-100, 1e100, 1e150, 1e300])
@pytest.mark.parametrize("location", [0.0, 3.0])
def test_columns_of_any_size(scale, location):
    """Finding 8: squares of less than 1e-162, or of more than 1e154, are no numbers."""
    unit = np.random.default_rng(0).normal(location, 1, (200, 2))
    X = unit * [scale, 1.0]
    # What the column itself is worth where its numbers are subnormal.
    rtol = 1e-9 if scale > 1e-300 else 1e-3
    summary = Summary(X)
    np.testing.assert_allclose(summary.mean / [scale, 1], unit.mean(axis=0), rtol=rtol)
    np.testing.assert_allclose(summary.deviation / [scale, 1], unit.std(0), rtol=rtol)
    assert not summary.is_constant.any()
    # Neighbours do not change what is known of a column.
    assert Summary(X[:, 1:]).deviation[0] == pytest.approx(summary.deviation[1])


@pytest.mark.parametrize("value", [0.0, 0.1, -7.0, 1e8, 1e-200, -1e200, 1e308])
@pytest.mark.parametrize("weighted", [False, True])
def test_constant_columns(value, weighted):
    X = np.full((9999, 1), value)
    weights = np.random.default_rng(0).random(9999) if weighted else None
    summary = Summary(X, weights)
    assert summary.is_constant.all()
    assert summary.mean[0] == pytest.approx(value, rel=1e-12)
    assert summary.deviation[0] <= 1e-12 * abs(value)


def test_a_column_that_is_constant_but_for_rounding():
    X = 0.1 + np.array([[0.0], [1.4e-17], [2.8e-17]])
    assert Summary(X).is_constant[0]
    assert not Summary(0.1 + np.array([[0.0], [1e-10]])).is_constant[0]


@given(
    arrays(
        np.float64,
        st.tuples(st.integers(1, 20), st.integers(1, 3)),
        elements=st.floats(-1e6, 1e6),
    ),
    st.data(),
)
def test_any_rows_and_weights(X, data):
    counts = data.draw(arrays(np.int64, len(X), elements=st.integers(1, 4)))
    summary = Summary(X, counts.astype(float))
    repeated = np.repeat(X, counts, axis=0)
    reach = np.abs(X).max(axis=0) + 1e-300
    assert (np.abs(summary.mean - repeated.mean(axis=0)) <= 1e-12 * reach).all()
    assert (np.abs(summary.deviation - repeated.std(axis=0)) <= 1e-7 * reach).all()
    assert (summary.low <= summary.mean + 1e-12 * reach).all()
    assert (summary.high >= summary.mean - 1e-12 * reach).all()


def test_integers_are_numbers_too():
    summary = Summary(np.array([[0, 1], [4, 3]]))
    assert summary.mean.tolist() == [2, 2]
    assert summary.high.tolist() == [4, 3]


def test_some_columns(X, weights, observed):
    whole = Summary(X, weights, observed)
    some = whole.take([2, 0])
    for name in STATISTICS:
        assert getattr(some, name).tolist() == getattr(whole, name)[[2, 0]].tolist()
    for got, expected in zip(some.distinct(1), whole.distinct(0), strict=True):
        np.testing.assert_array_equal(got, expected)
    assert whole.take([0, 1, 2]) is whole
    assert whole.take(range(3)) is whole


def test_unknown():
    summary = Summary.unknown(3)
    assert summary.mean.tolist() == summary.deviation.tolist() == [0, 0, 0]
    assert summary.is_constant.all()


# ------------------------------------------------------------------ values


@pytest.mark.parametrize("weighted", [False, True])
def test_up_to_256_distinct_values_as_they_are(weighted):
    rng = np.random.default_rng(0)
    X = rng.integers(MAX_DISTINCT, size=(4000, 1)).astype(float)
    weights = rng.random(4000) if weighted else np.ones(4000)
    values, shares = Summary(X, weights if weighted else None).distinct(0)
    expected = pd.Series(weights).groupby(X[:, 0]).sum() / weights.sum()
    np.testing.assert_array_equal(values, expected.index)
    np.testing.assert_allclose(shares, expected)


@pytest.mark.parametrize("weighted", [False, True])
def test_quantiles_of_more(weighted):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(2000, 1))
    counts = rng.integers(1, 4, 2000) if weighted else np.ones(2000, int)
    values, shares = Summary(X, counts.astype(float)).distinct(0)
    assert len(values) == MAX_DISTINCT
    np.testing.assert_allclose(shares, 1 / MAX_DISTINCT)
    middle = (np.arange(MAX_DISTINCT) + 0.5) / MAX_DISTINCT
    expected = np.quantile(np.repeat(X[:, 0], counts), middle, method="inverted_cdf")
    np.testing.assert_array_equal(values, expected)


def test_missing_entries_are_no_values():
    X = np.array([[1.0], [np.nan], [2.0], [2.0]])
    summary = Summary(X, np.array([1.0, 5, 1, 2]), ~np.isnan(X))
    values, shares = summary.distinct(0)
    assert values.tolist() == [1, 2]
    assert shares.tolist() == [0.25, 0.75]


@pytest.mark.parametrize("weighted", [False, True])
def test_frequencies_of_codes(weighted):
    X = np.array([[0.0], [2], [2], [np.nan], [1]])
    weights = np.array([1.0, 2, 3, 4, 0]) if weighted else None
    summary = Summary(X, weights, ~np.isnan(X))
    expected = [1 / 6, 0, 5 / 6, 0] if weighted else [0.25, 0.25, 0.5, 0]
    np.testing.assert_allclose(summary.frequencies(0, 4), expected)
    np.testing.assert_allclose(summary.frequencies(0, 2).sum(), 1)

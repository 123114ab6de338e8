"""Sets of numbers as values."""

from math import inf

import numpy as np
import pytest

from likelihood_helpers import columns
from skvae.forms import Summary
from skvae.likelihoods import (
    LIKELIHOODS,
    Categorical,
    DiscretizedLogisticMixture,
    Mixed,
    Support,
)
from skvae.support import COUNTS, REAL, UNIT_INTERVAL

OPEN = Support(0.0, 1.0, margin=2.0**-24, text="(0, 1)")
LEVELS = Support(0.0, 1.0, 1 / 255, text="{0, 1/255, ..., 1}")
CODES = Support(0.0, 2.0, 1.0, text="{0, 1, 2}")


@pytest.mark.parametrize(
    ("support", "inside", "outside"),
    [
        (REAL, [0, -3.5, 1e300], [inf, -inf, np.nan]),
        (UNIT_INTERVAL, [0, 0.5, 1, -0.0], [-1e-9, 1.000001, 2, np.nan, inf]),
        (OPEN, [1e-300, 0.5, 1 - 1e-16], [0, 1, -0.5, 1.5, np.nan, inf]),
        (COUNTS, [0, 1, 7, 2.0**60], [-1, 0.5, 1e-9, np.nan, inf, -inf]),
        (LEVELS, [0, 1 / 255, 100 / 255, 1], [0.5 / 255, 0.3, 256 / 255, np.nan]),
        (CODES, [0, 1, 2], [-1, 0.5, 3, np.nan]),
    ],
    ids=str,
)
def test_contains(support, inside, outside):
    assert support.contains(np.array(inside, float)).all()
    assert not support.contains(np.array(outside, float)).any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("support", [UNIT_INTERVAL, LEVELS], ids=str)
def test_rounding_at_the_ends_is_inside(support, dtype):
    just_above = np.nextafter(np.nextafter(dtype(1), dtype(2)), dtype(2))
    just_below = -np.finfo(dtype).eps
    assert support.contains(np.array([just_above, just_below], dtype)).all()
    # What is within stays as it is, so that its row keeps its hash.
    given = np.array([just_above, just_below], dtype)
    np.testing.assert_array_equal(support.nearest(given), given)
    beyond = np.array([dtype(1) + 99 * np.finfo(dtype).eps, dtype(-1e-3)])
    assert support.nearest(beyond).tolist() == [1, 0]


def test_rounding_is_that_of_the_dtype():
    assert UNIT_INTERVAL.contains(np.array([1.0000000000000002]))
    assert UNIT_INTERVAL.contains(np.array([1.0000002], np.float32))
    assert not UNIT_INTERVAL.contains(np.array([1.0000002]))


def test_integers_are_numbers_too():
    X = np.array([[-1, 0, 1, 2]])
    assert UNIT_INTERVAL.contains(X).tolist() == [[False, True, True, False]]
    assert COUNTS.contains(X.astype(np.int8)).tolist() == [[False, True, True, True]]
    assert UNIT_INTERVAL.nearest(X).tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize(
    ("support", "values", "nearest"),
    [
        (REAL, [-3.5, 1e30], [-3.5, 1e30]),
        (UNIT_INTERVAL, [-3, 0.25, 7, inf, -inf], [0, 0.25, 1, 1, 0]),
        (OPEN, [-3, 0, 0.25, 1], [2.0**-24, 2.0**-24, 0.25, 1 - 2.0**-24]),
        (COUNTS, [-3, 0.4, 0.6, 1e9], [0, 0, 1, 1e9]),
        (LEVELS, [-3, 0.4 / 255, 99.6 / 255, 2], [0, 0, 100 / 255, 1]),
        (CODES, [-3, 0.4, 1.6, 9], [0, 0, 2, 2]),
    ],
    ids=str,
)
def test_nearest(support, values, nearest):
    X = np.array(values, float)
    before = X.copy()
    got = support.nearest(X)
    np.testing.assert_allclose(got, nearest, rtol=1e-15)
    np.testing.assert_array_equal(X, before)
    assert support.contains(got).all()
    assert support.nearest(X.astype(np.float32)).dtype == np.float32
    assert np.isnan(support.nearest(np.array([np.nan]))).all()


@pytest.mark.parametrize(
    ("support", "bounds", "text"),
    [
        (REAL, (-inf, inf), "any finite number"),
        (UNIT_INTERVAL, (0, 1), "[0, 1]"),
        (OPEN, (2.0**-24, 1 - 2.0**-24), "(0, 1)"),
        (COUNTS, (0, inf), "{0, 1, 2, ...}"),
        (LEVELS, (0, 1), "{0, 1/255, ..., 1}"),
    ],
    ids=str,
)
def test_bounds_and_text(support, bounds, text):
    assert support.bounds == bounds
    assert str(support) == text


def test_supports_are_values():
    assert Support(0.0, 1.0, text="[0, 1]") == UNIT_INTERVAL
    assert hash(Support()) == hash(REAL)
    with pytest.raises(AttributeError):
        UNIT_INTERVAL.low = -1.0


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_every_family_has_one(name):
    support = LIKELIHOODS[name].support
    assert isinstance(support, Support)
    assert str(support)
    low, high = support.bounds
    assert low < high
    inside = support.nearest(np.array([0.3, -5, 100.0]))
    assert support.contains(inside).all()
    assert LIKELIHOODS[name]().contains(inside[None]).all()


def test_mixed_has_one_for_each_column():
    mixed = Mixed((("gaussian", [3]), ("poisson", [0, 4]), (Categorical(), [1, 2])))
    X = np.array([[1.0, 2, 1, -0.5, 7], [0, 0, 1, 2.5, 1]])
    known = mixed.resolve(columns(5), Summary(X))
    supports = {d: support for support, some in known.supports(5) for d in some}
    assert [str(supports[d]) for d in range(5)] == [
        "{0, 1, 2, ...}",
        "{0, ..., 2}",
        "{0, ..., 1}",
        "any finite number",
        "{0, 1, 2, ...}",
    ]
    assert known.contains(X).all()
    wild = np.array([[0.5, 3, 2, 1e9, -1], [1, 2, 1, 0.5, 0]])
    expected = [[False, False, False, True, False], [True] * 5]
    np.testing.assert_array_equal(known.contains(wild), expected)
    np.testing.assert_array_equal(
        known.nearest(wild), [[0, 2, 1, 1e9, 0], [1, 2, 1, 0.5, 0]]
    )
    assert str(mixed.support) == (
        "any finite number x {0, 1, 2, ...} x {0, 1, ..., n_categories - 1}"
    )


def test_levels_are_finer_than_float32_says():
    assert DiscretizedLogisticMixture().support == LEVELS

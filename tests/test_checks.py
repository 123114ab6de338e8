import warnings

import numpy as np
import pytest

from skvae import VAEEstimator
from skvae.checks import (
    check_codes,
    check_count,
    check_widths,
    fresh_if_none,
    refuse_missing,
    some,
)


@pytest.mark.parametrize(
    "value", [0, -1, 1.0, "1", None, True, np.True_, np.float64(2)]
)
def test_what_is_no_count_is_refused(value):
    with pytest.raises(ValueError, match=r"n=.* must be an int of at least 1\."):
        check_count("n", value, 1)


@pytest.mark.parametrize("value", [1, np.int64(7), np.uint8(7)])
def test_a_count_passes_as_an_int(value):
    count = check_count("n", value, 1)
    assert count == value
    assert type(count) is int


@pytest.mark.parametrize(
    ("value", "widths"),
    [
        (3, (3,)),
        (np.uint8(3), (3,)),
        ((3, 2), (3, 2)),
        ([3], (3,)),
        (np.array([300, 20]), (300, 20)),
        ((), ()),
    ],
    ids=repr,
)
def test_widths(value, widths):
    got = check_widths("hidden_dim", value)
    assert got == widths
    assert all(type(width) is int for width in got)


@pytest.mark.parametrize(
    "value", [(3, 0), (1.5,), ("3",), (True,), [None], 0], ids=repr
)
def test_what_are_no_widths_is_refused(value):
    with pytest.raises(ValueError, match=r"hidden_dim=.*must be"):
        check_widths("hidden_dim", value)


def test_codes_have_the_width_of_the_code():
    codes = check_codes([[1, 2]], 2)
    assert codes.dtype == np.float32
    with pytest.raises(ValueError, match="Z has 2 columns, but latent_dim=3"):
        check_codes(codes, 3)


def test_only_none_is_replaced_and_never_by_the_same():
    state = np.random.RandomState(0)
    assert fresh_if_none(state) is state
    assert fresh_if_none(0) == 0
    assert fresh_if_none(None) != fresh_if_none(None)


def test_some_of_many_values():
    assert some("ab") == "['a', 'b']"
    assert some(range(5), most=2) == "[0, 1, ...]"


def test_the_first_missing_entry_is_named():
    refuse_missing(None, ["a", "b"])
    observed = np.array([[True, True], [True, False], [False, True]])
    with pytest.raises(ValueError, match="column 'b' has a missing entry in row 1"):
        refuse_missing(observed, ["a", "b"])


def test_warnings_point_at_the_callers_own_line():
    X = np.random.default_rng(0).random((20, 2))
    vae = VAEEstimator(1, hidden_dim=2, epochs=1, random_state=0).fit(X)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        vae.score(X + 5)
    assert [warning.filename for warning in seen] == [__file__]
    assert "outside the support [0, 1] of Bernoulli()" in str(seen[0].message)


@pytest.mark.parametrize(
    "parameters",
    [
        {"batch_size": np.uint8(7)},
        {"batch_size": np.int64(7), "latent_dim": np.int8(2)},
        {"hidden_dim": np.uint8(200)},
        {"hidden_dim": (np.uint8(200), np.int64(3))},
        {
            "epochs": np.int32(1),
            "n_iter_no_change": np.uint8(1),
            "early_stopping": True,
        },
        {"latent_dim": (np.uint8(2),), "learning_rate": np.float32(1e-3)},
        {"learning_rate": np.float64(1e-3), "tol": np.float32(0.5)},
    ],
    ids=repr,
)
def test_numbers_of_a_grid_may_be_numpys(parameters):
    """Finding 24: np.array([8, 16]) as a grid failed within torch, or overflowed."""
    X = np.random.default_rng(0).random((300, 3))
    defaults = {"latent_dim": 2, "hidden_dim": 5, "epochs": 1, "random_state": 0}
    vae = VAEEstimator(**{**defaults, **parameters}).fit(X)
    plain = {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in parameters.items()
    }
    same = VAEEstimator(**{**defaults, **plain}).fit(X)
    np.testing.assert_array_equal(vae.transform(X), same.transform(X))

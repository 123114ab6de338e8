import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.preprocessing import StandardScaler

from skvae import VAEEstimator
from skvae.forms import Summary
from skvae.units import LARGEST, Units


def fit(X, weights=None, names=None):
    return Units.of(Summary(X, weights), names)


def test_standardize_is_scikit_learns():
    X = np.random.default_rng(0).normal([5, -300], [0.1, 40], (5000, 2))
    units = fit(X)
    expected = StandardScaler().fit_transform(X)
    np.testing.assert_allclose(units.standardize(X), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(units.restore(expected), X)
    assert units.log_scale == pytest.approx(np.log(X.std(axis=0)).sum())


@given(
    arrays(float, (5, 2), elements=st.floats(-1e6, 1e6)),
    st.floats(-1e6, 1e6),
    st.floats(1e-4, 1e6),
)
def test_restore_undoes_standardize(X, location, scale):
    units = Units(np.array([location, 0.0]), np.array([scale, 1.0]))
    back = units.restore(units.standardize(X).astype(float))
    reach = np.abs(X - units.location).max(axis=0) + np.abs(units.location) * 1e-9
    assert (np.abs(back - X) <= 1e-6 * reach + 1e-30 * scale).all()


def test_far_from_zero_keeps_its_digits():
    X = 1e8 + np.random.default_rng(0).normal(size=(1000, 1))
    standardized = fit(X).standardize(X)
    assert standardized.dtype == np.float32
    np.testing.assert_allclose(
        standardized[:, 0], (X - X.mean()).ravel() / X.std(), atol=1e-6
    )


def test_narrow_float32_columns_are_standardised_like_float64_ones():
    """Finding 8: 1000 + 1e-3 noise had no variance in float32."""
    X = (1000 + 1e-3 * np.random.default_rng(0).normal(size=(500, 1))).astype(
        np.float32
    )
    narrow, wide = fit(X), fit(X.astype(np.float64))
    assert narrow.scale[0] == pytest.approx(1e-3, rel=0.1)
    np.testing.assert_array_equal(narrow.scale, wide.scale)
    np.testing.assert_array_equal(narrow.standardize(X), wide.standardize(X))
    assert narrow.standardize(X).std() == pytest.approx(1, abs=1e-3)


def test_scores_of_narrow_columns_do_not_depend_on_the_dtype():
    """Finding 8 to its end: 22.00 as float64 and -1.22 as float32, it was."""
    X = (1000 + 1e-3 * np.random.default_rng(0).normal(size=(60, 3))).astype(np.float32)
    scores = [
        VAEEstimator(1, hidden_dim=4, epochs=2, random_state=0).fit(data).score(data)
        for data in (X, X.astype(np.float64))
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    # Three Gaussians of such a width have a density of e^16.
    assert 10 < scores[0] < 20


@pytest.mark.parametrize("scale", [1e-170, 1e-300, 1e100, 1e150, 1e250])
def test_columns_of_any_size_have_a_unit(scale):
    """Finding 8: squares of less than 1e-162 are no numbers."""
    X = scale * np.random.default_rng(0).normal(3, 1, (100, 2))
    units = fit(X)
    np.testing.assert_allclose(units.scale, (X / scale).std(axis=0) * scale)
    standardized = units.standardize(X)
    np.testing.assert_allclose(standardized.std(axis=0), 1, rtol=1e-6)
    np.testing.assert_allclose(units.restore(standardized.astype(float)), X, rtol=1e-5)
    assert units.log_scale == pytest.approx(2 * np.log(scale), abs=1)


@pytest.mark.parametrize("scale", [1e-170, 1e150])
@pytest.mark.parametrize("likelihood", ["auto", "gaussian", "student_t"])
def test_models_of_columns_of_any_size(scale, likelihood):
    """A column's unit is the user's affair: the model inside is the same."""
    X = np.random.default_rng(0).normal(size=(40, 2))
    scores = []
    for data in (X, scale * X):
        vae = VAEEstimator(
            1, hidden_dim=4, epochs=1, likelihood=likelihood, random_state=0
        ).fit(data)
        scores.append(vae.score(data))
        sample = vae.sample(50, random_state=0)
        # In the user's unit: squares of the numbers themselves are none.
        unit = np.abs(data).max()
        assert 0.1 < (sample / unit).std() / (data / unit).std() < 10
    assert scores[0] - scores[1] == pytest.approx(2 * np.log(scale), rel=1e-4)


def test_weights_count_rows():
    X = np.random.default_rng(0).normal(size=(50, 3))
    counts = np.random.default_rng(1).integers(1, 4, 50)
    weighted = fit(X, counts.astype(float))
    repeated = fit(np.repeat(X, counts, axis=0))
    np.testing.assert_allclose(weighted.location, repeated.location)
    np.testing.assert_allclose(weighted.scale, repeated.scale)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e8, 1e-200, 1e200])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_constant_column_keeps_its_unit(value, dtype):
    if dtype == np.float32 and value == 1e200:
        pytest.skip("no float32")
    X = np.full((9999, 1), value, dtype=dtype)
    units = fit(X)
    assert units.scale[0] == 1
    np.testing.assert_allclose(units.standardize(X), 0, atol=1e-7 * max(1, value))


def test_identity_hands_the_array_through():
    X = np.random.default_rng(0).random((3, 2), dtype=np.float32)
    units = Units.identity(2)
    assert units.is_identity
    assert units.log_scale == 0
    assert units.standardize(X) is X
    assert units.restore(X) is X


def test_only_some_columns():
    units = Units(np.array([1.0, 2.0]), np.array([3.0, 4.0]))
    some = units.only(np.array([False, True]))
    assert some.location.tolist() == [0, 2]
    assert some.scale.tolist() == [1, 4]
    assert not some.is_identity
    assert units.only(np.array([False, False])).is_identity


@pytest.mark.parametrize("names", [None, ["a", "b"]])
def test_too_large_for_a_unit_is_refused_by_column(names):
    X = np.array([[1.0, 1e308], [2.0, -1e308]])
    label = 1 if names is None else "'b'"
    message = rf"column {label} has values up to 1e\+308.*divide the column"
    with pytest.raises(ValueError, match=message):
        fit(X, names=names)


# ------------------------------------------------------------------ huge rows


@pytest.mark.parametrize("value", [1e39, -1e39, 1e300, 1e19])
def test_rows_too_large_for_float32_are_refused_by_name(value):
    units = Units(np.array([5.0, 5.0]), np.array([1e-6, 1.0]))
    X = np.array([[5.0, 5.0], [5.0, value]])
    with pytest.raises(
        ValueError, match=r"has the value .* in row 1, column 'b', .*too large"
    ):
        units.standardize(X, ["a", "b"])
    with pytest.raises(ValueError, match=r"row 1, column 1, which is inf inside"):
        Units(np.full(2, 5.0), np.array([1.0, 1e-300])).standardize(X)
    with pytest.raises(ValueError, match=r"row 1, column 1, .*Drop the row"):
        Units.identity(2).standardize(X)


def test_the_limit_is_in_the_models_units():
    units = Units(np.zeros(1), np.array([1e30]))
    assert units.standardize(np.array([[1e39]])) == np.float32(1e9)
    assert np.isfinite(units.standardize(np.array([[LARGEST * 1e30]]))).all()
    assert np.isnan(Units.identity(1).standardize(np.array([[np.nan]]))).all()


@pytest.mark.parametrize("method", ["transform", "score", "score_samples", "fit"])
@pytest.mark.parametrize("value", [1e39, 1e25])
def test_the_estimator_refuses_huge_rows(method, value):
    """Finding 14: they gave NaN, or minus infinity from 1e19 deviations on."""
    X = np.random.default_rng(0).normal(size=(30, 2))
    vae = VAEEstimator(1, hidden_dim=4, epochs=1, random_state=0).fit(X)
    bad = X[:5].copy()
    bad[3, 1] = value
    if method == "fit":
        bad[3, 1] = 1e300
    with pytest.raises(ValueError, match=r"in row 3, column 1|column 1 has values"):
        getattr(vae, method)(bad)
    fine = X[:5].copy()
    fine[3, 1] = 1e9
    assert np.isfinite(vae.transform(fine)).all()
    assert np.isfinite(vae.score_samples(fine)).all()


# ------------------------------------------------------------------ plain values


def test_state_there_and_back():
    units = Units(np.array([0.0, -3.5]), np.array([1.0, 1e-9]))
    twin = Units.from_state(units.state())
    np.testing.assert_array_equal(twin.location, units.location)
    np.testing.assert_array_equal(twin.scale, units.scale)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"location": np.zeros(2)}, "must hold location and scale"),
        ({"location": np.zeros(2), "scale": np.ones(2), "x": 1}, "must hold"),
        ([np.zeros(2), np.ones(2)], "must hold"),
        ({"location": np.zeros(2), "scale": np.ones(3)}, "one entry"),
        ({"location": np.zeros(0), "scale": np.ones(0)}, "one entry"),
        ({"location": np.zeros(2), "scale": np.zeros(2)}, "positive"),
        ({"location": np.zeros(2), "scale": -np.ones(2)}, "positive"),
        ({"location": np.array([np.nan]), "scale": np.ones(1)}, "finite"),
        ({"location": np.zeros(1), "scale": np.array([np.inf])}, "finite"),
        ({"location": [0.0], "scale": [1.0]}, "float64 array"),
        ({"location": np.zeros(1), "scale": np.ones(1, np.float32)}, "float64 array"),
        ({"location": np.zeros((1, 1)), "scale": np.ones((1, 1))}, "one axis"),
        ({"location": np.array(["a"]), "scale": np.ones(1)}, "float64 array"),
    ],
)
def test_bad_states_are_refused(state, message):
    with pytest.raises(ValueError, match=message):
        Units.from_state(state)

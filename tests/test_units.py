import numpy as np
import pytest

from skvae.units import Units, column_means


def test_standardize_is_scikit_learns():
    from sklearn.preprocessing import StandardScaler

    X = np.random.default_rng(0).normal([5, -300], [0.1, 40], (5000, 2))
    units = Units.fit(X)
    expected = StandardScaler().fit_transform(X)
    np.testing.assert_allclose(units.standardize(X), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(units.restore(expected), X)
    assert units.log_scale == pytest.approx(np.log(X.std(axis=0)).sum())


def test_far_from_zero_keeps_its_digits():
    X = 1e8 + np.random.default_rng(0).normal(size=(1000, 1))
    standardized = Units.fit(X).standardize(X)
    assert standardized.dtype == np.float32
    np.testing.assert_allclose(
        standardized[:, 0], (X - X.mean()).ravel() / X.std(), atol=1e-6
    )


def test_weights_count_rows():
    X = np.random.default_rng(0).normal(size=(50, 3))
    counts = np.random.default_rng(1).integers(1, 4, 50)
    weighted = Units.fit(X, counts.astype(float))
    repeated = Units.fit(np.repeat(X, counts, axis=0))
    np.testing.assert_allclose(weighted.location, repeated.location)
    np.testing.assert_allclose(weighted.scale, repeated.scale)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e8])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_constant_column_keeps_its_unit(value, dtype):
    X = np.full((9999, 1), value, dtype=dtype)
    units = Units.fit(X)
    assert units.scale[0] == 1
    np.testing.assert_allclose(units.standardize(X), 0, atol=1e-7 * max(1, value))


def test_identity_hands_the_array_through():
    X = np.random.default_rng(0).random((3, 2), dtype=np.float32)
    units = Units.identity(2)
    assert units.is_identity
    assert units.log_scale == 0
    assert units.standardize(X) is X
    assert units.restore(X) is X


def test_column_means_in_blocks():
    X = np.random.default_rng(0).random((10_000, 3), dtype=np.float32)
    np.testing.assert_allclose(column_means(X, None), X.astype(np.float64).mean(0))


def test_too_large_for_a_variance_is_refused_by_column():
    X = np.array([[1.0, 1e308], [2.0, -1e308]])
    with pytest.raises(ValueError, match="column 1 has values up to 1e\\+308"):
        Units.fit(X)
    with pytest.raises(ValueError, match="column 'b'"):
        Units.fit(X, columns=["a", "b"])

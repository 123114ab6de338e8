import tracemalloc

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn import datasets, decomposition
from sklearn.preprocessing import StandardScaler

from skvae import linear
from skvae.linear import FactorAnalysis

TIGHT = {"tol": 1e-14, "min_noise": 1e-9}
NOISES = ["feature", "shared"]


def table(name):
    loader = getattr(datasets, f"load_{name}")
    return StandardScaler().fit_transform(loader().data)


def random_mask(X, share, seed=0):
    return np.random.default_rng(seed).random(X.shape) >= share


def with_holes(X, observed):
    return np.where(observed, X, np.nan)


def brute_force(model, row, seen):
    """Log-density of the observed entries, conditional mean of the others."""
    covariance, mean = model.covariance(), model.mean
    gain = np.linalg.solve(covariance[np.ix_(seen, seen)], covariance[seen][:, ~seen])
    density = multivariate_normal(mean[seen], covariance[np.ix_(seen, seen)])
    return density.logpdf(row[seen]), mean[~seen] + (row - mean)[seen] @ gain


def assert_canonical(model):
    signal = model.loadings / model.noise @ model.loadings.T
    diagonal = np.diagonal(signal)
    assert np.allclose(signal, np.diag(diagonal), atol=1e-9 * diagonal.max())
    assert np.all(np.diff(diagonal) <= 1e-9 * diagonal.max())
    for row in model.loadings:
        assert row[np.abs(row).argmax()] >= 0


# Complete data: scikit-learn and SciPy


@pytest.mark.parametrize(
    ("name", "n_components"), [("wine", 2), ("breast_cancer", 2), ("digits", 3)]
)
def test_equals_the_factor_analysis_of_scikit_learn(name, n_components):
    X = table(name)
    X = X[:, X.std(axis=0) > 0]
    reference = decomposition.FactorAnalysis(
        n_components, svd_method="lapack", tol=1e-11, max_iter=3000
    ).fit(X)
    model = FactorAnalysis.fit(X, n_components, **TIGHT)
    assert model.log_likelihood(X).mean() == pytest.approx(reference.score(X), abs=1e-8)
    assert np.abs(model.covariance() - reference.get_covariance()).max() < 1e-5
    assert_canonical(model)


@pytest.mark.parametrize("n_components", [1, 3])
def test_is_no_less_likely_than_scikit_learn_where_a_noise_vanishes(n_components):
    # One noise of the optimum is 0: EM takes thousands of steps to come near it.
    X = table("diabetes")
    reference = decomposition.FactorAnalysis(
        n_components, svd_method="lapack", tol=1e-3, max_iter=2000
    ).fit(X)
    model = FactorAnalysis.fit(X, n_components, min_noise=1e-6)
    gain = model.log_likelihood(X).mean() - reference.score(X)
    assert -1e-5 < gain < 0.01


@pytest.mark.parametrize("name", ["wine", "diabetes", "breast_cancer"])
@pytest.mark.parametrize("n_components", [1, 4])
def test_shared_noise_equals_the_probabilistic_pca_of_scikit_learn(name, n_components):
    X = table(name)
    # PCA divides by N - 1, maximum likelihood by N: shrink the rows to agree.
    shrunk = X.mean(axis=0) + (X - X.mean(axis=0)) * np.sqrt(1 - 1 / len(X))
    reference = decomposition.PCA(n_components, svd_solver="full").fit(shrunk)
    model = FactorAnalysis.fit(X, n_components, noise="shared", min_noise=1e-9)
    assert np.allclose(model.log_likelihood(X), reference.score_samples(X), atol=1e-9)
    assert np.allclose(model.covariance(), reference.get_covariance(), atol=1e-12)
    assert np.ptp(model.noise) == 0
    assert_canonical(model)


@pytest.mark.parametrize("noise", NOISES)
def test_enough_factors_give_the_sample_covariance(noise):
    X = table("wine") @ np.diag(np.linspace(1, 5, 13)) + 7
    model = FactorAnalysis.fit(X, 12 if noise == "shared" else 15, noise=noise, **TIGHT)
    assert np.allclose(model.mean, X.mean(axis=0))
    assert np.allclose(model.covariance(), np.cov(X.T, bias=True), atol=1e-5)


def test_finds_the_parameters_that_made_the_rows():
    rng = np.random.default_rng(0)
    loadings, noise = rng.normal(size=(2, 8)), rng.uniform(0.2, 2, 8)
    truth = FactorAnalysis(np.arange(8.0), loadings, noise)
    X = rng.multivariate_normal(truth.mean, truth.covariance(), 50_000)
    model = FactorAnalysis.fit(X, 2)
    assert np.abs(model.covariance() - truth.covariance()).max() < 0.1
    assert np.abs(model.noise - noise).max() < 0.1
    assert 0 < np.mean(model.log_likelihood(X) - truth.log_likelihood(X)) < 1e-3


def test_follows_the_units_of_the_columns():
    X = table("wine")
    scale, shift = np.logspace(-4, 5, 13), np.linspace(-1e6, 1e6, 13)
    model = FactorAnalysis.fit(X, 3, **TIGHT)
    other = FactorAnalysis.fit(X * scale + shift, 3, **TIGHT)
    # A value of 1e6 with a spread of 1e-4 has lost digits.
    assert np.allclose(other.noise / scale**2, model.noise, atol=1e-5)
    # The sign of a factor is that of the largest entry, in the units of the columns.
    ratio = np.abs(other.loadings / scale)
    assert np.allclose(ratio, np.abs(model.loadings), atol=1e-5)


# Densities, posteriors, filling


@pytest.mark.parametrize("noise", NOISES)
def test_missing_entries_are_treated_exactly(noise):
    X = table("wine")
    model = FactorAnalysis.fit(X, 3, noise=noise)
    observed = random_mask(X, 0.4)
    observed[:2], observed[2], observed[3:90:3] = True, False, observed[3]
    X_holes = with_holes(X, observed)
    scores = model.log_likelihood(X_holes, observed)
    filled = model.fill(X_holes, observed)
    for row, seen, score, full in zip(X, observed, scores, filled, strict=True):
        if seen.any():
            expected, values = brute_force(model, row, seen)
            assert score == pytest.approx(expected, abs=1e-9)
            assert np.allclose(full[~seen], values, atol=1e-9)
    assert scores[2] == 0
    assert np.array_equal(filled[2], model.mean)
    assert np.array_equal(filled[observed], X[observed])


def test_posterior_equals_that_of_the_joint_normal():
    X = table("wine")[:40]
    model = FactorAnalysis.fit(X, 3)
    observed = random_mask(X, 0.4)
    observed[0] = False
    means, variances = model.posterior(with_holes(X, observed), observed)
    for row, seen, mean, variance in zip(X, observed, means, variances, strict=True):
        W = model.loadings[:, seen]
        gain = W @ np.linalg.inv(W.T @ W + np.diag(model.noise[seen]))
        assert np.allclose(mean, gain @ (row - model.mean)[seen])
        assert np.allclose(variance, 1 - np.diagonal(gain @ W.T))
    means, variances = model.posterior(X)
    masked = model.posterior(X, np.ones(X.shape, dtype=bool))
    assert np.allclose(means, masked[0], atol=1e-12)
    assert np.allclose(variances, masked[1], atol=1e-12)
    assert variances.shape == (3,)


def test_encoder_and_decoder_are_the_posterior_and_the_mean():
    X = table("wine")
    model = FactorAnalysis.fit(X + 3, 3)
    weight, bias, log_variance = model.encoder()
    means, variances = model.posterior(X + 3)
    assert np.allclose((X + 3) @ weight.T + bias, means)
    assert np.allclose(np.exp(log_variance), variances)
    M = np.eye(3) + model.loadings / model.noise @ model.loadings.T
    assert np.allclose(np.linalg.inv(M), np.diag(variances))
    weight, bias = model.decoder()
    assert np.array_equal(means @ weight.T + bias, means @ model.loadings + model.mean)


def test_posterior_given_observed_entries_averages_that_of_complete_rows():
    """E[z | x_o] = E[E[z | x] | x_o], so filling and encoding is the same."""
    X = table("diabetes")
    model = FactorAnalysis.fit(X, 4)
    observed = random_mask(X, 0.3)
    weight, bias, _ = model.encoder()
    codes = model.fill(X, observed) @ weight.T + bias
    assert np.allclose(codes, model.posterior(X, observed)[0], atol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_fill_copies_and_keeps_float_dtypes(dtype):
    X = (10 * table("wine")).astype(dtype)
    before, observed = X.copy(), random_mask(X, 0.2)
    filled = FactorAnalysis.fit(X, 2).fill(X, observed)
    assert filled.dtype == (np.float32 if dtype == np.float32 else np.float64)
    assert np.array_equal(X, before)
    assert np.array_equal(filled[observed], X[observed])


# Weights


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("missing", [0.0, 0.2])
def test_weights_are_repetitions(noise, missing):
    X = table("wine")
    observed = random_mask(X, missing)
    weights = np.random.default_rng(1).integers(0, 4, len(X))
    options = {"noise": noise, "tol": 1e-9}
    model = FactorAnalysis.fit(
        X, 2, sample_weight=weights, observed=observed, **options
    )
    repeated = FactorAnalysis.fit(
        np.repeat(X, weights, axis=0),
        2,
        observed=np.repeat(observed, weights, axis=0),
        **options,
    )
    positive = weights > 0
    scaled = FactorAnalysis.fit(
        X[positive],
        2,
        sample_weight=weights[positive] / 7,
        observed=observed[positive],
        **options,
    )
    for other in (repeated, scaled):
        assert np.allclose(model.mean, other.mean, atol=1e-7)
        assert np.allclose(model.covariance(), other.covariance(), atol=1e-6)


# EM with missing entries


@pytest.mark.parametrize("noise", NOISES)
def test_a_full_mask_is_no_mask(noise):
    X = table("wine")
    full = np.ones(X.shape, dtype=bool)
    model = FactorAnalysis.fit(X, 3, noise=noise)
    other = FactorAnalysis.fit(X, 3, noise=noise, observed=full)
    assert np.array_equal(model.loadings, other.loadings)
    assert np.array_equal(model.noise, other.noise)
    # Rows with no observed entry add nothing.
    rows = np.r_[X, np.full((5, 13), np.nan)]
    other = FactorAnalysis.fit(rows, 3, noise=noise, observed=~np.isnan(rows))
    assert np.array_equal(model.loadings, other.loadings)


@pytest.mark.parametrize("noise", NOISES)
def test_tends_to_the_complete_answer_as_the_mask_vanishes(noise):
    X = table("breast_cancer")
    complete = FactorAnalysis.fit(X, 2, noise=noise, tol=1e-10)
    order = np.random.default_rng(0).permutation(X.size)
    distances = []
    for n_missing in (1000, 100, 10, 1):
        observed = np.ones(X.shape, dtype=bool)
        observed.flat[order[:n_missing]] = False
        model = FactorAnalysis.fit(X, 2, noise=noise, observed=observed, tol=1e-10)
        distances.append(np.abs(model.covariance() - complete.covariance()).max())
    assert np.all(np.diff(distances) < 0)
    assert distances[-1] < 2e-3  # one entry of 17,070


@pytest.mark.parametrize("noise", NOISES)
def test_em_never_decreases_the_likelihood(noise, monkeypatch):
    X = table("breast_cancer")[:200]
    observed = random_mask(X, 0.3)
    models, step = [], linear._em_step

    def record(model, *arguments):
        models.append(model)
        return step(model, *arguments)

    monkeypatch.setattr(linear, "_em_step", record)
    fitted = FactorAnalysis.fit(X, 4, noise=noise, observed=observed)
    scores = [model.log_likelihood(X, observed).mean() for model in models]
    assert np.all(np.diff(scores) > -1e-10)
    assert scores[-1] > scores[0] + 1
    assert len(scores) > 10
    final = fitted.log_likelihood(X, observed).mean()
    assert final == pytest.approx(scores[-1], abs=1e-9)


@pytest.mark.parametrize("noise", NOISES)
def test_em_ends_where_no_parameter_can_be_improved(noise):
    X = table("wine")
    observed = random_mask(X, 0.3)
    model = FactorAnalysis.fit(X, 2, noise=noise, observed=observed, tol=1e-13)
    best = model.log_likelihood(X, observed).mean()
    rng = np.random.default_rng(0)
    for size in (1e-3, 1e-2) * 10:
        n_noises = 13 if noise == "feature" else 1
        other = FactorAnalysis(
            model.mean + size * rng.normal(size=13),
            model.loadings + size * rng.normal(size=(2, 13)),
            model.noise * np.exp(size * rng.normal(size=n_noises)),
        )
        assert other.log_likelihood(X, observed).mean() < best


def test_em_equals_the_closed_form_for_monotone_missing_entries():
    """Anderson (1957): y is missing in some rows, x never; regress y on x."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=300) + 2
    y = 1.5 * x + rng.normal(size=300)
    X, observed = np.c_[x, y], np.ones((300, 2), dtype=bool)
    observed[x > 2.3, 1] = False  # missing at random, and far from completely so
    model = FactorAnalysis.fit(X, 1, observed=observed, tol=1e-15, max_iter=5000)
    slope, intercept = np.polyfit(x[observed[:, 1]], y[observed[:, 1]], 1)
    rest = np.var(y[observed[:, 1]] - slope * x[observed[:, 1]])
    assert np.allclose(model.mean, [x.mean(), intercept + slope * x.mean()], atol=1e-5)
    expected = np.var(x) * np.outer([1, slope], [1, slope]) + np.diag([0, rest])
    assert np.allclose(model.covariance(), expected, atol=1e-5)


def test_fills_better_than_the_mean():
    X = table("breast_cancer")
    observed = random_mask(X, 0.3)
    X_holes = with_holes(X, observed)
    model = FactorAnalysis.fit(X_holes, 12, observed=observed)
    error = (model.fill(X_holes, observed) - X)[~observed]
    assert np.sqrt(np.mean(error**2)) < 0.5  # the mean has 1.0


def test_blocks_of_rows_change_nothing(monkeypatch):
    X = table("wine")
    observed = random_mask(X, 0.1)
    observed[50:120] = observed[50]
    model = FactorAnalysis.fit(X, 2, observed=observed)
    scores = model.log_likelihood(X, observed)
    monkeypatch.setattr(linear, "_BLOCK_SIZE", 100)
    other = FactorAnalysis.fit(X, 2, observed=observed)
    assert np.allclose(model.loadings, other.loadings, atol=1e-9)
    assert np.allclose(other.log_likelihood(X, observed), scores, atol=1e-8)


# Shapes at the edge


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("missing", [0.0, 0.05])
@pytest.mark.parametrize("n_components", [3, 25, 60])
def test_fewer_rows_than_columns(noise, missing, n_components):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20, 3)) @ rng.normal(size=(3, 50)) + rng.normal(size=(20, 50))
    observed = random_mask(X, missing)
    model = FactorAnalysis.fit(
        X, n_components, noise=noise, observed=observed, max_iter=50
    )
    assert model.loadings.shape == (n_components, 50)
    assert np.all(model.noise > 0)
    assert np.isfinite(model.log_likelihood(X, observed)).all()
    assert not model.loadings[50:].any()
    assert_canonical(model)


def test_factors_that_rows_cannot_support_have_no_loadings():
    X = np.random.default_rng(0).normal(size=(6, 9))
    model = FactorAnalysis.fit(X, 12)
    assert model.loadings.shape == (12, 9)
    assert np.allclose(model.loadings[6:], 0, atol=1e-6)
    assert np.allclose(model.posterior(X)[1][6:], 1)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("missing", [0.0, 0.2])
def test_constant_columns(noise, missing):
    X = np.insert(table("wine"), [0, 5], [[0.1, -1e6]], axis=1)
    observed = random_mask(X, missing)
    model = FactorAnalysis.fit(X, 2, noise=noise, observed=observed, min_noise=1e-3)
    constant = [0, 6]
    assert np.allclose(model.mean[constant], [0.1, -1e6])
    assert np.allclose(model.loadings[:, constant], 0, atol=1e-9)
    if noise == "feature":
        assert np.array_equal(model.noise[constant], [1e-3, 1e-3])
        rest = np.delete(np.arange(15), constant)
        other = FactorAnalysis.fit(
            X[:, rest], 2, observed=observed[:, rest], min_noise=1e-3
        )
        assert np.allclose(model.loadings[:, rest], other.loadings, atol=0.01)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("n_rows", [1, 5])
def test_only_constant_columns(noise, n_rows):
    model = FactorAnalysis.fit(np.full((n_rows, 3), 4.0), 2, noise=noise)
    assert np.array_equal(model.mean, [4, 4, 4])
    assert np.array_equal(model.noise, [1e-4] * 3)
    assert not model.loadings.any()


@pytest.mark.parametrize("noise", NOISES)
def test_a_column_with_no_observed_entry(noise):
    X = table("wine")
    observed = random_mask(X, 0.1)
    observed[:, 4] = False
    X = with_holes(X, observed)
    model = FactorAnalysis.fit(X, 2, noise=noise, observed=observed)
    rest = np.delete(np.arange(13), 4)
    other = FactorAnalysis.fit(X[:, rest], 2, noise=noise, observed=observed[:, rest])
    assert model.mean[4] == 0
    assert not model.loadings[:, 4].any()
    assert model.noise[4] == (1 if noise == "feature" else model.noise[0])
    assert np.allclose(model.loadings[:, rest], other.loadings, atol=1e-9)
    assert np.allclose(
        model.log_likelihood(X, observed),
        other.log_likelihood(X[:, rest], observed[:, rest]),
    )
    assert not model.fill(X, observed)[:, 4].any()


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("missing", [0.0, 0.1])
def test_many_columns_are_decomposed_at_random(noise, missing, monkeypatch):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 4)) @ rng.normal(size=(4, 2050))
    X += rng.normal(size=X.shape)
    options = {"noise": noise, "observed": random_mask(X, missing), "max_iter": 30}
    model = FactorAnalysis.fit(X, 4, **options)
    again = FactorAnalysis.fit(X, 4, **options)
    assert np.array_equal(model.loadings, again.loadings)
    monkeypatch.setattr(linear, "MAX_EXACT_COLUMNS", 3000)
    exact = FactorAnalysis.fit(X, 4, **options)
    assert not np.array_equal(model.loadings, exact.loadings)  # another path was taken
    gap = model.log_likelihood(X).mean() - exact.log_likelihood(X).mean()
    assert abs(gap) < 1e-4 * abs(exact.log_likelihood(X).mean())
    assert np.allclose(model.noise, exact.noise, rtol=0.01)


def test_many_columns_never_make_a_square_matrix():
    X = np.random.default_rng(0).normal(size=(30, 4000))
    tracemalloc.start()
    FactorAnalysis.fit(X, 2, noise="shared").log_likelihood(X)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4000 * 4000 * 8 / 4


@pytest.mark.parametrize("missing", [0.0, 0.2])
def test_equal_input_gives_equal_bits(missing):
    X = table("wine")
    observed = random_mask(X, missing)
    model = FactorAnalysis.fit(X, 3, observed=observed)
    again = FactorAnalysis.fit(X.copy(), 3, observed=observed.copy())
    for name in ("mean", "loadings", "noise"):
        assert np.array_equal(getattr(model, name), getattr(again, name))


# Errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_components": 0}, "n_components=0"),
        ({"noise": "none"}, "noise='none'"),
        ({"min_noise": 0}, "min_noise=0"),
        ({"min_noise": 1}, "min_noise=1"),
        ({"X": np.zeros(3)}, r"shape \(3,\); expected \(N, D\)"),
        ({"X": np.array([[0.0, np.nan]])}, r"X\[0, 1\] is nan"),
        ({"X": np.zeros((0, 2))}, "0 rows"),
        ({"sample_weight": [1.0, -1.0]}, "contains -1.0"),
        ({"sample_weight": [1.0, np.nan]}, "contains nan"),
        ({"sample_weight": [np.inf, 1.0]}, "contains inf"),
        ({"sample_weight": []}, r"shape \(0,\)"),
        ({"sample_weight": [1.0]}, r"shape \(1,\)"),
        ({"sample_weight": [0.0, 0.0]}, "2 rows, none with a positive weight"),
        ({"observed": np.zeros((2, 2), dtype=bool)}, "an observed entry"),
        ({"observed": np.ones((2, 2))}, "dtype float64"),
        ({"observed": np.ones((1, 2), dtype=bool)}, r"shape \(1, 2\)"),
    ],
)
def test_errors_name_what_was_received(changes, message):
    arguments = {"X": np.eye(2), "n_components": 1, **changes}
    with pytest.raises(ValueError, match=message):
        FactorAnalysis.fit(**arguments)


def test_rows_must_have_the_columns_of_the_fit():
    model = FactorAnalysis.fit(np.eye(3), 1)
    with pytest.raises(ValueError, match=r"shape \(1, 2\); expected \(N, 3\)"):
        model.log_likelihood(np.zeros((1, 2)))

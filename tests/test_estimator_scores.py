"""What an estimator hands out is what the formulas say, in the user's units."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.special import logsumexp
from sklearn.base import clone
from sklearn.datasets import load_iris

import skvae.fitted
from estimator_helpers import (
    assert_same_weights,
    assert_usable,
    tiny,
    weights_of,
)
from skvae import ELBO, Bernoulli, Gaussian, VAEEstimator
from skvae.model import Model


class Exact:
    """ELBO and log p(x) of a fitted model with one latent, by quadrature, in float64.

    Written from the formulas, in NumPy, in the user's own units.
    """

    def __init__(self, estimator, X):
        state = estimator.model_.state_dict()
        self.state = {k: v.double().numpy() for k, v in state.items()}
        self.likelihood = estimator.likelihood_
        self.gaussian = isinstance(self.likelihood, Gaussian)
        self.location = X.mean(0) if self.gaussian else np.zeros(X.shape[1])
        self.scale = X.std(0) if self.gaussian else np.ones(X.shape[1])

    def layers(self, part, x):
        numbers = sorted(
            int(name.split(".")[2])
            for name in self.state
            if name.startswith(f"network.{part}.") and name.endswith("weight")
        )
        for i in numbers:
            weight = self.state[f"network.{part}.{i}.weight"]
            x = x @ weight.T + self.state[f"network.{part}.{i}.bias"]
            if i != numbers[-1]:
                x = np.maximum(x, 0)
        return x

    def posterior(self, X):
        out = self.layers("encoder", (X - self.location) / self.scale)
        mean, log_variance = np.split(out, 2, axis=1)
        return mean, np.exp(0.5 * log_variance)

    def decode(self, z):
        """Means of p(x|z) in the units of X."""
        raw = self.layers("decoder", z)
        if self.gaussian:
            return raw * self.scale + self.location
        return 1 / (1 + np.exp(-raw))

    def sigma(self):
        if not isinstance(self.likelihood.scale, str):
            return np.full(len(self.scale), self.likelihood.scale)
        log_scale = self.state["likelihood.log_scale"]
        floor = self.likelihood.min_scale
        return np.sqrt(np.exp(2 * log_scale) + floor**2) * self.scale

    def log_likelihood(self, X, z):
        """log p(x|z) of N rows under (N, K) or (K,) latents: (N, K)."""
        raw = self.layers("decoder", z[..., None])
        X = X[:, None]
        if self.gaussian:
            error = (X - (raw * self.scale + self.location)) / self.sigma()
            density = -0.5 * error**2 - np.log(self.sigma() * np.sqrt(2 * np.pi))
        else:
            density = X * raw - np.logaddexp(0, raw)
        return density.sum(-1)

    def kl(self, X):
        mean, std = self.posterior(X)
        return 0.5 * (mean**2 + std**2 - 1 - 2 * np.log(std)).sum(1)

    def elbo(self, X):
        nodes, mass = np.polynomial.hermite_e.hermegauss(100)
        mean, std = self.posterior(X)
        expected = self.log_likelihood(X, mean + std * nodes) @ mass / mass.sum()
        return expected - self.kl(X)

    def log_evidence(self, X):
        grid = np.linspace(-10, 10, 2001)
        log_prior = -0.5 * grid**2 - 0.5 * np.log(2 * np.pi)
        joint = self.log_likelihood(X, grid) + log_prior
        return logsumexp(joint, axis=1) + np.log(grid[1] - grid[0])


MODELS = {
    "gaussian": {"likelihood": "gaussian"},
    "gaussian-feature": {"likelihood": Gaussian(scale="feature")},
    "gaussian-fixed": {"likelihood": Gaussian(scale=0.4)},
    "bernoulli": {"likelihood": "bernoulli"},
}


@pytest.fixture(scope="module", params=MODELS)
def one_latent(request, _digits):
    """A trained model with one latent, its data, and its exact integrals."""
    if request.param == "bernoulli":
        X = (_digits[:300, 16:32] > 0.5).astype(np.float64)
    else:
        X = load_iris().data
    model = tiny(latent_dim=1, hidden_dim=16, epochs=60, learning_rate=1e-2)
    model.set_params(**MODELS[request.param]).fit(X)
    return model, X, Exact(model, X)


# ------------------------------------------------------- outputs against the formulas


def test_transform_and_inverse_transform_are_the_formulas(one_latent):
    model, X, exact = one_latent
    Z = model.transform(X)
    np.testing.assert_allclose(Z, exact.posterior(X)[0], rtol=1e-3, atol=1e-4)
    means = exact.decode(Z.astype(np.float64))
    np.testing.assert_allclose(model.inverse_transform(Z), means, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(model.reconstruct(X), model.inverse_transform(Z))


def test_score_is_the_exact_elbo_but_for_monte_carlo_error(one_latent):
    model, X, exact = one_latent
    error = model.score_samples(X) - exact.elbo(X)
    # Independent from row to row: the mean's error is that of the mean.
    standard_error = error.std() / np.sqrt(len(X))
    assert abs(error.mean()) < 5 * standard_error
    assert standard_error < 0.1


def test_log_likelihood_rises_to_the_exact_value_and_not_beyond(one_latent):
    model, X, exact = one_latent
    truth = exact.log_evidence(X)
    assert (exact.elbo(X) <= truth + 1e-6).all()
    gaps = []
    for n_importance_samples in (1, 8, 64, 512):
        error = model.log_likelihood(X, n_importance_samples) - truth
        standard_error = error.std() / np.sqrt(len(X))
        assert error.mean() < 5 * standard_error
        gaps.append(-error.mean())
    assert gaps[0] > gaps[-1]
    assert all(b < a + 0.05 for a, b in pairwise(gaps))
    assert abs(gaps[-1]) < 0.02
    # One draw has the expectation of the ELBO.
    one = model.log_likelihood(X, 1) - exact.elbo(X)
    assert abs(one.mean()) < 5 * one.std() / np.sqrt(len(X))


def test_validation_record_is_that_of_the_kept_weights(one_latent):
    fitted, X, _ = one_latent
    train, held_out = X[::2], X[1::2]
    model = clone(fitted).set_params(epochs=25).fit(train, X_val=held_out)
    exact = Exact(model, train)
    row = model.history_.iloc[model.best_epoch_ - 1]
    assert row.epoch == model.best_epoch_
    assert row.validation_kl == pytest.approx(exact.kl(held_out).mean(), rel=1e-3)
    noise = model.log_likelihood(held_out, 1) - exact.elbo(held_out)
    tolerance = 6 * noise.std() / np.sqrt(len(held_out))
    assert row.validation_loss == pytest.approx(
        -exact.elbo(held_out).mean(), abs=tolerance
    )
    assert row.validation_loss == pytest.approx(
        row.validation_reconstruction + row.validation_kl, rel=1e-5
    )


def test_history_ends_near_the_score_of_the_training_data(one_latent):
    model, X, exact = one_latent
    # The record is a mean over an epoch in which the weights still move.
    last = model.history_.iloc[model.best_epoch_ - 1]
    assert last.loss == pytest.approx(-exact.elbo(X).mean(), abs=0.3)
    assert last.loss == pytest.approx(-model.score(X), abs=0.3)
    assert last.kl == pytest.approx(exact.kl(X).mean(), rel=0.25)
    assert last.loss == pytest.approx(last.reconstruction + last.kl, rel=1e-5)


def test_sample_has_the_moments_of_the_model(one_latent):
    model, _, exact = one_latent
    nodes, mass = np.polynomial.hermite_e.hermegauss(100)
    mass = mass / mass.sum()
    decoded = exact.decode(nodes[:, None])
    mean = mass @ decoded
    between = mass @ (decoded - mean) ** 2
    noise = mass @ (decoded * (1 - decoded))
    if exact.gaussian:
        noise = exact.sigma() ** 2
    n = 20_000
    for observation_noise, variance in ((True, between + noise), (False, between)):
        X = model.sample(n, random_state=1, observation_noise=observation_noise)
        X = X.astype(np.float64)
        allowed = 6 * np.sqrt(variance / n) + 1e-5
        assert (np.abs(X.mean(0) - mean) < allowed).all()
        np.testing.assert_allclose(X.var(0), variance, rtol=0.1, atol=1e-3)


def test_objective_does_not_change_what_score_means(one_latent):
    fitted, X, _ = one_latent
    model = clone(fitted).set_params(objective=ELBO(beta=3), epochs=5).fit(X)
    # Equal rows have equal noise: only different ones are independent.
    X = np.unique(X, axis=0)
    error = model.score_samples(X) - Exact(model, X).elbo(X)
    assert abs(error.mean()) < 5 * error.std() / np.sqrt(len(X))
    record = model.history_
    np.testing.assert_allclose(
        record.loss, record.reconstruction + 3 * record.kl, rtol=1e-4
    )


@pytest.mark.slow
def test_mnist_in_two_epochs(mnist):
    model = VAEEstimator(epochs=2, random_state=0).fit(mnist.X_train[:10_000])
    assert isinstance(model.likelihood_, Bernoulli)
    # An epoch of 100 steps is at 206 (the entropy of the pixel means); 200 steps
    # of this net come to about 160.
    assert -175 < model.score(mnist.X_test[:1000]) < -130


# ------------------------------------------------------------- shapes and dtypes


@pytest.fixture
def binary(digits):
    """200 rows of zeros and ones, float32."""
    return (digits[:200] > 0.5).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint8, bool])
def test_shapes_and_dtypes(binary, dtype):
    X = binary[:60].astype(dtype)
    units = dtype if dtype in (np.float32, np.float64) else np.float64
    model = tiny(latent_dim=3)
    assert model.fit(X) is model
    Z = model.transform(X)
    assert Z.shape == (60, 3)
    assert Z.dtype == np.float32
    for out in (model.inverse_transform(Z), model.reconstruct(X)):
        assert out.shape == (60, 64)
        assert out.dtype == units
    assert model.sample(5).shape == (5, 64)
    assert model.sample().shape == (1, 64)
    assert model.sample(5).dtype == units
    for rows in (
        model.score_samples(X),
        model.log_likelihood(X),
        model.log_likelihood(X, n_importance_samples=3),
    ):
        assert rows.shape == (60,)
        assert rows.dtype == np.float32
    assert type(model.score(X)) is float
    assert model.interpolate(X[0], X[1]).shape == (10, 64)
    assert model.interpolate(X[:4], X[4:8], n_steps=5).shape == (4, 5, 64)
    assert model.interpolate(X[0], X[1]).dtype == units


def test_fit_transform_is_fit_then_transform(iris):
    np.testing.assert_array_equal(
        tiny().fit_transform(iris), tiny().fit(iris).transform(iris)
    )


def test_interpolation_goes_from_one_reconstruction_to_the_other(iris):
    model = tiny(epochs=20).fit(iris)
    line = model.interpolate(iris[0], iris[100], n_steps=5)
    ends = model.reconstruct(iris[[0, 100]])
    np.testing.assert_allclose(line[[0, -1]], ends, rtol=1e-5)
    Z = model.transform(iris[[0, 100]])
    middle = model.inverse_transform(Z.mean(0, keepdims=True))
    np.testing.assert_allclose(line[2], middle[0], rtol=1e-5)
    many = model.interpolate(iris[:2], iris[100:102], n_steps=5)
    np.testing.assert_allclose(many[0], line, rtol=1e-5)


# ------------------------------------------------------------------------- scores


@pytest.fixture(scope="module", params=["bernoulli", "gaussian"])
def scored(request, _digits):
    X = _digits[:200] if request.param == "bernoulli" else load_iris().data
    return tiny(likelihood=request.param, epochs=10).fit(X), X


@pytest.mark.parametrize(
    "method", ["score_samples", "log_likelihood", "transform", "reconstruct"]
)
def test_rows_do_not_depend_on_their_company(scored, method):
    model, X = scored
    method = getattr(model, method)
    whole = method(X)
    rng = np.random.default_rng(0)
    for rows in (
        rng.permutation(len(X)),
        rng.choice(len(X), 37, replace=False),
        np.arange(len(X))[::-1],
        np.array([5]),
        np.array([5, 5, 5]),
    ):
        np.testing.assert_allclose(method(X[rows]), whole[rows], rtol=1e-4, atol=1e-4)


def test_score_is_the_mean_of_score_samples(scored):
    model, X = scored
    rows = model.score_samples(X).astype(np.float64)
    assert model.score(X) == pytest.approx(rows.mean(), rel=1e-9)
    assert model.score(X, np.zeros(len(X))) == model.score(X)
    weights = np.arange(len(X))
    assert model.score(X, sample_weight=weights) == pytest.approx(
        np.average(rows, weights=weights), rel=1e-9
    )


def test_rows_score_independent_draws(scored):
    # Were one draw shared, the errors of all rows would have one sign.
    model, X = scored
    exact = model.log_likelihood(X, 1) - model.score_samples(X)
    assert 0.2 < (exact > 0).mean() < 0.8


@pytest.mark.parametrize("block", [1, 700, 5000])
def test_blocks_give_the_same_numbers(scored, monkeypatch, block):
    model, X = scored
    X = X[:100]
    Z = model.transform(X)
    calls = {
        "transform": lambda: model.transform(X),
        "inverse_transform": lambda: model.inverse_transform(Z),
        "reconstruct": lambda: model.reconstruct(X),
        "score_samples": lambda: model.score_samples(X),
        "log_likelihood": lambda: model.log_likelihood(X, 67),
        "sample": lambda: model.sample(50, random_state=0, observation_noise=False),
    }
    whole = {name: call() for name, call in calls.items()}
    monkeypatch.setattr(skvae.fitted, "BLOCK", block)
    for name, call in calls.items():
        np.testing.assert_allclose(
            call(), whole[name], rtol=1e-4, atol=1e-4, err_msg=name
        )


def test_memory_is_bounded_by_the_block(digits, monkeypatch):
    model = tiny().fit(digits)
    block, sizes = 64 * 200, []

    def spy(name, numel):
        original = getattr(Model, name)

        def method(self, *args, **kwargs):
            sizes.append((name, numel(*args)))
            return original(self, *args, **kwargs)

        monkeypatch.setattr(Model, name, method)

    spy("infer", lambda x, noise, *others: noise.shape[0] * x.numel())
    spy("decode", lambda z, *others: z[..., 0].numel() * 64)
    monkeypatch.setattr(skvae.fitted, "BLOCK", block)
    model.log_likelihood(digits[:100], 200)
    model.score_samples(digits[:600])
    model.inverse_transform(model.transform(digits))
    model.sample(1000)
    assert len(sizes) > 50
    assert max(size for _, size in sizes) <= block


def test_score_outside_the_support_counts_as_nearest_with_one_warning(
    digits, monkeypatch
):
    model = tiny(epochs=5).fit(digits[:200])
    outside = digits[200:260].copy()
    outside[3, 5], outside[50, 7] = 1.03, -0.2
    nearest = np.clip(outside, 0, 1)
    monkeypatch.setattr(skvae.fitted, "BLOCK", 64 * 16)
    for method in (model.score_samples, model.log_likelihood, model.score):
        with pytest.warns(UserWarning, match=r"outside the support \[0, 1\]") as seen:
            got = method(outside)
        assert len(seen) == 1
        assert seen[0].filename == __file__
        np.testing.assert_allclose(got, method(nearest), rtol=1e-5)
    # transform takes the row as it is, and does not warn.
    assert not np.array_equal(model.transform(outside), model.transform(nearest))


# -------------------------------------------------------------------------- units


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("c", [2.0**20, 2.0**-20])
def test_rescaling_a_column_shifts_scores_by_the_log(iris, c):
    scaled = iris * [1, c, 1, 1]
    a, b = tiny(epochs=5).fit(iris), tiny(epochs=5).fit(scaled)
    # A power of two leaves every bit inside the model as it was.
    assert_same_weights(a, b)
    shift = -np.log(c)
    np.testing.assert_allclose(
        b.score_samples(scaled), a.score_samples(iris) + shift, rtol=1e-6, atol=1e-5
    )
    assert b.score(scaled) == pytest.approx(a.score(iris) + shift, abs=1e-5)
    np.testing.assert_allclose(
        b.log_likelihood(scaled, 9), a.log_likelihood(iris, 9) + shift, atol=2e-5
    )
    np.testing.assert_allclose(
        b.reconstruct(scaled), a.reconstruct(iris) * [1, c, 1, 1]
    )
    np.testing.assert_array_equal(b.transform(scaled), a.transform(iris))
    for column, factor in {"loss": 1, "reconstruction": 1, "kl": 0}.items():
        np.testing.assert_allclose(
            b.history_[column], a.history_[column] - factor * shift, atol=1e-5
        )


def test_rescaling_by_any_number(iris):
    c = np.array([3.7, 1e-3, 250.0, 1 / 3])
    a = tiny(epochs=5, validation_fraction=0.2).fit(iris)
    b = tiny(epochs=5, validation_fraction=0.2).fit(iris * c)
    shift = -np.log(c).sum()
    assert b.score(iris * c) == pytest.approx(a.score(iris) + shift, abs=1e-3)
    np.testing.assert_allclose(
        b.history_.validation_loss, a.history_.validation_loss - shift, atol=1e-3
    )


def test_moving_a_column_changes_nothing(iris):
    step = np.array([0, 1000, -7, 0.1])
    moved = iris + step
    a, b = tiny(epochs=5).fit(iris), tiny(epochs=5).fit(moved)
    np.testing.assert_allclose(b.score_samples(moved), a.score_samples(iris), atol=1e-3)
    np.testing.assert_allclose(b.transform(moved), a.transform(iris), atol=1e-4)
    np.testing.assert_allclose(b.sample(9, 0), a.sample(9, 0) + step, atol=1e-3)


def test_huge_offsets_train_as_small_ones_do(iris):
    a, b = tiny(epochs=10).fit(iris), tiny(epochs=10).fit(iris + 1e8)
    assert b.score(iris + 1e8) == pytest.approx(a.score(iris), abs=1e-2)
    np.testing.assert_allclose(
        b.reconstruct(iris + 1e8) - 1e8, a.reconstruct(iris), atol=1e-3
    )
    assert np.abs(b.sample(100, 0) - 1e8 - iris.mean(0)).max() < 10
    single = (iris * 10 + 1000).astype(np.float32)
    c = tiny(epochs=10).fit(single)
    shift = -4 * np.log(10)
    assert c.score(single) == pytest.approx(a.score(iris) + shift, abs=0.05)


def test_narrow_columns_are_standardised_in_float32_as_in_float64():
    # A variance in float32 would be rounding alone, and the columns left as they are.
    rng = np.random.default_rng(0)
    X = 1000 + 1e-3 * rng.standard_normal((200, 3))
    single = X.astype(np.float32)
    a, b = tiny(epochs=5).fit(single.astype(np.float64)), tiny(epochs=5).fit(single)
    np.testing.assert_allclose(b.units_.scale, single.astype(float).std(0), rtol=1e-6)
    assert b.score(single) == pytest.approx(a.score(single.astype(float)), abs=1e-3)
    spread = b.sample(2000, 0).astype(float).std(0)
    np.testing.assert_allclose(spread, X.std(0), rtol=0.5)


@pytest.mark.parametrize("value", [0.0, 5.0, 1e8, 0.1])
def test_constant_columns(iris, value):
    X = np.column_stack([iris, np.full(len(iris), value)])
    model = tiny(epochs=20, learning_rate=1e-2).fit(X)
    assert_usable(model, X)
    np.testing.assert_allclose(model.reconstruct(X)[:, 4], value, atol=0.3)
    other = X.copy()
    other[:, 4] = value + 1
    assert np.isfinite(model.transform(other)).all()
    assert model.score(other) < model.score(X)


def test_all_constant_and_single_rows():
    for X in (np.full((30, 3), 7.5), np.array([[1.0, -2.0]]), np.zeros((1, 1))):
        assert_usable(tiny().fit(X), X)


def test_standardize_false_keeps_the_units(iris):
    model = tiny(standardize=False, likelihood="gaussian", epochs=5).fit(iris)
    exact = Exact(tiny(latent_dim=1, likelihood="gaussian").fit(iris), iris)
    exact.state = {k: v.double().numpy() for k, v in weights_of(model).items()}
    exact.location, exact.scale = np.zeros(4), np.ones(4)
    np.testing.assert_allclose(
        model.transform(iris), exact.posterior(iris)[0], rtol=1e-4, atol=1e-5
    )

"""VAEEstimator: scikit-learn's manners, and numbers that mean what they say."""

import copy
import pickle
import sys
import tempfile
import threading
import warnings
from itertools import pairwise
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
import sklearn
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse
from scipy.special import logsumexp
from sklearn.base import clone
from sklearn.callback import ProgressBar, ScoringMonitor
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import skvae.engine
import skvae.inference
from skvae import (
    ELBO,
    MLP,
    Bernoulli,
    ConditionalVAEEstimator,
    Gaussian,
    StandardNormal,
    VAEEstimator,
    neg_elbo_scorer,
)
from skvae.engine import DivergenceError
from skvae.model import Model
from skvae.units import Units

HISTORY = [
    "epoch",
    "loss",
    "reconstruction",
    "kl",
    "validation_loss",
    "validation_reconstruction",
    "validation_kl",
    "active_units",
    "learning_rate",
    "seconds",
]


def tiny(**parameters):
    """An estimator that fits in milliseconds."""
    defaults = {
        "latent_dim": 2,
        "hidden_dim": 8,
        "epochs": 2,
        "batch_size": 50,
        "random_state": 0,
    }
    return VAEEstimator(**{**defaults, **parameters})


@pytest.fixture
def iris():
    return load_iris().data


@pytest.fixture
def binary(digits):
    """200 rows of zeros and ones, float32."""
    return (digits[:200] > 0.5).astype(np.float32)


def weights_of(estimator):
    return {k: v.clone() for k, v in estimator.model_.state_dict().items()}


def assert_same_weights(a, b):
    a, b = weights_of(a), weights_of(b)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def assert_usable(estimator, X):
    """Weights float32 and finite, and every method gives finite numbers."""
    for name, weight in estimator.model_.named_parameters():
        assert weight.dtype == torch.float32, name
        assert torch.isfinite(weight).all(), name
    assert np.isfinite(estimator.transform(X)).all()
    assert np.isfinite(estimator.reconstruct(X)).all()
    assert np.isfinite(estimator.score_samples(X)).all()
    assert np.isfinite(estimator.sample(3, random_state=0)).all()


def snapshot(estimator):
    """All attributes of an estimator, by value."""
    values = {}
    for name, value in vars(estimator).items():
        if isinstance(value, torch.nn.Module):
            state = value.state_dict()
            values[name] = {k: v.clone().numpy() for k, v in state.items()}
        elif name == "_trainer":
            values[name] = value
        else:
            values[name] = copy.deepcopy(value)
    return values


def assert_equal(a, b, name="estimator"):
    assert type(a) is type(b), name
    if isinstance(a, dict):
        assert a.keys() == b.keys(), name
        for key in a:
            assert_equal(a[key], b[key], f"{name}.{key}")
    elif isinstance(a, np.ndarray):
        np.testing.assert_array_equal(a, b, err_msg=name)
    elif isinstance(a, Units):
        np.testing.assert_array_equal(a.location, b.location, err_msg=name)
        np.testing.assert_array_equal(a.scale, b.scale, err_msg=name)
    elif hasattr(a, "get_params"):
        assert repr(a) == repr(b), name
    elif isinstance(a, float) and np.isnan(a):
        assert np.isnan(b), name
    elif sparse.issparse(a):
        assert (a != b).nnz == 0, name
    else:
        assert a is b or a == b, name


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
        log_scale = self.state["likelihood_parameters.log_scale"]
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
        grid = np.linspace(-10, 10, 4001)
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
        X = (_digits[:400, 16:32] > 0.5).astype(np.float64)
    else:
        X = load_iris().data
    model = tiny(latent_dim=1, hidden_dim=16, epochs=60, learning_rate=1e-2)
    model.set_params(**MODELS[request.param]).fit(X)
    return model, X, Exact(model, X)


# ------------------------------------------------------------- scikit-learn's checks


@parametrize_with_checks(
    [tiny(batch_size=20), ConditionalVAEEstimator(**tiny(batch_size=20).get_params())],
    expected_failed_checks=lambda estimator: {
        "check_sample_weight_equivalence_on_dense_data": (
            "in mini-batches a row of weight 2 is not a row given twice"
        )
    },
)
def test_scikit_learn_checks(estimator, check):
    before = np.random.get_state()  # noqa: NPY002
    check(estimator)
    if check.func.__name__ == "check_methods_sample_order_invariance":
        # The check itself draws from the global generator.
        np.random.set_state(before)  # noqa: NPY002


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
    for n_importance_samples in (1, 8, 64, 1024):
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
    n = 40_000
    for observation_noise, variance in ((True, between + noise), (False, between)):
        X = model.sample(n, random_state=1, observation_noise=observation_noise)
        X = X.astype(np.float64)
        allowed = 6 * np.sqrt(variance / n) + 1e-5
        assert (np.abs(X.mean(0) - mean) < allowed).all()
        np.testing.assert_allclose(X.var(0), variance, rtol=0.1, atol=1e-3)


def test_mnist_in_two_epochs(mnist):
    model = VAEEstimator(epochs=2, random_state=0).fit(mnist.X_train[:10_000])
    assert isinstance(model.likelihood_, Bernoulli)
    # An epoch of 100 steps is at 206 (the entropy of the pixel means); 200 steps
    # of this net come to about 160.
    assert -175 < model.score(mnist.X_test[:1000]) < -130


# ------------------------------------------------------------- shapes and dtypes


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
    frame = pd.DataFrame(iris, columns=list("abcd"))
    named = tiny(epochs=20).fit(frame)
    np.testing.assert_allclose(
        named.interpolate(frame.iloc[0], frame.iloc[100], n_steps=5), line, rtol=1e-5
    )
    np.testing.assert_allclose(
        named.interpolate(frame[:2], frame[100:102], n_steps=5), many, rtol=1e-5
    )


# ------------------------------------------------------------------- randomness


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("weighted", [False, True])
def test_same_random_state_same_bits(digits, precision, weighted):
    X = digits[:300]
    weights = np.linspace(1, 2, 300) if weighted else None
    models = [
        tiny(
            precision=precision,
            validation_fraction=0.2,
            learning_rate_schedule="cosine",
            max_gradient_norm=1.0,
        ).fit(X, sample_weight=weights)
        for _ in range(2)
    ]
    assert_same_weights(*models)
    pd.testing.assert_frame_equal(
        *(model.history_.drop(columns="seconds") for model in models)
    )
    for call in (
        lambda m: m.transform(X),
        lambda m: m.reconstruct(X),
        lambda m: m.score_samples(X),
        lambda m: m.log_likelihood(X, 7),
        lambda m: m.sample(9, random_state=3),
        lambda m: m.sample(9, random_state=3, observation_noise=True),
    ):
        np.testing.assert_array_equal(call(models[0]), call(models[1]))
        np.testing.assert_array_equal(call(models[0]), call(models[0]))


def test_other_random_states_give_other_models(iris):
    fits = [tiny(random_state=seed).fit(iris).transform(iris) for seed in (0, 1)]
    assert not np.allclose(*fits)
    fresh = [tiny(random_state=None).fit(iris).transform(iris) for _ in range(2)]
    assert not np.allclose(*fresh)


@pytest.mark.usefixtures("one_thread")
def test_random_state_instance(iris):
    first = np.random.RandomState(0)
    a, b = (tiny(random_state=first).fit(iris).transform(iris) for _ in range(2))
    assert not np.allclose(a, b)
    again = tiny(random_state=np.random.RandomState(0)).fit(iris).transform(iris)
    np.testing.assert_array_equal(a, again)


def test_sample_random_state(iris):
    model = tiny().fit(iris)
    a, b, c = (model.sample(4, random_state=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert not np.allclose(a, c)
    assert not np.allclose(model.sample(4), model.sample(4))
    state = np.random.RandomState(0)
    assert not np.allclose(*(model.sample(4, random_state=state) for _ in range(2)))


# ------------------------------------------------------------------------- scores


@pytest.fixture(scope="module", params=["bernoulli", "gaussian"])
def scored(request, _digits):
    X = _digits[:300] if request.param == "bernoulli" else load_iris().data
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


def test_rows_score_independent_draws(digits):
    # Were one draw shared, the errors of all rows would have one sign.
    model = tiny(epochs=20).fit(digits[:300])
    exact = model.log_likelihood(digits[:300], 1) - model.score_samples(digits[:300])
    assert 0.2 < (exact > 0).mean() < 0.8


@pytest.mark.parametrize("block", [1, 700, 5000])
def test_blocks_give_the_same_numbers(scored, monkeypatch, block):
    model, X = scored
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
    monkeypatch.setattr(skvae.inference, "BLOCK", block)
    for name, call in calls.items():
        np.testing.assert_allclose(
            call(), whole[name], rtol=1e-4, atol=1e-4, err_msg=name
        )


def test_draws_do_not_depend_on_blocks(binary, monkeypatch):
    model = tiny().fit(binary)
    whole = model.sample(50, random_state=0)
    monkeypatch.setattr(skvae.inference, "BLOCK", 500)
    np.testing.assert_array_equal(model.sample(50, random_state=0), whole)


def test_memory_is_bounded_by_the_block(digits, monkeypatch):
    model = tiny().fit(digits)
    block, sizes = 64 * 200, []

    def spy(name, numel):
        original = getattr(Model, name)

        def method(self, *args, **kwargs):
            sizes.append((name, numel(*args)))
            return original(self, *args, **kwargs)

        monkeypatch.setattr(Model, name, method)

    spy("infer", lambda x, noise: noise.shape[0] * x.numel())
    spy("decode", lambda z, condition: z[..., 0].numel() * 64)
    monkeypatch.setattr(skvae.inference, "BLOCK", block)
    model.log_likelihood(digits[:300], 200)
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
    monkeypatch.setattr(skvae.inference, "BLOCK", 64 * 16)
    for method in (model.score_samples, model.log_likelihood, model.score):
        with pytest.warns(UserWarning, match=r"outside the support \[0, 1\]") as seen:
            got = method(outside)
        assert len(seen) == 1
        np.testing.assert_allclose(got, method(nearest), rtol=1e-5)
    with pytest.warns(UserWarning, match="outside") as seen:
        model.score_samples(outside)
    assert seen[0].filename == __file__
    # transform takes the row as it is, and does not warn.
    assert not np.array_equal(model.transform(outside), model.transform(nearest))


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


# --------------------------------------------------------------------- likelihood


@pytest.mark.parametrize(
    ("X", "expected"),
    [
        ([[0, 1], [1, 0], [1, 1]], Bernoulli),
        ([[0.5, 0.2], [0.1, 1.0], [0.0, 0.3]], Bernoulli),
        ([[0.5, 0.2], [0.1, 1.001], [0.0, 0.3]], Gaussian),
        ([[0.5, 0.2], [0.1, -1e-9], [0.0, 0.3]], Gaussian),
        ([[3, 2], [1, 0], [0, 7]], Gaussian),
    ],
)
def test_likelihood_auto(X, expected):
    model = tiny().fit(np.array(X))
    assert type(model.likelihood_) is expected
    assert model.likelihood == "auto"


def test_sample_of_binary_data_is_binary(binary):
    model = tiny(epochs=5).fit(binary)
    X = model.sample(50, random_state=0)
    assert set(np.unique(X)) == {0, 1}
    np.testing.assert_array_equal(
        X, model.sample(50, random_state=0, observation_noise=True)
    )
    means = model.sample(50, random_state=0, observation_noise=False)
    assert ((means > 0) & (means < 1)).all()


def test_sample_of_grey_values_is_means(digits):
    model = tiny(epochs=5).fit(digits)
    means = model.sample(50, random_state=0)
    assert ((means > 0) & (means < 1)).all()
    np.testing.assert_array_equal(
        means, model.sample(50, random_state=0, observation_noise=False)
    )
    draws = model.sample(50, random_state=0, observation_noise=True)
    assert set(np.unique(draws)) == {0, 1}


def test_sample_of_densities_has_noise(iris, digits):
    model = tiny(epochs=100, learning_rate=1e-2).fit(iris)
    spread = model.sample(5000, random_state=0).std(0)
    np.testing.assert_allclose(spread, iris.std(0), rtol=0.25)
    np.testing.assert_array_equal(
        model.sample(9, 0), model.sample(9, 0, observation_noise=True)
    )
    continuous = tiny(likelihood="continuous_bernoulli").fit(digits)
    X = continuous.sample(100, random_state=0)
    assert X.min() >= 0
    assert X.max() <= 1
    np.testing.assert_array_equal(
        X, continuous.sample(100, random_state=0, observation_noise=True)
    )


# ----------------------------------------------------------------------- refusals


def with_value(X, row, column, value):
    X = np.array(X, dtype=np.float64)
    X[row, column] = value
    return X


GREY = np.random.default_rng(0).random((40, 4))

BAD_X = {
    "nan": (with_value(GREY, 3, 1, np.nan), "NaN"),
    "inf": (with_value(GREY, 3, 1, np.inf), "infinity"),
    "-inf": (with_value(GREY, 3, 1, -np.inf), "infinity"),
    "csr": (sparse.csr_matrix(GREY), "(?i)sparse"),
    "csc array": (sparse.csc_array(GREY), "(?i)sparse"),
    "strings": (np.array([["a", "b", "c", "d"]] * 3), "'a'|string"),
    "objects": (np.array([[1, 2, 3, {}]] * 3, dtype=object), "dict"),
    "None": (None, "None|scalar"),
    "a number": (3.0, "(?i)scalar"),
    "no rows": (np.empty((0, 4)), "0 sample"),
    "no columns": (np.empty((5, 0)), "0 feature"),
    "1-D": (np.zeros(4), "1D array"),
    "3-D": (np.zeros((2, 4, 4)), "dim 3"),
    "complex": (GREY + 1j, "(?i)complex"),
    "ragged": ([[1, 2, 3, 4], [1, 2]], "inhomogeneous|ragged"),
}


@pytest.mark.parametrize("kind", BAD_X)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize("fitted", [False, True])
def test_training_refuses_bad_data_and_stays_as_it_was(kind, method, fitted):
    X, message = BAD_X[kind]
    model = tiny()
    if fitted:
        model.partial_fit(GREY)
    before = snapshot(model)
    with pytest.raises((ValueError, TypeError), match=message):
        getattr(model, method)(X)
    assert_equal(before, snapshot(model))
    getattr(model, method)(GREY)


@pytest.mark.parametrize("kind", BAD_X)
@pytest.mark.parametrize(
    "method",
    ["transform", "reconstruct", "score", "score_samples", "log_likelihood"],
)
def test_inference_refuses_bad_data(kind, method):
    X, message = BAD_X[kind]
    model = tiny(epochs=1).fit(GREY)
    before = snapshot(model)
    with pytest.raises((ValueError, TypeError), match=message):
        getattr(model, method)(X)
    assert_equal(before, snapshot(model))


def test_wrong_number_of_features():
    model = tiny().partial_fit(GREY)
    before = snapshot(model)
    for width in (1, 3, 5):
        X = np.zeros((6, width))
        for method in (
            model.partial_fit,
            model.transform,
            model.reconstruct,
            model.score,
            model.score_samples,
            model.log_likelihood,
        ):
            with pytest.raises(
                ValueError, match=f"{width} features, but .* 4 features"
            ):
                method(X)
        with pytest.raises(ValueError, match=rf"shape \(4,\).* got \({width},\)"):
            model.interpolate(X[0], X[1])
        with pytest.raises(ValueError, match=f"{width} features"):
            model.fit(GREY, X_val=X)
        with pytest.raises(ValueError, match=f"Z has {width} columns"):
            model.inverse_transform(X)
    assert_equal(before, snapshot(model))


def test_latent_points_are_checked():
    model = tiny().fit(GREY)
    for Z, message in (
        (np.array([[np.nan, 0]]), "NaN"),
        (np.zeros(2), "1D array"),
        (sparse.csr_matrix(np.eye(2)), "(?i)sparse"),
        (np.array([["a", "b"]]), "string|'a'"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            model.inverse_transform(Z)


OUTSIDE = {
    "above": (with_value(GREY, 7, 2, 1.5), {"likelihood": "bernoulli"}),
    "below": (with_value(GREY, 7, 2, -0.25), {"likelihood": Bernoulli()}),
    "continuous": (
        with_value(GREY, 7, 2, 1.0001),
        {"likelihood": "continuous_bernoulli"},
    ),
}


@pytest.mark.parametrize("kind", OUTSIDE)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_data_outside_the_support_are_refused_by_column_and_value(kind, method):
    X, parameters = OUTSIDE[kind]
    model = tiny(**parameters)
    value = str(X[7, 2])
    for _ in range(2):  # unfitted, then fitted
        before = snapshot(model)
        with pytest.raises(ValueError, match=rf"{value} in row 7, column 2.*Bernoulli"):
            getattr(model, method)(X)
        assert_equal(before, snapshot(model))
        getattr(model, method)(GREY)


def test_refusal_names_the_column_of_a_frame():
    frame = pd.DataFrame(
        with_value(GREY, 7, 2, 1.5), columns=["sepal", "petal", "stem", "leaf"]
    )
    with pytest.raises(ValueError, match=r"1\.5.*stem"):
        tiny(likelihood="bernoulli").fit(frame)


def test_refusal_counts_rows_as_the_user_does():
    # Row 2 has weight 0 and is left out; row 7 is still row 7.
    weights = np.ones(40)
    weights[2] = 0
    with pytest.raises(ValueError, match=r"1\.5 in row 7, column 2"):
        tiny(likelihood="bernoulli").fit(
            with_value(GREY, 7, 2, 1.5), sample_weight=weights
        )


def test_partial_fit_refuses_a_later_chunk_outside_the_support():
    model = tiny().partial_fit(GREY)
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"1\.5 in row 7, column 2"):
        model.partial_fit(with_value(GREY, 7, 2, 1.5))
    assert_equal(before, snapshot(model))


BAD_WEIGHTS = {
    "all zero": (np.zeros(40), "(?i)sample.weight"),
    "negative": (np.linspace(-1, 1, 40), "(?i)negative.*sample_weight"),
    "nan": (with_value(np.ones((40, 1)), 3, 0, np.nan)[:, 0], "sample_weight.*NaN"),
    "inf": (with_value(np.ones((40, 1)), 3, 0, np.inf)[:, 0], "sample_weight.*inf"),
    "too few": (np.ones(39), r"sample_weight\.shape == \(39,\)"),
    "2-D": (np.ones((40, 2)), "(?i)sample.weight"),
    "strings": (np.array(["a"] * 40), "'a'"),
}


@pytest.mark.parametrize("kind", BAD_WEIGHTS)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_bad_sample_weights(kind, method):
    weights, message = BAD_WEIGHTS[kind]
    model = tiny()
    for _ in range(2):
        before = snapshot(model)
        with pytest.raises((ValueError, TypeError), match=message):
            getattr(model, method)(GREY, sample_weight=weights)
        assert_equal(before, snapshot(model))
        getattr(model, method)(GREY)


BAD_PARAMETERS = [
    *[("latent_dim", value) for value in (0, -1, 2.5, "a", None)],
    *[
        ("hidden_dim", value)
        for value in (0, -3, (8, 0), (8, 2.5), "8", None, 8.5, ((8,),), {8})
    ],
    *[("epochs", value) for value in (0, 1.5, "2")],
    *[("batch_size", value) for value in (0, 2.5, None)],
    *[("learning_rate", value) for value in (0, -1e-3, np.nan, np.inf, "fast")],
    *[("learning_rate_schedule", value) for value in ("step", None)],
    *[("network", value) for value in ("cnn", MLP, ELBO())],
    *[("likelihood", value) for value in ("normal", Gaussian, None)],
    *[("prior", value) for value in ("x", StandardNormal, None)],
    *[("objective", value) for value in ("x", ELBO, None)],
    *[("standardize", value) for value in ("yes", None, 2)],
    *[("validation_fraction", value) for value in (0, 0.0, 1, 1.5, -0.1, np.nan, "a")],
    *[("early_stopping", value) for value in ("yes", None)],
    *[("n_iter_no_change", value) for value in (0, 1.5)],
    *[("tol", value) for value in (-1e-3, None, np.nan)],
    *[("max_gradient_norm", value) for value in (0, -1, "a")],
    *[("device", value) for value in ("tpu", "cuda:99", "meta", "", 3, None)],
    *[("precision", value) for value in ("float64", "float16", None)],
    *[("random_state", value) for value in ("a", -1, 0.5)],
    *[("verbose", value) for value in ("yes", -1)],
    *[("warm_start", value) for value in ("yes", None)],
]


@pytest.mark.parametrize(("name", "value"), BAD_PARAMETERS)
def test_bad_parameters_are_refused_at_fit_by_name(name, value):
    model = tiny().fit(GREY)
    model.set_params(**{name: value})
    before = snapshot(model)
    with pytest.raises((ValueError, TypeError), match=name):
        model.fit(GREY)
    assert_equal(before, snapshot(model))
    unfitted = tiny(**{name: value})  # __init__ stores and does not check
    before = snapshot(unfitted)
    for method in (unfitted.fit, unfitted.partial_fit):
        with pytest.raises((ValueError, TypeError), match=name):
            method(GREY)
        assert_equal(before, snapshot(unfitted))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"network": MLP(activation="sine")}, "'activation' parameter of MLP"),
        ({"network": MLP(dropout=1.0)}, "'dropout' parameter of MLP"),
        ({"likelihood": Gaussian(scale=-1)}, "'scale' parameter of Gaussian"),
        ({"likelihood": Gaussian(scale="column")}, "'scale' parameter of Gaussian"),
        ({"likelihood": Gaussian(min_scale=0)}, "'min_scale' parameter of Gaussian"),
        ({"objective": ELBO(beta=-1)}, "'beta' parameter of ELBO"),
        ({"objective": ELBO(beta="a")}, "'beta' parameter of ELBO"),
        (
            {"standardize": True, "likelihood": "bernoulli"},
            "standardize=True .*support",
        ),
        ({"validation_fraction": 0.99}, "validation_fraction=0.99 of 40 rows"),
    ],
)
def test_bad_choices_name_what_is_wrong(parameters, message):
    model = tiny().fit(GREY).set_params(**parameters)
    before = snapshot(model)
    with pytest.raises((ValueError, TypeError), match=message):
        model.fit(GREY)
    assert_equal(before, snapshot(model))


@pytest.mark.parametrize(
    ("X_val", "parameters", "message"),
    [
        (GREY, {"validation_fraction": 0.2}, "validation_fraction=0.2 and X_val"),
        (with_value(GREY, 7, 2, 1.5), {}, "X_val has the value 1.5 in row 7, column 2"),
        (with_value(GREY, 7, 2, np.nan), {}, "X_val.*NaN"),
        (np.zeros((5, 3)), {}, "3 features, but .* 4 features"),
        (np.zeros(4), {}, "1D array"),
        (np.empty((0, 4)), {}, "0 sample"),
        (sparse.csr_matrix(GREY), {}, "(?i)sparse"),
    ],
)
def test_bad_validation_sets(X_val, parameters, message):
    model = tiny().fit(GREY).set_params(**parameters)
    before = snapshot(model)
    with pytest.raises((ValueError, TypeError), match=message):
        model.fit(GREY, X_val=X_val)
    assert_equal(before, snapshot(model))


def test_a_missing_device_names_what_is_there():
    with pytest.raises(ValueError, match=r"device='tpu'.*expected one of.*'cpu'"):
        tiny(device="tpu").fit(GREY)


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m.transform(GREY),
        lambda m: m.inverse_transform(GREY[:, :2]),
        lambda m: m.reconstruct(GREY),
        lambda m: m.sample(),
        lambda m: m.interpolate(GREY[0], GREY[1]),
        lambda m: m.score(GREY),
        lambda m: m.score_samples(GREY),
        lambda m: m.log_likelihood(GREY),
        lambda m: m.get_feature_names_out(),
        lambda m: m.history_,
    ],
)
def test_not_fitted(call):
    with pytest.raises(NotFittedError, match="not fitted yet"):
        call(tiny())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.sample(0), "n_samples=0"),
        (lambda m: m.sample(-2), "n_samples=-2"),
        (lambda m: m.sample(2.5), "n_samples=2.5"),
        (lambda m: m.sample("3"), "n_samples='3'"),
        (lambda m: m.sample(3, random_state="a"), "'a'"),
        (lambda m: m.sample(3, observation_noise="yes"), "observation_noise='yes'"),
        (lambda m: m.log_likelihood(GREY, 0), "n_importance_samples=0"),
        (lambda m: m.log_likelihood(GREY, 1.5), "n_importance_samples=1.5"),
        (lambda m: m.interpolate(GREY[0], GREY[1], 1), "n_steps=1"),
        (lambda m: m.interpolate(GREY[0], GREY[1], 2.5), "n_steps=2.5"),
        (lambda m: m.interpolate(GREY[0], GREY[:2]), r"\(4,\) and \(2, 4\)"),
        (lambda m: m.interpolate(GREY[None], GREY[None]), r"\(1, 40, 4\)"),
        (lambda m: m.interpolate(GREY[0] * np.nan, GREY[1]), "NaN"),
        (lambda m: m.score(GREY, sample_weight=np.ones(3)), "sample_weight"),
    ],
)
def test_bad_arguments_are_named(call, message):
    model = tiny().fit(GREY)
    with pytest.raises(ValueError, match=message):
        call(model)


# ----------------------------------------------------------------------- training


def test_training_learns(digits):
    model = tiny(hidden_dim=64, latent_dim=8, epochs=15, learning_rate=5e-3)
    loss = model.fit(digits).history_.loss
    assert loss.iloc[-1] < loss.iloc[0] - 2
    assert model.score(digits) > tiny(epochs=1).fit(digits).score(digits) + 2
    # Reconstructions are nearer than the mean of the data.
    error = np.square(digits - model.reconstruct(digits)).sum(1).mean()
    assert error < 0.7 * np.square(digits - digits.mean(0)).sum(1).mean()


def overfitting(**parameters):
    return tiny(
        latent_dim=4,
        hidden_dim=64,
        batch_size=8,
        learning_rate=1e-2,
        **{"epochs": 40, **parameters},
    )


@pytest.mark.usefixtures("one_thread")
def test_the_best_epoch_is_kept():
    rng = np.random.default_rng(0)
    X, X_val = rng.normal(size=(24, 10)), rng.normal(size=(50, 10))
    model = overfitting().fit(X, X_val=X_val)
    losses = model.history_.validation_loss
    assert model.best_epoch_ == losses.idxmin() + 1
    assert 1 < model.best_epoch_ < model.n_iter_ == 40
    assert losses.iloc[-1] > losses.min() + 0.5
    # The weights are those that a fit of that many epochs ends with.
    assert_same_weights(
        model, overfitting(epochs=model.best_epoch_).fit(X, X_val=X_val)
    )
    assert model.score(X_val) == pytest.approx(-losses.min(), abs=0.5)


@pytest.mark.usefixtures("one_thread")
def test_without_validation_the_best_training_loss_is_kept(iris):
    # So large a learning rate makes the loss go up and down.
    parameters = {"learning_rate": 0.3, "epochs": 30, "batch_size": 20}
    model = tiny(**parameters).fit(iris)
    losses = model.history_.loss
    assert model.best_epoch_ == losses.idxmin() + 1 < 30
    short = tiny(**{**parameters, "epochs": model.best_epoch_}).fit(iris)
    assert_same_weights(model, short)


def test_early_stopping():
    rng = np.random.default_rng(0)
    X, X_val = rng.normal(size=(24, 10)), rng.normal(size=(50, 10))
    model = overfitting(early_stopping=True, n_iter_no_change=4, epochs=200)
    model.fit(X, X_val=X_val)
    assert model.n_iter_ == model.best_epoch_ + 4 < 200
    assert len(model.history_) == model.n_iter_
    # With an endless tolerance only the first epoch improves.
    model.set_params(tol=1e9, n_iter_no_change=3).fit(X, X_val=X_val)
    assert model.n_iter_ == 4
    model.set_params(tol=1e9, n_iter_no_change=3).fit(X)
    assert model.n_iter_ == 4
    model.set_params(early_stopping=False, epochs=7).fit(X, X_val=X_val)
    assert model.n_iter_ == 7


def test_cosine_schedule():
    model = tiny(
        learning_rate_schedule="cosine", epochs=5, batch_size=15, learning_rate=0.01
    )
    rates = model.fit(GREY).history_.learning_rate
    # 40 rows in batches of 15 are 3 steps; a row of the table has the last one's rate.
    last_steps = np.arange(1, 6) * 3 - 1
    np.testing.assert_allclose(rates, 0.005 * (1 + np.cos(np.pi * last_steps / 15)))
    constant = model.set_params(learning_rate_schedule="constant").fit(GREY)
    assert (constant.history_.learning_rate == 0.01).all()


@pytest.mark.usefixtures("one_thread")
def test_max_gradient_norm(iris, monkeypatch):
    free = tiny(epochs=3).fit(iris)
    assert_same_weights(free, tiny(epochs=3, max_gradient_norm=1e9).fit(iris))
    norms, step = [], skvae.engine.adam_step

    def spy(parameter, gradient, *args):
        norms.append(float(gradient.norm()) / 50)  # it is that of a sum over a batch
        step(parameter, gradient, *args)

    monkeypatch.setattr(skvae.engine, "adam_step", spy)
    tiny(epochs=3).fit(iris)
    limit = max(norms) / 3
    norms.clear()
    tiny(epochs=3, max_gradient_norm=limit).fit(iris)
    assert max(norms) == pytest.approx(limit, rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 7, 13, 39, 40, 41, 10_000])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_any_batch_size(batch_size, likelihood):
    # 40 rows: last batches of 5, 1 (of 13 and of 39) and none; n < batch_size.
    model = tiny(batch_size=batch_size, likelihood=likelihood, learning_rate=1e-2)
    before = tiny(batch_size=batch_size, likelihood=likelihood, learning_rate=1e-12)
    assert model.fit(GREY).score(GREY) != before.fit(GREY).score(GREY)
    assert_usable(model, GREY)


@pytest.mark.usefixtures("one_thread")
def test_precision_of_training_leaves_float32_behind(digits):
    full = tiny(precision="float32").fit(digits)
    half = tiny(precision="bfloat16").fit(digits)
    assert not torch.equal(*(next(m.model_.parameters()) for m in (full, half)))
    assert half.score(digits) == pytest.approx(full.score(digits), rel=0.01)
    assert_usable(half, digits)


@pytest.mark.usefixtures("one_thread")
def test_sample_weight_counts_in_ratios(iris):
    weights = np.random.default_rng(0).random(150) + 0.1
    a = tiny().fit(iris, sample_weight=weights)
    b = tiny().fit(iris, sample_weight=1024 * weights)
    assert_same_weights(a, b)
    assert not np.allclose(a.transform(iris), tiny().fit(iris).transform(iris))
    ones = tiny().fit(iris, sample_weight=np.ones(150))
    np.testing.assert_allclose(
        ones.transform(iris), tiny().fit(iris).transform(iris), atol=1e-4
    )


def test_rows_of_weight_zero_are_not_there(iris):
    weights = np.ones(150)
    weights[::3] = 0
    a = tiny(epochs=5).fit(iris, sample_weight=weights)
    b = tiny(epochs=5).fit(iris[weights > 0])
    np.testing.assert_allclose(a.transform(iris), b.transform(iris), atol=1e-4)
    np.testing.assert_allclose(a.history_.loss, b.history_.loss, rtol=1e-4)


def test_sample_weight_draws_the_model_towards_heavy_rows(iris):
    heavy = np.where(np.arange(150) < 50, 100.0, 1.0)
    a = tiny(epochs=20).fit(iris, sample_weight=heavy)
    b = tiny(epochs=20).fit(iris, sample_weight=heavy[::-1])
    assert a.score(iris[:50]) > b.score(iris[:50])
    assert a.score(iris[100:]) < b.score(iris[100:])


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_weighted_records_are_weighted_means(likelihood):
    # Every row is the same: whatever the weights, their mean loss is that of a row.
    X = np.tile([0.25, 1.0, 0.5, 0.0], (60, 1))
    weights = np.random.default_rng(0).lognormal(0, 2, 60)
    model = tiny(likelihood=likelihood, validation_fraction=0.3, epochs=4)
    model.fit(X, sample_weight=weights)
    with torch.no_grad():
        x = torch.tensor(model.units_.standardize(X[:1]))
        terms = model.model_.terms(x, torch.zeros(1, 1, 2), analytic_kl=True)
    row = model.history_.iloc[model.best_epoch_ - 1]
    assert row.validation_kl == pytest.approx(terms.divergence.item(), rel=1e-3)


# ------------------------------------------------------- divergence and interruption


def falling(**parameters):
    """On iris its loss falls in every one of the first epochs: the last is the best."""
    return tiny(learning_rate=1e-2, **parameters)


def diverging_after(monkeypatch, n_epochs, n_batches):
    """Every loss after some whole epochs is infinite."""
    calls, summary = [], skvae.engine.summary

    def infinite(rows, weights):
        calls.append(rows)
        values = summary(rows, weights)
        return values if len(calls) <= n_epochs * n_batches else values * torch.inf

    monkeypatch.setattr(skvae.engine, "summary", infinite)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_divergence_keeps_the_last_finite_weights(iris, monkeypatch, precision):
    two = falling(precision=precision, epochs=2).fit(iris)
    diverging_after(monkeypatch, n_epochs=2, n_batches=3)
    model = falling(precision=precision, epochs=5)
    with pytest.raises(DivergenceError, match=r"epoch 3.*learning_rate below 0.01"):
        model.fit(iris)
    assert_same_weights(model, two)
    assert model.n_iter_ == len(model.history_) == 2
    assert model.best_epoch_ == 2
    assert_usable(model, iris)
    assert isinstance(DivergenceError("x"), ValueError)
    monkeypatch.undo()
    assert_same_weights(model.set_params(epochs=2).fit(iris), two)


def test_divergence_in_the_first_epoch(iris, monkeypatch):
    diverging_after(monkeypatch, n_epochs=0, n_batches=3)
    model = tiny(epochs=5)
    with pytest.raises(DivergenceError, match="epoch 1"):
        model.fit(iris)
    assert model.n_iter_ == 0
    assert len(model.history_) == 0
    assert list(model.history_.columns) == HISTORY
    assert_usable(model, iris)
    assert_usable(pickle.loads(pickle.dumps(model)), iris)


def test_a_huge_learning_rate_diverges_and_says_so(iris):
    model = tiny(
        learning_rate=1e30, standardize=False, likelihood=Gaussian(scale=1.0), epochs=9
    )
    with pytest.raises(
        DivergenceError, match=r"learning_rate below 1e\+30.*standardize=True"
    ):
        model.fit(iris)
    assert_usable(model, iris)


def test_divergence_in_partial_fit(iris, monkeypatch):
    model = tiny().partial_fit(iris)
    before = weights_of(model)
    with monkeypatch.context() as patch:
        diverging_after(patch, n_epochs=0, n_batches=3)
        with pytest.raises(DivergenceError, match="no longer finite"):
            model.partial_fit(iris)
    for name, weight in weights_of(model).items():
        assert torch.equal(weight, before[name])
    assert_usable(model, iris)
    assert len(model.partial_fit(iris).history_) == 2


def interrupted_after(monkeypatch, n_steps):
    calls, step = [], skvae.engine.adam_step

    def interrupt(*args):
        calls.append(None)
        if len(calls) > n_steps:
            raise KeyboardInterrupt
        step(*args)

    monkeypatch.setattr(skvae.engine, "adam_step", interrupt)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_interrupting_a_step_keeps_the_best_epoch(iris, monkeypatch, precision):
    two = falling(precision=precision, epochs=2).fit(iris)
    with monkeypatch.context() as patch:
        interrupted_after(patch, n_steps=2 * 3 + 1)
        model = falling(precision=precision, epochs=50)
        with pytest.warns(UserWarning, match="interrupted in epoch 3") as seen:
            assert model.fit(iris) is model
    assert seen[0].filename == __file__
    assert_same_weights(model, two)
    assert model.n_iter_ == model.best_epoch_ == len(model.history_) == 2
    assert_usable(model, iris)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_interrupting_the_first_epoch_keeps_its_steps(iris, monkeypatch, precision):
    start = tiny(precision=precision, learning_rate=1e-12, epochs=1).fit(iris)
    interrupted_after(monkeypatch, n_steps=2)
    model = tiny(precision=precision, learning_rate=0.01)
    with pytest.warns(UserWarning, match="interrupted in epoch 1"):
        model.fit(iris)
    assert model.n_iter_ == 0
    assert not np.allclose(model.transform(iris), start.transform(iris), atol=1e-3)
    assert_usable(model, iris)


@pytest.mark.usefixtures("one_thread")
def test_interrupting_by_a_callback(iris):
    def interrupt(context):
        if context.task_name == "epoch" and context.task_id == 1:
            raise KeyboardInterrupt

    model = falling(epochs=50).set_callbacks(Recorder(interrupt))
    with pytest.warns(UserWarning, match="interrupted"):
        model.fit(iris)
    assert_same_weights(model, falling(epochs=2).fit(iris))
    assert model.n_iter_ == 2


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_interrupting_partial_fit_leaves_a_usable_estimator(
    iris, monkeypatch, precision
):
    model = tiny(precision=precision).partial_fit(iris)
    with monkeypatch.context() as patch:
        interrupted_after(patch, n_steps=1)
        with pytest.raises(KeyboardInterrupt):
            model.partial_fit(iris)
    assert_usable(model, iris)
    assert_usable(pickle.loads(pickle.dumps(model)), iris)
    assert len(model.partial_fit(iris).history_) == 2


def test_an_error_in_a_callback_leaves_the_estimator_as_it_was(iris):
    def fail(context):
        if context.task_name == "epoch":
            raise RuntimeError("from the callback")

    model = tiny().fit(iris).set_callbacks(Recorder(fail))
    before = weights_of(model)
    records = model.history_
    with pytest.raises(RuntimeError, match="from the callback"):
        model.fit(iris + 1)
    for name, weight in weights_of(model).items():
        assert torch.equal(weight, before[name])
    pd.testing.assert_frame_equal(model.history_, records)
    assert not hasattr(model, "_callback_fit_ctx")


# ---------------------------------------------------------------------- partial_fit


def test_partial_fit_learns(digits):
    model = tiny(latent_dim=4, hidden_dim=64, learning_rate=1e-2)
    scores = []
    for _ in range(6):
        for start in range(0, 1797, 300):
            assert model.partial_fit(digits[start : start + 300]) is model
        scores.append(model.score(digits))
    assert scores[-1] > scores[0] + 1
    assert model.n_iter_ == len(model.history_) == 36
    assert list(model.history_.epoch) == list(range(1, 37))


def test_partial_fit_keeps_the_units_of_the_first_chunk(iris):
    model = tiny().partial_fit(iris[:50])
    location = model.units_.location.copy()
    model.partial_fit(iris[50:])
    np.testing.assert_array_equal(model.units_.location, location)
    np.testing.assert_allclose(location, iris[:50].mean(0))


def test_epochs_are_counted_on_through_fit_partial_fit_and_pickle(iris):
    model = tiny(epochs=3).fit(iris).partial_fit(iris)
    assert list(model.history_.epoch) == [1, 2, 3, 4]
    model = pickle.loads(pickle.dumps(model)).partial_fit(iris)
    assert list(model.history_.epoch) == [1, 2, 3, 4, 5]
    assert model.n_iter_ == 5


def test_partial_fit_after_fit_or_pickle_draws_new_noise(iris, monkeypatch):
    # The same order and noise in every pass would be one pass over and over.
    orders, randperm = [], torch.randperm

    def spy(*args, **kwargs):
        orders.append(randperm(*args, **kwargs))
        return orders[-1]

    monkeypatch.setattr(torch, "randperm", spy)
    model = tiny(epochs=1).fit(iris)
    for _ in range(3):
        model = pickle.loads(pickle.dumps(model.partial_fit(iris)))
    assert len({tuple(order.tolist()) for order in orders}) == 4


def test_partial_fit_takes_the_parameters_of_the_day(iris):
    model = tiny().partial_fit(iris)
    model.set_params(learning_rate=0.5).partial_fit(iris)
    assert list(model.history_.learning_rate) == [1e-3, 0.5]


def test_partial_fit_copies_go_their_own_ways(iris):
    model = tiny().partial_fit(iris)
    before = model.transform(iris)
    for twin in (
        copy.deepcopy(model),
        copy.copy(model),
        pickle.loads(pickle.dumps(model)),
    ):
        np.testing.assert_allclose(twin.transform(iris), before, atol=1e-6)
        twin.partial_fit(iris)
        assert not np.allclose(twin.transform(iris), before)
        np.testing.assert_array_equal(model.transform(iris), before)


@pytest.mark.usefixtures("one_thread")
def test_fit_after_partial_fit_starts_anew(iris):
    model = tiny().partial_fit(iris + 3).fit(iris)
    assert_same_weights(model, tiny().fit(iris))
    assert len(model.history_) == 2


# -------------------------------------------------------------------- persistence

ROUND_TRIPS = {
    "pickle": lambda model, path: pickle.loads(pickle.dumps(model)),
    "joblib": lambda model, path: joblib.load(joblib.dump(model, path / "m")[0]),
    "joblib-compressed": lambda model, path: joblib.load(
        joblib.dump(model, path / "m", compress=3)[0]
    ),
    "deepcopy": lambda model, path: copy.deepcopy(model),
    "copy": lambda model, path: copy.copy(model),
}


@pytest.mark.parametrize("trip", ROUND_TRIPS)
@pytest.mark.parametrize("kind", ["gaussian", "bernoulli", "partial_fit", "ladder"])
def test_round_trips_give_the_same_outputs(trip, kind, digits, iris, tmp_path):
    X = digits[:100] if kind == "bernoulli" else iris
    model = tiny(objective=ELBO(beta=2), hidden_dim=(8, 4) if kind == "ladder" else 8)
    model = model.partial_fit(X) if kind == "partial_fit" else model.fit(X)
    twin = ROUND_TRIPS[trip](model, tmp_path)
    for call in (
        lambda m: m.transform(X),
        lambda m: m.reconstruct(X),
        lambda m: m.score_samples(X),
        lambda m: m.log_likelihood(X, 5),
        lambda m: m.sample(7, random_state=0),
    ):
        np.testing.assert_array_equal(call(twin), call(model))
    pd.testing.assert_frame_equal(twin.history_, model.history_)
    assert repr(twin) == repr(model)
    assert_equal(
        {k: v for k, v in snapshot(model).items() if k != "_trainer"}, snapshot(twin)
    )
    twin.fit(X)


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_a_pickle_holds_weights_and_neither_data_nor_optimiser(digits, method):
    model = getattr(tiny(hidden_dim=100), method)(digits)
    weights = 4 * sum(weight.numel() for weight in model.model_.parameters())
    assert weights > 50_000
    assert digits.nbytes > 10 * weights
    # The codes are those of sample(prior="mixture").
    assert len(pickle.dumps(model)) < weights + model._codes.nbytes + 10_000


def test_fitted_holds_no_data(digits):
    model = tiny().fit(digits)
    size = sum(len(pickle.dumps(v)) for v in model.__getstate__().values())
    arrays = [v for v in vars(model).values() if isinstance(v, np.ndarray)]
    assert size < digits.nbytes / 20
    assert not any(np.shares_memory(array, digits) for array in arrays)


def test_a_model_from_a_device_that_is_not_here_loads(iris):
    model = tiny().fit(iris)
    before = model.transform(iris)
    model.device = "cuda:77"
    twin = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(twin.transform(iris), before)
    assert twin.device == "cuda:77"


def test_parameters_changed_after_fit_do_not_touch_what_was_learned(iris):
    model = tiny(objective=ELBO()).fit(iris)
    before = model.transform(iris), model.score(iris), model.sample(3, 0)
    model.set_params(latent_dim=7, hidden_dim=(3, 3), likelihood="bernoulli")
    model.set_params(objective__beta=5.0, network=MLP(activation="tanh"))
    assert model.objective_.beta == 1
    for m in (model, pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(m.transform(iris), before[0])
        assert m.score(iris) == before[1]
        np.testing.assert_array_equal(m.sample(3, 0), before[2])
        assert len(m.get_feature_names_out()) == 2


def test_clone_and_parameters(iris):
    objective, likelihood = ELBO(beta=2), Gaussian(scale="feature")
    model = tiny(objective=objective, likelihood=likelihood).fit(iris)
    assert model.objective is objective
    assert model.likelihood is likelihood
    assert model.objective_ is not objective
    assert vars(objective) == vars(ELBO(beta=2))
    twin = clone(model)
    assert not hasattr(twin, "model_")
    assert twin.objective is not objective
    assert repr(twin) == repr(model)
    assert model.get_params()["objective__beta"] == 2
    assert "latent_dim=2" in repr(model)
    assert repr(VAEEstimator()) == "VAEEstimator()"


# --------------------------------------------------------------- scikit-learn's ways


def test_feature_names_out(iris):
    model = tiny(latent_dim=3).fit(iris)
    names = ["vaeestimator0", "vaeestimator1", "vaeestimator2"]
    assert list(model.get_feature_names_out()) == names
    pipe = make_pipeline(MinMaxScaler(), tiny(latent_dim=3)).fit(iris)
    assert list(pipe.get_feature_names_out()) == names


@pytest.mark.parametrize(("name", "module"), [("pandas", pd), ("polars", pl)])
def test_set_output(iris, name, module):
    frame = pd.DataFrame(iris, columns=list("abcd"), index=np.arange(150) * 2)
    X = frame if name == "pandas" else pl.DataFrame(iris, schema=list("abcd"))
    model = tiny().set_output(transform=name).fit(X)
    for out in (model.transform(X), tiny().set_output(transform=name).fit_transform(X)):
        assert isinstance(out, module.DataFrame)
        assert list(out.columns) == ["vaeestimator0", "vaeestimator1"]
        np.testing.assert_allclose(
            out.to_numpy(), tiny().fit(iris).transform(iris), atol=1e-5
        )
    if name == "pandas":
        assert out.index.equals(frame.index)
    # The other methods work on frames and give arrays.
    assert isinstance(model.reconstruct(X), np.ndarray)
    assert isinstance(model.score_samples(X), np.ndarray)
    assert isinstance(model.inverse_transform(out), np.ndarray)
    pipe = make_pipeline(MinMaxScaler(), tiny()).set_output(transform=name).fit(X)
    assert isinstance(pipe.transform(X), module.DataFrame)
    assert np.isfinite(pipe.score(X))


def test_feature_names(iris):
    frame = pd.DataFrame(iris, columns=list("abcd"))
    model = tiny().fit(frame)
    assert list(model.feature_names_in_) == list("abcd")
    for method in (
        model.transform,
        model.reconstruct,
        model.score,
        model.score_samples,
        model.log_likelihood,
        model.partial_fit,
        lambda X: model.fit(frame, X_val=X),
    ):
        before = snapshot(model)
        with pytest.raises(ValueError, match="feature names should match"):
            method(frame[list("badc")])
        assert_equal(before, snapshot(model))
        with pytest.warns(UserWarning, match="does not have valid feature names"):
            method(iris)
    assert not hasattr(tiny().fit(iris), "feature_names_in_")


def test_column_transformer(iris):
    frame = pd.DataFrame(iris, columns=list("abcd"))
    both = ColumnTransformer(
        [("vae", tiny(), ["a", "b", "c"])], remainder="passthrough"
    )
    out = both.set_output(transform="pandas").fit_transform(frame)
    assert list(out.columns) == [
        "vae__vaeestimator0",
        "vae__vaeestimator1",
        "remainder__d",
    ]


@pytest.mark.usefixtures("one_thread")
def test_sample_weight_is_routed_through_a_pipeline(digits):
    X = digits[:100] * 3
    scaled = MinMaxScaler().fit_transform(X)
    weights = np.linspace(0.1, 3, 100)
    expected = tiny().fit(scaled, sample_weight=weights)
    with sklearn.config_context(enable_metadata_routing=True):
        pipe = make_pipeline(
            MinMaxScaler(),
            tiny()
            .set_fit_request(sample_weight=True)
            .set_score_request(sample_weight=True),
        ).fit(X, sample_weight=weights)
        assert_same_weights(pipe[-1], expected)
        assert pipe.score(X, sample_weight=weights) == pytest.approx(
            expected.score(scaled, sample_weight=weights), rel=1e-6
        )
        with pytest.raises(sklearn.exceptions.UnsetMetadataPassedError):
            make_pipeline(MinMaxScaler(), tiny()).fit(X, sample_weight=weights)
    plain = make_pipeline(MinMaxScaler(), tiny())
    plain.fit(X, vaeestimator__sample_weight=weights)
    assert_same_weights(plain[-1], expected)


@pytest.mark.usefixtures("one_thread")
def test_validation_set_is_routed_and_scaled_in_a_pipeline(digits):
    X, X_val = digits[:100] * 3, digits[100:150] * 3
    scaler = MinMaxScaler(clip=True).fit(X)
    expected = tiny().fit(scaler.transform(X), X_val=scaler.transform(X_val))
    with sklearn.config_context(enable_metadata_routing=True):
        pipe = Pipeline(
            [
                ("scale", MinMaxScaler(clip=True)),
                ("vae", tiny().set_fit_request(X_val=True)),
            ],
            transform_input=["X_val"],
        ).fit(X, X_val=X_val)
    pd.testing.assert_frame_equal(
        pipe[-1].history_.drop(columns="seconds"),
        expected.history_.drop(columns="seconds"),
    )


def test_a_pipeline_goes_back_to_the_units_of_the_user(digits):
    pipe = make_pipeline(MinMaxScaler(), tiny(epochs=5)).fit(digits * 16)
    out = pipe.inverse_transform(pipe.transform(digits * 16))
    assert out.shape == digits.shape
    assert 8 < out.max() <= 16


def test_html_repr_links_to_the_documentation(iris):
    link = "https://skvae.readthedocs.io/en/latest/api/skvae.VAEEstimator.html"
    for model in (tiny(), tiny().fit(iris)):
        assert link in model._repr_html_()
    assert link in make_pipeline(MinMaxScaler(), tiny())._repr_html_()


def test_history_is_a_table(iris):
    model = tiny(epochs=3).fit(iris)
    frame = model.history_
    assert isinstance(frame, pd.DataFrame)
    assert list(frame.columns) == HISTORY
    assert list(frame.epoch) == [1, 2, 3]
    assert frame.active_units.between(0, 2).all()
    assert (frame.seconds > 0).all()
    assert (frame.kl >= 0).all()
    with_validation = tiny(validation_fraction=0.2).fit(iris).history_
    assert with_validation.notna().all(axis=None)
    assert list(with_validation.columns) == HISTORY


def test_history_is_numeric(iris):
    # Plotting and arithmetic fail on columns of objects: a missing loss is NaN.
    frame = tiny().fit(iris).history_
    assert {str(dtype) for dtype in frame.dtypes} <= {"int64", "float64"}
    assert frame.validation_loss.isna().all()
    assert np.isnan(frame.validation_loss.min())


def test_history_without_pandas(iris, monkeypatch):
    model = tiny().fit(iris)
    expected = model.history_.to_dict("records")
    monkeypatch.setitem(sys.modules, "pandas", None)
    records = model.history_
    assert isinstance(records, list)
    assert [list(record) for record in records] == [HISTORY, HISTORY]
    for record, row in zip(records, expected, strict=True):
        assert record["loss"] == row["loss"]
        assert record["epoch"] == row["epoch"]


def test_history_is_a_copy(iris):
    model = tiny().fit(iris)
    table = model.history_
    table.loc[0, "loss"] = 0
    assert model.history_.loss[0] != 0


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_verbose_0_is_silent(iris, capsys, method):
    model = getattr(tiny(validation_fraction=0.2), method)(iris)
    model.score(model.sample(3))
    assert capsys.readouterr() == ("", "")


def test_verbose_1_shows_progress_on_stderr(iris, capsys):
    tiny(verbose=1, epochs=4, validation_fraction=0.2).fit(iris)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 4
    for i, line in enumerate(lines, 1):
        for word in (f"epoch {i}/4", "loss", "recon", "KL", "validation", "left"):
            assert word in line


# ---------------------------------------------------------------------- callbacks


class Recorder:
    """A callback that writes down what it is told, and stops where it is asked to."""

    def __init__(self, stop=lambda context: False):
        self.stop = stop
        self.begun, self.ended = [], []
        self.X, self.y, self.metadata, self.scores = [], [], [], []
        self.n_setups = self.n_teardowns = 0

    def setup(self, estimator, context):
        self.n_setups += 1

    def teardown(self, estimator, context):
        self.n_teardowns += 1

    def on_fit_task_begin(self, estimator, context, *, X=None, y=None):
        self.begun.append((context.task_name, context.task_id))

    def on_fit_task_end(
        self,
        estimator,
        context,
        *,
        X=None,
        y=None,
        metadata=None,
        fitted_estimator=None,
    ):
        self.ended.append((context.task_name, context.task_id))
        self.X.append(X)
        self.y.append(y)
        self.metadata.append(metadata)
        self.scores.append(fitted_estimator.score(X))
        return self.stop(context)


def test_callbacks_see_every_epoch(iris):
    seen = Recorder()
    model = falling(epochs=3).set_callbacks(seen).fit(iris)
    epochs = [("epoch", i) for i in range(3)]
    assert seen.begun == [("fit", 0), *epochs]
    assert seen.ended == [*epochs, ("fit", 0)]
    assert seen.n_setups == seen.n_teardowns == 1
    # Each hook sees the model as if fit had stopped there.
    for n, score in enumerate(seen.scores[:3], 1):
        alone = falling(epochs=n).fit(iris).score(iris)
        assert score == pytest.approx(alone, abs=1e-3)
    assert seen.scores[3] == pytest.approx(model.score(iris), abs=1e-4)


def test_every_epoch_that_begins_ends(iris):
    seen = Recorder()
    model = tiny(epochs=30, early_stopping=True, tol=1e9, n_iter_no_change=2)
    model.set_callbacks(seen).fit(iris)
    assert model.n_iter_ == 3
    assert sorted(seen.begun) == sorted(seen.ended)


def test_a_callback_that_returns_true_stops_the_training(iris):
    stop = Recorder(lambda context: context.task_id == 3)
    model = tiny(epochs=50).set_callbacks(stop).fit(iris)
    assert model.n_iter_ == len(model.history_) == 4
    assert sorted(stop.begun) == sorted(stop.ended)
    assert stop.n_teardowns == 1
    model.set_callbacks().fit(iris)
    assert model.n_iter_ == 50


def test_callbacks_are_told_rows_labels_and_weights_that_belong_together(iris):
    y = np.arange(150)
    weights = np.linspace(0, 1, 150)
    seen = Recorder()
    model = tiny(validation_fraction=0.2).set_callbacks(seen)
    model.fit(iris, y, sample_weight=weights)
    for X, labels, metadata in zip(seen.X, seen.y, seen.metadata, strict=True):
        assert len(X) == len(labels) == len(metadata["sample_weight"])
        np.testing.assert_array_equal(X, iris[labels])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("y", [None, np.arange(150)])
def test_scoring_monitor_records_a_score_per_epoch(iris, weighted, y):
    monitor = ScoringMonitor(scoring=neg_elbo_scorer)
    model = falling(epochs=3).set_callbacks(monitor)
    model.fit(iris, y, sample_weight=np.linspace(1, 2, 150) if weighted else None)
    rows = monitor.get_logs().data
    names = set(rows[0]) - {
        "task_id_path",
        "parent_task_id_path",
        "estimator_name",
        "task_name",
        "task_id",
        "sequential_subtasks",
    }
    (name,) = names
    epochs = [row[name] for row in rows if row["task_name"] == "epoch"]
    assert len(epochs) == 3
    if not weighted:
        for n, score in enumerate(epochs, 1):
            alone = falling(epochs=n).fit(iris).score(iris)
            assert score == pytest.approx(alone, abs=1e-3)


def test_scoring_monitor_with_a_name_for_the_score(iris):
    monitor = ScoringMonitor(scoring={"elbo": neg_elbo_scorer})
    tiny(epochs=3).set_callbacks(monitor).fit(iris)
    rows = monitor.get_logs().data_as_pandas
    assert rows[rows.task_name == "epoch"].elbo.notna().sum() == 3


def test_progress_bar(iris, capsys):
    pytest.importorskip("rich")
    tiny(epochs=3).set_callbacks(ProgressBar()).fit(iris)
    out = capsys.readouterr().out
    assert "VAEEstimator - fit" in out
    assert "100%" in out


@pytest.mark.filterwarnings("ignore:The estimator .* does not support callbacks")
def test_callbacks_in_a_pipeline_and_a_grid(digits, capsys):
    pytest.importorskip("rich")
    X = digits[:120]
    pipe = make_pipeline(MinMaxScaler(), tiny())
    pipe.set_callbacks(ProgressBar(max_propagation_depth=None)).fit(X)
    assert "VAEEstimator - fit" in capsys.readouterr().out
    stop = Recorder(lambda context: context.task_name == "epoch")
    inner = make_pipeline(MinMaxScaler(), tiny(epochs=9).set_callbacks(stop)).fit(X)
    assert inner[-1].n_iter_ == 1
    monitor = ScoringMonitor(scoring={"elbo": neg_elbo_scorer})
    search = GridSearchCV(
        tiny().set_callbacks(monitor),
        {"latent_dim": [2, 3]},
        cv=2,
        scoring=neg_elbo_scorer,
    )
    search.set_callbacks(ProgressBar(max_propagation_depth=None)).fit(X)
    assert "VAEEstimator - fit" in capsys.readouterr().out
    rows = monitor.get_logs().data_as_pandas
    # Two candidates on two folds, and the refit, of two epochs each.
    assert (rows.task_name == "epoch").sum() == 10


# ----------------------------------------------------------------- forms of the input


@pytest.fixture(params=["gaussian", "bernoulli"])
def rows(request, digits, iris):
    return iris if request.param == "gaussian" else digits[:150]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_form_of_the_input_does_not_matter(rows, dtype, tmp_path):
    X = np.ascontiguousarray(rows, dtype=dtype)
    expected = tiny().fit(X)
    Z, scores = expected.transform(X), expected.score_samples(X)
    path = tmp_path / "rows.npy"
    np.save(path, X)
    wide = np.repeat(X, 2, axis=0)
    read_only = X.copy()
    read_only.flags.writeable = False
    forms = {
        "fortran": np.asfortranarray(X),
        "strided": wide[::2],
        "reversed twice": X[::-1].copy()[::-1],
        "read-only": read_only,
        "memmap": np.load(path, mmap_mode="r"),
        "memmap copy-on-write": np.load(path, mmap_mode="c"),
        "memmap slice": np.load(path, mmap_mode="r")[:],
        "frame": pd.DataFrame(X).to_numpy(),
    }
    if dtype is np.float64:
        forms["list"] = X.tolist()
        forms["big-endian"] = X.astype(">f8")
    for name, form in forms.items():
        model = tiny().fit(form)
        assert_same_weights(model, expected)
        np.testing.assert_array_equal(model.transform(form), Z, err_msg=name)
        np.testing.assert_array_equal(model.score_samples(form), scores, err_msg=name)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("flip", [np.flipud, np.fliplr, np.transpose])
def test_views_are_what_they_show(rows, dtype, flip):
    view = flip(np.ascontiguousarray(rows[:64], dtype=dtype))
    model = tiny().fit(view)
    shown = np.ascontiguousarray(view)
    for method in (
        model.transform,
        model.reconstruct,
        model.score_samples,
        model.log_likelihood,
    ):
        np.testing.assert_allclose(method(view), method(shown), rtol=1e-5, atol=1e-6)
    Z = flip(model.transform(view)[: model.latent_dim])
    np.testing.assert_allclose(
        model.inverse_transform(Z),
        model.inverse_transform(np.ascontiguousarray(Z)),
        rtol=1e-5,
    )
    assert np.isfinite(model.interpolate(view[0], view[1])).all()
    model.partial_fit(view)
    model.fit(view, X_val=view)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_rows_of_the_user_are_left_alone(rows, dtype):
    X = np.ascontiguousarray(rows, dtype=dtype)
    before = X.copy()
    weights = np.linspace(1, 2, len(X))
    model = tiny(validation_fraction=0.2).fit(X, sample_weight=weights)
    model.partial_fit(X)
    model.reconstruct(X)
    model.log_likelihood(X)
    np.testing.assert_array_equal(X, before)
    np.testing.assert_array_equal(weights, np.linspace(1, 2, len(X)))
    # And the model does not follow them when they change.
    Z = model.transform(before)
    X[:] = 0
    np.testing.assert_array_equal(model.transform(before), Z)


def test_memmaps_are_read_in_blocks(digits, tmp_path, monkeypatch):
    X = digits.astype(np.float32)
    np.save(tmp_path / "rows.npy", X)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    model = tiny().fit(X)
    whole = model.transform(X), model.score_samples(X)
    monkeypatch.setattr(skvae.inference, "BLOCK", 64 * 100)
    np.testing.assert_allclose(model.transform(mapped), whole[0], atol=1e-5)
    np.testing.assert_allclose(model.score_samples(mapped), whole[1], rtol=1e-5)
    np.testing.assert_allclose(
        model.transform(mapped[5:900:3]), whole[0][5:900:3], atol=1e-5
    )
    np.testing.assert_array_equal(mapped, X)


def test_bad_memmaps_are_refused_as_arrays_are(digits, tmp_path):
    model = tiny().fit(digits)

    def mapped(X):
        np.save(tmp_path / "rows.npy", X)
        return np.load(tmp_path / "rows.npy", mmap_mode="r")

    for X, message in (
        (with_value(digits, 1700, 3, np.nan), "NaN"),
        (digits[:, :5], "5 features"),
        (digits[0], "1D array|any features"),
        (digits[:50].reshape(50, 8, 8), "dim 3|8 features"),
        (digits.astype(complex), "(?i)complex"),
        (np.full((9, 64), "a"), "string|numeric"),
    ):
        with pytest.raises(ValueError, match=message):
            model.transform(mapped(X))
    np.save(tmp_path / "one.npy", digits[:1])
    with pytest.raises(ValueError, match="0 sample"):
        model.transform(np.load(tmp_path / "one.npy", mmap_mode="r")[:0])
    integers = (digits * 16).astype(np.uint8)
    counted = tiny().fit(integers)
    np.testing.assert_array_equal(
        counted.transform(mapped(integers)), counted.transform(integers)
    )


FORMS = ["C", "F", "strided", "reversed", "read-only", "memmap", "frame", "list"]


def as_form(X, form, folder):
    if form == "F":
        return np.asfortranarray(X)
    if form == "strided":
        return np.repeat(np.repeat(X, 2, axis=0), 3, axis=1)[::2, ::3]
    if form == "reversed":
        return np.ascontiguousarray(X[::-1, ::-1])[::-1, ::-1]
    if form == "read-only":
        X = X.copy()
        X.flags.writeable = False
    if form == "memmap":
        np.save(Path(folder) / "rows.npy", X)
        return np.load(Path(folder) / "rows.npy", mmap_mode="r")
    if form == "frame":
        return pd.DataFrame(X, columns=[f"c{i}" for i in range(X.shape[1])])
    if form == "list":
        return X.tolist()
    return X


def finite_arrays(limit):
    """2-D arrays of any float dtype with finite values of at most this size."""

    def of_dtype(dtype):
        largest = float(dtype.type(min(limit, float(np.finfo(dtype).max))))
        return hnp.arrays(
            dtype,
            st.tuples(st.integers(1, 8), st.integers(1, 4)),
            elements=st.floats(
                -largest,
                largest,
                width=8 * dtype.itemsize,
                allow_nan=False,
                allow_infinity=False,
            )
            | st.sampled_from([0.0, 1.0, 0.5]),
        )

    return st.sampled_from([np.float16, np.float32, np.float64]).flatmap(
        lambda dtype: of_dtype(np.dtype(dtype))
    )


def assert_fits_and_round_trips(X, form, parameters):
    with tempfile.TemporaryDirectory() as folder:
        given_X = as_form(X, form, folder)
        model = tiny(hidden_dim=3, epochs=1, **parameters).fit(given_X)
        Z = model.transform(given_X)
        assert Z.shape == (len(X), 2)
        assert Z.dtype == np.float32
        assert np.isfinite(Z).all()
        assert np.isfinite(model.score_samples(given_X)).all()
        assert np.isfinite(model.reconstruct(given_X)).all()
        twin = pickle.loads(pickle.dumps(model))
        np.testing.assert_array_equal(twin.transform(given_X), Z)
        np.testing.assert_array_equal(
            twin.score_samples(given_X), model.score_samples(given_X)
        )
        np.testing.assert_array_equal(twin.sample(2, 0), model.sample(2, 0))
        # The memory map must be let go before its folder is.
        del given_X


PARAMETERS = st.sampled_from(
    [{}, {"likelihood": "gaussian"}, {"likelihood": Gaussian(scale="feature")}]
)


@given(finite_arrays(limit=1e6), st.sampled_from(FORMS), PARAMETERS)
def test_any_finite_array_fits_transforms_and_round_trips(X, form, parameters):
    assert_fits_and_round_trips(X, form, parameters)


@given(finite_arrays(limit=1e30), st.sampled_from(FORMS), PARAMETERS)
def test_any_large_array_fits_transforms_and_round_trips(X, form, parameters):
    assert_fits_and_round_trips(X, form, parameters)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_largest_finite_numbers_fit_or_are_refused(dtype):
    """Where a variance overflows: an error that says so, or a finite model."""
    X = np.array([[1, 2], [-1, 0], [0.5, 0]], dtype=dtype) * (np.finfo(dtype).max / 2)
    model = tiny(epochs=1)
    try:
        model.fit(X)
    except ValueError as error:
        assert "column" in str(error)  # noqa: PT017
        assert not hasattr(model, "model_")
    else:
        assert np.isfinite(model.transform(X)).all()
        assert np.isfinite(model.score_samples(X)).all()


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_far_rows_have_finite_codes(likelihood):
    """A row far from all that was learned is a bad row, not a NaN."""
    model = tiny(likelihood=likelihood).fit(GREY)
    far = with_value(GREY[:3], 1, 1, 1e30)
    assert np.isfinite(model.transform(far)).all()
    assert np.isfinite(model.reconstruct(far)).all()


@given(
    finite_arrays(limit=1e3).filter(lambda X: X.shape[1] == 3),
    st.sampled_from(FORMS),
    st.sampled_from([np.nan, np.inf, -np.inf, 1.5, -0.5]),
    st.data(),
)
def test_one_bad_value_is_named_and_changes_nothing(X, form, value, data):
    column = data.draw(st.integers(0, 2), label="column")
    row = data.draw(st.integers(0, len(X) - 1), label="row")
    X = np.clip(np.abs(X), 0, 1)
    X[row, column] = value
    model = tiny(hidden_dim=3, epochs=1, likelihood="bernoulli")
    for method in ("fit", "partial_fit"):
        with tempfile.TemporaryDirectory() as folder:
            getattr(model, method)(as_form(np.eye(3), form, folder))
        before = snapshot(model)
        message = {np.inf: "infinity", -np.inf: "infinity"}.get(value, str(value))
        message = "NaN" if np.isnan(value) else message
        with tempfile.TemporaryDirectory() as folder:
            bad = as_form(X, form, folder)
            with pytest.raises(ValueError, match=message) as refusal:
                getattr(model, method)(bad)
            del bad
        if np.isfinite(value):
            label = f"'c{column}'" if form == "frame" else column
            assert f"row {row}, column {label}, outside" in str(refusal.value)
        assert_equal(before, snapshot(model))


def test_threads_do_not_meet(iris):
    """Fits that run side by side give what they give alone."""
    seeds = range(4)
    alone = [tiny(random_state=seed).fit(iris).transform(iris) for seed in seeds]
    together = joblib.Parallel(n_jobs=2, backend="threading")(
        joblib.delayed(lambda seed: tiny(random_state=seed).fit(iris).transform(iris))(
            seed
        )
        for seed in seeds
    )
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_overlapping_fits_give_the_thread_count_back(iris, monkeypatch):
    """Fit 1 begins, fit 2 begins in another thread, fit 1 ends, fit 2 ends."""
    ready, first_in, second_in, first_out = (threading.Event() for _ in range(4))
    step, main = skvae.engine.adam_step, threading.current_thread()

    def meet(*args):
        mine, other = (
            (first_in, second_in)
            if threading.current_thread() is main
            else (second_in, first_out)
        )
        mine.set()
        assert other.wait(30)
        step(*args)

    def second_fit():
        torch.get_num_threads()  # a thread that has used torch before
        ready.set()
        assert first_in.wait(30)
        tiny(epochs=1).fit(iris)

    monkeypatch.setattr(skvae.engine, "adam_step", meet)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        second = threading.Thread(target=second_fit)
        second.start()
        assert ready.wait(30)
        tiny(epochs=1).fit(iris)
        first_out.set()
        second.join()
        assert torch.get_num_threads() == 2
    finally:
        first_out.set()
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("setting", "value", "getter"),
    [
        (torch.set_default_dtype, torch.float64, torch.get_default_dtype),
        (torch.set_grad_enabled, False, torch.is_grad_enabled),
        (torch.set_flush_denormal, True, lambda: False),
        (
            torch.use_deterministic_algorithms,
            True,
            torch.are_deterministic_algorithms_enabled,
        ),
    ],
)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_global_settings_of_the_user_do_not_matter(
    iris, setting, value, getter, method
):
    expected = getattr(tiny(), method)(iris)
    before = getter()
    setting(value)
    try:
        model = getattr(tiny(), method)(iris)
        scores, sample = model.score_samples(iris), model.sample(3, 0)
        twin = pickle.loads(pickle.dumps(model)).transform(iris)
        kept = getter() == value or setting is torch.set_flush_denormal
    finally:
        setting(before)
    assert kept
    assert_usable(model, iris)
    np.testing.assert_allclose(scores, expected.score_samples(iris), atol=1e-4)
    np.testing.assert_allclose(sample, expected.sample(3, 0), atol=1e-4)
    np.testing.assert_allclose(twin, expected.transform(iris), atol=1e-4)


def test_transform_output_of_the_user_does_not_matter(iris):
    model = tiny().fit(iris)
    with sklearn.config_context(transform_output="pandas"):
        assert isinstance(model.transform(iris), pd.DataFrame)
        assert isinstance(model.reconstruct(iris), np.ndarray)
        assert isinstance(model.interpolate(iris[0], iris[1]), np.ndarray)
        assert isinstance(tiny().fit_transform(iris), pd.DataFrame)


def test_a_torch_device_is_a_device(iris):
    model = clone(tiny(device=torch.device("cpu"))).fit(iris)
    twin = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(twin.transform(iris), model.transform(iris))


def test_function_transformer_of_the_latent_space(iris):
    """Codes are plain float32 arrays that any other step takes."""
    pipe = make_pipeline(tiny(), FunctionTransformer(np.abs)).fit(iris)
    assert (pipe.transform(iris) >= 0).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isfinite(pipe.transform(iris)).all()

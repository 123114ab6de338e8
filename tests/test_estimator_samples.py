"""Samples: what they are drawn from, and what they are the same for."""

import numpy as np
import pandas as pd
import pytest
import torch

import skvae.fitted
from estimator_helpers import assert_same_weights, assert_usable, tiny
from skvae import Bernoulli, Gaussian


@pytest.fixture
def binary(digits):
    """200 rows of zeros and ones, float32."""
    return (digits[:200] > 0.5).astype(np.float32)


# --------------------------------------------------------------------- likelihood


@pytest.mark.parametrize(
    ("X", "expected"),
    [
        ([[0, 1], [1, 0], [1, 1]], Bernoulli),
        ([[0.5, 0.2], [0.1, 1.0], [0.0, 0.3]], Bernoulli),
        ([[0.5, 0.2], [0.1, 1 + 2e-16], [0.0, 0.3]], Bernoulli),
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
    model = tiny().fit(digits)
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
    continuous = tiny(likelihood="continuous_bernoulli").fit(digits[:200])
    X = continuous.sample(100, random_state=0)
    assert X.min() >= 0
    assert X.max() <= 1
    np.testing.assert_array_equal(
        X, continuous.sample(100, random_state=0, observation_noise=True)
    )


def test_draws_do_not_depend_on_blocks(binary, monkeypatch):
    model = tiny().fit(binary)
    whole = model.sample(50, random_state=0)
    monkeypatch.setattr(skvae.fitted, "BLOCK", 500)
    np.testing.assert_array_equal(model.sample(50, random_state=0), whole)


# ---------------------------------------------------------------- codes of the data


@pytest.mark.parametrize("weight", [1.0, 0.1, 1e-3])
def test_a_mixture_of_codes_follows_the_weights(weight):
    """Two far clusters, of which one weighs less, though the model knows both."""
    rng = np.random.default_rng(0)
    X = rng.normal(scale=0.3, size=(200, 2))
    X[100:] += 10
    weights = np.where(np.arange(200) < 100, 1.0, weight)
    model = tiny(latent_dim=1, epochs=40, learning_rate=0.1, standardize=False)
    model.fit(X, sample_weight=weights)
    np.testing.assert_allclose(model.reconstruct(X), X, atol=4)
    rows = model.sample(2000, 0, prior="mixture")
    share = weight / (1 + weight)
    assert np.mean(rows[:, 0] > 5) == pytest.approx(share, abs=0.05)
    np.testing.assert_array_equal(model.sample(2000, 0, prior="mixture"), rows)


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


def test_sample_random_state(fitted_iris):
    model = fitted_iris
    a, b, c = (model.sample(4, random_state=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert not np.allclose(a, c)
    assert not np.allclose(model.sample(4), model.sample(4))
    state = np.random.RandomState(0)
    assert not np.allclose(*(model.sample(4, random_state=state) for _ in range(2)))


@pytest.mark.usefixtures("one_thread")
def test_precision_of_training_leaves_float32_behind(digits):
    full = tiny(precision="float32").fit(digits)
    half = tiny(precision="bfloat16").fit(digits)
    assert not torch.equal(*(next(m.model_.parameters()) for m in (full, half)))
    assert half.score(digits) == pytest.approx(full.score(digits), rel=0.01)
    assert_usable(half, digits)

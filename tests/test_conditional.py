import copy
import pickle

import numpy as np
import pandas as pd
import pytest
from scipy.special import logsumexp
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from skvae import (
    ConditionalVAEEstimator,
    VAEEstimator,
    log_likelihood_scorer,
    neg_elbo_scorer,
)
from skvae.datasets import load_digits

X, Y = load_digits(return_X_y=True)


def tiny(**parameters):
    defaults = {
        "latent_dim": 2,
        "hidden_dim": 16,
        "epochs": 2,
        "batch_size": 50,
        "random_state": 0,
    }
    return ConditionalVAEEstimator(**{**defaults, **parameters})


@pytest.fixture(scope="module")
def fitted():
    return tiny(latent_dim=4, hidden_dim=64, epochs=40, learning_rate=5e-3).fit(X, Y)


@pytest.fixture(scope="module")
def judge():
    return KNeighborsClassifier(3).fit(X, Y)


def test_samples_of_a_class_look_like_it(fitted, judge):
    classes = np.repeat(np.arange(10), 30)
    rows = fitted.sample(300, y=classes, random_state=0)
    assert np.mean(judge.predict(rows) == classes) > 0.9


def test_style_transfer_changes_the_class_and_keeps_the_code(fitted, judge):
    codes = fitted.transform(X[:200])
    moved = fitted.inverse_transform(codes, y=3)
    assert np.mean(judge.predict(moved) == 3) > 0.9
    # Not one picture for all: the style is that of the row.
    assert moved.std(axis=0).max() > 0.05


def test_the_encoder_sees_no_label(fitted):
    assert fitted.transform(X[:5]).shape == (5, 4)
    pipeline = make_pipeline(MinMaxScaler(), tiny()).fit(X, Y)
    assert pipeline.transform(X).shape == (len(X), 2)


def test_labels_help(fitted):
    plain = VAEEstimator(
        4, hidden_dim=64, epochs=40, batch_size=50, learning_rate=5e-3, random_state=0
    ).fit(X)
    assert fitted.score(X, Y) > plain.score(X) + 0.5


def test_without_labels_the_score_is_that_of_the_mixture_of_classes(fitted):
    rows = X[:40]
    shares = np.bincount(Y) / len(Y)
    np.testing.assert_array_equal(fitted.class_count_, np.bincount(Y))
    for method in (
        fitted.score_samples,
        lambda rows, y=None: fitted.log_likelihood(rows, 8, y=y),
    ):
        by_class = [method(rows, y=np.full(40, c)) for c in range(10)]
        expected = logsumexp(np.log(shares)[:, None] + by_class, axis=0)
        np.testing.assert_allclose(method(rows), expected, rtol=1e-5)
    assert fitted.score(rows) == pytest.approx(fitted.score_samples(rows).mean())


def test_scores_use_the_labels_they_are_given(fitted):
    right = fitted.score_samples(X[:100], Y[:100])
    wrong = fitted.score_samples(X[:100], (Y[:100] + 1) % 10)
    assert np.mean(right > wrong) > 0.9
    np.testing.assert_allclose(
        fitted.score_samples(X[:100], Y[:100])[30:40],
        fitted.score_samples(X[30:40], Y[30:40]),
        rtol=1e-5,
    )


@pytest.mark.parametrize(
    "labels",
    [
        np.array(list("abc"))[Y % 3],
        np.array(list("abc"), dtype=object)[Y % 3],
        Y % 3 == 0,
        pd.Series(np.array(list("abc"))[Y % 3], dtype="category"),
        (Y % 3).astype(np.float64),
        (Y % 3).tolist(),
    ],
    ids=["str", "object", "bool", "category", "float", "list"],
)
def test_labels_of_any_dtype(labels):
    vae = tiny(epochs=1).fit(X, labels)
    assert list(vae.classes_) == sorted(set(labels))
    one = vae.classes_[0]
    assert vae.sample(3, y=one, random_state=0).shape == (3, 64)
    assert np.isfinite(vae.score(X, labels))
    again = pickle.loads(pickle.dumps(vae))
    np.testing.assert_array_equal(
        again.reconstruct(X, labels), vae.reconstruct(X, labels)
    )


def test_missing_or_unknown_labels_are_refused(fitted):
    with pytest.raises(ValueError, match="requires y to be passed"):
        tiny().fit(X, None)
    with pytest.raises(TypeError, match="'y'"):
        tiny().fit(X)
    with pytest.raises(ValueError, match="missing label"):
        tiny().fit(X, np.where(Y == 3, np.nan, Y))
    with pytest.raises(ValueError, match=r"10 labels, but there are \d+ rows"):
        tiny().fit(X, Y[:10])
    for call in (
        lambda y: fitted.sample(2, y=y),
        lambda y: fitted.inverse_transform(np.zeros((2, 4)), y),
        lambda y: fitted.interpolate(X[0], X[1], y=y),
    ):
        with pytest.raises(ValueError, match="y to be passed"):
            call(None)
        with pytest.raises(ValueError, match=r"unknown label 11; .*\[0, 1, 2"):
            call(11)
    with pytest.raises(ValueError, match="y to be passed"):
        fitted.reconstruct(X[:2])
    with pytest.raises(ValueError, match="unknown label"):
        fitted.score_samples(X[:2], [3, 11])


def test_a_failed_fit_changes_nothing(fitted):
    model = copy.deepcopy(fitted)
    before = model.__dict__.copy()
    with pytest.raises(ValueError, match="missing label"):
        model.fit(X, np.where(Y == 3, np.nan, Y))
    assert model.__dict__.keys() == before.keys()
    np.testing.assert_array_equal(model.classes_, before["classes_"])


def test_partial_fit_knows_the_classes_to_come():
    few = Y < 5
    vae = tiny().partial_fit(X[few], Y[few], classes=np.arange(10))
    vae.partial_fit(X[~few], Y[~few])
    np.testing.assert_array_equal(vae.class_count_, np.bincount(Y))
    short = tiny().partial_fit(X[few], Y[few])
    with pytest.raises(ValueError, match="unknown label"):
        short.partial_fit(X[~few], Y[~few])


def test_explicit_validation_set_takes_labels():
    vae = tiny().fit(X[:1000], Y[:1000], X_val=X[1000:], y_val=Y[1000:])
    assert np.isfinite(vae._records[-1].validation_loss)
    with pytest.raises(ValueError, match="y to be passed"):
        tiny().fit(X[:1000], Y[:1000], X_val=X[1000:])
    held_out = tiny(validation_fraction=0.2).fit(X, Y)
    assert np.isfinite(held_out._records[-1].validation_loss)


def test_search_scores_with_labels():
    for scoring in (neg_elbo_scorer, log_likelihood_scorer(4), None):
        search = GridSearchCV(tiny(), {"epochs": [1, 3]}, scoring=scoring, cv=2)
        search.fit(X[:400], Y[:400])
        assert search.best_params_ == {"epochs": 3}
    estimator = clone(tiny()).fit(X[:200], Y[:200])
    assert neg_elbo_scorer(estimator, X[200:250], Y[200:250]) == pytest.approx(
        estimator.score(X[200:250], Y[200:250])
    )


@pytest.mark.parametrize("network", ["conv", "ladder", "mlp"])
def test_every_network_takes_the_condition(network):
    vae = tiny(network=network, epochs=1).fit(X[:200], Y[:200])
    a, b = (vae.inverse_transform(np.zeros((1, 2)), y) for y in (0, 1))
    assert np.abs(a - b).max() > 0


def test_mixture_of_codes_and_noise():
    vae = tiny(epochs=1).fit(X[:300], Y[:300])
    rows = vae.sample(20, 0, y=4, prior="mixture", observation_noise=True)
    assert set(np.unique(rows)) <= {0.0, 1.0}
    assert vae.interpolate(X[0], X[1], 5, y=4).shape == (5, 64)
    assert vae.interpolate(X[:3], X[3:6], 5, y=[1, 2, 3]).shape == (3, 5, 64)

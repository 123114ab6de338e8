"""The scorers: what they give, where they can stand."""

import pickle

import numpy as np
import pytest
import sklearn
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.metrics import check_scoring
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score, cross_validate
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler

from search_helpers import tiny
from skvae import log_likelihood_scorer, neg_elbo_scorer


@pytest.fixture(scope="module")
def X(_digits):
    """80 rows of 64 counts from 0 to 16."""
    return _digits[:80] * 16


@pytest.fixture(scope="module")
def scaled(X):
    return MinMaxScaler().fit_transform(X)


@pytest.fixture(scope="module")
def model(scaled):
    return tiny().fit(scaled)


@pytest.fixture(scope="module")
def better(scaled):
    return tiny(hidden_dim=64, learning_rate=1e-2, epochs=20).fit(scaled)


@pytest.fixture(scope="module")
def pipelines(X, scaled):
    """Pipelines that do the same as the model on the scaled rows, and their rows."""
    return [
        (make_pipeline(MinMaxScaler(), tiny()).fit(X), X),
        (make_pipeline(MinMaxScaler(), make_pipeline(tiny())).fit(X), X),
        (Pipeline([("vae", tiny())]).fit(scaled), scaled),
        (make_pipeline("passthrough", tiny()).fit(scaled), scaled),
    ]


def test_neg_elbo_scorer_is_the_score(model, better, scaled):
    assert neg_elbo_scorer(model, scaled) == model.score(scaled)
    assert neg_elbo_scorer(model, scaled, np.zeros(80)) == model.score(scaled)
    assert neg_elbo_scorer(model, scaled) < 0
    # Greater is better, as for any scorer.
    assert neg_elbo_scorer(better, scaled) > neg_elbo_scorer(model, scaled)
    assert -neg_elbo_scorer(better, scaled) == pytest.approx(
        better.history_.loss.iloc[-1], rel=0.05
    )


def test_neg_elbo_scorer_in_a_pipeline(model, pipelines, scaled):
    expected = pytest.approx(model.score(scaled), rel=1e-5)
    for pipe, rows in pipelines:
        assert neg_elbo_scorer(pipe, rows) == expected
        assert neg_elbo_scorer(pipe, rows) == pipe.score(rows)


@pytest.mark.parametrize("n_importance_samples", [1, 20])
def test_log_likelihood_scorer(n_importance_samples, model, pipelines, scaled):
    scorer = log_likelihood_scorer(n_importance_samples)
    rows = model.log_likelihood(scaled, n_importance_samples).astype(np.float64)
    expected = pytest.approx(rows.mean(), rel=1e-5)
    assert scorer(model, scaled) == expected
    assert type(scorer(model, scaled)) is float
    assert scorer(model, scaled, np.zeros(80)) == expected
    for pipe, rows in pipelines:
        assert scorer(pipe, rows) == expected
    search = GridSearchCV(tiny(), {"latent_dim": [2]}, cv=2).fit(scaled)
    assert scorer(search.best_estimator_, scaled) == expected


def test_log_likelihood_scorer_rises_with_its_samples(better, scaled):
    few, many = log_likelihood_scorer(1), log_likelihood_scorer(200)
    assert many(better, scaled) > few(better, scaled)
    assert many(better, scaled) > neg_elbo_scorer(better, scaled)
    # The default is 100.
    assert log_likelihood_scorer()(better, scaled) == log_likelihood_scorer(
        n_importance_samples=100
    )(better, scaled)


@pytest.mark.parametrize("scorer", [neg_elbo_scorer, log_likelihood_scorer(7)])
def test_scorers_travel(scorer, model, scaled):
    for twin in (pickle.loads(pickle.dumps(scorer)), clone(scorer, safe=False)):
        assert twin(model, scaled) == scorer(model, scaled)
    assert check_scoring(model, scorer)(model, scaled) == scorer(model, scaled)


@pytest.mark.parametrize("bad", [0, -1, 2.5, "many"])
def test_log_likelihood_scorer_refuses(bad, model, scaled):
    with pytest.raises(ValueError, match="n_importance_samples="):
        log_likelihood_scorer(bad)(model, scaled)


@pytest.mark.parametrize("scorer", [neg_elbo_scorer, log_likelihood_scorer(5)])
def test_scorers_in_cross_validation(scorer, X):
    pipe = make_pipeline(MinMaxScaler(clip=True), tiny())
    scores = cross_val_score(pipe, X, scoring=scorer, cv=3)
    assert scores.shape == (3,)
    assert np.isfinite(scores).all()
    for n, (train, test) in enumerate(
        KFold(3).split(X)  # without y: plain folds
    ):
        expected = scorer(clone(pipe).fit(X[train]), X[test])
        assert scores[n] == pytest.approx(expected, rel=1e-4)


def test_several_scorers_at_once(scaled):
    result = cross_validate(
        tiny(),
        scaled,
        cv=2,
        scoring={"elbo": neg_elbo_scorer, "log p": log_likelihood_scorer(5)},
        return_train_score=True,
    )
    assert (result["test_log p"] > result["test_elbo"]).all()
    own = cross_val_score(tiny(), scaled, cv=2)
    np.testing.assert_allclose(result["test_elbo"], own, rtol=1e-5)


def test_scorer_weighs_rows_where_weights_are_routed():
    iris = load_iris().data
    weights = np.where(np.arange(150) < 50, 1.0, 0.01)
    np.random.default_rng(0).shuffle(weights)
    with sklearn.config_context(enable_metadata_routing=True):
        weighted, unweighted = (
            GridSearchCV(
                tiny()
                .set_fit_request(sample_weight=True)
                .set_score_request(sample_weight=weighs),
                {"latent_dim": [1, 2]},
                cv=3,
            ).fit(iris, sample_weight=weights)
            for weighs in (True, False)
        )
    a = weighted.cv_results_["mean_test_score"]
    b = unweighted.cv_results_["mean_test_score"]
    assert np.isfinite(a).all()
    assert not np.allclose(a, b)

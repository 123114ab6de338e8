"""scikit-learn's own searches over the estimator."""

import warnings

import joblib
import numpy as np
import pytest
from scipy.stats import loguniform, randint
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, FitFailedWarning
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    PredefinedSplit,
    RandomizedSearchCV,
    cross_val_score,
)
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from search_helpers import GRID, Fragile, assert_drop_in, tiny, with_prefix
from skvae import ELBO, Bernoulli, Gaussian, log_likelihood_scorer, neg_elbo_scorer


@pytest.fixture(scope="module")
def grey(_digits):
    """80 rows of grey values."""
    return _digits[:80]


@pytest.fixture(scope="module")
def X(grey):
    """80 rows of 64 counts from 0 to 16."""
    return grey * 16


@pytest.fixture(scope="module")
def search(grey):
    return GridSearchCV(tiny(), GRID, scoring=neg_elbo_scorer, cv=2).fit(grey)


def test_grid_search_over_the_five_names(search, grey):
    scores = search.cv_results_["mean_test_score"]
    assert len(scores) == 5
    assert np.isfinite(scores).all()
    assert len(np.unique(scores.round(6))) == 5
    assert search.best_score_ == scores.max()
    # Each figure is that of a fit by hand.
    best = tiny(**search.best_params_)
    assert cross_val_score(best, grey, cv=2).mean() == pytest.approx(
        search.best_score_, rel=1e-4
    )
    # The best model is refitted on all rows, and is what predicts.
    np.testing.assert_allclose(
        search.transform(grey), best.fit(grey).transform(grey), atol=1e-4
    )
    assert search.score(grey) == pytest.approx(best.score(grey), rel=1e-4)
    assert search.best_estimator_.history_.shape[0] == search.best_params_["epochs"]


@pytest.mark.slow  # two processes that import torch
def test_two_jobs_find_what_one_finds_in_a_pipeline(X):
    searches = [
        GridSearchCV(
            Pipeline([("scale", MinMaxScaler(clip=True)), ("vae", tiny())]),
            with_prefix(GRID, "vae__"),
            scoring=neg_elbo_scorer,
            cv=2,
            n_jobs=n_jobs,
        ).fit(X)
        for n_jobs in (1, 2)
    ]
    assert_drop_in(*searches, rtol=1e-4)
    one, two = (search.best_estimator_.transform(X) for search in searches)
    np.testing.assert_allclose(one, two, atol=1e-4)


def test_threads_find_what_one_finds(search, grey):
    # scikit-learn's workers swap the list of warning filters under each other's feet.
    with warnings.catch_warnings(), joblib.parallel_config("threading", n_jobs=2):
        two = GridSearchCV(tiny(), GRID, scoring=neg_elbo_scorer, cv=2).fit(grey)
    assert_drop_in(two, search, rtol=1e-4)


def test_the_search_of_a_pipeline_is_that_of_the_scaled_data(X):
    # Two rows in every training set fix the scale: 16 in each fold.
    X = np.vstack([X, np.zeros(64), np.full(64, 16)])
    scaled = X / 16
    folds = PredefinedSplit(np.r_[np.zeros(40), np.ones(40), -1, -1])
    alone = GridSearchCV(tiny(), GRID[0], cv=folds).fit(scaled)
    pipe = make_pipeline(MinMaxScaler(), tiny())
    within = GridSearchCV(
        pipe, with_prefix(GRID[:1], "vaeestimator__"), scoring=neg_elbo_scorer, cv=folds
    ).fit(X)
    np.testing.assert_allclose(
        within.cv_results_["mean_test_score"],
        alone.cv_results_["mean_test_score"],
        rtol=1e-4,
    )


def test_rows_outside_the_support_are_scored_with_a_warning(X):
    # Without clip, a test row of a fold may lie outside [0, 1].
    X = X.copy()
    X[0, 20] = 40
    pipe = make_pipeline(MinMaxScaler(), tiny())
    search = GridSearchCV(
        pipe, {"vaeestimator__latent_dim": [2]}, scoring=neg_elbo_scorer, cv=2
    )
    with pytest.warns(UserWarning, match="outside the support"):
        search.fit(X)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_randomized_search(grey):
    search = RandomizedSearchCV(
        tiny(),
        {
            "epochs": randint(1, 4),
            "batch_size": [30, 100],
            "learning_rate": loguniform(1e-3, 1e-2),
            "hidden_dim": [(), 8, (8, 4)],
            "latent_dim": randint(1, 5),
        },
        n_iter=5,
        scoring=log_likelihood_scorer(5),
        cv=2,
        random_state=0,
    ).fit(grey)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_estimator_.transform(grey).shape == (
        80,
        search.best_params_["latent_dim"],
    )


def test_halving_search_over_epochs(grey):
    search = HalvingGridSearchCV(
        tiny(),
        {"latent_dim": [1, 4], "learning_rate": [1e-4, 1e-2]},
        resource="epochs",
        min_resources=2,
        max_resources=8,
        factor=2,
        scoring=neg_elbo_scorer,
        cv=2,
        random_state=0,
    ).fit(grey)
    assert search.n_resources_ == [2, 4, 8]
    assert search.best_estimator_.epochs == 8
    assert search.best_estimator_.n_iter_ == 8
    assert search.best_params_["learning_rate"] == 1e-2


def test_objects_are_candidates(grey):
    objects = {
        "objective": ["elbo", ELBO(beta=4)],
        "likelihood": ["bernoulli", "continuous_bernoulli", Gaussian(scale="feature")],
    }
    search = GridSearchCV(tiny(), objects, scoring=neg_elbo_scorer, cv=2).fit(grey)
    assert len(search.cv_results_["params"]) == 6
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    # The objects given are not touched.
    assert objects["objective"][1].get_params() == ELBO(beta=4).get_params()
    assert (
        objects["likelihood"][2].get_params() == Gaussian(scale="feature").get_params()
    )


def test_parameters_of_objects_are_searched(grey):
    nested = GridSearchCV(
        tiny(),
        [
            {"objective": ["elbo"]},
            {"objective": [ELBO()], "objective__beta": [0.5, 1.0, 40.0]},
        ],
        cv=2,
    ).fit(grey)
    scores = nested.cv_results_["mean_test_score"]
    assert scores[0] == pytest.approx(scores[2], rel=1e-5)
    assert len(np.unique(scores.round(5))) == 3
    in_pipe = GridSearchCV(
        Pipeline([("vae", tiny(objective=ELBO(), likelihood=Bernoulli()))]),
        {"vae__objective__beta": [1.0, 4.0]},
        cv=2,
    ).fit(grey)
    assert in_pipe.cv_results_["mean_test_score"][0] == pytest.approx(
        scores[0], rel=1e-5
    )


def test_a_diverging_candidate_does_not_end_the_search(grey):
    vae = tiny(objective=Fragile(), batch_size=20, epochs=8)
    rates = [1e-3, 1e-2, 0.1]
    search = GridSearchCV(vae, {"learning_rate": rates}, cv=2, error_score=np.nan)
    with (
        pytest.warns(ConvergenceWarning, match="no longer finite in epoch 6"),
        pytest.warns(FitFailedWarning, match="DivergenceError"),
        pytest.warns(UserWarning, match="non-finite"),
    ):
        search.fit(grey)
    # The second has its best weights; the third had none.
    scores = search.cv_results_["mean_test_score"]
    assert np.isfinite(scores).tolist() == [True, True, False]
    assert search.best_params_ == {"learning_rate": 1e-3}
    alone = clone(vae).set_params(learning_rate=1e-2, epochs=5).fit(grey[40:])
    assert search.cv_results_["split0_test_score"][1] == pytest.approx(
        alone.score(grey[:40]), rel=1e-5
    )


def test_weights_and_a_validation_set_reach_every_fit(grey):
    weights = np.linspace(0.5, 2, 80)
    search = GridSearchCV(
        tiny(validation_fraction=0.2, early_stopping=True),
        {"n_iter_no_change": [1, 2]},
        cv=2,
    )
    search.fit(grey, sample_weight=weights)
    assert search.best_estimator_.history_.validation_loss.notna().all()


def test_a_search_can_stand_in_a_pipeline_and_a_union(X):
    search = GridSearchCV(tiny(), {"latent_dim": [1, 3]}, cv=2)
    pipe = make_pipeline(MinMaxScaler(), search).fit(X)
    assert pipe.transform(X).shape == (80, pipe[-1].best_params_["latent_dim"])
    union = FeatureUnion([("vae", tiny()), ("scaled", StandardScaler())]).fit(X)
    assert union.transform(X).shape == (80, 66)
    assert list(union.get_feature_names_out()[:2]) == [
        "vae__vaeestimator0",
        "vae__vaeestimator1",
    ]

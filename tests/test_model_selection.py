"""Scorers and scikit-learn's searches over the estimator."""

import pickle
import warnings

import joblib
import numpy as np
import pytest
import sklearn
from scipy.stats import loguniform, randint
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import FitFailedWarning
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.metrics import check_scoring
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    KFold,
    PredefinedSplit,
    RandomizedSearchCV,
    cross_val_score,
    cross_validate,
)
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from skvae import (
    ELBO,
    Bernoulli,
    Gaussian,
    log_likelihood_scorer,
    neg_elbo_scorer,
)
from test_estimator import tiny

# The mission's five names: 8 candidates.
GRID = [
    {
        "epochs": [2, 5],
        "batch_size": [50],
        "learning_rate": [1e-3, 1e-2],
        "hidden_dim": [8],
        "latent_dim": [2],
    },
    {
        "epochs": [3],
        "batch_size": [30, 100],
        "learning_rate": [5e-3],
        "hidden_dim": [(8, 4), 16],
        "latent_dim": [3],
    },
]


def with_prefix(grid, prefix):
    return [{f"{prefix}{k}": v for k, v in part.items()} for part in grid]


@pytest.fixture
def X(digits):
    """240 rows of 64 counts from 0 to 16."""
    return digits[:240] * 16


@pytest.fixture
def grey(digits):
    return digits[:240]


# ------------------------------------------------------------------------ scorers


def test_neg_elbo_scorer_is_the_score(grey):
    model = tiny().fit(grey)
    assert neg_elbo_scorer(model, grey) == model.score(grey)
    assert neg_elbo_scorer(model, grey, np.zeros(240)) == model.score(grey)
    assert neg_elbo_scorer(model, grey) < 0
    # Greater is better, as for any scorer.
    better = tiny(hidden_dim=64, learning_rate=1e-2, epochs=20).fit(grey)
    assert neg_elbo_scorer(better, grey) > neg_elbo_scorer(model, grey)
    assert -neg_elbo_scorer(better, grey) == pytest.approx(
        better.history_.loss.iloc[-1], rel=0.05
    )


def test_neg_elbo_scorer_in_a_pipeline(X):
    pipe = make_pipeline(MinMaxScaler(), tiny()).fit(X)
    scaled = MinMaxScaler().fit_transform(X)
    alone = tiny().fit(scaled)
    assert neg_elbo_scorer(pipe, X) == pytest.approx(alone.score(scaled), rel=1e-5)
    assert neg_elbo_scorer(pipe, X) == pipe.score(X)
    assert neg_elbo_scorer(make_pipeline(tiny()).fit(X), X) == pytest.approx(
        tiny().fit(X).score(X), rel=1e-5
    )
    nested = make_pipeline(MinMaxScaler(), make_pipeline(tiny())).fit(X)
    assert neg_elbo_scorer(nested, X) == pytest.approx(pipe.score(X), rel=1e-5)


@pytest.mark.parametrize("n_importance_samples", [1, 20])
def test_log_likelihood_scorer(X, n_importance_samples):
    scorer = log_likelihood_scorer(n_importance_samples)
    scaled = MinMaxScaler().fit_transform(X)
    alone = tiny().fit(scaled)
    rows = alone.log_likelihood(scaled, n_importance_samples).astype(np.float64)
    expected = pytest.approx(rows.mean(), rel=1e-5)
    assert scorer(alone, scaled) == expected
    assert type(scorer(alone, scaled)) is float
    assert scorer(alone, scaled, np.zeros(240)) == expected
    assert scorer(make_pipeline(MinMaxScaler(), tiny()).fit(X), X) == expected
    assert scorer(Pipeline([("vae", tiny())]).fit(scaled), scaled) == expected
    assert scorer(make_pipeline("passthrough", tiny()).fit(scaled), scaled) == expected
    nested = make_pipeline(MinMaxScaler(), make_pipeline(tiny())).fit(X)
    assert scorer(nested, X) == expected
    search = GridSearchCV(tiny(), {"latent_dim": [2]}, cv=2).fit(scaled)
    assert scorer(search.best_estimator_, scaled) == expected


def test_log_likelihood_scorer_rises_with_its_samples(grey):
    model = tiny(epochs=20, learning_rate=1e-2).fit(grey)
    few, many = log_likelihood_scorer(1), log_likelihood_scorer(200)
    assert many(model, grey) > few(model, grey)
    assert many(model, grey) > neg_elbo_scorer(model, grey)
    # The default is 100.
    assert log_likelihood_scorer()(model, grey) == log_likelihood_scorer(
        n_importance_samples=100
    )(model, grey)


@pytest.mark.parametrize("scorer", [neg_elbo_scorer, log_likelihood_scorer(7)])
def test_scorers_travel(scorer, grey):
    model = tiny().fit(grey)
    for twin in (pickle.loads(pickle.dumps(scorer)), clone(scorer, safe=False)):
        assert twin(model, grey) == scorer(model, grey)
    assert check_scoring(model, scorer)(model, grey) == scorer(model, grey)


@pytest.mark.parametrize("bad", [0, -1, 2.5, "many"])
def test_log_likelihood_scorer_refuses(bad, grey):
    model = tiny().fit(grey)
    with pytest.raises(ValueError, match="n_importance_samples="):
        log_likelihood_scorer(bad)(model, grey)


@pytest.mark.parametrize("scorer", [neg_elbo_scorer, log_likelihood_scorer(5)])
def test_scorers_in_cross_validation(X, scorer):
    pipe = make_pipeline(MinMaxScaler(clip=True), tiny())
    scores = cross_val_score(pipe, X, scoring=scorer, cv=3)
    assert scores.shape == (3,)
    assert np.isfinite(scores).all()
    for n, (train, test) in enumerate(
        KFold(3).split(X)  # without y: plain folds
    ):
        expected = scorer(clone(pipe).fit(X[train]), X[test])
        assert scores[n] == pytest.approx(expected, rel=1e-4)


def test_several_scorers_at_once(grey):
    result = cross_validate(
        tiny(),
        grey,
        cv=2,
        scoring={"elbo": neg_elbo_scorer, "log p": log_likelihood_scorer(5)},
        return_train_score=True,
    )
    assert (result["test_log p"] > result["test_elbo"]).all()
    own = cross_val_score(tiny(), grey, cv=2)
    np.testing.assert_allclose(result["test_elbo"], own, rtol=1e-5)


def test_scorer_weighs_rows_where_weights_are_routed():
    iris = load_iris().data
    weights = np.where(np.arange(150) < 50, 1.0, 0.01)
    np.random.default_rng(0).shuffle(weights)
    with sklearn.config_context(enable_metadata_routing=True):
        model = (
            tiny()
            .set_fit_request(sample_weight=True)
            .set_score_request(sample_weight=True)
        )
        search = GridSearchCV(model, {"latent_dim": [1, 2]}, cv=3)
        search.fit(iris, sample_weight=weights)
        unweighted = GridSearchCV(
            tiny()
            .set_fit_request(sample_weight=True)
            .set_score_request(sample_weight=False),
            {"latent_dim": [1, 2]},
            cv=3,
        ).fit(iris, sample_weight=weights)
    a = search.cv_results_["mean_test_score"]
    b = unweighted.cv_results_["mean_test_score"]
    assert np.isfinite(a).all()
    assert not np.allclose(a, b)


# ----------------------------------------------------------------------- searches


def assert_same_search(a, b):
    assert a.best_params_ == b.best_params_
    assert a.cv_results_["params"] == b.cv_results_["params"]
    for name in ("mean_test_score", "split0_test_score", "split2_test_score"):
        np.testing.assert_allclose(
            a.cv_results_[name], b.cv_results_[name], rtol=1e-4, err_msg=name
        )
    assert a.best_score_ == pytest.approx(b.best_score_, rel=1e-4)


def test_grid_search_over_the_five_names(grey):
    search = GridSearchCV(tiny(), GRID, scoring=neg_elbo_scorer, cv=3).fit(grey)
    scores = search.cv_results_["mean_test_score"]
    assert len(scores) == 8
    assert np.isfinite(scores).all()
    assert len(np.unique(scores.round(6))) == 8
    assert search.best_score_ == scores.max()
    # Each figure is that of a fit by hand.
    best = tiny(**search.best_params_)
    assert cross_val_score(best, grey, cv=3).mean() == pytest.approx(
        search.best_score_, rel=1e-4
    )
    # The best model is refitted on all rows, and is what predicts.
    np.testing.assert_allclose(
        search.transform(grey), best.fit(grey).transform(grey), atol=1e-4
    )
    assert search.score(grey) == pytest.approx(best.score(grey), rel=1e-4)
    assert search.best_estimator_.history_.shape[0] == search.best_params_["epochs"]


def test_two_jobs_find_what_one_finds_in_a_pipeline(X):
    searches = [
        GridSearchCV(
            Pipeline([("scale", MinMaxScaler(clip=True)), ("vae", tiny())]),
            with_prefix(GRID, "vae__"),
            scoring=neg_elbo_scorer,
            cv=3,
            n_jobs=n_jobs,
        ).fit(X)
        for n_jobs in (1, 2)
    ]
    assert len(searches[0].cv_results_["params"]) == 8
    assert_same_search(*searches)
    one, two = (search.best_estimator_.transform(X) for search in searches)
    np.testing.assert_allclose(one, two, atol=1e-4)


def test_threads_find_what_one_finds(grey):
    one = GridSearchCV(tiny(), GRID, scoring=neg_elbo_scorer, cv=3).fit(grey)
    # scikit-learn's workers swap the list of warning filters under each other's feet.
    with warnings.catch_warnings(), joblib.parallel_config("threading", n_jobs=2):
        two = GridSearchCV(tiny(), GRID, scoring=neg_elbo_scorer, cv=3).fit(grey)
    assert_same_search(one, two)


def test_the_search_of_a_pipeline_is_that_of_the_scaled_data(X):
    # Two rows in every training set fix the scale: 16 whatever the fold.
    X = np.vstack([X, np.zeros(64), np.full(64, 16)])
    scaled = X / 16
    folds = PredefinedSplit(np.r_[np.zeros(120), np.ones(120), -1, -1])
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
        pipe, {"vaeestimator__latent_dim": [2]}, scoring=neg_elbo_scorer, cv=3
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
        n_iter=6,
        scoring=log_likelihood_scorer(5),
        cv=2,
        random_state=0,
    ).fit(grey)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_estimator_.transform(grey).shape == (
        240,
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
    assert vars(objects["objective"][1]) == vars(ELBO(beta=4))
    assert vars(objects["likelihood"][2]) == {"scale": "feature", "min_scale": 1e-3}
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
    search = GridSearchCV(
        tiny(likelihood=Gaussian(scale=1.0), standardize=False),
        {"learning_rate": [1e-3, 1e30]},
        cv=2,
        error_score=np.nan,
    )
    with (
        pytest.warns(FitFailedWarning, match="DivergenceError"),
        pytest.warns(UserWarning, match="non-finite"),
    ):
        search.fit(grey)
    assert np.isnan(search.cv_results_["mean_test_score"][1])
    assert search.best_params_ == {"learning_rate": 1e-3}


def test_weights_and_a_validation_set_reach_every_fit(grey):
    weights = np.linspace(0.5, 2, 240)
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
    assert pipe.transform(X).shape == (240, pipe[-1].best_params_["latent_dim"])
    union = FeatureUnion([("vae", tiny()), ("scaled", StandardScaler())]).fit(X)
    assert union.transform(X).shape == (240, 66)
    assert list(union.get_feature_names_out()[:2]) == [
        "vae__vaeestimator0",
        "vae__vaeestimator1",
    ]

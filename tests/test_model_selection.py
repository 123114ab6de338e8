"""Scorers and scikit-learn's searches over the estimator."""

import os
import pickle
import random
import warnings
from itertools import count
from threading import Thread
from time import sleep

import joblib
import numpy as np
import pytest
import sklearn
from scipy.stats import loguniform, randint
from sklearn.base import clone
from sklearn.callback import ProgressBar
from sklearn.cluster import KMeans
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
    ShuffleSplit,
    cross_val_score,
    cross_validate,
)
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from skvae import (
    ELBO,
    Bernoulli,
    ConditionalVAEEstimator,
    Gaussian,
    VAEGridSearchCV,
    VAERandomizedSearchCV,
    calibration,
    log_likelihood_scorer,
    model_selection,
    neg_elbo_scorer,
    runs,
)
from skvae.checkpoint import States
from skvae.engine import DivergenceError, Trainer
from skvae.runs import SharedFit
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


# ----------------------------------------------------------- VAEGridSearchCV and kin

SEARCHES = {
    "plain": {},
    "train scores": {"return_train_score": True},
    "two metrics": {
        "scoring": {"elbo": neg_elbo_scorer, "log p": log_likelihood_scorer(5)},
        "refit": "log p",
    },
    "no refit": {"refit": False},
    "refit by rule": {"refit": lambda results: 3},
    "a function": {"scoring": lambda estimator, X, y=None: estimator.score(X) / 2},
    "a function of several": {
        "scoring": lambda estimator, X, y=None: {"a": estimator.score(X), "b": 1.0},
        "refit": "a",
    },
    "folds": {"cv": ShuffleSplit(2, test_size=0.3, random_state=1)},
}


def assert_drop_in(ours, theirs):
    """All that GridSearchCV would say, but for times."""
    names = theirs.cv_results_.keys()
    assert ours.cv_results_.keys() == names
    for name in names:
        one, other = ours.cv_results_[name], theirs.cv_results_[name]
        if "time" in name:
            assert (one >= 0).all()
        elif np.issubdtype(np.asarray(one).dtype, np.floating):
            np.testing.assert_allclose(one, other, rtol=1e-5)
        else:
            assert list(one) == list(other), name
    for name in ("best_index_", "best_params_", "multimetric_", "n_splits_"):
        assert hasattr(ours, name) == hasattr(theirs, name)
        if hasattr(theirs, name):
            assert getattr(ours, name) == getattr(theirs, name)
    assert hasattr(ours, "best_estimator_") == hasattr(theirs, "best_estimator_")
    assert type(ours.scorer_) is type(theirs.scorer_)


@pytest.mark.parametrize("options", SEARCHES.values(), ids=SEARCHES)
def test_drop_in(options, grey):
    options = {"cv": 3, **options}
    ours = VAEGridSearchCV(tiny(), GRID, **options).fit(grey)
    theirs = GridSearchCV(tiny(), GRID, **options).fit(grey)
    assert_drop_in(ours, theirs)
    if ours.refit:
        assert ours.score(grey) == pytest.approx(theirs.score(grey), rel=1e-5)
        np.testing.assert_allclose(ours.transform(grey), theirs.transform(grey))
        assert ours.n_features_in_ == 64


@pytest.mark.parametrize(
    "vae",
    [
        tiny(likelihood="gaussian"),
        tiny(learning_rate_schedule="cosine"),
        tiny(objective=ELBO(warmup=0.5)),
        tiny(objective="iwae"),
        tiny(early_stopping=True, n_iter_no_change=1, validation_fraction=0.2),
        tiny(max_gradient_norm=1.0),
        tiny(random_state=np.random.RandomState(3)),
        tiny(prior="mixture"),
    ],
    ids=repr,
)
def test_whatever_the_training(vae, grey):
    grid = {"epochs": [3, 1, 6], "learning_rate": [1e-2, 3e-3]}
    ours = VAEGridSearchCV(vae, grid, cv=2).fit(grey)
    assert_drop_in(ours, GridSearchCV(vae, grid, cv=2).fit(grey))


def test_the_five_names(digits):
    """The issue's own check: 48 candidates, three folds, all five names."""
    grid = {
        "epochs": [2, 4, 6],
        "batch_size": [50, 100],
        "learning_rate": [1e-3, 1e-2],
        "hidden_dim": [16, 32],
        "latent_dim": [2, 8],
    }
    X = digits[:360]
    ours = VAEGridSearchCV(tiny(), grid, cv=3).fit(X)
    theirs = GridSearchCV(tiny(), grid, cv=3).fit(X)
    ours, theirs = (s.cv_results_["mean_test_score"] for s in (ours, theirs))
    assert len(ours) == 48
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)
    assert list(np.argsort(ours)[-10:]) == list(np.argsort(theirs)[-10:])


def test_in_a_pipeline(X):
    pipe = Pipeline([("scale", MinMaxScaler(clip=True)), ("vae", tiny())])
    grid = {
        "vae__epochs": [1, 3],
        "vae__latent_dim": [2, 3],
        "scale__feature_range": [(0, 1), (0.1, 0.9)],
    }
    ours = VAEGridSearchCV(pipe, grid, cv=2, n_jobs=2).fit(X)
    assert_drop_in(ours, GridSearchCV(pipe, grid, cv=2).fit(X))


def test_a_step_that_is_searched_away(X):
    pipe = Pipeline([("scale", MinMaxScaler(clip=True)), ("vae", tiny())])
    grid = {
        "scale": ["passthrough", MinMaxScaler(clip=True), StandardScaler()],
        "vae__epochs": [1, 2],
        "vae": [tiny(hidden_dim=4), tiny(latent_dim=3)],
    }
    ours = VAEGridSearchCV(pipe, grid, cv=2).fit(X)
    assert_drop_in(ours, GridSearchCV(pipe, grid, cv=2).fit(X))


class CountingScaler(MinMaxScaler):
    fits = 0

    def fit(self, X, y=None):
        CountingScaler.fits += 1
        return super().fit(X, y)


def test_earlier_steps_are_fitted_once_per_fold(X):
    pipe = make_pipeline(CountingScaler(clip=True), tiny())
    grid = {"vaeestimator__latent_dim": [1, 2, 3], "vaeestimator__epochs": [1, 2]}
    CountingScaler.fits = 0
    VAEGridSearchCV(pipe, grid, cv=3, refit=False).fit(X)
    assert CountingScaler.fits == 3


def test_nested_epochs_are_trained_once(grey, monkeypatch):
    epochs, original = [], Trainer.train_epoch

    def train_epoch(self, *args):
        epochs.append(1)
        return original(self, *args)

    monkeypatch.setattr(Trainer, "train_epoch", train_epoch)
    VAEGridSearchCV(
        tiny(objective="iwae"), {"epochs": [1, 2, 5]}, cv=2, refit=False
    ).fit(grey)
    assert len(epochs) == 10


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_randomized(n_jobs, grey):
    options = {
        "n_iter": 8,
        "cv": 2,
        "random_state": 0,
        "n_jobs": n_jobs,
    }
    distributions = {
        "epochs": randint(1, 5),
        "learning_rate": loguniform(1e-3, 1e-2),
        "hidden_dim": [8, 16],
    }
    ours = VAERandomizedSearchCV(tiny(), distributions, **options).fit(grey)
    assert_drop_in(ours, RandomizedSearchCV(tiny(), distributions, **options).fit(grey))


def test_frames_weights_and_output(grey):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(grey).rename(columns=lambda i: f"pixel {i}")
    weights = np.linspace(0.5, 2, len(frame))
    grid = {"epochs": [1, 3], "latent_dim": [2, 3]}
    searches = [
        search(tiny().set_output(transform="pandas"), grid, cv=2).fit(
            frame, sample_weight=weights
        )
        for search in (VAEGridSearchCV, GridSearchCV)
    ]
    assert_drop_in(*searches)
    ours, theirs = searches
    assert list(ours.feature_names_in_) == list(frame.columns)
    assert list(ours.transform(frame).columns) == list(theirs.transform(frame).columns)
    with sklearn.config_context(enable_metadata_routing=True):
        routed = tiny().set_fit_request(sample_weight=True)
        routed.set_score_request(sample_weight=True)
        assert_drop_in(
            *(
                search(routed, grid, cv=2).fit(frame, sample_weight=weights)
                for search in (VAEGridSearchCV, GridSearchCV)
            )
        )


def test_weights_of_a_pipeline(X):
    pipe = Pipeline([("scale", MinMaxScaler(clip=True)), ("vae", tiny())])
    weights = np.linspace(0.5, 2, len(X))
    ours, theirs = (
        search(pipe, {"vae__epochs": [1, 2]}, cv=2).fit(X, vae__sample_weight=weights)
        for search in (VAEGridSearchCV, GridSearchCV)
    )
    assert_drop_in(ours, theirs)


def test_other_estimators_are_searched_as_ever(X):
    pipe = make_pipeline(MinMaxScaler(clip=True), tiny(), KMeans(2, random_state=0))
    grid = {"vaeestimator__epochs": [1, 2], "kmeans__n_clusters": [2, 3]}
    assert_drop_in(
        VAEGridSearchCV(pipe, grid, cv=2).fit(X), GridSearchCV(pipe, grid, cv=2).fit(X)
    )


def test_a_diverging_candidate_harms_no_neighbour(grey):
    vae = tiny(likelihood=Gaussian(scale=1.0), standardize=False)
    grid = {"learning_rate": [1e-3, 1e30, 3e-3], "epochs": [1, 3]}
    searches = []
    for search in (VAEGridSearchCV, GridSearchCV):
        with (
            pytest.warns(FitFailedWarning, match="DivergenceError"),
            pytest.warns(UserWarning, match="non-finite"),
        ):
            searches.append(search(vae, grid, cv=2).fit(grey))
    assert_drop_in(*searches)
    assert np.isnan(searches[0].cv_results_["mean_test_score"]).sum() == 2
    with pytest.raises(DivergenceError, match="no longer finite"):
        VAEGridSearchCV(vae, grid, cv=2, error_score="raise").fit(grey)
    with pytest.warns(FitFailedWarning):
        zero = VAEGridSearchCV(vae, grid, cv=2, error_score=-1e9).fit(grey)
    assert (zero.cv_results_["mean_test_score"] == -1e9).sum() == 2


def test_errors_are_those_of_scikit_learn(grey):
    for grid, error in [
        ({"epochs": [0]}, ValueError),
        ({"likelihood": ["nonsense"]}, ValueError),
        ({"nonsense": [1]}, ValueError),
    ]:
        for search in (VAEGridSearchCV, GridSearchCV):
            with pytest.raises(error, match=str(next(iter(grid)))):
                search(tiny(), grid, cv=2, error_score="raise").fit(grey)
    with pytest.raises(ValueError, match="All the 2 fits failed"):
        VAEGridSearchCV(tiny(), {"epochs": [0]}, cv=2).fit(grey)
    with pytest.raises(ValueError, match="'racing' parameter"):
        VAEGridSearchCV(tiny(), GRID, racing=2).fit(grey)
    with pytest.raises(ValueError, match="No fits were performed"):
        VAEGridSearchCV(tiny(), [], cv=2).fit(grey)


def test_it_is_an_estimator(grey):
    search = VAEGridSearchCV(tiny(), {"epochs": [1, 2]}, racing=0.5, cv=2)
    assert clone(search).get_params()["racing"] == 0.5
    assert "VAEGridSearchCV" in repr(search)
    twin = pickle.loads(pickle.dumps(search.fit(grey)))
    assert twin.score(grey) == search.score(grey)
    pipe = make_pipeline(MinMaxScaler(), clone(search)).fit(grey)
    assert pipe.transform(grey).shape == (240, 2)


class Listener:
    """A callback that counts."""

    def __init__(self, depth=1):
        self.max_propagation_depth = depth
        self.said = []

    def setup(self, estimator, context):
        self.said.append("setup")

    def teardown(self, estimator, context):
        self.said.append("teardown")

    def on_fit_task_begin(self, estimator, context, **data):
        self.said.append(f"begin {context.task_name}")

    def on_fit_task_end(self, estimator, context, **data):
        self.said.append(f"end {context.task_name}")


@pytest.mark.parametrize("depth", [0, 1, None])
def test_callbacks_hear_what_they_would(depth, grey):
    said = []
    for search in (VAEGridSearchCV, GridSearchCV):
        listener = Listener(depth)
        one = search(tiny(), {"epochs": [1, 2]}, cv=2).set_callbacks(listener)
        one.fit(grey)
        said.append(sorted(listener.said))
    assert said[0] == said[1]
    listened_to_fits = depth != 0
    assert said[0].count("begin epoch") == 8 * listened_to_fits


def test_a_progress_bar_does_not_keep_fits_apart(grey):
    pytest.importorskip("rich")
    search = VAEGridSearchCV(tiny(), {"epochs": [1, 2]}, cv=2)
    search.set_callbacks(ProgressBar())
    theirs = GridSearchCV(tiny(), {"epochs": [1, 2]}, cv=2).fit(grey)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_selection, "evaluate_alone", None)
        assert_drop_in(search.fit(grey), theirs)


def test_conditional_models(grey):
    y = np.arange(240) % 3
    grid = {"epochs": [1, 3], "learning_rate": [1e-3, 1e-2]}
    vae = ConditionalVAEEstimator(2, hidden_dim=8, batch_size=50, random_state=0)
    ours, theirs = (
        search(vae, grid, cv=2).fit(grey, y)
        for search in (VAEGridSearchCV, GridSearchCV)
    )
    assert_drop_in(ours, theirs)


class Impatient:
    """A scorer that presses Ctrl-C when it is asked the nth time."""

    def __init__(self, n):
        self.n = n

    def __call__(self, estimator, X, y=None):
        self.n -= 1
        if self.n == 0:
            raise KeyboardInterrupt
        return estimator.score(X)


def test_an_interruption_keeps_what_is_complete(grey):
    grid = {"epochs": [1, 3], "latent_dim": [2, 3, 4]}
    options = {"cv": 2, "memory_limit": 1}  # one run at a time
    whole = VAEGridSearchCV(tiny(), grid, **options).fit(grey)
    with pytest.warns(UserWarning, match="interrupted; cv_results_ holds the 3 of 6"):
        part = VAEGridSearchCV(tiny(), grid, scoring=Impatient(8), **options).fit(grey)
    scores = dict(
        zip(
            map(str, whole.cv_results_["params"]),
            whole.cv_results_["mean_test_score"],
            strict=True,
        )
    )
    assert len(part.cv_results_["params"]) == 3
    for params, score in zip(
        part.cv_results_["params"], part.cv_results_["mean_test_score"], strict=True
    ):
        assert score == pytest.approx(scores[str(params)], rel=1e-5)
    assert part.best_estimator_.transform(grey).shape[0] == 240
    with pytest.raises(KeyboardInterrupt):
        VAEGridSearchCV(tiny(), grid, scoring=Impatient(1), **options).fit(grey)


@pytest.mark.parametrize("racing", [False, 0.5])
def test_a_killed_search_goes_on(racing, grey, tmp_path):
    grid = {"epochs": [1, 2, 4], "latent_dim": [2, 3, 4]}
    options = {"cv": 2, "memory_limit": 1, "racing": racing}
    whole = VAEGridSearchCV(tiny(), grid, **options).fit(grey)
    kept = {**options, "checkpoint_dir": tmp_path, "refit": False}
    scorer = neg_elbo_scorer
    with pytest.MonkeyPatch.context() as patch:
        done = count()

        def evaluate(self, *args):
            if next(done) == 8:
                raise RuntimeError("killed")
            return original(self, *args)

        original = SharedFit.evaluate
        patch.setattr(SharedFit, "evaluate", evaluate)
        with pytest.raises(RuntimeError, match="killed"):
            VAEGridSearchCV(tiny(), grid, scoring=scorer, **kept).fit(grey)
    fits = count()
    with pytest.MonkeyPatch.context() as patch:

        def counted(self, *args):
            next(fits)
            return original(self, *args)

        patch.setattr(SharedFit, "evaluate", counted)
        resumed = VAEGridSearchCV(tiny(), grid, scoring=scorer, **kept).fit(grey)
        n_fits = next(fits)
        again = VAEGridSearchCV(tiny(), grid, scoring=scorer, **kept).fit(grey)
        assert next(fits) == n_fits + 1  # all was known
    assert n_fits <= 18 - 8
    for search in (resumed, again):
        np.testing.assert_allclose(
            search.cv_results_["mean_test_score"],
            whole.cv_results_["mean_test_score"],
            rtol=1e-5,
        )


@pytest.mark.parametrize("options", [{}, {"n_jobs": 2}, {"memory_limit": 1}], ids=str)
def test_a_race(options, grey):
    grid = {"epochs": [1, 3, 6], "learning_rate": [1e-5, 1e-4, 1e-3, 1e-2]}
    whole = GridSearchCV(tiny(), grid, cv=2).fit(grey)
    race = VAEGridSearchCV(tiny(), grid, cv=2, racing=0.5, **options).fit(grey)
    finished = race.cv_results_["finished"].astype(bool)
    assert finished.sum() == 4 + 2 + 1
    np.testing.assert_allclose(
        race.cv_results_["mean_test_score"][finished],
        whole.cv_results_["mean_test_score"][finished],
        rtol=1e-5,
    )
    assert race.best_params_ == whole.best_params_
    assert race.cv_results_["n_epochs"].max() == 6
    assert set(race.cv_results_["rung"]) == {0, 1, 2}


def test_a_race_of_workers_that_share_no_disk(grey, monkeypatch):
    grid = {"epochs": [1, 3, 6], "learning_rate": [1e-5, 1e-4, 1e-3, 1e-2]}
    options = {"cv": 2, "racing": 0.5, "n_jobs": 2, "refit": False}
    here = VAEGridSearchCV(tiny(), grid, **options).fit(grey)
    monkeypatch.setattr(model_selection, "is_local", lambda: False)
    seen, original = [], States.keep

    def keep(self, key, rung, state):
        seen.append(type(state))
        return original(self, key, rung, state)

    monkeypatch.setattr(States, "keep", keep)
    there = VAEGridSearchCV(tiny(), grid, **options).fit(grey)
    assert set(seen) == {dict}
    for name in ("mean_test_score", "rung", "finished"):
        np.testing.assert_allclose(
            here.cv_results_[name], there.cv_results_[name], rtol=1e-5
        )


def test_a_race_crowns_one_that_finished(grey):
    # More epochs are worse: the stopped ones keep better scores than they deserve.
    search = VAEGridSearchCV(
        tiny(),
        {"epochs": [4, 1], "latent_dim": [2, 3]},
        scoring=lambda estimator, X, y=None: -float(estimator.n_iter_),
        racing=0.5,
        cv=2,
    ).fit(grey)
    assert search.cv_results_["finished"][search.best_index_]
    assert search.best_params_["epochs"] == 1


def test_plan(grey):
    pandas = pytest.importorskip("pandas")
    grid = {"vae__epochs": [1, 2], "vae__latent_dim": [2, 3], "vae__hidden_dim": [8]}
    pipe = Pipeline([("scale", MinMaxScaler(clip=True)), ("vae", tiny())])
    search = VAEGridSearchCV(pipe, grid, cv=2, scoring=neg_elbo_scorer)
    table = search.plan(grey)
    assert isinstance(table, pandas.DataFrame)
    assert table.n_runs.sum() == 4
    assert table.n_fits.sum() == 8
    assert (table.seconds > 0).all()
    assert (table.megabytes > 0).all()
    assert (table.vae__hidden_dim == 8).all()
    assert table.attrs["seconds"] == pytest.approx(table.seconds.sum())
    assert table.attrs["n_alone"] == 0
    assert not hasattr(search, "cv_results_")  # nothing has been fitted
    random = VAERandomizedSearchCV(tiny(), {"latent_dim": [2, 3]}, n_iter=2, cv=2)
    assert random.plan(grey).n_fits.sum() == 4


def test_progress_is_shown(grey, capsys):
    VAEGridSearchCV(tiny(), {"epochs": [1, 2]}, cv=2, verbose=1).fit(grey)
    said = capsys.readouterr()
    assert "Fitting 2 folds for each of 2 candidates, totalling 4 fits" in said.out
    assert "fit 4/4 [####################]  0:00 left" in said.err


def test_long_searches_measure_first(grey, monkeypatch):
    monkeypatch.setattr(calibration, "WORTHWHILE", 0)
    grid = {"epochs": [1, 2], "learning_rate": [1e-3, 1e-2]}
    ours = VAEGridSearchCV(tiny(), grid, cv=2).fit(grey)
    assert_drop_in(ours, GridSearchCV(tiny(), grid, cv=2).fit(grey))


def test_in_threads(grey):
    # Not by "multiprocessing": a fork of a process whose OpenMP threads have run hangs.
    theirs = GridSearchCV(tiny(), {"epochs": [1, 2]}, cv=2).fit(grey)
    with warnings.catch_warnings(), joblib.parallel_config("threading", n_jobs=2):
        ours = VAEGridSearchCV(tiny(), {"epochs": [1, 2]}, cv=2).fit(grey)
    assert_drop_in(ours, theirs)


class KilledWorker(Exception):
    """As distributed calls it."""


def test_work_of_a_lost_worker_goes_out_again(grey, monkeypatch):
    grid = {"latent_dim": [1, 2, 3]}
    theirs = GridSearchCV(tiny(), grid, cv=2).fit(grey)
    losses = []

    class Losing(model_selection.Parallel):
        def __call__(self, tasks):
            results = list(super().__call__(tasks))
            if results and len(losses) < limit:
                losses.append(len(results))
                yield results[0]
                raise KilledWorker
            yield from results

    monkeypatch.setattr(model_selection, "Parallel", Losing)
    limit = 2
    # As always, warnings.catch_warnings in two threads at once forgets what was.
    with warnings.catch_warnings(), joblib.parallel_config("threading", n_jobs=2):
        ours = VAEGridSearchCV(tiny(), grid, cv=2, memory_limit=1).fit(grey)
    assert losses == [6, 5]  # what had come did not go out again
    assert_drop_in(ours, theirs)
    limit = 99
    search = VAEGridSearchCV(tiny(), grid, cv=2, memory_limit=1)
    with (
        warnings.catch_warnings(),
        joblib.parallel_config("threading", n_jobs=2),
        pytest.raises(KilledWorker),
    ):
        search.fit(grey)


def test_a_cluster_of_which_a_worker_dies(grey):
    distributed = pytest.importorskip("distributed")
    state = random.getstate()  # which the cluster's client stirs
    grid = {"epochs": [1, 2], "latent_dim": [1, 2, 3, 4], "learning_rate": [1e-3, 1e-2]}
    theirs = GridSearchCV(tiny(), grid, cv=2).fit(grey)
    with (
        warnings.catch_warnings(),
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=None,
            processes=True,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        warnings.simplefilter("ignore")
        pids = client.run(os.getpid)
        killed = Thread(target=lambda: (sleep(0.5), os.kill(min(pids.values()), 9)))
        killed.start()
        with joblib.parallel_config("dask"):
            ours = VAEGridSearchCV(tiny(), grid, cv=2, n_jobs=-1, memory_limit=1)
            ours.fit(grey)
        killed.join()
    random.setstate(state)
    assert_drop_in(ours, theirs)


class Fussy(StandardScaler):
    """Cannot be fitted."""

    def fit(self, X, y=None):
        raise ValueError("not these rows")


@pytest.mark.filterwarnings("ignore:One or more of the test scores are non-finite")
def test_a_step_before_that_fails_fails_as_always(grey):
    pipeline = Pipeline([("scale", StandardScaler()), ("vae", tiny())])
    grid = {"vae__epochs": [1, 2], "scale": [MinMaxScaler(clip=True), Fussy()]}
    searches = []
    for kind in (GridSearchCV, VAEGridSearchCV):
        with pytest.warns(FitFailedWarning, match="not these rows"):
            searches.append(kind(pipeline, grid, cv=2).fit(grey))
    theirs, ours = (s.cv_results_["mean_test_score"] for s in searches)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert np.isnan(ours).tolist() == [False, False, True, True]
    for options in ({"error_score": "raise"}, {}):
        search = VAEGridSearchCV(
            pipeline, {"vae__epochs": [1], "scale": [Fussy()]}, cv=2, **options
        )
        with pytest.raises(ValueError, match="not these rows"):
            search.fit(grey)


def test_later_rungs_train_side_by_side_too(grey, monkeypatch):
    sizes, original = [], runs.Stack.of

    def of(members, epochs):
        sizes.append((members[0][0].n_epochs, len(members)))
        return original(members, epochs)

    monkeypatch.setattr(runs.Stack, "of", of)
    grid = {"epochs": [2, 4, 8], "learning_rate": np.geomspace(1e-4, 1e-2, 9)}
    VAEGridSearchCV(tiny(), grid, cv=2, racing=0.5, refit=False).fit(grey)
    # Nine trainings of two folds up to one epoch; five, three and two go on.
    found = {
        start: sum(size for at, size in sizes if at == start) for start, _ in sizes
    }
    assert found == {0: 18, 1: 10, 2: 6, 4: 4}
    for start in found:
        assert max(size for at, size in sizes if at == start) > 1


def test_tasks_carry_no_more_than_they_need(grey, monkeypatch):
    sent, original = [], model_selection._parcel

    def parcel(items):
        light, X, y = original(items)
        each = len(pickle.dumps(light))
        sent.append(each / sum(len(run.evaluations) for run in light))
        return light, X, y

    monkeypatch.setattr(model_selection, "_parcel", parcel)
    for n_candidates in (4, 100):
        sent.clear()
        grid = {"epochs": range(1, 3), "learning_rate": np.ones(n_candidates) / 1000}
        with warnings.catch_warnings(), joblib.parallel_config("threading", n_jobs=2):
            VAEGridSearchCV(tiny(), grid, cv=2, memory_limit=1, refit=False).fit(grey)
        # Indices of the rows, and a few parameters; nothing of other candidates.
        assert max(sent) < 8 * len(grey) + 4000


def test_what_is_left_goes_out_in_halves():
    def train(items): ...

    left = {(0, 0): (train, [1, 2, 3]), (4, 1): (train, [4])}
    halves = model_selection._in_halves(left)
    assert halves == {
        (0, 0): (train, [1, 2]),
        (0, 1): (train, [3]),
        (4, 2): (train, [4]),
    }
    assert len(model_selection._in_halves(halves)) == 4


def test_a_plan_uses_nothing_up(grey):
    def search():
        return VAERandomizedSearchCV(
            tiny(),
            {"learning_rate": loguniform(1e-4, 1e-2)},
            n_iter=2,
            cv=2,
            random_state=np.random.RandomState(0),
        )

    planned, straight = search(), search()
    planned.plan(grey)
    drawn = [one.fit(grey).cv_results_["params"] for one in (planned, straight)]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("racing", [False, True])
def test_an_interruption_before_anything_is_complete(racing, grey, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(model_selection, "gather", interrupted)
    with pytest.raises(KeyboardInterrupt):
        VAEGridSearchCV(tiny(), {"epochs": [1]}, cv=2, racing=racing).fit(grey)


def test_an_interrupted_race_keeps_what_a_checkpoint_knew(grey, tmp_path, monkeypatch):
    options = {"cv": 2, "racing": True, "checkpoint_dir": tmp_path, "refit": False}
    grid = {"epochs": [1, 2]}
    whole = VAEGridSearchCV(tiny(), grid, **options).fit(grey)

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(VAEGridSearchCV, "_fit_heads", interrupted)
    with pytest.warns(UserWarning, match="holds the 2 of 2 candidates"):
        search = VAEGridSearchCV(tiny(), grid, **options).fit(grey)
    for name in ("mean_test_score", "finished", "rung"):
        np.testing.assert_array_equal(
            search.cv_results_[name], whole.cv_results_[name], err_msg=name
        )


def test_no_memory_to_measure_in(grey, monkeypatch):
    def full(*arguments):
        raise MemoryError

    monkeypatch.setattr(calibration, "WORTHWHILE", 0)
    monkeypatch.setattr(model_selection, "_measured", full)
    grid = {"epochs": [1, 2]}
    ours = VAEGridSearchCV(tiny(), grid, cv=2).fit(grey)
    assert_drop_in(ours, GridSearchCV(tiny(), grid, cv=2).fit(grey))

"""VAEGridSearchCV and VAERandomizedSearchCV find what scikit-learn's searches find."""

import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from scipy.stats import loguniform, randint
from sklearn.base import clone
from sklearn.callback import ProgressBar
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning, FitFailedWarning
from sklearn.model_selection import (
    GridSearchCV,
    PredefinedSplit,
    RandomizedSearchCV,
    ShuffleSplit,
)
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from search_helpers import GRID, Fragile, assert_drop_in, record_stacks, tiny
from skvae import (
    ELBO,
    ConditionalVAEEstimator,
    VAEGridSearchCV,
    VAERandomizedSearchCV,
    calibration,
    log_likelihood_scorer,
    model_selection,
    neg_elbo_scorer,
)
from skvae.priors import Prior, PriorModule
from skvae.training import DivergenceError
from skvae.training.engine import Stack

BOTH = (VAEGridSearchCV, GridSearchCV)


@pytest.fixture(scope="module")
def grey(_digits):
    """80 rows of grey values."""
    return _digits[:80]


@pytest.fixture(scope="module")
def X(grey):
    """80 rows of 64 counts from 0 to 16."""
    return grey * 16


@pytest.fixture
def stacks(monkeypatch):
    """The sizes of the stacks that are trained, in their order."""
    return record_stacks(monkeypatch)


SEARCHES = {
    "plain": {"cv": 3},
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


@pytest.mark.parametrize("options", SEARCHES.values(), ids=SEARCHES)
def test_drop_in(options, grey):
    ours, theirs = (s(tiny(), GRID, **{"cv": 2, **options}).fit(grey) for s in BOTH)
    assert_drop_in(ours, theirs)
    if ours.refit:
        assert ours.score(grey) == pytest.approx(theirs.score(grey), rel=1e-5)
        np.testing.assert_allclose(ours.transform(grey), theirs.transform(grey))
        assert ours.n_features_in_ == 64


TRAININGS = {
    "gaussian": ({"likelihood": "gaussian"}, 4),
    "cosine": ({"learning_rate_schedule": "cosine"}, 12),
    "warm-up": ({"objective": ELBO(warmup=0.5)}, 12),
    # Each number of epochs is a schedule of its own, and no closed form.
    "warm-up and free bits": ({"objective": ELBO(warmup=0.5, free_bits=0.1)}, 4),
    "iwae": ({"objective": "iwae"}, 4),
    "early stopping": (
        {"early_stopping": True, "n_iter_no_change": 1, "validation_fraction": 0.2},
        4,
    ),
    "clipping": ({"max_gradient_norm": 1.0}, 4),
    "random state": ({"random_state": np.random.RandomState(3)}, 4),
    "mixture": ({"prior": "mixture"}, 4),
    "bfloat16": ({"precision": "bfloat16"}, 4),
    # Networks that are not linear layers in a row are trained one by one.
    "ladder": ({"network": "ladder", "latent_dim": (3, 2), "hidden_dim": (8, 8)}, 1),
}


@pytest.mark.parametrize(("parameters", "size"), TRAININGS.values(), ids=TRAININGS)
def test_every_way_to_train(parameters, size, grey, stacks):
    grid = {"epochs": [3, 1, 4], "learning_rate": [1e-2, 3e-3]}
    vae = tiny(**parameters)
    assert_drop_in(*(search(vae, grid, cv=2).fit(grey) for search in BOTH))
    assert max(stacks) == size


def test_every_objective_in_one_search(grey, stacks):
    objectives = ["iwae", "wae", ELBO(free_bits=0.1)]
    grid = {"objective": objectives, "epochs": [1, 2], "learning_rate": [1e-2, 3e-3]}
    assert_drop_in(*(search(tiny(), grid, cv=2).fit(grey) for search in BOTH))
    assert stacks == [4, 4, 4]


@pytest.mark.parametrize(
    "weights", [None, np.linspace(0.5, 2, 80)], ids=["no weights", "weights"]
)
@pytest.mark.parametrize("objective", ["elbo", "iwae"])
def test_conditional_models(objective, weights, grey, stacks):
    y = np.arange(80) % 3
    grid = {"epochs": [1, 3], "learning_rate": [1e-3, 1e-2], "hidden_dim": [8]}
    if objective == "elbo":  # narrower networks stand in wider ones
        grid |= {"hidden_dim": [4, 8], "latent_dim": [2, 3]}
    vae = ConditionalVAEEstimator(
        2, batch_size=15, random_state=0, objective=objective, max_gradient_norm=20.0
    )
    ours, theirs = (
        search(vae, grid, cv=2).fit(grey, y, sample_weight=weights) for search in BOTH
    )
    assert_drop_in(ours, theirs)
    assert max(stacks) >= 4
    assert sum(stacks) == 2 * (8 if objective == "elbo" else 2)


def test_weights_are_stacked(grey, stacks):
    weights = np.linspace(0.5, 2, 80)
    weights[::7] = 0  # rows that do not count, as many in both folds
    grid = {"objective": ["elbo", "wae"], "learning_rate": [1e-3, 1e-2]}
    ours, theirs, unweighted = (
        search(tiny(), grid, cv=2).fit(grey, sample_weight=w)
        for search, w in ((BOTH[0], weights), (BOTH[1], weights), (BOTH[1], None))
    )
    assert_drop_in(ours, theirs)
    assert stacks == [4, 4]
    assert not np.allclose(
        ours.cv_results_["mean_test_score"],
        unweighted.cv_results_["mean_test_score"],
        rtol=1e-4,
    )


class Wide(Prior):
    """A user's prior with a closed form: a normal distribution of any width."""

    def __init__(self, width=1.0):
        self.width = width

    def build(self, inputs):
        return WideModule(inputs.latent_dim, self.width)


class WideModule(PriorModule):
    def __init__(self, latent_dim, width):
        super().__init__(latent_dim)
        self.width = width

    def log_prob(self, z, condition=None, encode=None):
        return torch.distributions.Normal(0.0, self.width).log_prob(z).sum(-1)

    def kl(self, mean, log_variance, condition=None, encode=None):
        square = (mean.square() + log_variance.exp()) / self.width**2
        return 0.5 * (square - 1 - log_variance) + np.log(self.width)

    def closed_form(self, mean, log_variance):
        by_log_variance = 0.5 * (log_variance.exp() / self.width**2 - 1)
        kl = self.kl(mean, log_variance).sum(-1)
        return kl, mean / self.width**2, by_log_variance

    def draw(self, noise, condition=None, encode=None):
        return self.width * noise


def test_priors_of_other_parameters_are_other_stacks(grey, stacks):
    grid = {"prior": [Wide(), Wide(0.5)], "learning_rate": [3e-3, 1e-2]}
    assert_drop_in(*(search(tiny(), grid, cv=2).fit(grey) for search in BOTH))
    assert stacks == [4, 4]
    # Of width 1 it is the standard normal prior.
    alone = tiny(learning_rate=1e-2).fit(grey).score(grey)
    wide = tiny(learning_rate=1e-2, prior=Wide()).fit(grey).score(grey)
    assert wide == pytest.approx(alone, rel=1e-5)


def test_folds_with_other_categories(stacks):
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"a": rng.normal(size=80), "b": rng.normal(size=80)})
    # 20 rows that always train have two towns; one fold's rows have one more.
    table["town"] = ["Rome", "Oslo"] * 40
    table.loc[:9, "town"] = "Lima"
    folds = np.r_[np.zeros(30), np.ones(30), np.full(20, -1)]
    grid = {"epochs": [1, 2], "learning_rate": [1e-3, 1e-2]}
    vae = tiny(likelihood="mixed")
    with warnings.catch_warnings():
        # Where Lima is in no training row, it cannot be scored.
        warnings.simplefilter("ignore")
        ours, theirs = (
            search(vae, grid, cv=PredefinedSplit(folds), refit=False).fit(table)
            for search in BOTH
        )
    assert_drop_in(ours, theirs)
    scores = ours.cv_results_
    assert np.isfinite(scores["split1_test_score"]).all()
    assert stacks == [2, 2]  # a fold has as many models as learning rates


@pytest.mark.slow  # 144 fits of GridSearchCV
def test_48_candidates_of_five_names(digits):
    """The issue's own check: 48 candidates, three folds, all five names."""
    grid = {
        "epochs": [2, 4, 6],
        "batch_size": [50, 100],
        "learning_rate": [1e-3, 1e-2],
        "hidden_dim": [16, 32],
        "latent_dim": [2, 8],
    }
    X = digits[:360]
    ours, theirs = (
        search(tiny(), grid, cv=3).fit(X).cv_results_["mean_test_score"]
        for search in BOTH
    )
    assert len(ours) == 48
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)
    assert list(np.argsort(ours)[-10:]) == list(np.argsort(theirs)[-10:])


# ------------------------------------------------------------------------- Pipelines


def test_in_a_pipeline_on_two_workers(X):
    # The one quick test with processes: they take seconds to start.
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
    assert_drop_in(*(search(pipe, grid, cv=2).fit(X) for search in BOTH))


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


class CannotBeFitted(StandardScaler):
    def fit(self, X, y=None):
        raise ValueError("not these rows")


@pytest.mark.filterwarnings("ignore:One or more of the test scores are non-finite")
def test_a_step_before_that_fails_fails_as_always(grey):
    pipeline = Pipeline([("scale", StandardScaler()), ("vae", tiny())])
    scalers = [MinMaxScaler(clip=True), CannotBeFitted()]
    grid = {"vae__epochs": [1, 2], "scale": scalers}
    searches = []
    for kind in BOTH:
        with pytest.warns(FitFailedWarning, match="not these rows"):
            searches.append(kind(pipeline, grid, cv=2).fit(grey))
    assert_drop_in(*searches)
    scores = searches[0].cv_results_["mean_test_score"]
    assert np.isnan(scores).tolist() == [False, False, True, True]
    for options in ({"error_score": "raise"}, {}):
        search = VAEGridSearchCV(
            pipeline, {"vae__epochs": [1], "scale": scalers[1:]}, cv=2, **options
        )
        with pytest.raises(ValueError, match="not these rows"):
            search.fit(grey)


def test_weights_of_a_pipeline(X):
    pipe = Pipeline([("scale", MinMaxScaler(clip=True)), ("vae", tiny())])
    weights = np.linspace(0.5, 2, len(X))
    ours, theirs = (
        search(pipe, {"vae__epochs": [1, 2]}, cv=2).fit(X, vae__sample_weight=weights)
        for search in BOTH
    )
    assert_drop_in(ours, theirs)


def test_other_estimators_are_searched_as_ever(X):
    pipe = make_pipeline(MinMaxScaler(clip=True), tiny(), KMeans(2, random_state=0))
    grid = {"vaeestimator__epochs": [1, 2], "kmeans__n_clusters": [2, 3]}
    assert_drop_in(*(search(pipe, grid, cv=2).fit(X) for search in BOTH))


# ------------------------------------------------------------------ of all other kinds


def test_nested_epochs_are_trained_once(grey, monkeypatch):
    epochs, original = [], Stack.epoch

    def epoch(self, **options):
        epochs.append(len(self.trainings))
        return original(self, **options)

    monkeypatch.setattr(Stack, "epoch", epoch)
    grid = {"epochs": [1, 2, 5]}
    for objective in ("elbo", "iwae"):
        epochs.clear()
        vae = tiny(objective=objective)
        VAEGridSearchCV(vae, grid, cv=2, refit=False).fit(grey)
        assert epochs == [2] * 5  # both folds, five epochs


def test_randomized(grey):
    distributions = {
        "epochs": randint(1, 5),
        "learning_rate": loguniform(1e-3, 1e-2),
        "hidden_dim": [8, 16],
    }
    ours, theirs = (
        search(tiny(), distributions, n_iter=5, cv=2, random_state=0).fit(grey)
        for search in (VAERandomizedSearchCV, RandomizedSearchCV)
    )
    assert_drop_in(ours, theirs)


def test_frames_weights_and_output(grey):
    frame = pd.DataFrame(grey).rename(columns=lambda i: f"pixel {i}")
    weights = np.linspace(0.5, 2, len(frame))
    grid = {"epochs": [1, 3], "latent_dim": [2, 3]}
    ours, theirs = (
        search(tiny().set_output(transform="pandas"), grid, cv=2).fit(
            frame, sample_weight=weights
        )
        for search in BOTH
    )
    assert_drop_in(ours, theirs)
    assert list(ours.feature_names_in_) == list(frame.columns)
    assert list(ours.transform(frame).columns) == list(theirs.transform(frame).columns)
    with sklearn.config_context(enable_metadata_routing=True):
        routed = tiny().set_fit_request(sample_weight=True)
        routed.set_score_request(sample_weight=True)
        ours, theirs = (
            search(routed, grid, cv=2).fit(frame, sample_weight=weights)
            for search in BOTH
        )
    assert_drop_in(ours, theirs)


@pytest.mark.filterwarnings("ignore:One or more of the test scores are non-finite")
def test_a_diverging_candidate_harms_no_neighbour(grey, stacks):
    vae = tiny(objective=Fragile(), batch_size=20)
    grid = {"learning_rate": [1e-3, 1e-2, 0.1], "epochs": [2, 8]}
    searches = []
    for search in BOTH:
        with (
            # After complete epochs the best weights are kept.
            pytest.warns(ConvergenceWarning, match="no longer finite in epoch 6"),
            pytest.warns(FitFailedWarning, match="DivergenceError"),
        ):
            searches.append(search(vae, grid, cv=2).fit(grey))
    assert_drop_in(*searches)
    assert stacks == [6]
    scores = searches[0].cv_results_["mean_test_score"]
    rates = [params["learning_rate"] for params in searches[0].cv_results_["params"]]
    assert np.isfinite(scores).tolist() == [rate < 0.1 for rate in rates]


@pytest.mark.filterwarnings("ignore:Training stopped")
def test_error_score(grey):
    vae, grid = tiny(objective=Fragile(), batch_size=20), {"learning_rate": [1e-3, 0.1]}
    with pytest.raises(DivergenceError, match="no longer finite"):
        VAEGridSearchCV(vae, grid, cv=2, error_score="raise").fit(grey)
    with pytest.warns(FitFailedWarning):
        low = VAEGridSearchCV(vae, grid, cv=2, error_score=-1e9).fit(grey)
    assert (low.cv_results_["mean_test_score"] == -1e9).tolist() == [False, True]


def test_errors_are_those_of_scikit_learn(grey):
    for grid, error in [
        ({"epochs": [0]}, ValueError),
        ({"likelihood": ["nonsense"]}, ValueError),
        ({"nonsense": [1]}, ValueError),
    ]:
        for search in BOTH:
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
    assert pipe.transform(grey).shape == (80, 2)


class Listener:
    """A callback that counts."""

    def __init__(self, depth=1):
        self.max_propagation_depth = depth
        self.heard = []

    def setup(self, estimator, context):
        self.heard.append("setup")

    def teardown(self, estimator, context):
        self.heard.append("teardown")

    def on_fit_task_begin(self, estimator, context, **data):
        self.heard.append(f"begin {context.task_name}")

    def on_fit_task_end(self, estimator, context, **data):
        self.heard.append(f"end {context.task_name}")


@pytest.mark.parametrize("depth", [0, 1, None])
def test_callbacks_hear_what_they_would(depth, grey):
    heard = []
    for search in BOTH:
        listener = Listener(depth)
        one = search(tiny(), {"epochs": [1, 2]}, cv=2).set_callbacks(listener)
        one.fit(grey)
        heard.append(sorted(listener.heard))
    assert heard[0] == heard[1]
    n_epochs = 2 * (1 + 2) + one.best_params_["epochs"]  # two folds, and the refit
    listened_to_fits = depth != 0
    assert heard[0].count("begin epoch") == n_epochs * listened_to_fits


def test_a_progress_bar_does_not_keep_fits_apart(grey):
    pytest.importorskip("rich")
    search = VAEGridSearchCV(tiny(), {"epochs": [1, 2]}, cv=2)
    search.set_callbacks(ProgressBar())
    theirs = GridSearchCV(tiny(), {"epochs": [1, 2]}, cv=2).fit(grey)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_selection, "evaluate_alone", None)
        assert_drop_in(search.fit(grey), theirs)


# -------------------------------------------------------------------------- planning


def test_plan(grey):
    grid = {"vae__epochs": [1, 2], "vae__latent_dim": [2, 3], "vae__hidden_dim": [8]}
    pipe = Pipeline([("scale", MinMaxScaler(clip=True)), ("vae", tiny())])
    search = VAEGridSearchCV(pipe, grid, cv=2, scoring=neg_elbo_scorer)
    table = search.plan(grey)
    assert isinstance(table, pd.DataFrame)
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


def test_long_searches_measure_first(grey, monkeypatch):
    monkeypatch.setattr(calibration, "WORTHWHILE", 0)
    measured, original = [], model_selection._measured
    monkeypatch.setattr(
        model_selection, "_measured", lambda runs: measured.append(1) or original(runs)
    )
    grid = {"epochs": [1, 2], "learning_rate": [1e-3, 1e-2]}
    assert_drop_in(*(search(tiny(), grid, cv=2).fit(grey) for search in BOTH))
    assert measured == [1]


def test_no_memory_to_measure_in(grey, monkeypatch):
    def full(*arguments):
        raise MemoryError

    monkeypatch.setattr(calibration, "WORTHWHILE", 0)
    monkeypatch.setattr(model_selection, "_measured", full)
    assert_drop_in(*(s(tiny(), {"epochs": [1, 2]}, cv=2).fit(grey) for s in BOTH))


def test_progress_is_shown(grey, capsys):
    VAEGridSearchCV(tiny(), {"epochs": [1, 2]}, cv=2, verbose=1).fit(grey)
    shown = capsys.readouterr()
    assert "Fitting 2 folds for each of 2 candidates, totalling 4 fits" in shown.out
    assert "fit 4/4 [####################]  0:00 left" in shown.err

"""Races, interruptions and checkpoints of whole searches."""

import warnings
from itertools import count

import joblib
import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV

from search_helpers import Fragile, record_stacks, tiny
from skvae import VAEGridSearchCV, model_selection, neg_elbo_scorer, runs, workers
from skvae.checkpoint import States
from skvae.runs import SharedFit

RACED = {"epochs": [1, 3, 6], "learning_rate": [1e-5, 1e-4, 1e-3, 1e-2]}


@pytest.fixture(scope="module")
def grey(_digits):
    """80 rows of grey values."""
    return _digits[:80]


@pytest.fixture(scope="module")
def whole(grey):
    """All that a race over RACED does without."""
    return GridSearchCV(tiny(), RACED, cv=2, refit=False).fit(grey)


# ----------------------------------------------------------------------------- races


def assert_same_where_finished(race, whole):
    finished = race.cv_results_["finished"].astype(bool)
    np.testing.assert_allclose(
        race.cv_results_["mean_test_score"][finished],
        whole.cv_results_["mean_test_score"][finished],
        rtol=1e-5,
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"memory_limit": 1},
        pytest.param({"n_jobs": 2}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_race(options, grey, whole):
    race = VAEGridSearchCV(tiny(), RACED, cv=2, racing=0.5, **options).fit(grey)
    assert race.cv_results_["finished"].sum() == 4 + 2 + 1
    assert_same_where_finished(race, whole)
    assert race.best_params_ == whole.best_params_
    assert race.cv_results_["n_epochs"].max() == 6
    assert set(race.cv_results_["rung"]) == {0, 1, 2}


@pytest.mark.parametrize(
    "parameters",
    [
        {
            "early_stopping": True,
            "n_iter_no_change": 1,
            "validation_fraction": 0.2,
        },
        {"objective": "iwae", "max_gradient_norm": 20.0},
    ],
    ids=["early stopping", "iwae"],
)
def test_what_goes_on_does_as_if_it_had_never_stopped(parameters, grey):
    vae = tiny(**parameters)
    grid = {"epochs": [1, 3, 6, 12], "learning_rate": [3e-3, 1e-2, 5e-2, 0.1]}
    whole = GridSearchCV(vae, grid, cv=2, refit=False).fit(grey)
    race = VAEGridSearchCV(vae, grid, cv=2, racing=0.3, refit=False).fit(grey)
    assert race.cv_results_["finished"].sum() > 8
    assert_same_where_finished(race, whole)


@pytest.mark.filterwarnings("ignore:One or more of the test scores are non-finite")
@pytest.mark.filterwarnings("ignore:Training stopped")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.FitFailedWarning")
def test_a_race_in_which_some_diverge(grey):
    vae = tiny(objective=Fragile(), batch_size=20)
    grid = {"epochs": [2, 4, 8], "learning_rate": [1e-3, 1e-2, 0.1]}
    whole = GridSearchCV(vae, grid, cv=2, refit=False).fit(grey)
    race = VAEGridSearchCV(vae, grid, cv=2, racing=0.1, refit=False).fit(grey)
    # Only what failed stops; what diverged later keeps its best weights.
    rates = [params["learning_rate"] for params in race.cv_results_["params"]]
    assert race.cv_results_["finished"].tolist() == [rate < 0.1 for rate in rates]
    assert_same_where_finished(race, whole)


def test_a_race_of_workers_that_share_no_disk(grey, whole, monkeypatch):
    monkeypatch.setattr(model_selection, "is_local", lambda: False)
    monkeypatch.setattr(workers, "is_local", lambda: False)
    kept, original = [], States.keep

    def keep(self, key, rung, state):
        kept.append(type(state))
        return original(self, key, rung, state)

    monkeypatch.setattr(States, "keep", keep)
    options = {"cv": 2, "racing": 0.5, "refit": False, "memory_limit": 1}
    # warnings.catch_warnings in two threads at once forgets the filters from before.
    with warnings.catch_warnings(), joblib.parallel_config("threading", n_jobs=2):
        there = VAEGridSearchCV(tiny(), RACED, **options).fit(grey)
    assert set(kept) == {dict}
    assert_same_where_finished(there, whole)


def test_the_best_of_a_race_is_one_that_finished(grey):
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


def test_later_rungs_train_side_by_side_too(grey, monkeypatch):
    sizes, original = [], runs.train_stack

    def train_stack(trainings):
        sizes.append((trainings[0].n_epochs, len(trainings)))
        yield from original(trainings)

    monkeypatch.setattr(runs, "train_stack", train_stack)
    grid = {"epochs": [2, 4, 8], "learning_rate": np.geomspace(1e-4, 1e-2, 9)}
    VAEGridSearchCV(tiny(), grid, cv=2, racing=0.5, refit=False).fit(grey)
    # Nine trainings of two folds up to one epoch; five, three and two go on.
    found = {
        start: sum(size for at, size in sizes if at == start) for start, _ in sizes
    }
    assert found == {0: 18, 1: 10, 2: 6, 4: 4}
    for start in found:
        assert max(size for at, size in sizes if at == start) > 1


# --------------------------------------------------------------------- interruptions


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
    whole = VAEGridSearchCV(tiny(), grid, refit=False, **options).fit(grey)
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
    assert part.best_estimator_.transform(grey).shape[0] == 80
    with pytest.raises(KeyboardInterrupt):
        VAEGridSearchCV(tiny(), grid, scoring=Impatient(1), **options).fit(grey)


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


# ----------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("racing", [False, 0.5])
def test_a_killed_search_goes_on(racing, grey, tmp_path):
    grid = {"epochs": [1, 2, 4], "latent_dim": [2, 3, 4]}
    options = {"cv": 2, "memory_limit": 1, "racing": racing, "refit": False}
    options["scoring"] = neg_elbo_scorer
    whole = VAEGridSearchCV(tiny(), grid, **options).fit(grey)
    kept = {**options, "checkpoint_dir": tmp_path}
    original = SharedFit.evaluate
    with pytest.MonkeyPatch.context() as patch:
        done = count()

        def evaluate(self, *arguments):
            if next(done) == 8:
                raise RuntimeError("killed")
            return original(self, *arguments)

        patch.setattr(SharedFit, "evaluate", evaluate)
        with pytest.raises(RuntimeError, match="killed"):
            VAEGridSearchCV(tiny(), grid, **kept).fit(grey)
    with pytest.MonkeyPatch.context() as patch:
        fits = count()

        def counted(self, *arguments):
            next(fits)
            return original(self, *arguments)

        patch.setattr(SharedFit, "evaluate", counted)
        resumed = VAEGridSearchCV(tiny(), grid, **kept).fit(grey)
        n_fits = next(fits)
        again = VAEGridSearchCV(tiny(), grid, **kept).fit(grey)
        assert next(fits) == n_fits + 1  # all was known
    assert n_fits <= 18 - 8
    for search in (resumed, again):
        np.testing.assert_allclose(
            search.cv_results_["mean_test_score"],
            whole.cv_results_["mean_test_score"],
            rtol=1e-5,
        )


def test_a_checkpoint_trains_only_what_is_new(grey, tmp_path, monkeypatch):
    options = {"cv": 2, "checkpoint_dir": tmp_path, "refit": False}
    VAEGridSearchCV(tiny(), {"latent_dim": [2, 3]}, **options).fit(grey)
    sizes = record_stacks(monkeypatch)
    VAEGridSearchCV(tiny(), {"latent_dim": [2, 3, 4]}, **options).fit(grey)
    assert sizes == [2]  # two folds of the third

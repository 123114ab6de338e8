"""Searches of several workers: threads, processes, clusters, lost workers."""

import os
import pickle
import random
import warnings
from contextlib import contextmanager
from threading import Thread
from time import sleep

import joblib
import numpy as np
import pytest
from scipy.stats import loguniform, randint
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV

from search_helpers import GRID, assert_drop_in, tiny
from skvae import VAEGridSearchCV, VAERandomizedSearchCV, model_selection, workers


@pytest.fixture(scope="module")
def grey(_digits):
    """80 rows of grey values."""
    return _digits[:80]


@contextmanager
def threads():
    """Two threads as workers."""
    # warnings.catch_warnings in two threads at once forgets the filters from before.
    with warnings.catch_warnings(), joblib.parallel_config("threading", n_jobs=2):
        yield


def test_in_threads(grey):
    # Not by "multiprocessing": a fork of a process whose OpenMP threads have run hangs.
    theirs = GridSearchCV(tiny(), GRID, cv=2).fit(grey)
    with threads():
        ours = VAEGridSearchCV(tiny(), GRID, cv=2).fit(grey)
    assert_drop_in(ours, theirs)


@pytest.mark.slow  # two processes that import torch
def test_randomized_on_two_workers(grey):
    options = {"n_iter": 8, "cv": 2, "random_state": 0, "n_jobs": 2}
    distributions = {
        "epochs": randint(1, 5),
        "learning_rate": loguniform(1e-3, 1e-2),
        "hidden_dim": [8, 16],
    }
    ours = VAERandomizedSearchCV(tiny(), distributions, **options).fit(grey)
    assert_drop_in(ours, RandomizedSearchCV(tiny(), distributions, **options).fit(grey))


@pytest.mark.slow  # two processes that import torch
def test_long_searches_measure_on_all_workers(grey, monkeypatch):
    monkeypatch.setattr("skvae.calibration.WORTHWHILE", 0)
    grid = {"epochs": [1, 2], "learning_rate": [1e-3, 1e-2]}
    ours = VAEGridSearchCV(tiny(), grid, cv=2, n_jobs=2).fit(grey)
    assert_drop_in(ours, GridSearchCV(tiny(), grid, cv=2).fit(grey))


def test_tasks_carry_no_more_than_they_need(grey, monkeypatch):
    sizes, original = [], workers._parcel

    def parcel(items):
        light, X, y = original(items)
        each = len(pickle.dumps(light))
        sizes.append(each / sum(len(run.evaluations) for run in light))
        return light, X, y

    monkeypatch.setattr(workers, "_parcel", parcel)
    # Nothing is trained: what is sent counts.
    monkeypatch.setattr(model_selection, "train_together", scored)
    for n_candidates in (4, 100):
        sizes.clear()
        grid = {"epochs": range(1, 3), "learning_rate": np.ones(n_candidates) / 1000}
        with threads():
            VAEGridSearchCV(tiny(), grid, cv=2, memory_limit=1, refit=False).fit(grey)
        assert sizes
        # Indices of the rows, and a few parameters; nothing of other candidates.
        assert max(sizes) < 8 * len(grey) + 4000


def scored(found, states=None):
    """Results without a training."""
    for run in found:
        for evaluation in run.evaluations:
            yield (
                evaluation.index,
                {
                    "test_scores": 0.0,
                    "fit_time": 0.0,
                    "score_time": 0.0,
                    "n_test_samples": 40,
                    "fit_error": None,
                },
            )


def test_what_is_left_goes_out_in_halves():
    def train(items): ...

    left = {(0, 0): (train, [1, 2, 3]), (4, 1): (train, [4])}
    halves = workers._in_halves(left)
    assert halves == {
        (0, 0): (train, [1, 2]),
        (0, 1): (train, [3]),
        (4, 2): (train, [4]),
    }
    assert len(workers._in_halves(halves)) == 4


class KilledWorker(Exception):
    """As distributed calls it."""


def test_work_of_a_lost_worker_goes_out_again(grey, monkeypatch):
    grid = {"latent_dim": [1, 2, 3]}
    theirs = GridSearchCV(tiny(), grid, cv=2).fit(grey)
    losses = []

    class Losing(workers.Parallel):
        def __call__(self, tasks):
            results = list(super().__call__(tasks))
            if results and len(losses) < limit:
                losses.append(len(results))
                yield results[0]
                raise KilledWorker
            yield from results

    monkeypatch.setattr(workers, "Parallel", Losing)
    limit = 2
    with threads():
        ours = VAEGridSearchCV(tiny(), grid, cv=2, memory_limit=1).fit(grey)
    assert losses == [6, 5]  # what had come did not go out again
    assert_drop_in(ours, theirs)
    limit = 99
    search = VAEGridSearchCV(tiny(), grid, cv=2, memory_limit=1)
    with threads(), pytest.raises(KilledWorker):
        search.fit(grey)


@pytest.mark.slow  # a cluster, and a worker that takes its place
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

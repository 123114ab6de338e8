"""Checkpoints: what is found again, and what is not."""

import json

import numpy as np
import pytest

from search_helpers import tiny
from skvae import ELBO
from skvae.checkpoint import Checkpoint, States
from skvae.model_selection import VAEGridSearchCV


def future(X, estimator=None, grid=None, **options):
    estimator = tiny() if estimator is None else estimator
    grid = {"epochs": [1, 2]} if grid is None else grid
    return VAEGridSearchCV(estimator, grid, **{"cv": 2, **options})._future(X, None)


RESULT = {"test_scores": float("nan"), "fit_error": None, "fit_time": 0.5}


def test_what_was_kept_is_found(tmp_path, digits):
    X = digits[:60]
    first = Checkpoint(tmp_path / "new", future(X))
    assert first.results == {}
    first.keep({0: RESULT, 3: {**RESULT, "test_scores": {"a": 1.0}}})
    again = Checkpoint(tmp_path / "new", future(X))
    assert sorted(again.results) == [0, 3]
    assert np.isnan(again.results[0]["test_scores"])
    assert again.results[3]["test_scores"] == {"a": 1.0}
    assert not list((tmp_path / "new").glob("*.part"))
    # More candidates: those that are there are found.
    wider = Checkpoint(tmp_path / "new", future(X, grid={"epochs": [5, 1]}))
    assert sorted(wider.results) == [2]


@pytest.mark.parametrize(
    "options",
    [
        {"estimator": tiny(latent_dim=3)},
        {"estimator": tiny(objective=ELBO(beta=2))},
        {"cv": 3},
        {"scoring": "r2"},
        {"return_train_score": True},
        {"grid": {"epochs": [3, 4]}},
    ],
    ids=str,
)
def test_what_differs_is_not_found(tmp_path, options, digits):
    X = digits[:60]
    Checkpoint(tmp_path, future(X)).keep({i: RESULT for i in range(4)})
    assert Checkpoint(tmp_path, future(X, **options)).results == {}
    assert Checkpoint(tmp_path, future(X + 1e-9)).results == {}
    assert len(Checkpoint(tmp_path, future(X)).results) == 4


def test_no_folder_keeps_nothing(digits):
    checkpoint = Checkpoint(None, future(digits[:60]))
    checkpoint.keep({0: RESULT})
    assert checkpoint.results == {}


def test_files_are_small_and_plain(tmp_path, digits):
    Checkpoint(tmp_path, future(digits[:60])).keep({0: RESULT})
    (path,) = tmp_path.iterdir()
    assert path.stat().st_size < 500
    ((key, result),) = json.loads(path.read_text()).items()
    assert path.stem == key
    assert result["fit_time"] == 0.5


def test_states(tmp_path):
    states = States(tmp_path / "states")
    path = states.keep("a", 1, {"x": np.arange(3)})
    assert path == states.path("a", 1)
    assert path.exists()
    states.clear()
    assert not list((tmp_path / "states").iterdir())

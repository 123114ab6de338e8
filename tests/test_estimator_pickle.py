"""Pickles, copies and other round trips of fitted estimators."""

import copy
import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone

from estimator_helpers import assert_equal, snapshot, tiny, tiny_conditional
from skvae import ELBO, VAEEstimator

ROUND_TRIPS = {
    "pickle": lambda model, path: pickle.loads(pickle.dumps(model)),
    "joblib": lambda model, path: joblib.load(joblib.dump(model, path / "m")[0]),
    "joblib-compressed": lambda model, path: joblib.load(
        joblib.dump(model, path / "m", compress=3)[0]
    ),
    "deepcopy": lambda model, path: copy.deepcopy(model),
    "copy": lambda model, path: copy.copy(model),
}
KINDS = {
    "gaussian": {},
    "bernoulli": {"likelihood": "bernoulli"},
    "layers": {"hidden_dim": (8, 4), "prior": "vamp"},
    "ladder": {"network": "ladder", "latent_dim": (2, 1)},
    "partial_fit": {},
    "conditional": {},
}


@pytest.fixture(scope="module", params=KINDS)
def of_kind(request, _digits, _iris):
    """An estimator that no test changes, its rows, and its labels."""
    X = _digits[:60] if request.param == "bernoulli" else _iris
    make = tiny_conditional if request.param == "conditional" else tiny
    model = make(objective=ELBO(beta=2), epochs=1, **KINDS[request.param])
    y = np.arange(len(X)) % 3
    fit = model.partial_fit if request.param == "partial_fit" else model.fit
    return fit(X, y), X, y


@pytest.mark.parametrize("trip", ROUND_TRIPS)
def test_round_trips_give_the_same_outputs(trip, of_kind, tmp_path):
    model, X, y = of_kind
    before = snapshot(model)
    twin = ROUND_TRIPS[trip](model, tmp_path)
    for call in (
        lambda m: m.transform(X),
        lambda m: m.score_samples(X, y),
        lambda m: m.score_samples(X),
        lambda m: m.log_likelihood(X, 5),
        lambda m: m.sample(7, random_state=0),
    ):
        np.testing.assert_array_equal(call(twin), call(model))
    pd.testing.assert_frame_equal(twin.history_, model.history_)
    assert repr(twin) == repr(model)
    assert_equal(before, snapshot(twin))
    twin.partial_fit(X, y)
    twin.fit(X, y)
    assert_equal(before, snapshot(model))


def test_the_value_of_an_estimator_is_a_round_trip_as_well(of_kind):
    model, X, _ = of_kind
    twin = pickle.loads(pickle.dumps(model.fitted_))
    np.testing.assert_array_equal(twin.encode(X), model.transform(X))
    assert_equal(twin.state(), model.fitted_.state())


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_a_pickle_holds_weights_and_neither_data_nor_optimiser(digits, method):
    model = getattr(tiny(hidden_dim=100, epochs=1), method)(digits)
    weights = 4 * sum(weight.numel() for weight in model.model_.parameters())
    assert weights > 50_000
    assert digits.nbytes > 10 * weights
    # The codes are those of sample(prior="mixture").
    codes = model.fitted_.codes
    assert len(pickle.dumps(model)) < weights + codes.nbytes + 10_000


def test_fitted_holds_no_data(digits):
    model = tiny(epochs=1).fit(digits)
    state = model.__getstate__()
    assert len(pickle.dumps(state)) < digits.nbytes / 20
    arrays = [v for v in state["fitted_"].values() if isinstance(v, np.ndarray)]
    assert arrays
    assert not any(np.shares_memory(array, digits) for array in arrays)


def test_a_model_from_a_device_that_is_not_here_loads(iris, fitted_iris):
    model = fitted_iris
    before = model.transform(iris)
    model.device = "cuda:77"
    twin = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(twin.transform(iris), before)
    assert twin.device == "cuda:77"


def test_a_torch_device_is_a_device(iris):
    model = clone(tiny(device=torch.device("cpu"))).fit(iris)
    twin = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(twin.transform(iris), model.transform(iris))


def test_unfitted_estimators_are_pickled_as_well():
    twin = pickle.loads(pickle.dumps(tiny(objective=ELBO(beta=2))))
    assert twin.objective.beta == 2
    assert not hasattr(twin, "fitted_")


def test_a_pickle_of_version_0_1_says_what_to_do():
    state = {**VAEEstimator().__getstate__(), "model_": None, "units_": None}
    with pytest.raises(ValueError, match=r"skvae 0\.1.*skvae\.save"):
        VAEEstimator().__setstate__(state)

"""Training goes on: ``partial_fit`` and ``warm_start``."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from estimator_helpers import (
    GREY,
    Recorder,
    assert_equal,
    assert_same_weights,
    snapshot,
    tiny,
    weights_of,
    with_value,
)
from skvae import ELBO, IWAE, MLP, Bernoulli, Gaussian

# ---------------------------------------------------------------------- partial_fit


def test_partial_fit_learns(digits):
    model = tiny(latent_dim=4, hidden_dim=64, learning_rate=1e-2)
    scores = []
    for _ in range(4):
        for start in range(0, 1797, 300):
            assert model.partial_fit(digits[start : start + 300]) is model
        scores.append(model.score(digits))
    assert scores[-1] > scores[0] + 1
    assert model.n_iter_ == model.best_epoch_ == len(model.history_) == 24
    assert list(model.history_.epoch) == list(range(1, 25))


@pytest.mark.usefixtures("one_thread")
def test_passes_over_all_rows_are_the_epochs_of_a_fit(iris):
    """The optimiser goes on from call to call as from epoch to epoch."""
    model = tiny(learning_rate=1e-2)
    for _ in range(3):
        model.partial_fit(iris)
    whole = tiny(learning_rate=1e-2, epochs=3).fit(iris)
    assert whole.best_epoch_ == 3
    for name, weight in weights_of(model).items():
        torch.testing.assert_close(weight, weights_of(whole)[name])


def test_partial_fit_keeps_the_units_of_the_first_chunk(iris):
    model = tiny().partial_fit(iris[:50])
    location = model.units_.location.copy()
    model.partial_fit(iris[50:])
    np.testing.assert_array_equal(model.units_.location, location)
    np.testing.assert_allclose(location, iris[:50].mean(0))


def test_partial_fit_refuses_a_later_chunk_outside_the_support():
    model = tiny().partial_fit(GREY)
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"1\.5 in row 7, column 2"):
        model.partial_fit(with_value(GREY, 7, 2, 1.5))
    assert_equal(before, snapshot(model))


def test_epochs_are_counted_on_through_fit_partial_fit_and_pickle(iris):
    model = tiny(epochs=3).fit(iris).partial_fit(iris)
    assert list(model.history_.epoch) == [1, 2, 3, 4]
    model = pickle.loads(pickle.dumps(model)).partial_fit(iris)
    assert list(model.history_.epoch) == [1, 2, 3, 4, 5]
    assert model.n_iter_ == 5


def test_partial_fit_after_fit_or_pickle_draws_new_noise(iris, monkeypatch):
    # The same order and noise in every pass would be one pass over and over.
    orders, randperm = [], torch.randperm

    def spy(*args, **kwargs):
        orders.append(randperm(*args, **kwargs))
        return orders[-1]

    monkeypatch.setattr(torch, "randperm", spy)
    model = tiny(epochs=1).fit(iris)
    for _ in range(3):
        model = pickle.loads(pickle.dumps(model.partial_fit(iris)))
    assert len({tuple(order.tolist()) for order in orders}) == 4


def test_partial_fit_takes_the_parameters_of_the_day(iris):
    model = tiny().partial_fit(iris)
    model.set_params(learning_rate=0.5, batch_size=30).partial_fit(iris)
    assert list(model.history_.learning_rate) == [1e-3, 0.5]


def test_partial_fit_copies_go_their_own_ways(iris):
    model = tiny().partial_fit(iris)
    before = model.transform(iris)
    for twin in (
        copy.deepcopy(model),
        copy.copy(model),
        pickle.loads(pickle.dumps(model)),
    ):
        np.testing.assert_allclose(twin.transform(iris), before, atol=1e-6)
        twin.partial_fit(iris)
        assert not np.allclose(twin.transform(iris), before)
        np.testing.assert_array_equal(model.transform(iris), before)


@pytest.mark.usefixtures("one_thread")
def test_a_copy_does_not_train_the_original_on(iris):
    """A shallow copy shares no optimiser: the passes of each are its own."""
    model, alone = tiny().partial_fit(iris), tiny().partial_fit(iris)
    copy.copy(model).partial_fit(iris)
    copy.copy(model).partial_fit(iris)
    assert_same_weights(model.partial_fit(iris), alone.partial_fit(iris))
    assert len(model.history_) == 2


def test_a_value_once_handed_out_stays(iris):
    """What a pass trains is a new value; the one before is still what it was."""
    model = tiny().partial_fit(iris)
    first, codes = model.fitted_, model.transform(iris)
    model.partial_fit(iris)
    assert model.fitted_ is not first
    np.testing.assert_array_equal(first.encode(iris), codes)
    assert len(first.history) == 1


@pytest.mark.usefixtures("one_thread")
def test_fit_after_partial_fit_starts_anew(iris):
    model = tiny().partial_fit(iris + 3).fit(iris)
    assert_same_weights(model, tiny().fit(iris))
    assert len(model.history_) == 2
    # And what comes after goes on from the fit.
    model.partial_fit(iris)
    assert len(model.history_) == 3


def test_rows_of_weight_zero_are_not_in_a_chunk(iris):
    weights = np.ones(150)
    weights[::3] = 0
    a = tiny().partial_fit(iris).partial_fit(iris, sample_weight=weights)
    b = tiny().partial_fit(iris).partial_fit(iris[weights > 0])
    np.testing.assert_allclose(a.transform(iris), b.transform(iris), atol=1e-4)


# ---------------------------------------------------------------------- warm_start


@pytest.mark.usefixtures("one_thread")
def test_warm_start_goes_on(iris):
    model = tiny(warm_start=True, epochs=5).fit(iris)
    first = weights_of(model)
    model.set_params(epochs=3, learning_rate=1e-12).fit(iris)
    for name, weight in weights_of(model).items():
        assert torch.allclose(weight, first[name], atol=1e-6), name
    model.set_params(learning_rate=1e-3).fit(iris)
    assert list(model.history_.epoch) == list(range(1, 12))
    assert model.n_iter_ == 3
    assert 9 <= model.best_epoch_ <= 11
    cold = tiny(warm_start=False, epochs=5).fit(iris).set_params(epochs=3).fit(iris)
    assert list(cold.history_.epoch) == [1, 2, 3]
    assert_same_weights(cold, tiny(epochs=3).fit(iris))


def test_warm_start_may_change_the_objective(iris):
    model = tiny(warm_start=True).fit(iris)
    model.set_params(objective=ELBO(beta=3)).fit(iris)
    assert model.objective_.beta == 3
    last = model.history_.iloc[-1]
    assert last.loss == pytest.approx(last.reconstruction + 3 * last.kl, rel=1e-4)
    model.set_params(objective=IWAE(k=2)).fit(iris)
    assert len(model.history_) == 6


def test_warm_start_keeps_the_guess_of_the_first_fit(digits):
    model = tiny(warm_start=True).fit(digits[:50])
    with pytest.raises(ValueError, match="outside the support"):
        model.fit(digits[:50] * 2)
    assert isinstance(model.likelihood_, Bernoulli)


def test_warm_start_holds_out_the_same_rows(iris):
    # Otherwise the second fit is validated on rows that the first one has learned.
    seen = Recorder()
    model = tiny(warm_start=True, validation_fraction=0.2).set_callbacks(seen)
    model.fit(iris)
    first = seen.X[0]
    seen.X.clear()
    model.fit(iris)
    assert {row.tobytes() for row in seen.X[0]} == {row.tobytes() for row in first}


# ------------------------------------------------------------- another model is asked


OTHER_MODELS = {
    "latent_dim": {"latent_dim": 3},
    "hidden_dim": {"hidden_dim": 9},
    "depth": {"hidden_dim": (8, 8)},
    "network": {"network": MLP(activation="tanh")},
    "likelihood": {"likelihood": Gaussian(scale="feature")},
    "prior": {"prior": "vamp"},
}


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize("change", OTHER_MODELS)
def test_going_on_refuses_another_model(iris, change, method, pickled):
    model = tiny(warm_start=True).partial_fit(iris)
    if pickled:
        model = pickle.loads(pickle.dumps(model))
    model.set_params(**OTHER_MODELS[change])
    before, value = snapshot(model), model.fitted_
    with pytest.raises(ValueError, match=r"cannot go on training with .*call fit"):
        getattr(model, method)(iris)
    assert_equal(before, snapshot(model))
    assert model.fitted_ is value
    model.set_params(warm_start=False).fit(iris)


@pytest.mark.parametrize("pickled", [False, True])
def test_partial_fit_refuses_another_objective(iris, pickled):
    """The optimiser's state is that of the first one."""
    model = tiny().partial_fit(iris)
    if pickled:
        model = pickle.loads(pickle.dumps(model))
    model.set_params(objective=ELBO(beta=3))
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"objective"):
        model.partial_fit(iris)
    assert_equal(before, snapshot(model))


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
@pytest.mark.parametrize("width", [1, 3, 5])
def test_warm_start_refuses_another_number_of_features(likelihood, width):
    model = tiny(warm_start=True, likelihood=likelihood).fit(GREY)
    before = snapshot(model)
    with pytest.raises(ValueError, match=f"{width} features"):
        model.fit(np.full((20, width), 0.5))
    assert_equal(before, snapshot(model))


def pair(scale, nonlinearity=nn.ReLU):
    """An encoder and a decoder of the user's; the repr does not tell the scale."""
    encoder = nn.Sequential(nn.Linear(4, 5), nonlinearity(), nn.Linear(5, 4))
    decoder = nn.Linear(2, 4)
    with torch.no_grad():
        for parameter in (*encoder.parameters(), *decoder.parameters()):
            parameter.copy_(
                torch.linspace(-scale, scale, parameter.numel()).view_as(parameter)
            )
    return encoder, decoder


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_modules_that_look_alike_are_not_the_same(iris, method):
    with torch.random.fork_rng(devices=[]):
        one, same, other = pair(0.3), pair(0.3), pair(0.7)
    model = tiny(warm_start=True, network=one)
    getattr(model, method)(iris)
    getattr(model, method)(iris)  # the very same modules go on
    getattr(model.set_params(network=same), method)(iris)
    n_epochs = len(model.history_)
    assert repr(same) == repr(other)
    with pytest.raises(ValueError, match=r"cannot go on training with network"):
        getattr(model.set_params(network=other), method)(iris)
    assert len(model.history_) == n_epochs

"""What is decided before the first step of a fit."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from estimator_helpers import GREY, Recorder, tiny, tiny_conditional, training_of
from skvae import Bernoulli, ConvNet, Gaussian, VAEEstimator
from skvae.forms import form_of
from skvae.training import TRAIN, prepare, setup, train
from skvae.training.setup import Rows, request_of, seed_of, setting

# ------------------------------------------------------------------------- rows


def test_some_of_the_rows():
    rows = Rows(np.arange(4.0)[:, None], np.array([1.0, 0.0, 2.0, 0.0]))
    assert rows.with_weight().tolist() == [0, 2]
    some = rows.take(rows.with_weight())
    assert some.X.ravel().tolist() == [0, 2]
    assert some.weights.tolist() == [1, 2]
    assert some.condition is None
    assert some.with_weight() is None
    assert Rows(rows.X).with_weight() is None
    assert rows.take(None) is rows
    named = Rows(rows.X, y=list("abcd")).take(np.array([3, 1]))
    assert list(named.y) == ["d", "b"]


def test_columns_follow_their_rows():
    rows = Rows(GREY).encoded(form_of(GREY)).take(np.array([5, 2]))
    np.testing.assert_array_equal(rows.columns, GREY[[5, 2]])


def test_rows_of_weight_zero_are_neither_trained_on_nor_held_out(iris):
    weights = np.ones(150)
    weights[50:] = 0
    request = request_of(
        lambda: tiny(validation_fraction=0.3).fit(iris, sample_weight=weights)
    )
    training, rows = prepare(request)
    assert len(rows.X) == len(training.data) == 35
    assert len(training.held_out[0]) == 15
    seen = {row.tobytes() for row in iris[:50]}
    assert {row.tobytes() for row in rows.X} <= seen


def test_the_validation_split_leaves_something_to_train_on(iris):
    with pytest.raises(ValueError, match=r"validation_fraction=0.9 of 1 rows leaves"):
        tiny(validation_fraction=0.9).fit(iris[:1])
    one = tiny(validation_fraction=1e-3).fit(iris)
    assert one.history_.validation_loss.notna().all()


def test_validation_fraction_holds_rows_out(iris):
    seen = Recorder(scores=False)
    model = tiny(validation_fraction=0.2).set_callbacks(seen).fit(iris)
    assert {len(X) for X in seen.X} == {120}
    assert model.history_.validation_loss.notna().all()
    again = tiny(validation_fraction=0.2).fit(iris)
    np.testing.assert_allclose(
        model.history_.validation_loss, again.history_.validation_loss, rtol=1e-4
    )


def test_the_noise_of_a_validation_set_is_that_of_its_rows(iris):
    """As in a score: the same row has the same noise, wherever it stands."""
    one = training_of(tiny(), iris, X_val=iris[:20])
    two = training_of(tiny(), iris, X_val=iris[10:40])
    assert torch.equal(one.held_out[1][:, 10:20], two.held_out[1][:, :10])


# ---------------------------------------------------------------------- the start


def test_the_same_seed_decides_the_same(iris):
    weights, same, different = (
        training_of(tiny(random_state=seed), iris).master for seed in (0, 0, 1)
    )
    assert torch.equal(weights, same)
    assert not torch.equal(weights, different)


def test_seeds():
    assert seed_of(3) == seed_of(3) == seed_of(np.random.RandomState(3))
    assert seed_of(3) != seed_of(4)
    assert seed_of(None) != seed_of(None)


@pytest.mark.parametrize(
    ("hidden_dim", "shapes"),
    [
        (5, [(5, 4), (4, 5), (5, 2), (4, 5)]),
        (np.int64(5), [(5, 4), (4, 5), (5, 2), (4, 5)]),
        ((6, 3), [(6, 4), (3, 6), (4, 3), (3, 2), (6, 3), (4, 6)]),
        ([6, 3], [(6, 4), (3, 6), (4, 3), (3, 2), (6, 3), (4, 6)]),
        (np.array([6, 3]), [(6, 4), (3, 6), (4, 3), (3, 2), (6, 3), (4, 6)]),
        ((), [(4, 4), (4, 2)]),
    ],
    ids=str,
)
def test_hidden_dim_is_the_widths(iris, hidden_dim, shapes):
    if isinstance(hidden_dim, np.ndarray):
        hidden_dim = tuple(hidden_dim)  # as an entry of a grid is
    training = training_of(tiny(hidden_dim=hidden_dim), iris)
    network = training.module.network
    assert [tuple(p.shape) for p in network.parameters() if p.ndim == 2] == shapes


@pytest.mark.parametrize(
    ("parameters", "scales"),
    [
        ({}, "deviations"),
        ({"standardize": True}, "deviations"),
        ({"standardize": False}, "ones"),
        ({"likelihood": "student_t"}, "deviations"),
        ({"likelihood": "poisson", "standardize": "auto"}, "ones"),
    ],
)
def test_units_of_the_model(parameters, scales):
    X = np.random.default_rng(0).poisson(4, (30, 3)).astype(float)
    units = training_of(tiny(**parameters), X).start.units
    expected = X.std(0) if scales == "deviations" else np.ones(3)
    np.testing.assert_allclose(units.scale, expected)
    assert units.is_identity == (scales == "ones")


def test_rows_are_coarse_where_products_are_and_nothing_is_lost():
    options = {"precision": "bfloat16"}
    assert training_of(tiny(**options), GREY).data.x.dtype == torch.bfloat16
    held_out = training_of(tiny(**options), GREY, X_val=GREY).held_out[0]
    assert held_out.x.dtype == torch.float32
    for likelihood in ("gaussian", "beta"):
        training = training_of(
            tiny(likelihood=likelihood, **options), GREY * 0.9 + 0.05
        )
        assert training.data.x.dtype == torch.float32


@pytest.mark.parametrize(
    ("X", "draws"), [(GREY, False), (np.rint(GREY), True), (GREY * 3, True)]
)
def test_samples_of_grey_values_are_means(X, draws):
    assert training_of(tiny(), X).start.draws is draws


def test_sharing_rows_with_the_user_where_nothing_has_to_change():
    X = np.ascontiguousarray(GREY, dtype=np.float32)
    data = training_of(tiny(precision="float32"), X).data
    assert np.shares_memory(data.x.numpy(), X)


# ----------------------------------------------------------------------- precision


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, "float32"),  # too small to gain by it
        ({"precision": "float32", "hidden_dim": 400}, "float32"),
        ({"precision": "bfloat16"}, "bfloat16"),
        ({"precision": "bfloat16", "likelihood": "gaussian"}, "bfloat16"),
    ],
)
def test_precision_is_in_the_value(parameters, expected):
    training = training_of(tiny(**parameters), GREY)
    assert training.start.precision == expected
    assert training.precision == getattr(torch, expected)


@pytest.mark.parametrize(
    "parameters", [{"network": "flow_mlp"}, {"network": "flow_mlp", "prior": "flow"}]
)
def test_bfloat16_is_refused_for_a_flow(parameters):
    with pytest.raises(ValueError, match=r"precision='bfloat16'.*flow.*'float32'"):
        tiny(precision="bfloat16", **parameters).fit(GREY)


# -------------------------------------------------------------- what is refused early


def test_modules_that_are_all_frozen_are_refused():
    with torch.random.fork_rng(devices=[]):
        pair = [nn.Linear(4, 4), nn.Linear(2, 4)]
    for part in pair:
        part.requires_grad_(False)
    options = {"network": tuple(pair), "likelihood": "bernoulli"}
    for method in ("fit", "partial_fit"):
        with pytest.raises(ValueError, match=r"requires_grad=False.*free"):
            getattr(tiny(**options), method)(GREY)
    pair[1].bias.requires_grad_(True)
    assert np.isfinite(tiny(**options).fit(GREY).score(GREY))


def test_the_size_is_checked_before_the_weights_are_made(monkeypatch):
    monkeypatch.setattr(setup, "available_memory", lambda device: 2.0**30)
    with pytest.raises(ValueError, match=r"hidden_dim=\(9000, 9000\).*take 4 GB"):
        tiny(hidden_dim=(9000, 9000)).fit(GREY)
    # Small networks are built without asking how much there is.
    monkeypatch.setattr(setup, "available_memory", lambda device: 0.0)
    tiny(epochs=1).fit(GREY)


def test_categories_are_refused_by_a_likelihood_that_has_none():
    frame = pd.DataFrame({"size": [1.0, 2.0], "town": ["Rome", "Oslo"]})
    with pytest.raises(ValueError, match=r"column 'town' holds categories.*mixed"):
        tiny(likelihood="gaussian").fit(frame)


# ------------------------------------------------------------- requests, as values


def test_a_request_is_what_fit_would_train():
    model = tiny_conditional(epochs=3, learning_rate=0.5)
    y = np.arange(40) % 2
    request = request_of(lambda: model.fit(GREY, y, sample_weight=np.arange(40)))
    assert not hasattr(model, "fitted_")
    assert request.options.epochs == 3
    assert request.options.learning_rate == 0.5
    np.testing.assert_array_equal(request.rows.X, GREY)
    np.testing.assert_array_equal(request.rows.weights, np.arange(40))
    np.testing.assert_array_equal(request.rows.condition.argmax(1), y)
    value = train(request)
    assert value.n_epochs == 3
    assert value.labels.counts.tolist() == [380, 400]
    with pytest.raises(TypeError, match="did not ask for a training"):
        request_of(lambda: None)


@pytest.mark.usefixtures("one_thread")
def test_fit_takes_the_value_that_it_is_given():
    """What a search does: it trains elsewhere, and fit holds what comes of it."""
    value = tiny(epochs=5).fit(GREY).fitted_
    model = tiny(epochs=1)
    with setting(TRAIN, lambda request: value):
        model.fit(GREY)
    assert model.fitted_ is value
    assert model.n_iter_ == 5
    assert TRAIN.get() is train


def test_codes_are_drawn_where_they_are_asked_for():
    for with_codes in (True, False):
        request = request_of(lambda: tiny().fit(GREY))
        value = train(replace(request, with_codes=with_codes))
        assert (value.codes is not None) == with_codes


def test_y_may_be_anything_where_it_is_ignored(digits):
    # However long it is, and however many codes are kept.
    many = np.concatenate([digits, digits])
    vae = tiny(epochs=1, batch_size=500).fit(many, y=np.zeros(10))
    assert len(vae.fitted_.codes) == 2000


def test_choices_are_resolved_and_copied():
    network = ConvNet(channels=[2])
    likelihood = Gaussian(scale="feature")
    value = training_of(tiny(network=network, likelihood=likelihood), GREY).start
    assert repr(value.choices.network) == repr(network)
    assert value.choices.network is not network
    assert value.choices.likelihood is not likelihood
    default = training_of(VAEEstimator(2, hidden_dim=8), GREY).start.choices
    assert isinstance(default.likelihood, Bernoulli)

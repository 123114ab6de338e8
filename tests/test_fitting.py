"""What is decided before the first step of a fit."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris

from skvae import MLP, Bernoulli, Gaussian
from skvae.fitting import TrainingSet, begin, decide, seed_of, untrained
from test_estimator import (
    GREY,
    Recorder,
    assert_equal,
    assert_same_weights,
    snapshot,
    tiny,
    weights_of,
)


@pytest.fixture
def iris():
    return load_iris().data


def decided(vae, data):
    """What an estimator decides, without a fit."""
    vae._table = vae._image_shape = None
    return decide(vae, data, warm=False)


def test_some_of_a_training_set():
    data = TrainingSet(np.arange(4.0)[:, None], np.array([1.0, 0.0, 2.0, 0.0]))
    assert data.with_weight().tolist() == [0, 2]
    some = data.take(data.with_weight())
    assert some.X.ravel().tolist() == [0, 2]
    assert some.weights.tolist() == [1, 2]
    assert some.condition is None
    assert some.with_weight() is None
    assert TrainingSet(data.X).with_weight() is None
    assert data.take(None) is data
    named = TrainingSet(data.X, y=list("abcd")).take(np.array([3, 1]))
    assert list(named.y) == ["d", "b"]


def test_rows_of_weight_zero_are_neither_trained_on_nor_held_out(iris):
    weights = np.ones(150)
    weights[50:] = 0
    vae = tiny(validation_fraction=0.3)
    data = TrainingSet(iris, weights)
    fit = begin(vae, decided(vae, data), data, None)
    fit.trainer.close()
    assert len(fit.rows.X) == len(fit.data) == 35
    assert len(fit.held_out[0]) == 15
    seen = {row.tobytes() for row in iris[:50]}
    assert {row.tobytes() for row in fit.rows.X} <= seen


def test_a_validation_fraction_that_leaves_nothing(iris):
    vae = tiny(validation_fraction=0.9)
    data = TrainingSet(iris[:1])
    with pytest.raises(ValueError, match=r"validation_fraction=0.9 of 1 rows leaves"):
        begin(vae, decided(vae, data), data, None)


def test_the_same_seed_decides_the_same(iris):
    one, two = (decided(tiny(), TrainingSet(iris)) for _ in range(2))
    other = decided(tiny(random_state=1), TrainingSet(iris))
    weights, same, different = (
        torch.cat([p.detach().flatten() for p in fitted["model_"].parameters()])
        for fitted in (one, two, other)
    )
    assert torch.equal(weights, same)
    assert not torch.equal(weights, different)


def test_untrained_has_the_shapes_of_what_was_learned(iris):
    model = tiny(hidden_dim=(6, 3), prior="vamp").fit(iris)
    fresh = untrained(vars(model))
    learned = {name: p.shape for name, p in model.model_.state_dict().items()}
    assert {name: p.shape for name, p in fresh.state_dict().items()} == learned


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
        ((), [(4, 4), (4, 2)]),
    ],
)
def test_hidden_dim_is_the_widths(iris, hidden_dim, shapes):
    model = tiny(hidden_dim=hidden_dim).fit(iris)
    got = [tuple(p.shape) for p in model.model_.network.parameters() if p.ndim == 2]
    assert got == shapes


def test_validation_fraction_holds_rows_out(iris):
    seen = Recorder()
    model = tiny(validation_fraction=0.2).set_callbacks(seen).fit(iris)
    assert {len(X) for X in seen.X} == {120}
    assert model.history_.validation_loss.notna().all()
    again = tiny(validation_fraction=0.2).fit(iris)
    np.testing.assert_allclose(
        model.history_.validation_loss, again.history_.validation_loss, rtol=1e-4
    )
    one = tiny(validation_fraction=1e-3).fit(iris)
    assert one.history_.validation_loss.notna().all()


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


@pytest.mark.parametrize(
    "change",
    [
        {"latent_dim": 3},
        {"hidden_dim": 9},
        {"hidden_dim": (8, 8)},
        {"network": MLP(activation="tanh")},
        {"likelihood": Gaussian(scale="feature")},
    ],
)
def test_warm_start_refuses_another_architecture(iris, change):
    model = tiny(warm_start=True).fit(iris).set_params(**change)
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"warm_start=True cannot go on"):
        model.fit(iris)
    assert_equal(before, snapshot(model))
    model.set_params(warm_start=False).fit(iris)


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
@pytest.mark.parametrize("width", [1, 3, 5])
def test_warm_start_refuses_another_number_of_features(likelihood, width):
    model = tiny(warm_start=True, likelihood=likelihood).fit(GREY)
    before = snapshot(model)
    with pytest.raises(ValueError, match=f"{width} features"):
        model.fit(np.full((20, width), 0.5))
    assert_equal(before, snapshot(model))


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


def test_y_is_nobodys_business(digits):
    # However long it is, and however many codes are kept.
    vae = tiny(epochs=1, batch_size=500)
    many = np.concatenate([digits, digits])
    vae.fit(many, y=np.zeros(10))
    assert len(vae._codes) == 2000

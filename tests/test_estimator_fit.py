"""What ``fit`` does: it learns, keeps the best epoch, and fails without a trace."""

import copy
import pickle
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from estimator_helpers import (
    GREY,
    HISTORY,
    Recorder,
    assert_equal,
    assert_same_weights,
    assert_usable,
    snapshot,
    tiny,
    tiny_conditional,
    weights_of,
    with_value,
)
from skvae import Gaussian
from skvae.training import DivergenceError, engine
from skvae.training.setup import INTERRUPTIBLE, setting


def test_training_learns(digits):
    model = tiny(hidden_dim=64, latent_dim=8, epochs=15, learning_rate=5e-3)
    loss = model.fit(digits).history_.loss
    assert loss.iloc[-1] < loss.iloc[0] - 2
    assert model.score(digits) > tiny(epochs=1).fit(digits).score(digits) + 2
    # Reconstructions are nearer than the mean of the data.
    error = np.square(digits - model.reconstruct(digits)).sum(1).mean()
    assert error < 0.7 * np.square(digits - digits.mean(0)).sum(1).mean()


# ------------------------------------------------------------------ the best epoch


def overfitting(**parameters):
    return tiny(
        latent_dim=4,
        hidden_dim=64,
        batch_size=8,
        learning_rate=1e-2,
        **{"epochs": 40, **parameters},
    )


@pytest.mark.usefixtures("one_thread")
def test_the_best_epoch_is_kept():
    rng = np.random.default_rng(0)
    X, X_val = rng.normal(size=(24, 10)), rng.normal(size=(50, 10))
    model = overfitting().fit(X, X_val=X_val)
    losses = model.history_.validation_loss
    assert model.best_epoch_ == losses.idxmin() + 1
    assert 1 < model.best_epoch_ < model.n_iter_ == 40
    assert losses.iloc[-1] > losses.min() + 0.5
    # The weights are those that a fit of that many epochs ends with.
    assert_same_weights(
        model, overfitting(epochs=model.best_epoch_).fit(X, X_val=X_val)
    )
    assert model.score(X_val) == pytest.approx(-losses.min(), abs=0.5)


@pytest.mark.usefixtures("one_thread")
def test_without_validation_the_best_training_loss_is_kept(iris):
    # So large a learning rate makes the loss go up and down.
    parameters = {"learning_rate": 0.3, "epochs": 30, "batch_size": 20}
    model = tiny(**parameters).fit(iris)
    losses = model.history_.loss
    assert model.best_epoch_ == losses.idxmin() + 1 < 30
    short = tiny(**{**parameters, "epochs": model.best_epoch_}).fit(iris)
    assert_same_weights(model, short)


def test_early_stopping():
    rng = np.random.default_rng(0)
    X, X_val = rng.normal(size=(24, 10)), rng.normal(size=(50, 10))
    model = overfitting(early_stopping=True, n_iter_no_change=4, epochs=200)
    model.fit(X, X_val=X_val)
    assert model.n_iter_ == model.best_epoch_ + 4 < 200
    assert len(model.history_) == model.n_iter_
    # With an endless tolerance only the first epoch improves.
    model.set_params(tol=1e9, n_iter_no_change=3).fit(X, X_val=X_val)
    assert model.n_iter_ == 4
    model.set_params(tol=1e9, n_iter_no_change=3).fit(X)
    assert model.n_iter_ == 4
    model.set_params(early_stopping=False, epochs=7).fit(X, X_val=X_val)
    assert model.n_iter_ == 7


# ------------------------------------------------------------------ options of a step


def test_cosine_schedule():
    model = tiny(
        learning_rate_schedule="cosine", epochs=5, batch_size=15, learning_rate=0.01
    )
    rates = model.fit(GREY).history_.learning_rate
    # 40 rows in batches of 15 are 3 steps; a row of the table has the last one's rate.
    last_steps = np.arange(1, 6) * 3 - 1
    np.testing.assert_allclose(rates, 0.005 * (1 + np.cos(np.pi * last_steps / 15)))
    constant = model.set_params(learning_rate_schedule="constant").fit(GREY)
    assert (constant.history_.learning_rate == 0.01).all()


@pytest.mark.usefixtures("one_thread")
def test_max_gradient_norm(iris, monkeypatch):
    free = tiny(epochs=3).fit(iris)
    assert_same_weights(free, tiny(epochs=3, max_gradient_norm=1e9).fit(iris))
    norms, step = [], engine.adam_step

    def spy(parameter, gradient, *args):
        norms.append(float(gradient.norm()) / 50)  # it is that of a sum over a batch
        step(parameter, gradient, *args)

    monkeypatch.setattr(engine, "adam_step", spy)
    tiny(epochs=3).fit(iris)
    limit = max(norms) / 3
    norms.clear()
    tiny(epochs=3, max_gradient_norm=limit).fit(iris)
    assert max(norms) == pytest.approx(limit, rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 7, 13, 39, 40, 41, 10_000])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_any_batch_size(batch_size, likelihood):
    # 40 rows: last batches of 5, 1 (of 13 and of 39) and none; n < batch_size.
    model = tiny(batch_size=batch_size, likelihood=likelihood, learning_rate=1e-2)
    before = tiny(batch_size=batch_size, likelihood=likelihood, learning_rate=1e-12)
    assert model.fit(GREY).score(GREY) != before.fit(GREY).score(GREY)
    assert_usable(model, GREY)


# ------------------------------------------------------------------ sample weights


@pytest.mark.usefixtures("one_thread")
def test_sample_weight_counts_in_ratios(iris):
    weights = np.random.default_rng(0).random(150) + 0.1
    a = tiny().fit(iris, sample_weight=weights)
    b = tiny().fit(iris, sample_weight=1024 * weights)
    assert_same_weights(a, b)
    assert not np.allclose(a.transform(iris), tiny().fit(iris).transform(iris))
    ones = tiny().fit(iris, sample_weight=np.ones(150))
    np.testing.assert_allclose(
        ones.transform(iris), tiny().fit(iris).transform(iris), atol=1e-4
    )


def test_rows_of_weight_zero_are_not_there(iris):
    weights = np.ones(150)
    weights[::3] = 0
    a = tiny(epochs=5).fit(iris, sample_weight=weights)
    b = tiny(epochs=5).fit(iris[weights > 0])
    np.testing.assert_allclose(a.transform(iris), b.transform(iris), atol=1e-4)
    np.testing.assert_allclose(a.history_.loss, b.history_.loss, rtol=1e-4)


def test_sample_weight_draws_the_model_towards_heavy_rows(iris):
    heavy = np.where(np.arange(150) < 50, 100.0, 1.0)
    a = tiny(epochs=20).fit(iris, sample_weight=heavy)
    b = tiny(epochs=20).fit(iris, sample_weight=heavy[::-1])
    assert a.score(iris[:50]) > b.score(iris[:50])
    assert a.score(iris[100:]) < b.score(iris[100:])


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_weighted_records_are_weighted_means(likelihood):
    # Every row is the same: whatever the weights, their mean loss is that of a row.
    X = np.tile([0.25, 1.0, 0.5, 0.0], (60, 1))
    weights = np.random.default_rng(0).lognormal(0, 2, 60)
    model = tiny(likelihood=likelihood, validation_fraction=0.3, epochs=4)
    model.fit(X, sample_weight=weights)
    _, kl = model.fitted_.elbo_parts(X[:1])
    row = model.history_.iloc[model.best_epoch_ - 1]
    assert row.validation_kl == pytest.approx(float(kl[0]), rel=1e-3)


BAD_WEIGHTS = {
    "all zero": (np.zeros(40), "(?i)sample.weight"),
    "negative": (np.linspace(-1, 1, 40), "(?i)negative.*sample_weight"),
    "nan": (with_value(np.ones((40, 1)), 3, 0, np.nan)[:, 0], "sample_weight.*NaN"),
    "inf": (with_value(np.ones((40, 1)), 3, 0, np.inf)[:, 0], "sample_weight.*inf"),
    "too few": (np.ones(39), r"sample_weight\.shape == \(39,\)"),
    "2-D": (np.ones((40, 2)), "(?i)sample.weight"),
    "strings": (np.array(["a"] * 40), "'a'"),
}


@pytest.mark.parametrize("kind", BAD_WEIGHTS)
def test_bad_sample_weights(kind):
    weights, message = BAD_WEIGHTS[kind]
    model = tiny()
    for _ in range(2):  # unfitted, then fitted
        before = snapshot(model)
        for method in (model.fit, model.partial_fit):
            with pytest.raises((ValueError, TypeError), match=message):
                method(GREY, sample_weight=weights)
            assert_equal(before, snapshot(model))
        model.partial_fit(GREY)


# ------------------------------------------------------------------ divergence


def falling(**parameters):
    """On iris its loss falls in every one of the first epochs: the last is the best."""
    return tiny(learning_rate=1e-2, **parameters)


def diverging_after(monkeypatch, n_epochs, n_batches=3):
    """Every loss after some whole epochs is infinite."""
    calls, summed = [], engine.summed

    def infinite(losses, weights):
        calls.append(losses)
        values = summed(losses, weights)
        return values if len(calls) <= n_epochs * n_batches else values * torch.inf

    monkeypatch.setattr(engine, "summed", infinite)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_divergence_keeps_the_last_finite_weights_and_warns(
    iris, monkeypatch, precision
):
    two = falling(precision=precision, epochs=2).fit(iris)
    diverging_after(monkeypatch, n_epochs=2)
    model = falling(precision=precision, epochs=5)
    message = r"epoch 3.*best weights.*kept.*learning_rate below 0.01"
    with pytest.warns(ConvergenceWarning, match=message) as seen:
        assert model.fit(iris) is model
    assert [one.filename for one in seen] == [__file__]
    assert_same_weights(model, two)
    assert model.fitted_.result == "diverged"
    assert model.n_iter_ == model.best_epoch_ == len(model.history_) == 2
    assert_usable(model, iris)
    monkeypatch.undo()
    assert_same_weights(model.set_params(epochs=2).fit(iris), two)
    assert model.fitted_.result == "complete"


def test_divergence_in_the_first_epoch_is_an_error(iris, monkeypatch):
    diverging_after(monkeypatch, n_epochs=0)
    with pytest.raises(DivergenceError, match=r"epoch 1.*learning_rate below 0.001"):
        tiny(epochs=5).fit(iris)
    assert issubclass(DivergenceError, ValueError)


def test_a_huge_learning_rate_diverges_and_says_so(iris):
    model = tiny(
        learning_rate=1e30, standardize=False, likelihood=Gaussian(scale=1.0), epochs=9
    )
    message = r"learning_rate below 1e\+30, max_gradient_norm=10, standardize=True"
    with pytest.raises(DivergenceError, match=message):
        model.fit(iris)


# ------------------------------------------------------------------ interruption


def interrupted_after(monkeypatch, n_steps):
    calls, step = [], engine.adam_step

    def interrupt(*args):
        calls.append(None)
        if len(calls) > n_steps:
            raise KeyboardInterrupt
        step(*args)

    monkeypatch.setattr(engine, "adam_step", interrupt)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_interrupting_a_step_keeps_the_best_epoch(iris, monkeypatch, precision):
    two = falling(precision=precision, epochs=2).fit(iris)
    with monkeypatch.context() as patch:
        interrupted_after(patch, n_steps=2 * 3 + 1)
        model = falling(precision=precision, epochs=50)
        with pytest.warns(UserWarning, match="interrupted in epoch 3") as seen:
            assert model.fit(iris) is model
    assert [one.filename for one in seen] == [__file__]
    assert_same_weights(model, two)
    assert model.n_iter_ == model.best_epoch_ == len(model.history_) == 2
    assert model.fitted_.result == "interrupted"
    assert_usable(model, iris)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_interrupting_the_first_epoch_keeps_its_steps(iris, monkeypatch, precision):
    start = tiny(precision=precision, learning_rate=1e-12, epochs=1).fit(iris)
    interrupted_after(monkeypatch, n_steps=2)
    model = tiny(precision=precision, learning_rate=0.01)
    with pytest.warns(UserWarning, match="interrupted in epoch 1"):
        model.fit(iris)
    assert model.n_iter_ == model.best_epoch_ == 0
    assert list(model.history_.columns) == HISTORY
    assert not np.allclose(model.transform(iris), start.transform(iris), atol=1e-3)
    assert_usable(model, iris)
    assert_usable(pickle.loads(pickle.dumps(model)), iris)


@pytest.mark.usefixtures("one_thread")
def test_interrupting_by_a_callback(iris):
    def interrupt(context):
        if context.task_name == "epoch" and context.task_id == 1:
            raise KeyboardInterrupt

    model = falling(epochs=50).set_callbacks(Recorder(interrupt))
    with pytest.warns(UserWarning, match="interrupted"):
        model.fit(iris)
    assert_same_weights(model, falling(epochs=2).fit(iris))
    assert model.n_iter_ == 2


# --------------------------------------------------------- a fit that fails is none


def raising(error, task="epoch"):
    def fail(context):
        if context.task_name == task:
            raise error

    return Recorder(fail, scores=False)


class Broken(Recorder):
    """A callback that fails before the first epoch."""

    def setup(self, estimator, context):
        raise RuntimeError("from the callback")

    def on_fit_task_begin(self, estimator, context, *, X=None, y=None):
        raise RuntimeError("from the callback")


def in_a_search(model):
    """Within a search Ctrl-C ends the search: half a candidate is no result."""
    return setting(INTERRUPTIBLE, False)


OTHER = pd.DataFrame(np.tile(GREY, (1, 2))[:, :5], columns=list("vwxyz"))
LABELS = np.arange(40) % 3
LATER = OTHER.to_numpy()

# Name: what is handed to fit, callbacks, patched steps, context, error.
FAILURES = {
    "bad X": {"X": with_value(LATER, 3, 1, np.nan), "error": "NaN"},
    "bad y": {"y": np.where(LABELS == 1, np.nan, LABELS), "error": "missing label"},
    "few labels": {"y": LABELS[:7], "error": "7 labels"},
    "bad weights": {"sample_weight": -np.ones(40), "error": "(?i)negative"},
    "bad X_val": {"X_val": OTHER[["v"]], "y_val": LABELS, "error": "names|1 feature"},
    "bad y_val": {"X_val": OTHER, "y_val": LABELS + 7, "error": "unknown label"},
    "y_val alone": {"y_val": LABELS, "error": "y_val was given without X_val"},
    "outside": {"X": with_value(LATER, 3, 1, 7.0), "error": "value 7.0 in row 3"},
    "divergence": {"patch": diverging_after, "error": "no longer finite"},
    "callback": {"callback": raising(RuntimeError("from the")), "error": "from the"},
    "callback before": {"callback": Broken(), "error": "from the callback"},
    "search": {"callback": raising(KeyboardInterrupt()), "context": in_a_search},
    "memory": {"callback": raising(MemoryError("no more")), "error": "no more"},
    "last callback": {
        "callback": raising(RuntimeError("from the"), task="fit"),
        "error": "from the",
    },
}
# partial_fit has no callbacks and no validation set.
CASES = [
    (kind, fitted, method)
    for kind, failure in FAILURES.items()
    for fitted in (False, True)
    for method in ("fit", "warm fit", "partial_fit")
    if method != "partial_fit" or not failure.keys() & {"callback", "y_val"}
]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("kind", "fitted", "method"), CASES)
def test_a_fit_that_raises_leaves_the_estimator_as_it_was(
    kind, fitted, method, monkeypatch
):
    failure = {"X": OTHER, "y": LABELS, **FAILURES[kind]}
    error = failure.pop("error", None)
    patch, callback = failure.pop("patch", None), failure.pop("callback", None)
    context = failure.pop("context", lambda model: nullcontext())
    frame = pd.DataFrame(GREY, columns=list("abcd"))
    model = tiny_conditional(likelihood="bernoulli", warm_start=method == "warm fit")
    if method != "fit" and fitted:  # going on asks for the same columns
        failure["X"] = np.asarray(failure["X"])[:, :4]
        frame = GREY
        if "X_val" in failure:
            failure["X_val"] = np.asarray(failure["X_val"])[:, :4]
    if fitted:
        model.fit(frame, LABELS)
    value = model.fitted_ if fitted else None
    before = snapshot(model)
    if callback:
        model.set_callbacks(callback)
        before = snapshot(model)
    kinds = (ValueError, RuntimeError, MemoryError, KeyboardInterrupt)
    call = model.partial_fit if method == "partial_fit" else model.fit
    with monkeypatch.context() as patched, context(model):
        if patch:
            patch(patched, 0)
        with pytest.raises(kinds, match=error):
            call(**failure)
    assert_equal(before, snapshot(model))
    if fitted:
        assert model.fitted_ is value
        assert model.n_features_in_ == 4
        model.transform(frame)
    else:
        for name in ("fitted_", "n_features_in_", "feature_names_in_", "model_"):
            assert not hasattr(model, name)
        with pytest.raises(NotFittedError):
            model.transform(LATER)
    # What comes after is as if nothing had been.
    model.set_callbacks().set_params(warm_start=False)
    twin = tiny_conditional(likelihood="bernoulli")
    assert_same_weights(model.fit(OTHER, LABELS), twin.fit(OTHER, LABELS))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("kind", ["bad X", "weights", "divergence", "interruption"])
def test_a_failed_pass_leaves_the_training_as_it_was(kind, iris, monkeypatch):
    """The next pass gives to the bit what it would have given."""
    model, twin = tiny().partial_fit(iris), tiny().partial_fit(iris)
    X, weights, error = iris, None, ValueError
    with monkeypatch.context() as patched:
        if kind == "bad X":
            X = with_value(iris, 3, 1, np.inf)
        elif kind == "weights":
            weights = np.zeros(150)
        elif kind == "divergence":
            diverging_after(patched, 0)
            error = DivergenceError
        else:
            interrupted_after(patched, 1)
            error = KeyboardInterrupt
        with pytest.raises(error):
            model.partial_fit(X, sample_weight=weights)
    assert_same_weights(model, twin)
    assert_usable(model, iris)
    assert_same_weights(model.partial_fit(iris), twin.partial_fit(iris))
    assert len(model.history_) == 2


def test_inference_leaves_the_estimator_as_it_was(iris, fitted_iris):
    model = fitted_iris
    value, before = model.fitted_, snapshot(model)
    model.transform(iris)
    model.inverse_transform(model.transform(iris))
    model.reconstruct(iris)
    model.sample(5)
    model.sample(5, prior="mixture")
    model.interpolate(iris[0], iris[1])
    model.score(iris)
    model.log_likelihood(iris, 3)
    assert str(model.history_)
    assert model.fitted_ is value
    assert_equal(before, snapshot(model))
    weights = weights_of(model)
    copy.copy(model).partial_fit(iris)
    copy.copy(model).set_params(warm_start=True).fit(iris)
    for name, weight in weights_of(model).items():
        assert torch.equal(weight, weights[name]), name

"""What the tests of the estimators share: tiny models, and comparisons by value."""

from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator

from skvae import ConditionalVAEEstimator, VAEEstimator
from skvae.training import Training, prepare
from skvae.training.setup import request_of

HISTORY = [
    "epoch",
    "loss",
    "reconstruction",
    "kl",
    "validation_loss",
    "validation_reconstruction",
    "validation_kl",
    "active_units",
    "learning_rate",
    "seconds",
]

# Forty rows of four grey values.
GREY = np.random.default_rng(0).random((40, 4))

TINY = {
    "latent_dim": 2,
    "hidden_dim": 8,
    "epochs": 2,
    "batch_size": 50,
    "random_state": 0,
}


def tiny(**parameters: Any) -> VAEEstimator:
    """An estimator that fits in milliseconds."""
    return VAEEstimator(**{**TINY, **parameters})


def tiny_conditional(**parameters: Any) -> ConditionalVAEEstimator:
    """The same with labels."""
    return ConditionalVAEEstimator(**{**TINY, **parameters})


def with_value(X, row, column, value):
    """X as float64 with one entry replaced."""
    X = np.array(X, dtype=np.float64)
    X[row, column] = value
    return X


def training_of(estimator: VAEEstimator, X, y=None, **options) -> Training:
    """The training that ``fit`` of an estimator would run, ready to run."""
    return prepare(request_of(lambda: estimator.fit(X, y, **options)))[0]


# ------------------------------------------------------------------ comparing by value


def weights_of(estimator: VAEEstimator) -> dict[str, torch.Tensor]:
    """Weights and buffers of the fitted model, copied."""
    return {k: v.clone() for k, v in estimator.model_.state_dict().items()}


def assert_same_weights(a: VAEEstimator, b: VAEEstimator) -> None:
    ours, theirs = weights_of(a), weights_of(b)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def assert_usable(estimator: VAEEstimator, X) -> None:
    """Weights float32 and finite, and every method gives finite numbers."""
    for name, weight in estimator.model_.named_parameters():
        assert weight.dtype == torch.float32, name
        assert torch.isfinite(weight).all(), name
    assert np.isfinite(estimator.transform(X)).all()
    assert np.isfinite(estimator.reconstruct(X)).all()
    assert np.isfinite(estimator.score_samples(X)).all()
    assert np.isfinite(estimator.sample(3, random_state=0)).all()


def snapshot(estimator: VAEEstimator) -> dict[str, Any]:
    """All that an estimator holds, by value: parameters and what was learned."""
    return estimator.__getstate__()


def assert_equal(a: Any, b: Any, name: str = "estimator") -> None:
    """Whether two values are the same, down to the bits of their arrays."""
    assert type(a) is type(b), name
    if isinstance(a, dict):
        assert a.keys() == b.keys(), name
        for key in a:
            assert_equal(a[key], b[key], f"{name}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), name
        for i, (one, other) in enumerate(zip(a, b, strict=True)):
            assert_equal(one, other, f"{name}[{i}]")
    elif isinstance(a, np.ndarray):
        np.testing.assert_array_equal(a, b, err_msg=name)
    elif isinstance(a, BaseEstimator):
        assert repr(a) == repr(b), name
    elif isinstance(a, float) and np.isnan(a):
        assert np.isnan(b), name
    else:
        assert a is b or a == b, name


class Recorder:
    """A callback that writes down what it is told, and stops where it is asked to."""

    def __init__(self, stop=lambda context: False, *, scores=True):
        self.stop, self.with_scores = stop, scores
        self.begun, self.ended = [], []
        self.X, self.y, self.metadata, self.scores = [], [], [], []
        self.n_setups = self.n_teardowns = 0

    def setup(self, estimator, context):
        self.n_setups += 1

    def teardown(self, estimator, context):
        self.n_teardowns += 1

    def on_fit_task_begin(self, estimator, context, *, X=None, y=None):
        self.begun.append((context.task_name, context.task_id))

    def on_fit_task_end(
        self,
        estimator,
        context,
        *,
        X=None,
        y=None,
        metadata=None,
        fitted_estimator=None,
    ):
        self.ended.append((context.task_name, context.task_id))
        self.X.append(X)
        self.y.append(y)
        self.metadata.append(metadata)
        if self.with_scores:
            self.scores.append(fitted_estimator.score(X))
        return self.stop(context)

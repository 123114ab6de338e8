"""What the tests of the searches share: small estimators, and how to compare."""

import numpy as np
import torch

from skvae import VAEEstimator, VAEGridSearchCV, runs
from skvae.objectives import Objective
from skvae.runs import gather, train_together

# The five hyper-parameters of a notebook's grid: 5 candidates.
GRID = [
    {
        "epochs": [1, 3],
        "batch_size": [20],
        "learning_rate": [3e-3, 1e-2],
        "hidden_dim": [8],
        "latent_dim": [2],
    },
    {
        "epochs": [2],
        "batch_size": [30],
        "learning_rate": [5e-3],
        "hidden_dim": [(8, 4)],
        "latent_dim": [3],
    },
]


def tiny(**parameters):
    """An estimator that fits in milliseconds."""
    defaults = {
        "latent_dim": 2,
        "hidden_dim": 8,
        "epochs": 2,
        "batch_size": 50,
        "random_state": 0,
    }
    return VAEEstimator(**{**defaults, **parameters})


class Fragile(Objective):
    """A loss that drives the codes outwards, and is infinite from a certain size on.

    On 40 rows of digits in batches of 20 a learning rate of 1e-3 never gets there, 1e-2
    does in the sixth epoch, and 0.1 in the first one.
    """

    def loss(self, terms):
        size = terms.batch_mean(terms.mean.square().sum(-1))
        return terms.reconstruction - size + torch.where(size > 4, torch.inf, 0.0)


def with_prefix(grid, prefix):
    """The grid of a step of a Pipeline."""
    return [{f"{prefix}{name}": v for name, v in part.items()} for part in grid]


def record_stacks(monkeypatch):
    """The sizes of the stacks that are trained from now on, in their order."""
    sizes, original = [], runs.train_stack

    def train_stack(trainings):
        sizes.append(len(trainings))
        yield from original(trainings)

    monkeypatch.setattr(runs, "train_stack", train_stack)
    return sizes


def evaluations(estimator, grid, X, **options):
    """All evaluations of a search."""
    return VAEGridSearchCV(estimator, grid, cv=2, **options)._future(X, None)


def runs_of(estimator, grid, X):
    """The runs of a search of which nothing is to be fitted alone."""
    found, alone = gather(evaluations(estimator, grid, X))
    assert alone == []
    return found


def results_of(found, **options):
    """Results by index of the evaluation."""
    return dict(train_together(found, **options))


def assert_drop_in(ours, theirs, rtol=1e-5):
    """All that GridSearchCV would give is equal, but for times."""
    names = theirs.cv_results_.keys()
    assert ours.cv_results_.keys() == names
    for name in names:
        one, other = ours.cv_results_[name], theirs.cv_results_[name]
        if "time" in name:
            assert (one >= 0).all()
        elif np.issubdtype(np.asarray(one).dtype, np.floating):
            np.testing.assert_allclose(one, other, rtol=rtol, err_msg=name)
        else:
            assert list(one) == list(other), name
    for name in ("best_index_", "best_params_", "multimetric_", "n_splits_"):
        assert hasattr(ours, name) == hasattr(theirs, name)
        if hasattr(theirs, name):
            assert getattr(ours, name) == getattr(theirs, name)
    assert hasattr(ours, "best_estimator_") == hasattr(theirs, "best_estimator_")
    assert type(ours.scorer_) is type(theirs.scorer_)

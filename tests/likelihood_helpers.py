"""What the tests of the likelihoods share: rows, raw outputs, modules."""

from itertools import pairwise

import numpy as np
import torch

from skvae.forms import Column, Summary
from skvae.likelihoods import Categorical, Mixed, NegativeBinomial, Poisson
from skvae.units import Units


def columns(n):
    return tuple(Column(i) for i in range(n))


def rows(likelihood, n_rows=5, n_columns=6):
    """Rows in the support, neither all alike nor all at its edge, float64."""
    if isinstance(likelihood, Mixed):
        X = np.empty((n_rows, n_columns))
        for family, positions in likelihood.groups:
            X[:, positions] = rows(family, n_rows, len(positions))
        return X
    rng = np.random.default_rng(2)
    uniform = 0.7 * rng.random((n_rows, 1)) + 0.3 * rng.random((n_rows, n_columns))
    if isinstance(likelihood, Poisson | NegativeBinomial):
        uniform *= 10
    elif isinstance(likelihood, Categorical):
        sizes = 4 if likelihood.n_categories is None else likelihood.n_categories
        return np.floor(uniform * sizes)
    elif likelihood.real_valued:
        uniform = 4 * uniform - 2
    return likelihood.nearest(uniform)


def build(likelihood, X, units=None):
    """The module of a family for data (N, D)."""
    X = np.asarray(X, dtype=float)
    summary = Summary(X)
    resolved = likelihood.resolve(columns(X.shape[1]), summary)
    units = units or Units.identity(X.shape[1])
    return resolved.build(columns(X.shape[1]), summary, units)


def one(likelihood, n_columns=1, **values):
    """A float64 module of some columns, with these parameters and buffers."""
    X = rows(likelihood, 3, n_columns)
    return with_values(build(likelihood, X).double(), **values)


def with_values(module, **values):
    """The module with other values of its parameters and buffers."""
    known = dict(module.named_parameters()) | dict(module.named_buffers())
    for name, value in values.items():
        value = torch.as_tensor(np.asarray(value, dtype=float))
        known[name].data = value.reshape(-1).to(known[name].dtype)
    return module


def shaken(module, seed=1):
    """The module with its parameters away from where they start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in module.parameters():
            value.add_(0.3 * torch.randn(value.shape, generator=generator))
    return module


def random(*shape, seed=3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype)


def doubles(*shape, seed=0):
    return random(*shape, seed=seed, dtype=torch.double)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def integral(function, points, order=300):
    """Integral of a function of an array, piece by piece between the points."""
    nodes, weights = np.polynomial.legendre.leggauss(order)
    total = 0.0
    for low, high in pairwise(points):
        half = (high - low) / 2
        total += half * (weights @ function(low + half * (nodes + 1)))
    return total


def density(module, raw):
    """p(x|z) of a module of one column, a function of an array (N,)."""

    def of(x):
        x = torch.as_tensor(x)[:, None]
        with torch.no_grad():
            log_prob = module.log_prob(x, raw.expand(len(x), -1))
        return log_prob.exp().numpy()

    return of


def assert_log_prob(module, x, raw, expected, rtol=1e-9):
    """log p(x|z), in float64, is that of a reference, one per row."""
    ours = module.log_prob(torch.as_tensor(x), torch.as_tensor(raw)).detach()
    expected = np.asarray(expected)
    expected = expected.sum(-1) if expected.ndim > 1 else expected
    np.testing.assert_allclose(ours.numpy(), expected, rtol=rtol)


def assert_sums_to_one(module, outcomes, raw, tolerance=1e-5, mean=None):
    """Masses sum to 1, and the mean is theirs: outcomes (M, D), raw (n_raw,)."""
    raw = torch.as_tensor(raw).double()
    with torch.no_grad():
        masses = module.log_prob(outcomes, raw.expand(len(outcomes), -1)).exp()
        assert abs(masses.sum().item() - 1) < 1e-6
        expected = module.mean(raw) if mean is None else mean
    torch.testing.assert_close(masses @ outcomes, expected, rtol=1e-5, atol=tolerance)

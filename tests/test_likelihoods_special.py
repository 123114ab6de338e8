"""Functions that keep their digits, against scipy in float64."""

import numpy as np
import pytest
import torch
from scipy import special, stats

from likelihood_helpers import generator
from skvae.likelihoods.special import (
    choose,
    draw_log_gamma,
    stirling_error,
    weighted_log_ratio,
)


def test_stirling_error_is_what_the_formula_lacks():
    a = np.array([1e-8, 0.01, 0.5, 1.0, 3.0, 7.99, 8.0, 8.01, 50.0])
    formula = (a - 0.5) * np.log(a) - a + 0.5 * np.log(2 * np.pi)
    got = stirling_error(torch.tensor(a))
    np.testing.assert_allclose(got, special.gammaln(a) - formula, rtol=1e-7)
    # In float32 too, where lgamma itself has an error of 1.
    large = torch.tensor([1e3, 1e6, 1e9])
    np.testing.assert_allclose(stirling_error(large), 1 / (12 * large), rtol=1e-5)


def test_stirling_error_has_its_gradient_on_both_sides():
    a = torch.tensor([0.3, 7.999, 8.001, 100.0], dtype=torch.double).requires_grad_()
    assert torch.autograd.gradcheck(stirling_error, a)


@pytest.mark.parametrize(("n", "m"), [(5.0, 5.0001), (5.0, 90.0), (3.0, 1e-4), (0, 2)])
def test_weighted_log_ratio(n, m):
    exact = special.xlogy(n, m / n) if n else 0.0
    difference = torch.tensor([m - n], dtype=torch.double)
    got = weighted_log_ratio(*torch.tensor([[n], [m]]), difference.float())
    np.testing.assert_allclose(got, exact, rtol=1e-4)


@pytest.mark.parametrize("concentration", [1e-3, 0.5, 20.0])
def test_draws_of_log_gamma(concentration):
    draws = draw_log_gamma(torch.full((20_000,), concentration), generator())
    known = stats.loggamma(concentration)
    assert stats.kstest(draws.numpy(), known.cdf).pvalue > 1e-3


def test_choices_are_as_frequent_as_they_are_probable():
    logits = torch.tensor([0.0, 1.0, -40.0, 2.0]).expand(20_000, 4)
    counts = torch.bincount(choose(logits, generator()), minlength=4)
    shares = logits[0].softmax(0)
    torch.testing.assert_close(counts / 20_000, shares, atol=0.015, rtol=0)
    assert counts[2] == 0

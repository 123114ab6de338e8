"""Masses of counts against scipy."""

import numpy as np
import pytest
import torch
from scipy import stats

from likelihood_helpers import (
    assert_log_prob,
    assert_sums_to_one,
    build,
    doubles,
    generator,
    one,
)
from skvae.likelihoods import NegativeBinomial, Poisson


@pytest.mark.parametrize("rate", [1e-3, 0.7, 20.0, 1e3, 1e6, 1e9])
def test_poisson_is_scipys(rate):
    x = np.array([0, 1, 2, 3, 7, 8, 9, 500, rate // 1, rate // 1 + rate**0.5 // 1])
    x = x[:, None]
    raw = torch.full((len(x), 1), np.log(rate), dtype=torch.double)
    assert_log_prob(one(Poisson()), x, raw, stats.poisson.logpmf(x, rate), rtol=1e-6)


@pytest.mark.parametrize("r", [1e-3, 0.3, 1.0, 40.0, 1e6])
@pytest.mark.parametrize("mean", [1e-3, 0.7, 20.0, 1e4])
def test_negative_binomial_is_scipys(mean, r):
    x = np.array([0.0, 1, 2, 3, 7, 8, 9, 500, 20_000])[:, None]
    raw = torch.full((len(x), 1), np.log(mean), dtype=torch.double)
    expected = stats.nbinom.logpmf(x, r, r / (r + mean))
    both = torch.cat([raw, torch.full_like(raw, np.log(r))], -1)
    assert_log_prob(one(NegativeBinomial("row")), x, both, expected, rtol=1e-6)
    module = one(NegativeBinomial(), log_inverse_dispersion=[np.log(r)])
    assert_log_prob(module, x, raw, expected, rtol=1e-6)


def test_dispersion_may_differ_between_columns():
    log_r = np.array([0.3, -1.0])
    module = one(NegativeBinomial(), 2, log_inverse_dispersion=log_r)
    x, raw = np.array([[3.0, 0.0], [1.0, 9.0]]), doubles(2, 2)
    r, mean = np.exp(log_r), raw.exp().numpy()
    expected = stats.nbinom.logpmf(x, r, r / (r + mean))
    assert_log_prob(module, x, raw, expected, rtol=1e-6)


@pytest.mark.parametrize("log_r", [-2.0, 3.0, 15.0])
@pytest.mark.parametrize("mean", [1e5, 1e6])
def test_counts_keep_their_digits_in_float32(mean, log_r):
    """lgamma(1e6) in float32 is wrong by 1 nat."""
    x = torch.tensor([[mean], [mean + mean**0.5 // 1], [mean // 2]])
    raw = torch.full((3, 1), np.log(mean), dtype=torch.float32)
    for exact in (
        one(Poisson()),
        one(NegativeBinomial(), log_inverse_dispersion=[log_r]),
    ):
        # What the outputs themselves are worth in float32 is no error of ours.
        rate = exact.mean(raw).double().log()
        expected = exact.log_prob(x.double(), rate)
        ours = exact.float().log_prob(x, raw)
        torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=2e-3)


def test_without_overdispersion_it_is_a_poisson():
    x, raw = torch.arange(9, dtype=torch.double)[:, None], doubles(9, 1)
    torch.testing.assert_close(
        one(NegativeBinomial(), log_inverse_dispersion=[15.0]).log_prob(x, raw),
        one(Poisson()).log_prob(x, raw),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("log_rate", [-5.0, 0.0, 6.0])
def test_poisson_sums_to_one(log_rate):
    outcomes = torch.arange(1000, dtype=torch.double)[:, None]
    assert_sums_to_one(one(Poisson()), outcomes, [log_rate])


@pytest.mark.parametrize("log_r", [-2.0, 0.0, 5.0, 14.0])
@pytest.mark.parametrize("log_mean", [-5.0, 0.0, 4.0])
def test_negative_binomial_sums_to_one(log_mean, log_r):
    outcomes = torch.arange(20_000, dtype=torch.double)[:, None]
    module = one(NegativeBinomial("row"))
    assert_sums_to_one(module, outcomes, [log_mean, log_r])


@pytest.mark.parametrize("rate", [0.3, 40.0])
def test_poisson_draws_have_the_variance(rate):
    raw = torch.full((100_000, 1), np.log(rate), dtype=torch.float32)
    draws = one(Poisson()).draw(raw, generator())
    assert draws.var().item() == pytest.approx(rate, rel=0.03)


def test_negative_binomial_draws_have_the_variance():
    raw = torch.tensor([np.log(3.0), np.log(0.5)], dtype=torch.float32)
    draws = one(NegativeBinomial("row")).draw(raw.expand(200_000, 2), generator())
    assert draws.var().item() == pytest.approx(3 + 3**2 / 0.5, rel=0.03)


@pytest.mark.parametrize("family", [Poisson(), NegativeBinomial("row")])
def test_the_encoder_sees_the_logarithm(family):
    X = np.array([[0.0, 1.0], [7.0, 1e6]])
    x = torch.tensor(X, dtype=torch.float32)
    torch.testing.assert_close(build(family, X).see(x), torch.log1p(x))

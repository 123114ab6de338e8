"""Densities over [0, 1] against scipy, torch and numerical integration."""

import numpy as np
import pytest
import torch
from scipy import stats

from likelihood_helpers import (
    assert_log_prob,
    build,
    columns,
    density,
    doubles,
    generator,
    integral,
    one,
    random,
)
from skvae.forms import Summary
from skvae.likelihoods import Bernoulli, Beta, ContinuousBernoulli, Gaussian
from skvae.likelihoods.mixed import Auto

# ------------------------------------------------------------------ Bernoulli


def test_bernoulli_is_scipys():
    logits = doubles(4, 6)
    x = (torch.rand(4, 6, generator=generator()) > 0.5).double()
    p = torch.sigmoid(logits).numpy()
    expected = stats.bernoulli.logpmf(x.numpy(), p)
    assert_log_prob(one(Bernoulli(), 6), x, logits, expected)


def test_bernoulli_of_all_outcomes_sums_to_one():
    outcomes = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4)
    module = one(Bernoulli(), 4)
    log_prob = module.log_prob(outcomes, random(1, 4).expand(16, 4))
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-6)


def test_bernoulli_survives_extreme_logits():
    x = torch.tensor([[0.0, 1.0]])
    certain, module = torch.tensor([[-200.0, 200.0]]), one(Bernoulli(), 2)
    assert module.log_prob(x, certain).item() == 0
    assert module.log_prob(x, -certain).item() == -400


@pytest.mark.parametrize("n_columns", [1, 3, 101, 784])
def test_closed_form_of_any_number_of_columns(n_columns):
    """Factors are multiplied in groups that divide their number."""
    module = build(Bernoulli(), np.full((2, n_columns), 0.5))
    x = torch.rand(3, n_columns, generator=generator())
    raw = 30 * random(3, n_columns)
    terms, slope = module.closed_form(x, raw, None)
    raw.requires_grad_()
    expected = -module.log_prob(x, raw)
    expected.sum().backward()
    torch.testing.assert_close(terms, expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(slope, raw.grad, rtol=1e-5, atol=1e-6)


def test_a_pixel_that_is_always_black_starts_near_black():
    module = build(Bernoulli(), np.array([[0.0, 1.0], [0.0, 1.0]]))
    torch.testing.assert_close(module.mean(module.start), torch.tensor([0.001, 0.999]))


# ------------------------------------------------------------------ continuous


LOGITS = [-60.0, -3.0, -0.11, -0.09, -1e-4, 0.0, 1e-4, 0.09, 0.11, 3.0, 60.0]


@pytest.mark.parametrize("logit", LOGITS)
def test_continuous_bernoulli_integrates_to_one(logit):
    module = one(ContinuousBernoulli())
    raw = torch.full((1, 1), logit, dtype=torch.double)
    p, points = density(module, raw), [0, 0.02, 0.98, 1]
    assert integral(p, points) == pytest.approx(1, abs=1e-6)
    mean = integral(lambda x: x * p(x), points)
    assert module.mean(raw).item() == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize("logit", [-20.0, -1.0, 0.0, 1e-7, 2.0, 20.0])
def test_continuous_bernoulli_draws_follow_the_density(logit):
    raw = torch.full((20_000, 1), logit)
    draws = one(ContinuousBernoulli()).draw(raw, generator())
    reference = torch.distributions.ContinuousBernoulli(
        logits=torch.tensor(logit, dtype=torch.double)
    )
    result = stats.kstest(
        draws.double().numpy().ravel(), lambda x: reference.cdf(torch.tensor(x)).numpy()
    )
    assert result.pvalue > 1e-3


def test_continuous_bernoulli_gradient_is_exact_about_zero():
    x = torch.rand(2, 5, dtype=torch.double, generator=generator())
    logits = torch.tensor([-4.0, -0.05, 0.0, 0.05, 4.0], dtype=torch.double)
    logits = logits.expand(2, 5).clone().requires_grad_()
    module = one(ContinuousBernoulli(), 5)
    assert torch.autograd.gradcheck(lambda raw: module.log_prob(x, raw), logits)


# ------------------------------------------------------------------ Beta


@pytest.mark.parametrize("log_precision", [-3.0, 0.0, 2.0, 12.0])
@pytest.mark.parametrize("logit", [-9.0, 0.0, 2.0])
def test_beta_is_scipys(logit, log_precision):
    raw = torch.tensor([logit, log_precision], dtype=torch.double).expand(9, 2)
    mean, precision = 1 / (1 + np.exp(-logit)), np.exp(log_precision)
    reference = stats.beta(mean * precision, (1 - mean) * precision)
    x = np.concatenate([reference.ppf([0.01, 0.5, 0.99]), np.linspace(0.01, 0.99, 6)])
    x = np.clip(x, 1e-12, 1 - 1e-7)[:, None]
    module = one(Beta())
    assert_log_prob(module, x, raw, reference.logpdf(x), rtol=1e-7)
    assert module.mean(raw)[0].item() == pytest.approx(mean)


@pytest.mark.parametrize("precision", ["feature", "shared"])
def test_beta_of_a_learned_precision_is_scipys(precision):
    log_precision = [0.5, 3.0] if precision == "feature" else [2.0]
    module = one(Beta(precision), 2, log_precision=log_precision)
    x, raw = np.array([[0.2, 0.9]]), doubles(1, 2)
    mean, phi = torch.sigmoid(raw).numpy(), np.exp(log_precision)
    expected = stats.beta(mean * phi, (1 - mean) * phi).logpdf(x)
    assert_log_prob(module, x, raw, expected, rtol=1e-7)


@pytest.mark.parametrize("log_precision", [1.0, 4.0, 10.0])
@pytest.mark.parametrize("logit", [-2.0, 0.0, 1.0])
def test_beta_integrates_to_one(logit, log_precision):
    module = one(Beta())
    raw = torch.tensor([[logit, log_precision]], dtype=torch.double)
    mean, width = 1 / (1 + np.exp(-logit)), np.exp(-log_precision / 2)
    around = [mean + k * width for k in (-3, -1, 0, 1, 3)]
    within = [x for x in around if 0.01 < x < 0.99]
    # The density may have no bound at the ends.
    near = [0, *10.0 ** np.arange(-12, -2)]
    points = [*near, *within, *(1 - np.array(near[::-1]))]
    assert integral(density(module, raw), points) == pytest.approx(1, abs=1e-5)


def test_beta_of_what_float32_takes_for_an_end():
    X = np.array([[1e-60, 1 - 1e-12]])
    assert Beta().contains(X).all()
    x, module = torch.tensor(X, dtype=torch.float32), build(Beta(), X)
    assert torch.isfinite(module.log_prob(x, torch.zeros(1, 4))).all()


@pytest.mark.parametrize(("a", "b"), [(0.02, 0.05), (0.5, 3.0), (30.0, 70.0)])
def test_beta_draws_follow_the_density(a, b):
    raw = torch.tensor([np.log(a / b), np.log(a + b)], dtype=torch.float32)
    draws = one(Beta()).draw(raw.expand(20_000, 2), generator())
    # What is nearer to 1 than float32 can say lies at the end of the interval.
    grid = np.linspace(0.001, 0.999, 500)
    share = np.searchsorted(np.sort(draws.double().numpy().ravel()), grid) / len(draws)
    assert np.abs(share - stats.beta(a, b).cdf(grid)).max() < 1.95 / len(draws) ** 0.5


# ------------------------------------------------------------------ "auto"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 1], Bernoulli),
        ([0, 0.5], Bernoulli),
        ([0, 1.01], Gaussian),
        ([-0.01, 0.5], Gaussian),
        # What MinMaxScaler makes of the largest value, in some folds of the data.
        ([0, 1.0000000000000002], Bernoulli),
        ([-1e-16, 1], Bernoulli),
        ([-1e-170, 1e-170], Gaussian),
    ],
)
def test_auto_takes_numbers_in_the_unit_interval_for_bernoulli(values, expected):
    X = np.array([values], dtype=float)
    assert type(Auto().resolve(columns(2), Summary(X))) is expected
    Bernoulli().check_support(np.array([[1.0000000000000002]]))

"""Densities of real numbers against scipy and numerical integration."""

import numpy as np
import pytest
import torch
from scipy import stats

from likelihood_helpers import (
    assert_log_prob,
    build,
    density,
    doubles,
    generator,
    integral,
    one,
)
from skvae.likelihoods import Gaussian, StudentT
from skvae.units import Units


def test_gaussian_is_scipys():
    x, mean = doubles(5, 3, seed=1), doubles(5, 3)
    log_scale = [-1.0, 0.0, 0.5]
    module = one(Gaussian("feature", min_scale=1e-12), 3, log_scale=log_scale)
    expected = stats.norm.logpdf(x.numpy(), mean.numpy(), np.exp(log_scale))
    assert_log_prob(module, x, mean, expected)
    module = one(Gaussian(min_scale=1e-12), 3, log_scale=[0.3])
    expected = stats.norm.logpdf(x.numpy(), mean.numpy(), np.exp(0.3))
    assert_log_prob(module, x, mean, expected)


def test_gaussian_with_a_scale_of_each_row_is_scipys():
    x, outputs = doubles(7, 4, seed=1), doubles(7, 4, 2)
    mean, log_scale = outputs.numpy().transpose(2, 0, 1)
    scale = np.sqrt(np.exp(2 * log_scale) + 0.1**2)
    module = one(Gaussian(scale="row", min_scale=0.1), 4)
    expected = stats.norm.logpdf(x.numpy(), mean, scale)
    assert_log_prob(module, x, outputs.flatten(1), expected)
    torch.testing.assert_close(module.mean(outputs.flatten(1)), outputs[..., 0])


@pytest.mark.parametrize("family", [Gaussian(scale=0.5), StudentT(1e7, scale=0.5)])
def test_a_fixed_scale_is_in_the_users_units(family):
    units = Units(np.zeros(2), np.array([2.0, 10.0]))
    module = build(family, np.zeros((3, 2)), units)
    # Inside the model the scale is 0.5 / unit; the units' log enters elsewhere.
    expected = stats.norm.logpdf(0, 0, 0.5 / units.scale).sum()
    ours = module.log_prob(torch.zeros(1, 2), torch.zeros(1, 2))
    assert ours.item() == pytest.approx(expected, rel=1e-5)
    assert not list(module.parameters())


@pytest.mark.parametrize("scale", [1e-300, 1e-100, 1e200])
def test_a_fixed_scale_may_have_any_size(scale):
    units = Units(np.zeros(1), np.array([2 * scale]))
    module = build(Gaussian(scale=scale), np.zeros((3, 1)), units)
    assert module.log_scale.item() == pytest.approx(np.log(0.5))


def test_gaussian_scale_has_a_floor():
    module = one(Gaussian(min_scale=0.1), log_scale=[-50.0])
    collapsed = module.log_prob(torch.zeros(1, 1), torch.zeros(1, 1)).item()
    assert collapsed == pytest.approx(stats.norm.logpdf(0, 0, 0.1), rel=1e-5)


@pytest.mark.parametrize("log_scale", [-2.0, 0.0, 1.5])
def test_gaussian_draws_follow_the_density(log_scale):
    module = one(Gaussian("row", min_scale=1e-9)).float()
    raw = torch.tensor([0.5, log_scale]).expand(20_000, 2)
    draws = module.draw(raw, generator()).double().numpy().ravel()
    assert stats.kstest(draws, stats.norm(0.5, np.exp(log_scale)).cdf).pvalue > 1e-3


@pytest.mark.parametrize("df", [0.01, 0.5, 1.0, 3.7, 50.0, 1e6])
def test_student_t_is_scipys(df):
    x, raw = 10 * doubles(7, 4, seed=1), doubles(7, 4)
    log_scale = doubles(4, seed=2)
    student = StudentT(df, scale="feature", min_scale=1e-12)
    module = one(student, 4, log_scale=log_scale, log_degrees_of_freedom=[np.log(df)])
    expected = stats.t.logpdf(x.numpy(), df, raw.numpy(), np.exp(log_scale.numpy()))
    assert_log_prob(module, x, raw, expected, rtol=1e-7)


def test_student_t_fixes_its_parameters():
    units = Units(np.zeros(2), np.array([1.0, 2.0]))
    module = build(StudentT(2.5, scale=3.0), np.zeros((3, 2)), units)
    x = torch.tensor([[0.5, -4.0]])
    expected = stats.t.logpdf(x.numpy(), 2.5, 0, [3, 1.5]).sum()
    ours = module.log_prob(x, torch.zeros(1, 2))
    assert ours.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("learned", [-200.0, 200.0])
def test_student_t_bounds_its_degrees_of_freedom(learned):
    module = one(StudentT("learned", scale=1.0), log_degrees_of_freedom=[learned])
    log_prob = module.log_prob(torch.ones(1, 1), torch.zeros(1, 1))
    log_prob.sum().backward()
    assert torch.isfinite(log_prob).all()
    assert torch.isfinite(module.log_degrees_of_freedom.grad).all()


@pytest.mark.parametrize("df", [0.5, 1.0, 4.0, 1e5])
def test_student_t_draws_follow_the_density(df):
    module = one(StudentT(df, scale=2.0)).float()
    draws = module.draw(torch.full((20_000, 1), 0.5), generator())
    result = stats.kstest(draws.double().numpy().ravel(), stats.t(df, 0.5, 2).cdf)
    assert result.pvalue > 1e-3


def assert_integrates_to_one(module, raw, points):
    """Over the intervals between points; the mean is that of the density too."""
    p = density(module, raw)
    assert integral(p, points) == pytest.approx(1, abs=1e-5)
    mean = module.mean(raw).item()
    spread = points[-2] - points[1]
    found = integral(lambda x: (x - mean) * p(x), points)
    assert found == pytest.approx(0, abs=1e-4 * spread)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_gaussian_of_each_row_integrates_to_one(scale):
    raw = torch.tensor([[0.3, np.log(scale)]], dtype=torch.double)
    points = [0.3 + k * scale for k in (-9, -3, 0, 3, 9)]
    assert_integrates_to_one(one(Gaussian("row", min_scale=1e-9)), raw, points)


@pytest.mark.parametrize("scale", [1e-3, 1e4])
@pytest.mark.parametrize("df", [2.0, 4.0, 1000.0])
def test_student_t_integrates_to_one(df, scale):
    raw = torch.full((1, 1), 0.3, dtype=torch.double)
    steps = (-1e6, -1e4, -300, -30, -9, -3, 0, 3, 9, 30, 300, 1e4, 1e6)
    points = [0.3 + k * scale for k in steps]
    module = one(
        StudentT(df),
        log_scale=[np.log(scale)],
        log_degrees_of_freedom=[np.log(df)],
    )
    assert_integrates_to_one(module, raw, points)

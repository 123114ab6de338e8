import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import Normal, kl_divergence

from skvae.priors import PRIORS, StandardNormal


@pytest.mark.parametrize("name", sorted(PRIORS))
class TestContract:
    """What every prior keeps to."""

    def test_draws_have_the_density(self, name):
        generator = torch.Generator().manual_seed(0)
        prior = PRIORS[name]()
        parameters = prior.parameters(1, generator)
        z = prior.draw(20_000, 1, generator, **parameters)
        assert z.shape == (20_000, 1)
        grid = torch.linspace(-12, 12, 20_001).unsqueeze(-1)
        density = prior.log_prob(grid, **parameters).double().exp().numpy()
        cumulative = np.cumsum(density) * (24 / 20_000)
        assert cumulative[-1] == pytest.approx(1, abs=1e-3)
        result = stats.kstest(
            z.numpy().ravel(), lambda x: np.interp(x, grid.numpy().ravel(), cumulative)
        )
        assert result.pvalue > 1e-3

    def test_kl_is_the_expected_difference_of_log_densities(self, name):
        generator = torch.Generator().manual_seed(0)
        prior = PRIORS[name]()
        parameters = prior.parameters(3, generator)
        mean = torch.tensor([[0.5, -1.0, 0.0]])
        log_variance = torch.tensor([[-1.0, 0.3, 0.0]])
        kl = prior.kl(mean, log_variance, **parameters)
        if kl is None:
            pytest.skip(f"{name} has no closed form: the objectives use the draws")
        q = Normal(mean, (0.5 * log_variance).exp())
        noise = torch.randn(400_000, 3, generator=generator)
        z = mean + q.scale * noise
        gaps = q.log_prob(z).sum(-1) - prior.log_prob(z, **parameters)
        error = gaps.std() / len(gaps) ** 0.5
        assert (gaps.mean() - kl.squeeze()).abs() < 5 * error


def test_standard_normal_kl_is_torchs():
    generator = torch.Generator().manual_seed(0)
    mean = 3 * torch.randn(50, 4, generator=generator)
    log_variance = 2 * torch.randn(50, 4, generator=generator)
    expected = kl_divergence(
        Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)
    ).sum(-1)
    torch.testing.assert_close(StandardNormal().kl(mean, log_variance), expected)


def test_standard_normal_kl_keeps_its_digits_near_zero():
    kl = StandardNormal().kl(torch.zeros(1, 1), torch.full((1, 1), 1e-3))
    assert kl.item() == pytest.approx(1e-6 / 4, rel=1e-3)


def test_standard_normal_log_prob_is_scipys():
    z = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    expected = stats.norm.logpdf(z.numpy()).sum(-1)
    np.testing.assert_allclose(StandardNormal().log_prob(z), expected, rtol=1e-5)

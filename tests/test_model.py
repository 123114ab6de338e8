import pytest
import torch

from skvae.likelihoods import Bernoulli, Gaussian
from skvae.model import Model
from skvae.networks import MLP
from skvae.objectives import ELBO
from skvae.priors import StandardNormal


def make(
    likelihood=None,
    *,
    network=None,
    prior=None,
    objective=None,
    latent_dim=(2,),
    hidden_dim=(5,),
    seed=0,
    **options,
):
    """An untrained model of six features."""
    return Model(
        network or MLP(),
        likelihood or Bernoulli(),
        prior or StandardNormal(),
        objective or ELBO(),
        n_features=6,
        latent_dim=latent_dim,
        hidden_dim=hidden_dim,
        unit=torch.full((6,), 2.0),
        mean=torch.full((6,), 0.3),
        spread=torch.linspace(0.1, 0.6, 6),
        generator=torch.Generator().manual_seed(seed),
        **options,
    )


@pytest.fixture
def x():
    return torch.rand(4, 6, generator=torch.Generator().manual_seed(1))


def test_terms_are_the_four_choices_put_together(x):
    model = make()
    noise = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(2))
    terms = model.terms(x, noise, analytic_kl=True)
    mean, log_variance = model.network.encoder(x).chunk(2, dim=-1)
    z = mean + (0.5 * log_variance).exp() * noise
    torch.testing.assert_close(terms.mean, mean)
    torch.testing.assert_close(terms.kl, StandardNormal().kl(mean, log_variance))
    torch.testing.assert_close(
        terms.log_likelihood, Bernoulli().log_prob(x, model.network.decode(z))
    )
    assert terms.log_prior is None


def test_log_densities_of_the_draws_average_to_the_closed_form(x):
    model = make()
    noise = torch.randn(100_000, 4, 2, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        closed = model.terms(x, noise[:1], analytic_kl=True).kl.sum(-1)
        drawn = model.terms(x, noise, analytic_kl=False)
    assert drawn.kl is None
    gaps = drawn.log_posterior - drawn.log_prior
    assert ((drawn.divergence - closed).abs() < 5 * gaps.std(0) / 100_000**0.5).all()


def test_learned_and_fixed_scales_reach_the_likelihood(x):
    learned, fixed = make(Gaussian(scale="feature")), make(Gaussian(scale=0.5))
    assert [n for n, _ in learned.named_parameters()][-1].endswith("log_scale")
    assert "likelihood_log_scale" not in dict(fixed.named_parameters())
    scale = fixed.likelihood_arguments()["log_scale"].exp()
    torch.testing.assert_close(scale, torch.full((6,), 0.25))
    assert torch.isfinite(
        fixed.log_likelihood(x, fixed.decode(torch.zeros(4, 2)))
    ).all()


def test_mean_and_draw(x):
    model = make()
    z = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mean = model.mean(z)
        draws = model.draw(z, torch.Generator().manual_seed(0))
    torch.testing.assert_close(mean, torch.sigmoid(model.network.decoder(z)))
    assert set(draws.unique().tolist()) <= {0.0, 1.0}

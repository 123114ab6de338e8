import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import (
    Categorical,
    Independent,
    MixtureSameFamily,
    Normal,
    kl_divergence,
)

from skvae.priors import PRIORS, FlowPrior, MixturePrior, StandardNormal, VampPrior

SPECS = {
    "normal": StandardNormal(),
    "mixture": MixturePrior(n_components=4),
    "vamp": VampPrior(n_components=3),
    "flow": FlowPrior(n_transforms=2, hidden_dim=8),
}
assert set(SPECS) == set(PRIORS)


def random(*shape, seed=3):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def encode(u):
    """q(z|u) in two latent dimensions at most, for pseudo-inputs of six features."""
    return u[:, :2] * 2, u[:, 2:4] - 1


def arguments(name, latent_dim, *, seed=0, shaken=True):
    """What the prior learns, away from where it starts, so that every part counts."""
    initial = SPECS[name].parameters(
        latent_dim=latent_dim,
        mean=torch.zeros(6),
        spread=torch.ones(6),
        generator=torch.Generator().manual_seed(seed),
    )
    values = dict(initial)
    if shaken:
        for i, key in enumerate(sorted(values)):
            values[key] = values[key] + 0.5 * random(*values[key].shape, seed=10 + i)
    if SPECS[name].needs_encoder:
        values["encode"] = lambda u: tuple(t[:, :latent_dim] for t in encode(u))
    return values


@pytest.mark.parametrize("name", sorted(PRIORS))
class TestContract:
    """What every prior keeps to."""

    def test_draws_have_the_density(self, name):
        prior, given = SPECS[name], arguments(name, 1)
        noise = random(20_000, prior.n_noise(1))
        with torch.no_grad():
            z = prior.draw(noise, **given)
            assert z.shape == (20_000, 1)
            grid = torch.linspace(-12, 12, 20_001).unsqueeze(-1)
            density = prior.log_prob(grid, **given).double().exp().numpy()
        cumulative = np.cumsum(density) * (24 / 20_000)
        assert cumulative[-1] == pytest.approx(1, abs=1e-3)
        result = stats.kstest(
            z.numpy().ravel(), lambda x: np.interp(x, grid.numpy().ravel(), cumulative)
        )
        assert result.pvalue > 1e-3

    def test_density_integrates_to_one_in_two_dimensions(self, name):
        line = torch.linspace(-10, 10, 1001)  # a spline's slopes can be steep
        grid = torch.cartesian_prod(line, line)
        with torch.no_grad():
            density = SPECS[name].log_prob(grid, **arguments(name, 2)).double().exp()
        assert density.sum().item() * 0.02**2 == pytest.approx(1, abs=2e-3)

    def test_draws_agree_with_the_density_in_two_dimensions(self, name):
        """Two ways to E[log p] and to the means: by draws, and on a grid."""
        prior, given = SPECS[name], arguments(name, 2)
        line = torch.linspace(-10, 10, 401)
        grid = torch.cartesian_prod(line, line)
        with torch.no_grad():
            log_prob = prior.log_prob(grid, **given)
            weight = log_prob.double().exp() * 0.05**2
            z = prior.draw(random(40_000, prior.n_noise(2)), **given)
            drawn = torch.column_stack([prior.log_prob(z, **given), z, z[:, :1] * z])
        known = torch.column_stack([log_prob, grid, grid[:, :1] * grid]).double()
        expected = (known * weight.unsqueeze(-1)).sum(0)
        error = drawn.std(0) / 40_000**0.5
        assert ((drawn.mean(0) - expected).abs() < 5 * error + 2e-3).all()

    def test_draw_is_a_function_of_the_noise_alone(self, name):
        prior, given = SPECS[name], arguments(name, 2)
        noise = random(5, prior.n_noise(2))
        with torch.no_grad():
            z = prior.draw(noise, **given)
            torch.testing.assert_close(prior.draw(noise, **given), z)
            torch.testing.assert_close(prior.draw(noise[3:4], **given), z[3:4])

    def test_shapes(self, name):
        prior, given = SPECS[name], arguments(name, 2)
        z = random(3, 5, 2)
        log_prob = prior.log_prob(z, **given)
        assert log_prob.shape == (3, 5)
        torch.testing.assert_close(prior.log_prob(z[1], **given), log_prob[1])
        kl = prior.kl(z[0], z[1], **given)
        assert kl is None or kl.shape == (5, 2)

    def test_kl_is_the_expected_difference_of_log_densities(self, name):
        prior, given = SPECS[name], arguments(name, 2)
        mean = torch.tensor([[0.5, -1.0]])
        log_variance = torch.tensor([[-1.0, 0.3]])
        kl = prior.kl(mean, log_variance, **given)
        if kl is None:
            pytest.skip(f"{name} has no closed form: the objectives use the draws")
        q = Normal(mean, (0.5 * log_variance).exp())
        z = mean + q.scale * random(400_000, 2)
        gaps = q.log_prob(z).sum(-1) - prior.log_prob(z, **given)
        error = gaps.std() / len(gaps) ** 0.5
        assert (gaps.mean() - kl.sum()).abs() < 5 * error

    def test_initial_values_come_from_the_generator(self, name):
        one, same, other = (
            arguments(name, 2, seed=seed, shaken=False) for seed in (0, 0, 1)
        )
        learned = [key for key in one if key != "encode"]
        for key in learned:
            assert torch.equal(one[key], same[key])
            assert one[key].dtype == torch.float32
        assert not learned or any(not torch.equal(one[k], other[k]) for k in learned)

    def test_every_parameter_gets_a_gradient(self, name):
        given = {
            key: value.requires_grad_() if key != "encode" else value
            for key, value in arguments(name, 2).items()
        }
        z = random(50, 2).requires_grad_()
        SPECS[name].log_prob(z, **given).sum().backward()
        assert z.grad.all()
        for key, value in given.items():
            assert key == "encode" or value.grad.any(), key


def test_standard_normal_kl_is_torchs():
    mean, log_variance = 3 * random(50, 4), 2 * random(50, 4, seed=4)
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(StandardNormal().kl(mean, log_variance), expected)


def test_standard_normal_kl_keeps_its_digits_near_zero():
    kl = StandardNormal().kl(torch.zeros(1, 1), torch.full((1, 1), 1e-3))
    assert kl.item() == pytest.approx(1e-6 / 4, rel=1e-3)


def test_standard_normal_log_prob_is_scipys():
    z = random(7, 3)
    expected = stats.norm.logpdf(z.numpy()).sum(-1)
    np.testing.assert_allclose(StandardNormal().log_prob(z), expected, rtol=1e-5)


def torchs_mixture(logits, mean, log_variance):
    components = Independent(Normal(mean, (0.5 * log_variance).exp()), 1)
    return MixtureSameFamily(Categorical(logits=logits), components)


@pytest.mark.parametrize("seed", range(3))
def test_mixture_log_prob_is_torchs(seed):
    logits, means = random(5, seed=seed), 3 * random(5, 4, seed=seed + 10)
    log_variances = random(5, 4, seed=seed + 20)
    z = 2 * random(3, 50, 4, seed=seed + 30)
    got = MixturePrior(5).log_prob(
        z, logits=logits, means=means, log_variances=log_variances
    )
    expected = torchs_mixture(logits, means, log_variances).log_prob(z)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("log_variance", [-7.0, -12.0])
def test_mixture_log_prob_keeps_its_digits_at_narrow_components(log_variance):
    """Posteriors that a Vamp prior mixes are as narrow as the data ask for."""
    mean = 2 * random(20, 10)
    log_variances = torch.full((20, 10), log_variance)
    z = mean + np.exp(log_variance / 2) * random(20, 10, seed=9)
    got = VampPrior().log_prob(
        z, pseudo_inputs=mean, encode=lambda u: (u, log_variances)
    )
    expected = torchs_mixture(
        torch.zeros(20).double(), mean.double(), log_variances.double()
    ).log_prob(z.double())
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-2)


def test_mixture_components_are_no_narrower_than_a_bound():
    given = {
        "logits": torch.zeros(1),
        "means": torch.zeros(1, 1),
        "log_variances": torch.full((1, 1), -50.0),
    }
    peak = MixturePrior(1).log_prob(torch.zeros(1, 1), **given)
    assert peak.item() == pytest.approx(stats.norm(0, np.exp(-3.5)).logpdf(0), rel=1e-5)


def test_mixture_draws_choose_components_by_their_weights():
    given = {
        "logits": torch.tensor([0.1, 0.6, 0.3]).log(),
        "means": torch.tensor([[-50.0], [0.0], [50.0]]),
        "log_variances": torch.zeros(3, 1),
    }
    z = MixturePrior(3).draw(random(50_000, 2), **given)
    shares = torch.bincount((z.ravel() / 50).round().long() + 1) / 50_000
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.6, 0.3]), atol=0.01, rtol=0)
    # However far out the noise, some component is chosen.
    extreme = torch.tensor([[0.0, 40.0], [0.0, -40.0]])
    assert MixturePrior(3).draw(extreme, **given).ravel().tolist() == [50, -50]


def test_vamp_with_one_pseudo_input_is_its_posterior():
    u, z = random(1, 6), random(30, 2, seed=5)
    mean, log_variance = encode(u)
    expected = Normal(mean, (0.5 * log_variance).exp()).log_prob(z).sum(-1)
    got = VampPrior(1).log_prob(z, pseudo_inputs=u, encode=encode)
    torch.testing.assert_close(got, expected)
    noise = random(4, 3)
    draws = VampPrior(1).draw(noise, pseudo_inputs=u, encode=encode)
    torch.testing.assert_close(draws, mean + (0.5 * log_variance).exp() * noise[:, :2])


def test_vamp_is_the_even_mixture_of_posteriors():
    u, z = random(4, 6), random(30, 2, seed=5)
    expected = torchs_mixture(torch.zeros(4), *encode(u)).log_prob(z)
    got = VampPrior(4).log_prob(z, pseudo_inputs=u, encode=encode)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_pseudo_inputs_start_spread_as_the_data():
    mean, spread = torch.tensor([1.0, -3.0]), torch.tensor([0.5, 2.0])
    u = VampPrior(4000).parameters(
        latent_dim=2,
        mean=mean,
        spread=spread,
        generator=torch.Generator().manual_seed(0),
    )["pseudo_inputs"]
    assert u.shape == (4000, 2)
    torch.testing.assert_close(u.mean(0), mean, atol=0.15, rtol=0)
    torch.testing.assert_close(u.std(0), spread, rtol=0.05, atol=0)


def test_flow_log_prob_is_the_change_of_variables():
    """By the map of the draws alone: their Jacobian by differences."""
    prior, given = SPECS["flow"], arguments("flow", 2)
    given = {key: value.double() for key, value in given.items()}
    noise, step = random(4, 2).double(), 1e-4
    with torch.no_grad():
        z = prior.draw(noise, **given)
        columns = [
            (
                prior.draw(noise + step * e, **given)
                - prior.draw(noise - step * e, **given)
            )
            / (2 * step)
            for e in torch.eye(2, dtype=torch.double)
        ]
        log_slope = torch.linalg.slogdet(torch.stack(columns, -1))[1]
        expected = Normal(0.0, 1.0).log_prob(noise).sum(-1) - log_slope
        torch.testing.assert_close(
            prior.log_prob(z, **given), expected, rtol=1e-3, atol=1e-3
        )

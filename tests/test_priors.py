import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import cumulative_trapezoid
from torch.distributions import (
    Categorical,
    Independent,
    MixtureSameFamily,
    Normal,
    kl_divergence,
)

from skvae.priors import (
    PRIORS,
    FlowPrior,
    MixturePrior,
    PriorInputs,
    StandardNormal,
    VampPrior,
    log_mixture,
)

SPECS = {
    "normal": StandardNormal(),
    "mixture": MixturePrior(n_components=4),
    "vamp": VampPrior(n_components=3),
    "flow": FlowPrior(n_transforms=2, hidden_dim=8),
}
assert set(SPECS) == set(PRIORS)


def random(*shape, seed=3):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def encoder(latent_dim):
    """q(z|u) in so many latent dimensions, for pseudo-inputs of six features."""

    def encode(u):
        return 2 * u[:, :latent_dim], u[:, 2 : 2 + latent_dim] - 1

    return encode


def build(spec, latent_dim=2, *, seed=0, location=None, spread=None):
    return spec.build(
        PriorInputs(
            latent_dim,
            torch.zeros(6) if location is None else location,
            torch.ones(6) if spread is None else spread,
            torch.Generator().manual_seed(seed),
        )
    )


def with_values(module, **values):
    with torch.no_grad():
        for name, value in values.items():
            module.get_parameter(name).copy_(value)
    return module


def made(name, latent_dim):
    """A prior away from where it starts, and what its methods are given."""
    module = build(SPECS[name], latent_dim)
    with torch.no_grad():
        for i, value in enumerate(module.parameters()):
            value.add_(0.3 * random(*value.shape, seed=10 + i))
    given = {"encode": encoder(latent_dim)} if SPECS[name].needs_encoder else {}
    return module, given


@pytest.mark.parametrize("name", sorted(PRIORS))
class TestContract:
    """What every prior keeps to."""

    def test_draws_have_the_density(self, name):
        module, given = made(name, 1)
        with torch.no_grad():
            z = module.draw(random(20_000, module.n_noise), **given)
            assert z.shape == (20_000, 1)
            grid = torch.linspace(-12, 12, 20_001).unsqueeze(-1)
            density = module.log_prob(grid, **given).double().exp().numpy()
        cumulative = cumulative_trapezoid(density, dx=24 / 20_000, initial=0)
        assert cumulative[-1] == pytest.approx(1, abs=1e-3)
        result = stats.kstest(
            z.numpy().ravel(), lambda x: np.interp(x, grid.numpy().ravel(), cumulative)
        )
        assert result.pvalue > 1e-3

    def test_draws_agree_with_the_density_in_two_dimensions(self, name):
        """Two ways to E[log p] and to the means: by draws, and on a grid."""
        module, given = made(name, 2)
        line = torch.linspace(-8, 8, 601)
        grid = torch.cartesian_prod(line, line)
        with torch.no_grad():
            log_prob = module.log_prob(grid, **given)
            weight = log_prob.double().exp() * (16 / 600) ** 2
            z = module.draw(random(40_000, module.n_noise), **given)
            drawn = torch.column_stack([module.log_prob(z, **given), z, z[:, :1] * z])
        assert weight.sum().item() == pytest.approx(1, abs=4e-3)
        known = torch.column_stack([log_prob, grid, grid[:, :1] * grid]).double()
        expected = (known * weight.unsqueeze(-1)).sum(0)
        error = drawn.std(0) / 40_000**0.5
        assert ((drawn.mean(0) - expected).abs() < 5 * error + 4e-3).all()

    def test_draw_is_a_function_of_the_noise_alone(self, name):
        module, given = made(name, 2)
        noise = random(5, module.n_noise)
        with torch.no_grad():
            z = module.draw(noise, **given)
            torch.testing.assert_close(module.draw(noise, **given), z)
            torch.testing.assert_close(module.draw(noise[3:4], **given), z[3:4])

    def test_shapes(self, name):
        module, given = made(name, 2)
        z = random(3, 5, 2)
        log_prob = module.log_prob(z, **given)
        assert log_prob.shape == (3, 5)
        torch.testing.assert_close(module.log_prob(z[1], **given), log_prob[1])
        kl = module.kl(z[0], z[1], **given)
        assert kl is None or kl.shape == (5, 2)
        # The condition of the rows may be given to any of them.
        given["condition"] = torch.eye(5)
        torch.testing.assert_close(module.log_prob(z, **given), log_prob)
        assert module.draw(random(5, module.n_noise), **given).shape == (5, 2)

    def test_kl_is_the_expected_difference_of_log_densities(self, name):
        module, given = made(name, 2)
        mean = torch.tensor([[0.5, -1.0]])
        log_variance = torch.tensor([[-1.0, 0.3]])
        kl = module.kl(mean, log_variance, **given)
        if kl is None:
            pytest.skip(f"{name} has no closed form: the objectives use the draws")
        q = Normal(mean, (0.5 * log_variance).exp())
        z = mean + q.scale * random(400_000, 2)
        gaps = q.log_prob(z).sum(-1) - module.log_prob(z, **given)
        error = gaps.std() / len(gaps) ** 0.5
        assert (gaps.mean() - kl.sum()).abs() < 5 * error

    def test_closed_form_is_that_of_autograd(self, name):
        module, given = made(name, 3)
        mean, log_variance = 2 * random(2, 7, 3)
        mean[0, 0], log_variance[0] = 0, 0
        closed = module.closed_form(mean, log_variance)
        if closed is None:
            assert name != "normal"
            return
        mean.requires_grad_()
        log_variance.requires_grad_()
        kl = module.kl(mean, log_variance, **given).sum(-1)
        kl.sum().backward()
        for got, expected in zip(
            closed, (kl.detach(), mean.grad, log_variance.grad), strict=True
        ):
            torch.testing.assert_close(got, expected)
        # Of any number of models side by side.
        stacked = module.closed_form(
            mean.detach().expand(2, 7, 3), log_variance.detach().expand(2, 7, 3)
        )
        torch.testing.assert_close(stacked[0][1], closed[0])

    def test_initial_values_come_from_the_generator(self, name):
        one, same, other = (
            dict(build(SPECS[name], seed=seed).named_parameters()) for seed in (0, 0, 1)
        )
        for key, value in one.items():
            assert torch.equal(value, same[key])
            assert value.dtype == torch.float32
        assert not one or any(not torch.equal(one[k], other[k]) for k in one)

    def test_every_parameter_gets_a_gradient(self, name):
        module, given = made(name, 2)
        z = random(50, 2).requires_grad_()
        module.log_prob(z, **given).sum().backward()
        assert z.grad.all()
        for key, value in module.named_parameters():
            assert value.grad.any(), key


# ------------------------------------------------------------------ standard normal


def test_standard_normal_kl_is_torchs():
    mean, log_variance = 3 * random(50, 4), 2 * random(50, 4, seed=4)
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0))
    got = build(StandardNormal(), 4).kl(mean, log_variance)
    torch.testing.assert_close(got, expected)


def test_standard_normal_kl_keeps_its_digits_near_zero():
    module = build(StandardNormal(), 1)
    point = torch.zeros(1, 1), torch.full((1, 1), 1e-3)
    assert module.kl(*point).item() == pytest.approx(1e-6 / 4, rel=1e-3)
    assert module.closed_form(*point)[0].item() == pytest.approx(1e-6 / 4, rel=1e-3)


def test_standard_normal_log_prob_is_scipys():
    z = random(7, 3)
    expected = stats.norm.logpdf(z.numpy()).sum(-1)
    got = build(StandardNormal(), 3).log_prob(z)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


# ------------------------------------------------------------------ mixtures


def torchs_mixture(logits, mean, log_variance):
    components = Independent(Normal(mean, (0.5 * log_variance).exp()), 1)
    return MixtureSameFamily(Categorical(logits=logits), components)


@pytest.mark.parametrize("seed", range(3))
def test_mixture_log_prob_is_torchs(seed):
    values = {
        "logits": random(5, seed=seed),
        "means": 3 * random(5, 4, seed=seed + 10),
        "log_variances": random(5, 4, seed=seed + 20),
    }
    z = 2 * random(3, 50, 4, seed=seed + 30)
    with torch.no_grad():
        got = with_values(build(MixturePrior(5), 4), **values).log_prob(z)
    expected = torchs_mixture(*values.values()).log_prob(z)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    weighted = log_mixture(
        z, values["logits"].log_softmax(0), *list(values.values())[1:]
    )
    torch.testing.assert_close(weighted, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("log_variance", [-7.0, -12.0])
def test_mixture_log_prob_keeps_its_digits_at_narrow_components(log_variance):
    """Posteriors that a Vamp prior mixes are as narrow as the data ask for."""
    mean = 2 * random(20, 10)
    log_variances = torch.full((20, 10), log_variance)
    z = mean + np.exp(log_variance / 2) * random(20, 10, seed=9)
    module = build(VampPrior(20), 10)
    got = module.log_prob(z, encode=lambda u: (mean, log_variances))
    expected = torchs_mixture(
        torch.zeros(20).double(), mean.double(), log_variances.double()
    ).log_prob(z.double())
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-2)


def test_mixture_components_are_no_narrower_than_a_bound():
    module = with_values(
        build(MixturePrior(1), 1),
        means=torch.zeros(1, 1),
        log_variances=torch.full((1, 1), -50.0),
    )
    peak = module.log_prob(torch.zeros(1, 1))
    assert peak.item() == pytest.approx(stats.norm(0, np.exp(-3.5)).logpdf(0), rel=1e-5)


def test_mixture_draws_choose_components_by_their_weights():
    module = with_values(
        build(MixturePrior(3), 1),
        logits=torch.tensor([0.1, 0.6, 0.3]).log(),
        means=torch.tensor([[-50.0], [0.0], [50.0]]),
    )
    with torch.no_grad():
        z = module.draw(random(50_000, 2))
        shares = torch.bincount((z.ravel() / 50).round().long() + 1) / 50_000
        expected = torch.tensor([0.1, 0.6, 0.3])
        torch.testing.assert_close(shares, expected, atol=0.01, rtol=0)
        # However far out the noise, some component is chosen.
        extreme = torch.tensor([[0.0, 40.0], [0.0, -40.0]])
        assert module.draw(extreme).ravel().tolist() == [50, -50]


def test_vamp_with_one_pseudo_input_is_its_posterior():
    u, z, encode = random(1, 6), random(30, 2, seed=5), encoder(2)
    module = with_values(build(VampPrior(1)), pseudo_inputs=u)
    mean, log_variance = encode(u)
    with torch.no_grad():
        got = module.log_prob(z, encode=encode)
        expected = Normal(mean, (0.5 * log_variance).exp()).log_prob(z).sum(-1)
        torch.testing.assert_close(got, expected)
        noise = random(4, 3)
        draws = module.draw(noise, encode=encode)
    expected = mean + (0.5 * log_variance).exp() * noise[:, :2]
    torch.testing.assert_close(draws, expected)


def test_vamp_is_the_even_mixture_of_posteriors():
    u, z, encode = random(4, 6), random(30, 2, seed=5), encoder(2)
    expected = torchs_mixture(torch.zeros(4), *encode(u)).log_prob(z)
    module = with_values(build(VampPrior(4)), pseudo_inputs=u)
    with torch.no_grad():
        got = module.log_prob(z, encode=encode)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_pseudo_inputs_start_spread_as_the_data():
    location, spread = torch.tensor([1.0, -3.0]), torch.tensor([0.5, 2.0])
    u = build(VampPrior(4000), location=location, spread=spread).pseudo_inputs
    assert u.shape == (4000, 2)
    torch.testing.assert_close(u.mean(0), location, atol=0.15, rtol=0)
    torch.testing.assert_close(u.std(0), spread, rtol=0.05, atol=0)


# ------------------------------------------------------------------ flows


def test_flow_log_prob_is_the_change_of_variables():
    """By the map of the draws alone: their Jacobian by differences."""
    module = made("flow", 2)[0].double()
    noise, step = random(4, 2).double(), 1e-4
    with torch.no_grad():
        z = module.draw(noise)
        columns = [
            (module.draw(noise + step * e) - module.draw(noise - step * e)) / (2 * step)
            for e in torch.eye(2, dtype=torch.double)
        ]
        log_slope = torch.linalg.slogdet(torch.stack(columns, -1))[1]
        expected = Normal(0.0, 1.0).log_prob(noise).sum(-1) - log_slope
        torch.testing.assert_close(module.log_prob(z), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "spec",
    [
        MixturePrior(np.int64(3)),
        VampPrior(np.uint8(3)),
        FlowPrior(np.int32(1), np.uint8(8)),
    ],
    ids=repr,
)
def test_numbers_may_be_numpys(spec):
    module = build(spec)
    z = module.draw(random(4, module.n_noise), encode=encoder(2))
    assert z.shape == (4, 2)

import pytest
import torch

from skvae.likelihoods import Bernoulli, Gaussian
from skvae.model import Batch, Model
from skvae.networks import MLP, FlowMLP, LadderNet
from skvae.objectives import ELBO, IWAE, WAE, BetaTC
from skvae.priors import MixturePrior, StandardNormal, VampPrior


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


# One choice of each kind that a model treats in its own way.
KINDS = {
    "mlp": {},
    "ladder": {"network": LadderNet(), "latent_dim": (3, 2)},
    "mixture": {"prior": MixturePrior(3)},
    "vamp": {"prior": VampPrior(3)},
    "vamp on a ladder": {
        "network": LadderNet(), "latent_dim": (3, 2), "prior": VampPrior(3),
    },
}  # fmt: skip


# Not the ladders: the lower levels of their q are narrower than the prior's.
@pytest.mark.parametrize("kind", ["mlp", "mixture", "vamp"])
def test_draws_from_the_prior_have_the_density_of_the_terms(kind, x):
    """E[log p] by draws from p equals E[w log p] by draws from q, w = p / q."""
    model = make(**KINDS[kind])
    with torch.no_grad():
        for parameter in model.prior_parameters.values():
            parameter.add_(0.3 * torch.ones(()))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(40_000, model.n_prior_noise, generator=generator)
    with torch.no_grad():
        z = model.draw_latent(noise)
        assert z.shape == (40_000, model.latent_dim)
        # Where q is the untrained, wide posterior its draws weigh the prior well.
        draws = torch.randn(40_000, 1, model.n_noise, generator=generator)
        terms = model.terms(x[:1], draws, analytic_kl=False)
        share = (terms.log_prior - terms.log_posterior).softmax(0)
    mean = (share.unsqueeze(-1) * terms.z).sum(0)[0]
    size = 1 / share.square().sum().item()
    assert size > 200
    error = (z.var(0) / size).sqrt()
    assert ((mean - z.mean(0)).abs() < 5 * error).all()


@pytest.mark.parametrize("kind", KINDS)
def test_log_weights_do_not_depend_on_how_kl_is_worked_out(kind, x):
    model = make(**KINDS[kind])
    noise = torch.randn(
        20_000, 4, model.n_noise, generator=torch.Generator().manual_seed(2)
    )
    with torch.no_grad():
        closed = model.terms(x, noise, analytic_kl=True)
        drawn = model.terms(x, noise, analytic_kl=False)
    torch.testing.assert_close(closed.log_likelihood, drawn.log_likelihood)
    gaps = drawn.log_posterior - drawn.log_prior
    error = gaps.std(0) / 20_000**0.5
    assert ((closed.divergence - drawn.divergence).abs() < 5 * error + 1e-5).all()
    assert drawn.kl is None
    assert (closed.kl is None) == ("prior" in KINDS[kind])


def test_conditions_stand_beside_z(x):
    model = make(n_conditions=2)
    z = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
    condition = torch.eye(2)[[0, 1, 1, 0]]
    raw = model.decode(z, condition)
    beside = torch.cat([z, condition.expand(3, 4, 2)], dim=-1)
    torch.testing.assert_close(raw, model.network.decode(beside))
    torch.testing.assert_close(
        model.mean(z[1], condition), torch.sigmoid(raw[1].squeeze(-1))
    )


def test_noise_of_the_loss_is_cut_into_its_parts(x):
    model = make(
        network=MLP(dropout=0.5),
        prior=MixturePrior(2),
        objective=WAE(),
        hidden_dim=(5, 4),
    )
    assert (model.n_noise, model.n_prior_noise) == (2, 3)
    assert (model.n_loss_noise, model.n_training_noise) == (5, 5 + 2 * 9)
    noise = torch.randn(1, 4, 23, generator=torch.Generator().manual_seed(0))
    loss, terms = model.loss(Batch(x, noise))
    torch.testing.assert_close(terms.prior_draws, model.draw_latent(noise[0, :, 2:5]))
    expected = model.terms(
        x, noise[..., :2], analytic_kl=True, dropout_noise=noise[..., 5:]
    )
    torch.testing.assert_close(terms.log_likelihood, expected.log_likelihood)
    whole, _ = model.loss(Batch(x, noise[..., :5]))
    assert not torch.equal(loss, whole)


def test_a_prior_over_x_starts_where_the_encoder_sees_the_data():
    class Counts(Bernoulli):
        def network_input(self, x):
            return torch.log1p(x)

    mean, spread = torch.full((6,), 0.3), torch.linspace(0.1, 0.6, 6)
    u = make(Counts(), prior=VampPrior(5000)).prior_parameters["pseudo_inputs"]
    torch.testing.assert_close(u.mean(0), torch.log1p(mean), atol=0.05, rtol=0)
    expected = torch.log1p(mean + spread) - torch.log1p(mean)
    torch.testing.assert_close(u.std(0), expected, rtol=0.05, atol=0)


def test_log_likelihoods_are_summed_in_float32(x):
    model = make()
    raw, x = model.decode(torch.zeros(4, 2)).bfloat16(), x.bfloat16()
    expected = model.log_likelihood(x.float(), raw.float())
    got = model.log_likelihood(x, raw)
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (
            {"network": LadderNet(), "objective": BetaTC()},
            r"objective=BetaTC\(\) needs .* network=LadderNet\(\) is hierarchical; use",
        ),
        (
            {
                "network": FlowMLP(),
                "objective": IWAE(gradient="doubly_reparameterized"),
            },
            r"objective=IWAE\(gradient='doubly_reparameterized'\) .* is flow; use an",
        ),
        (
            {"network": FlowMLP(), "prior": VampPrior(3)},
            r"prior=VampPrior\(n_components=3\) .*=FlowMLP\(\) does not give; use",
        ),
    ],
)
def test_choices_that_do_not_go_together_name_both_sides(choices, message):
    with pytest.raises(ValueError, match=message):
        make(**choices)


def test_mean_and_draw(x):
    model = make()
    z = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mean = model.mean(z)
        draws = model.draw(z, torch.Generator().manual_seed(0))
    torch.testing.assert_close(mean, torch.sigmoid(model.network.decoder(z)))
    assert set(draws.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("kind", ["ladder", "vamp on a ladder"])
def test_draws_of_a_ladder_are_completed_by_the_network(kind):
    model = make(**KINDS[kind])
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(5, model.n_prior_noise, generator=generator)
    n_top = model.prior.n_noise(2)
    assert model.n_prior_noise == n_top + 3
    z = model.draw_latent(noise)
    top = model.prior.draw(noise[:, :n_top], **model.prior_arguments())
    torch.testing.assert_close(z, model.network.complete(top, noise[:, n_top:]))
    assert torch.equal(z[:, 3:], top)

from dataclasses import replace

import numpy as np
import pytest
import torch

from skvae import VAEEstimator
from skvae.forms import Column, Summary
from skvae.likelihoods import (
    Bernoulli,
    Categorical,
    DiscretizedLogisticMixture,
    Gaussian,
    Mixed,
    Poisson,
)
from skvae.model import Architecture, Batch, Choices, Model
from skvae.networks import MLP, FlowMLP, LadderNet
from skvae.objectives import ELBO, IWAE, WAE, BetaTC
from skvae.priors import MixturePrior, StandardNormal, VampPrior
from skvae.units import Units

# Two rows of mean 0.3 and of these standard deviations.
SPREAD = np.linspace(0.1, 0.3, 6)
ROWS = 0.3 + np.stack([SPREAD, -SPREAD])


def make(
    likelihood=None,
    *,
    network=None,
    prior=None,
    objective=None,
    latent_dim=(2,),
    hidden_dim=(5,),
    seed=0,
    rows=ROWS,
    units=None,
    **options,
):
    """An untrained model of six features."""
    columns = tuple(Column(i) for i in range(rows.shape[1]))
    summary = Summary(rows)
    likelihood = (likelihood or Bernoulli()).resolve(columns, summary)
    return Model(
        Choices(
            network or MLP(),
            likelihood,
            prior or StandardNormal(),
            objective or ELBO(),
        ),
        Architecture(latent_dim, hidden_dim, **options),
        columns,
        summary,
        units or Units.identity(rows.shape[1]),
        torch.Generator().manual_seed(seed),
    )


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def x():
    return torch.rand(4, 6, generator=torch.Generator().manual_seed(1))


def test_terms_are_the_four_choices_put_together(x):
    model = make()
    noise = random(3, 4, 2)
    terms = model.terms(x, noise, analytic_kl=True)
    mean, log_variance = model.network.encoder(x).chunk(2, dim=-1)
    z = mean + (0.5 * log_variance).exp() * noise
    torch.testing.assert_close(terms.mean, mean)
    torch.testing.assert_close(terms.log_variance, log_variance)
    torch.testing.assert_close(terms.z, z)
    torch.testing.assert_close(terms.kl, model.prior.kl(mean, log_variance))
    raw = model.network.decode(z)
    expected = model.likelihood.log_prob(x, raw)
    torch.testing.assert_close(terms.log_likelihood, expected)
    assert terms.log_prior is None
    assert terms.log_posterior is None


def test_log_densities_of_the_draws_average_to_the_closed_form(x):
    model = make()
    noise = random(100_000, 4, 2, seed=2)
    with torch.no_grad():
        closed = model.terms(x, noise[:1], analytic_kl=True).kl.sum(-1)
        drawn = model.terms(x, noise, analytic_kl=False)
    assert drawn.kl is None
    gaps = drawn.log_posterior - drawn.log_prior
    assert ((drawn.divergence - closed).abs() < 5 * gaps.std(0) / 100_000**0.5).all()


def test_the_parts_are_modules_of_their_own():
    """What is learned and what is fixed is found under the name of its part."""
    units = Units(np.zeros(6), np.full(6, 2.0))
    learned = make(Gaussian(scale="feature"), prior=MixturePrior(2))
    names = {name for name, _ in learned.named_parameters()}
    assert {name for name in names if not name.startswith("network.")} == {
        "likelihood.log_scale",
        "prior.logits",
        "prior.means",
        "prior.log_variances",
    }
    fixed = make(Gaussian(scale=0.5), units=units)
    assert "likelihood.log_scale" not in dict(fixed.named_parameters())
    scale = fixed.state_dict()["likelihood.log_scale"].exp()
    torch.testing.assert_close(scale, torch.full((6,), 0.25))


def test_the_encoder_sees_the_likelihoods_inputs():
    rows = np.array([[0.0, 2, 1, 5, 0, 1], [1.0, 0, 1, 3, 1, 2]])
    mixed = Mixed((("poisson", [3]), (Categorical(3), [1, 5]), ("gaussian", [0, 2, 4])))
    model = make(mixed, rows=rows)
    assert (model.likelihood.n_inputs, model.likelihood.n_raw) == (10, 10)
    x = torch.tensor(rows, dtype=torch.float32)
    posterior = model.infer(x, torch.zeros(1, 2, 2))
    encoded = model.network.encoder(model.likelihood.see(x))
    torch.testing.assert_close(posterior.mean, encoded[:, :2])
    assert model.decode(posterior.z).shape == (1, 2, 10)
    assert model.mean(posterior.mean).shape == (2, 6)


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
        for parameter in model.prior.parameters():
            parameter.add_(0.3)
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
    noise = random(20_000, 4, model.n_noise, seed=2)
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
    z = random(3, 4, 2)
    condition = torch.eye(2)[[0, 1, 1, 0]]
    raw = model.decode(z, condition)
    beside = torch.cat([z, condition.expand(3, 4, 2)], dim=-1)
    torch.testing.assert_close(raw, model.network.decoder(beside))
    torch.testing.assert_close(model.mean(z[1], condition), torch.sigmoid(raw[1]))
    terms = model.terms(x, random(2, 4, 2), condition, analytic_kl=True)
    expected = model.likelihood.log_prob(x, model.decode(terms.z, condition))
    torch.testing.assert_close(terms.log_likelihood, expected)


def test_noise_of_the_loss_is_cut_into_its_parts(x):
    model = make(
        network=MLP(dropout=0.5),
        prior=MixturePrior(2),
        objective=WAE(),
        hidden_dim=(5, 4),
    )
    assert (model.n_noise, model.n_prior_noise) == (2, 3)
    assert (model.n_loss_noise, model.n_training_noise) == (5, 5 + 2 * 9)
    noise = random(1, 4, 23)
    loss, terms = model.loss(Batch(x, noise))
    torch.testing.assert_close(terms.prior_draws, model.draw_latent(noise[0, :, 2:5]))
    expected = model.terms(
        x, noise[..., :2], analytic_kl=True, dropout_noise=noise[..., 5:]
    )
    torch.testing.assert_close(terms.log_likelihood, expected.log_likelihood)
    whole, _ = model.loss(Batch(x, noise[..., :5]))
    assert not torch.equal(loss, whole)


def test_the_loss_is_a_function_of_weights_batch_and_noise(x):
    model = make(objective=IWAE(3))
    batch = Batch(x, random(3, 4, model.n_training_noise), n_rows=4, progress=0.3)
    (one, terms), (again, _) = model.loss(batch), model(batch)
    assert torch.equal(one, again)
    assert torch.equal(one, model.objective.loss(terms))
    assert (terms.n_rows, terms.progress) == (4, 0.3)
    state = {name: 2 * value for name, value in model.state_dict().items()}
    other, _ = torch.func.functional_call(model, state, (batch,))
    assert not torch.equal(one, other)
    assert torch.equal(model.loss(batch)[0], one)


# ------------------------------------------------------------------ missing entries


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian("row"), Poisson()])
def test_missing_entries_add_nothing_to_the_density(x, likelihood):
    model, noise = make(likelihood), random(2, 4, 2)
    observed = torch.tensor([[True, True, False, True, False, True]] * 4)
    given = x.where(observed, torch.tensor(float("nan")))
    terms = model.terms(
        given, noise, observed=observed, seen=observed, analytic_kl=True
    )
    by_column = model.likelihood.log_prob_by_column(x, model.decode(terms.z))
    expected = (by_column * observed).sum(-1)
    torch.testing.assert_close(terms.log_likelihood, expected)
    # The encoder sees them as zeros here.
    encoded = model.network.encoder(model.likelihood.see(x, observed))
    torch.testing.assert_close(terms.mean, encoded[:, :2])
    loss, _ = model.loss(Batch(given, noise, observed=observed, seen=observed))
    gradients = torch.autograd.grad(loss.sum(), list(model.network.parameters()))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_what_is_hidden_from_the_encoder_still_counts(x):
    model, noise = make(), random(2, 4, 2)
    seen = torch.tensor([[True, False, True, True, False, True]] * 4)
    terms = model.terms(x, noise, seen=seen, analytic_kl=True)
    shown = model.terms(x * seen, noise, analytic_kl=True)
    torch.testing.assert_close(terms.mean, shown.mean)
    expected = model.likelihood.log_prob(x, model.decode(terms.z))
    torch.testing.assert_close(terms.log_likelihood, expected)
    assert not torch.equal(terms.log_likelihood, shown.log_likelihood)


# ------------------------------------------------------------------ the start


def test_a_prior_over_x_starts_where_the_encoder_sees_the_data():
    rows = np.array([[0.0, 1, 4, 9, 16, 25], [2.0, 3, 8, 9, 30, 35]])
    u = make(Poisson(), prior=VampPrior(5000), rows=rows).prior.pseudo_inputs
    mean = torch.tensor(rows.mean(axis=0)).float()
    spread = torch.tensor(rows.std(axis=0)).float()
    torch.testing.assert_close(u.mean(0), torch.log1p(mean), atol=0.05, rtol=0)
    expected = torch.log1p(mean + spread) - torch.log1p(mean)
    torch.testing.assert_close(u.std(0), expected, rtol=0.05, atol=1e-6)


def test_outputs_start_at_the_mean_of_the_data():
    model = make(hidden_dim=())
    with torch.no_grad():
        mean = model.mean(torch.zeros(1, 2))
    torch.testing.assert_close(mean, torch.full((1, 6), 0.3))


def test_log_likelihoods_are_summed_in_float32(x):
    """In bfloat16 a sum over columns would be off by tenths of a nat."""
    model, noise = make(), random(3, 4, 2)
    exact = model.terms(x, noise, analytic_kl=True)
    model.network.bfloat16()
    coarse = model.terms(x, noise, analytic_kl=True)
    for name in ("log_likelihood", "kl", "mean", "z"):
        assert getattr(coarse, name).dtype == torch.float32, name
    raw = model.decode(coarse.z)
    assert raw.dtype == torch.bfloat16
    expected = model.likelihood.log_prob(x, raw.float())
    assert torch.equal(coarse.log_likelihood, expected)
    torch.testing.assert_close(
        coarse.log_likelihood, exact.log_likelihood, rtol=0.02, atol=0.02
    )


# ------------------------------------------------------------------ the check


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
    good = Choices(MLP(), Bernoulli(), StandardNormal(), ELBO())
    good.check()
    with pytest.raises(ValueError, match=message):
        replace(good, **choices).check()


def test_rows_that_are_no_whole_pixels_are_refused_by_fit():
    with pytest.raises(ValueError, match=r"64 features, .*n_channels=3"):
        VAEEstimator(likelihood=DiscretizedLogisticMixture()).fit(np.zeros((5, 64)))


# ------------------------------------------------------------------ draws


def test_mean_and_draw():
    model = make()
    z = random(5, 2)
    with torch.no_grad():
        mean = model.mean(z)
        draws = model.draw(z, torch.Generator().manual_seed(0))
    torch.testing.assert_close(mean, torch.sigmoid(model.network.decoder(z)))
    assert set(draws.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("kind", ["ladder", "vamp on a ladder"])
def test_draws_of_a_ladder_are_completed_by_the_network(kind):
    model = make(**KINDS[kind])
    noise = random(5, model.n_prior_noise)
    n_top = model.prior.n_noise
    assert model.n_prior_noise == n_top + 3
    z = model.draw_latent(noise)

    def encode(u):
        zeros = torch.zeros(1, len(u), model.n_noise)
        return model.network.infer(u, zeros).prior_gaussian()

    top = model.prior.draw(noise[:, :n_top], encode=encode)
    torch.testing.assert_close(z, model.network.complete(top, noise[:, n_top:]))
    assert torch.equal(z[:, 3:], top)

"""Three ways to the same gradients: in closed form, by autograd, and of a stack."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from torch import nn

from skvae.likelihoods import LIKELIHOODS, Gaussian
from skvae.model import Batch
from skvae.networks import MLP, ConvNet, EncoderDecoder, FlowMLP, LadderNet
from skvae.objectives import ELBO, IWAE, MIWAE, WAE, BetaTC, InfoVAE
from skvae.priors import FlowPrior, MixturePrior, VampPrior
from skvae.training.step import AutogradStep, ClosedFormStep, StackedStep, step_of
from skvae.training.weights import Weights, ordered
from skvae.units import Units
from test_model import make

N = 12
# Families whose rows are not any numbers in [0, 1].
ROWS = {
    "categorical": lambda rng: rng.integers(0, 3, (N, 6)).astype(float),
    "poisson": lambda rng: rng.poisson(3.0, (N, 6)).astype(float),
    "negative_binomial": lambda rng: rng.poisson(3.0, (N, 6)).astype(float),
    "discretized_logistic_mixture": lambda rng: rng.integers(0, 256, (N, 6)) / 255.0,
}


def rows_of(name="bernoulli", seed=0):
    rng = np.random.default_rng(seed)
    return ROWS.get(name, lambda rng: rng.uniform(0.05, 0.95, (N, 6)))(rng)


def models(n=1, likelihood=None, *, rows=None, units=None, **options):
    """Models that differ in their weights, and in their units where asked."""
    rows = rows_of() if rows is None else rows
    units = units or [None] * n
    return [
        make(likelihood, rows=rows, seed=i, units=units[i], **options) for i in range(n)
    ]


def weights_of(members, precision=torch.float32):
    """Weights of a stack of models, as the engine lays them out."""
    masters = [
        torch.cat([p.detach().flatten() for p in ordered(one).values()])
        for one in members
    ]
    named = ordered(members[0])
    n_network = sum(name.startswith("network.") for name in named)
    shapes = [tuple(p.shape) for p in named.values()]
    weights = Weights(torch.stack(masters), shapes, n_network, precision)
    weights.gradient.fill_(torch.nan)  # to be written, all of it
    return weights


def buffers_of(members):
    named = [dict(one.named_buffers()) for one in members]
    return {name: torch.stack([one[name] for one in named]) for name in named[0]}


def batch_of(members, rows, *, weighted=False, masked=False, conditions=0, **options):
    """A batch with its own rows, noise, weights and masks for each of the models."""
    generator = torch.Generator().manual_seed(0)
    M, draws = len(members), members[0].objective.n_draws
    x = torch.tensor(rows, dtype=torch.float32).expand(M, -1, -1)
    x = torch.stack([one[torch.randperm(N, generator=generator)] for one in x])
    if masked:
        options["observed"] = torch.rand(x.shape, generator=generator) > 0.3
        options["seen"] = options["observed"] & (
            torch.rand(x.shape, generator=generator) > 0.2
        )
    if weighted:
        options["weights"] = 2 * torch.rand(M, N, generator=generator)
    if conditions:
        codes = torch.randint(conditions, (M, N), generator=generator)
        options["condition"] = torch.eye(conditions)[codes]
    width = members[0].n_training_noise
    noise = torch.randn((M, draws, N, width), generator=generator)
    return Batch(x=x, noise=noise, n_rows=100, **options)


def member(batch, i):
    """The batch of one model."""
    content = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return Batch(
        **{k: v[i] if isinstance(v, torch.Tensor) else v for k, v in content.items()}
    )


def by_autograd(members, batch):
    """Losses and gradients of each model alone."""
    losses, gradients = [], []
    for i, one in enumerate(members):
        weights = weights_of([one])
        losses.append(AutogradStep(one, weights)(member(batch, i)))
        gradients.append(weights.collect()[0].clone())
    return losses, torch.stack(gradients)


def assert_step_equals_autograd(step, members, batch, tolerance=1e-4, **given):
    weights = weights_of(members)
    ours = step(members[0], weights, buffers_of(members) if len(members) > 1 else None)
    stacked = batch if len(members) > 1 else member(batch, 0)
    losses = ours(stacked, **given)
    gradients = weights.collect().clone()
    expected, slopes = by_autograd(members, batch)
    for i, alone in enumerate(expected):
        for field in fields(alone):
            got = getattr(losses, field.name)
            got = got[i] if len(members) > 1 else got
            torch.testing.assert_close(
                got, getattr(alone, field.name), rtol=1e-4, atol=1e-4
            )
    torch.testing.assert_close(gradients, slopes, rtol=tolerance, atol=tolerance / 10)


# ------------------------------------------------------------------ the closed form


@pytest.mark.parametrize("n_models", [1, 3])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", sorted(LIKELIHOODS))
def test_closed_form_equals_autograd(name, weighted, n_models):
    rows = rows_of(name)
    members = models(n_models, LIKELIHOODS[name](), rows=rows, hidden_dim=(7, 5))
    batch = batch_of(members, rows, weighted=weighted)
    assert_step_equals_autograd(ClosedFormStep, members, batch)


@pytest.mark.parametrize("n_models", [1, 3])
@pytest.mark.parametrize("hidden_dim", [(), (5,), (7, 5)], ids=str)
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("beta", [0, 4.0])
def test_closed_form_of_any_depth(beta, activation, hidden_dim, n_models):
    members = models(
        n_models,
        network=MLP(activation=activation),
        objective=ELBO(beta=beta),
        hidden_dim=hidden_dim,
    )
    batch = batch_of(members, rows_of(), weighted=True)
    given = {} if n_models == 1 else {"kl_weight": torch.full((n_models, 1), beta)}
    assert_step_equals_autograd(ClosedFormStep, members, batch, **given)


@pytest.mark.parametrize("n_models", [1, 2])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "student_t"])
def test_closed_form_with_missing_entries(likelihood, n_models):
    members = models(n_models, LIKELIHOODS[likelihood]())
    batch = batch_of(members, rows_of(), weighted=True, masked=True)
    assert_step_equals_autograd(ClosedFormStep, members, batch)


@pytest.mark.parametrize("n_models", [1, 2])
@pytest.mark.parametrize("progress", [0.0, 0.25, 1.0])
def test_closed_form_with_conditions_and_a_warm_up(progress, n_models):
    members = models(n_models, objective=ELBO(beta=3, warmup=0.5), n_conditions=3)
    batch = batch_of(members, rows_of(), conditions=3, progress=progress)
    assert_step_equals_autograd(ClosedFormStep, members, batch)


def test_closed_form_where_the_variance_is_at_its_bound():
    members = models(2)
    for one in members:
        with torch.no_grad():
            one.network.encoder[-1].bias[2:] = torch.tensor([99.0, -99.0])
    for some in (members[:1], members):
        batch = batch_of(some, rows_of())
        assert_step_equals_autograd(ClosedFormStep, some, batch)


@pytest.mark.parametrize("n_models", [1, 2])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_closed_form_in_bfloat16(likelihood, n_models):
    members = models(n_models, LIKELIHOODS[likelihood](), hidden_dim=(7, 5))
    batch = batch_of(members, rows_of(), weighted=True)
    weights = weights_of(members, torch.bfloat16)
    buffers = buffers_of(members) if n_models > 1 else None
    step = ClosedFormStep(members[0], weights, buffers)
    step(batch if n_models > 1 else member(batch, 0))
    assert weights.gradients[0].dtype == torch.bfloat16
    ours = weights.collect().clone()
    for i, one in enumerate(
        models(n_models, LIKELIHOODS[likelihood](), hidden_dim=(7, 5))
    ):
        low = weights_of([one], torch.bfloat16)
        AutogradStep(one, low)(member(batch, i))
        torch.testing.assert_close(ours[i], low.collect()[0], rtol=0.05, atol=0.1)


# ------------------------------------------------------------------ stacks

# One choice of each kind that a stack has to carry through vmap.
CHOICES = {
    "iwae": {"objective": IWAE(k=3)},
    "doubly reparameterized": {
        "objective": IWAE(k=3, gradient="doubly_reparameterized")
    },
    "miwae": {"objective": MIWAE(m=2, k=3, gradient="doubly_reparameterized")},
    "infovae": {"objective": InfoVAE()},
    "wae": {"objective": WAE(kernel="rbf"), "prior": VampPrior(3)},
    "beta_tc": {"objective": BetaTC()},
    "free bits": {"objective": ELBO(free_bits=0.1)},
    "capacity": {"objective": ELBO(capacity=2.0)},
    "mixture": {"prior": MixturePrior(3)},
    "vamp": {"prior": VampPrior(3)},
    "flow prior": {"prior": FlowPrior(1, 4)},
    "gelu": {"network": MLP("gelu", layer_norm=True)},
    "dropout": {"network": MLP(dropout=0.3)},
    "conv": {"network": ConvNet((4,), image_shape=(2, 3))},
    "flow": {"network": FlowMLP(1), "hidden_dim": (4,)},
    "ladder": {"network": LadderNet(), "latent_dim": (2, 1), "hidden_dim": (5, 4)},
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("choice", CHOICES)
def test_a_stack_has_the_gradients_of_its_members(choice, weighted):
    members = models(3, Gaussian(), **CHOICES[choice])
    batch = batch_of(members, rows_of(), weighted=weighted)
    assert_step_equals_autograd(StackedStep, members, batch)


def test_the_doubly_reparameterized_gradient_is_another_one_in_a_stack_as_well():
    """A stack must not leave out what reaches the encoder through a hook."""
    gradients = []
    for gradient in ("standard", "doubly_reparameterized"):
        members = models(2, objective=IWAE(k=3, gradient=gradient))
        weights = weights_of(members)
        StackedStep(members[0], weights, buffers_of(members))(
            batch_of(members, rows_of())
        )
        gradients.append(weights.collect().clone())
    assert (gradients[0] - gradients[1]).abs().max() > 0.1


@pytest.mark.parametrize("step", [ClosedFormStep, StackedStep])
def test_a_fixed_scale_is_that_of_each_members_units(step):
    units = [Units(np.zeros(6), np.full(6, scale)) for scale in (0.5, 2.0, 8.0)]
    members = models(3, Gaussian(scale=0.7), units=units)
    assert len({float(one.likelihood.log_scale[0]) for one in members}) == 3
    batch = batch_of(members, rows_of(), weighted=True)
    assert_step_equals_autograd(step, members, batch)


@pytest.mark.parametrize("name", sorted(LIKELIHOODS))
def test_every_likelihood_goes_into_a_stack(name):
    rows = rows_of(name)
    members = models(2, LIKELIHOODS[name](), rows=rows, prior=MixturePrior(2))
    batch = batch_of(members, rows, weighted=True, masked=name != "categorical")
    assert_step_equals_autograd(StackedStep, members, batch)


def test_a_stack_with_conditions_and_missing_entries():
    members = models(2, Gaussian(), n_conditions=3, objective=IWAE(k=2))
    batch = batch_of(members, rows_of(), weighted=True, masked=True, conditions=3)
    assert_step_equals_autograd(StackedStep, members, batch)


# ------------------------------------------------------------------ the derivative


@pytest.mark.parametrize("step", [AutogradStep, ClosedFormStep, StackedStep])
def test_gradients_are_the_derivative_of_the_weighted_loss(step):
    """By finite differences, of every fourth weight, in float64."""
    n_models = 1 if step is AutogradStep else 2
    members = [one.double() for one in models(n_models, Gaussian(scale="feature"))]
    batch = batch_of(members, rows_of(), weighted=True)
    content = {f.name: getattr(batch, f.name) for f in fields(batch)}
    batch = Batch(
        **{k: v.double() if torch.is_tensor(v) else v for k, v in content.items()}
    )
    weights = weights_of(members)
    if n_models == 1:
        step(members[0], weights)(member(batch, 0))
    else:
        step(members[0], weights, buffers_of(members))(batch)
    slopes = weights.collect().clone()
    rows, columns = weights.master.shape

    def total(i):
        one = models(n_models, Gaussian(scale="feature"))[i].double()
        start = 0
        for parameter in ordered(one).values():
            stop = start + parameter.numel()
            parameter.data = weights.master[i, start:stop].view_as(parameter).clone()
            start = stop
        with torch.no_grad():
            loss, _ = one.loss(member(batch, i))
        return float(loss @ batch.weights[i])

    checked = 0
    for i in range(rows):
        for j in range(0, columns, 4):
            before = weights.master[i, j].item()
            weights.master[i, j] = before + 1e-3
            above = total(i)
            weights.master[i, j] = before - 1e-3
            below = total(i)
            weights.master[i, j] = before
            # The encoder's outputs are float32, hence no more digits.
            assert float(slopes[i, j]) == pytest.approx(
                (above - below) / 2e-3, rel=2e-2, abs=2e-2
            )
            checked += abs(above - below) > 1e-4
    assert checked > 15 * rows


# ------------------------------------------------------------------ which step


def plain_linear(n_in, n_out):
    layer = nn.utils.skip_init(nn.Linear, n_in, n_out)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(0.1)
    return layer


def pair(encoder, decoder):
    return make(network=EncoderDecoder(encoder, decoder), rows=rows_of())


@pytest.mark.parametrize("n_models", [1, 2])
def test_frozen_weights_stay_as_they_are(n_models):
    encoder = plain_linear(6, 4).requires_grad_(False)
    network = EncoderDecoder(nn.Sequential(encoder), nn.Sequential(plain_linear(2, 6)))
    members = models(n_models, network=network)
    weights = weights_of(members)
    weights.gradient.zero_()
    step = step_of(members[0], weights, buffers_of(members))
    assert type(step) is (AutogradStep if n_models == 1 else StackedStep)
    batch = batch_of(members, rows_of())
    step(member(batch, 0) if n_models == 1 else batch)
    assert [bool(gradient.any()) for gradient in weights.gradients] == [
        *(False, False),
        *(True, True),
    ]


def test_a_layer_that_is_used_twice_is_left_to_autograd():
    twice = plain_linear(6, 6)
    encoder = nn.Sequential(twice, nn.ReLU(), twice, nn.ReLU(), plain_linear(6, 4))
    model = pair(encoder, nn.Sequential(plain_linear(2, 6)))
    assert not ClosedFormStep.applies_to(model)
    once = nn.Sequential(plain_linear(6, 6), nn.ReLU(), plain_linear(6, 4))
    assert ClosedFormStep.applies_to(pair(once, nn.Sequential(plain_linear(2, 6))))


class Another(ELBO):
    """An objective of the user's, which says nothing of a closed form."""

    def kl_weight(self, progress):
        return None


def test_a_model_whose_choices_offer_it_has_the_closed_form_and_others_autograd():
    def kinds(**choices):
        one, two = models(1, **choices), models(2, **choices)
        return (
            type(step_of(one[0], weights_of(one))),
            type(step_of(two[0], weights_of(two), buffers_of(two))),
        )

    for choices in (
        {},
        {"objective": ELBO(beta=2, warmup=0.5)},
        {"likelihood": Gaussian()},
    ):
        assert kinds(**choices) == (ClosedFormStep, ClosedFormStep)
    for choices in (
        {"objective": Another()},
        {"objective": ELBO(free_bits=1)},
        {"objective": ELBO(capacity=1)},
        {"objective": IWAE(k=2)},
        {"prior": MixturePrior(2)},
        {"network": MLP(activation="gelu")},
        {"network": MLP(layer_norm=True)},
        {"network": MLP(dropout=0.1)},
        {"network": ConvNet((2,), image_shape=(2, 3))},
    ):
        assert kinds(**choices) == (AutogradStep, StackedStep)

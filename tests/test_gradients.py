from dataclasses import fields

import pytest
import torch
from torch import nn

from skvae.gradients import AutogradStep, ExplicitStep, gradient_step
from skvae.likelihoods import LIKELIHOODS, Gaussian
from skvae.model import Batch
from skvae.networks import MLP, ConvNet, EncoderDecoder
from skvae.objectives import ELBO, IWAE
from skvae.priors import MixturePrior
from test_model import make


def both_ways(model, *, dtype=torch.float32, weighted=True):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(16, 6, generator=generator).to(dtype)
    noise = torch.randn(1, 16, 2, generator=generator)
    weights = torch.rand(16, generator=generator) if weighted else None
    results = []
    for step in (AutogradStep, ExplicitStep):
        gradients = [torch.full_like(p, torch.nan) for p in model.parameters()]
        rows = step(model, gradients)(Batch(x, noise, weights))
        results.append((rows, gradients))
    return results


@pytest.mark.parametrize("hidden_dim", [(), (5,), (7, 5)], ids=str)
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("beta", [0, 1, 4.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", sorted(LIKELIHOODS))
def test_by_hand_equals_autograd(name, weighted, beta, activation, hidden_dim):
    model = make(
        LIKELIHOODS[name](),
        network=MLP(activation=activation),
        objective=ELBO(beta=beta),
        hidden_dim=hidden_dim,
    )
    (rows, expected), (by_hand, gradients) = both_ways(model, weighted=weighted)
    for field in fields(rows):
        torch.testing.assert_close(
            getattr(by_hand, field.name), getattr(rows, field.name)
        )
    for gradient, value in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, value, rtol=1e-4, atol=1e-5)


def test_by_hand_equals_autograd_where_the_variance_is_at_its_bound():
    model = make()
    with torch.no_grad():
        model.network.encoder[-1].bias[2:] = torch.tensor([99.0, -99.0])
    (_, expected), (_, gradients) = both_ways(model)
    for gradient, value in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, value, rtol=1e-4, atol=1e-4)


def test_by_hand_equals_autograd_in_bfloat16():
    model = make()
    model.network.to(torch.bfloat16)
    (_, expected), (_, gradients) = both_ways(model, dtype=torch.bfloat16)
    for gradient, value in zip(gradients, expected, strict=True):
        assert gradient.dtype == torch.bfloat16
        torch.testing.assert_close(gradient, value, rtol=0.05, atol=0.05)


def test_autograd_is_the_derivative_of_the_weighted_loss():
    model = make(Gaussian()).double()
    x = torch.rand(3, 6, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(1, 3, 2, generator=torch.Generator().manual_seed(1)).double()
    weights = torch.tensor([0.2, 0.0, 1.3], dtype=torch.double)
    gradients = [torch.empty_like(p) for p in model.parameters()]
    AutogradStep(model, gradients)(Batch(x, noise, weights))

    def total():
        with torch.no_grad():
            return (model.loss(Batch(x, noise))[0] * weights).sum()

    parameter = model.network.decoder[-1].bias
    for i in range(3):
        with torch.no_grad():
            parameter[i] += 1e-4
            above = total()
            parameter[i] -= 2e-4
            below = total()
            parameter[i] += 1e-4
        index = [p is parameter for p in model.parameters()].index(True)
        # The encoder's outputs are float32, hence no more digits.
        slope = (above - below) / 2e-4
        torch.testing.assert_close(gradients[index][i], slope, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("progress", [0.0, 0.25, 1.0])
def test_by_hand_equals_autograd_with_conditions_and_a_warm_up(progress):
    model = make(objective=ELBO(beta=3, warmup=0.5), n_conditions=3)
    generator = torch.Generator().manual_seed(0)
    batch = Batch(
        torch.rand(16, 6, generator=generator),
        torch.randn(1, 16, 2, generator=generator),
        condition=torch.eye(3)[torch.arange(16) % 3],
        progress=progress,
    )
    results = []
    for step in (AutogradStep, ExplicitStep):
        gradients = [torch.full_like(p, torch.nan) for p in model.parameters()]
        results.append((step(model, gradients)(batch), gradients))
    (rows, expected), (by_hand, gradients) = results
    torch.testing.assert_close(by_hand.loss, rows.loss)
    for gradient, value in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, value, rtol=1e-4, atol=1e-5)


def pair(encoder, decoder):
    return make(network=EncoderDecoder(encoder, decoder))


def plain_linear(n_in, n_out):
    layer = nn.utils.skip_init(nn.Linear, n_in, n_out)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(0.1)
    return layer


def test_frozen_weights_stay_as_they_are():
    encoder, decoder = plain_linear(6, 4), plain_linear(2, 6)
    encoder.requires_grad_(False)
    model = pair(nn.Sequential(encoder), nn.Sequential(decoder))
    gradients = [torch.full_like(p, torch.nan) for p in model.parameters()]
    step = gradient_step(model, gradients)
    assert type(step) is AutogradStep
    step(Batch(torch.rand(3, 6, generator=torch.Generator()), torch.ones(1, 3, 2)))
    zero = [not gradient.any() for gradient in gradients]
    assert zero == [True, True, False, False]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_a_layer_that_is_used_twice_is_left_to_autograd():
    twice = plain_linear(6, 6)
    encoder = nn.Sequential(twice, nn.ReLU(), twice, nn.ReLU(), plain_linear(6, 4))
    model = pair(encoder, nn.Sequential(plain_linear(2, 6)))
    assert not ExplicitStep.applies_to(model)
    once = nn.Sequential(plain_linear(6, 6), nn.ReLU(), plain_linear(6, 4))
    assert ExplicitStep.applies_to(pair(once, nn.Sequential(plain_linear(2, 6))))


def test_the_default_model_goes_by_hand_and_others_by_autograd():
    class AnotherObjective(ELBO):
        pass

    def kind(model):
        return type(gradient_step(model, list(model.parameters())))

    assert kind(make()) is ExplicitStep
    assert kind(make(objective=ELBO(beta=2, warmup=0.5))) is ExplicitStep
    for choices in (
        {"objective": AnotherObjective()},
        {"objective": ELBO(free_bits=1)},
        {"objective": ELBO(capacity=1)},
        {"objective": IWAE(k=2)},
        {"prior": MixturePrior(2)},
        {"network": MLP(activation="gelu")},
        {"network": MLP(layer_norm=True)},
        {"network": MLP(dropout=0.1)},
        {"network": ConvNet((2,), image_shape=(2, 3))},
    ):
        assert kind(make(**choices)) is AutogradStep

from dataclasses import fields

import pytest
import torch

from skvae.gradients import AutogradStep, ExplicitStep, gradient_step
from skvae.likelihoods import LIKELIHOODS, Gaussian
from skvae.model import Batch
from skvae.networks import MLP
from skvae.objectives import ELBO
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


def test_the_default_model_goes_by_hand_and_others_by_autograd():
    class AnotherObjective(ELBO):
        pass

    def kind(model):
        return type(gradient_step(model, list(model.parameters())))

    assert kind(make()) is ExplicitStep
    assert kind(make(objective=AnotherObjective())) is AutogradStep

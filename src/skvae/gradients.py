"""Gradients of the loss: by autograd for any model, by hand for the default one.

The default model (fully connected network, ELBO, standard normal prior) spends a third
of an autograd step outside its matrix products. Its chain rule is short, so it is
written out here, with every gradient landing where the optimiser reads it. Both ways
give the same numbers; a test holds that.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .model import Model
from .networks import MAX_LOG_VARIANCE, MLPModule
from .objectives import ELBO, Terms
from .priors import StandardNormal


class AutogradStep:
    """Gradients by automatic differentiation.

    Parameters
    ----------
    model : Model
    gradients : sequence of Tensor
        Where to write, one per parameter of the model, in their order.
    """

    def __init__(self, model: Model, gradients: Sequence[Tensor]):
        self.model = model
        self.parameters = list(model.parameters())
        self.gradients = gradients

    def __call__(
        self, x: Tensor, noise: Tensor, row_weights: Tensor
    ) -> tuple[Tensor, Terms]:
        """Write the gradient of ``(loss * row_weights).sum()``; return loss, terms."""
        terms = self.model.training_terms(x, noise)
        loss = self.model.objective.loss(terms)
        values = torch.autograd.grad(
            (loss * row_weights).sum(), self.parameters, allow_unused=True
        )
        for gradient, value in zip(self.gradients, values, strict=True):
            if value is None:
                gradient.zero_()
            else:
                gradient.copy_(value)
        return loss.detach(), terms


class ExplicitStep:
    """Gradients of an MLP's ELBO by hand; called as :class:`AutogradStep` is."""

    def __init__(self, model: Model, gradients: Sequence[Tensor]):
        assert isinstance(model.objective, ELBO)
        self.model = model
        self.beta = model.objective.beta
        into: dict[Tensor, Tensor] = dict(
            zip(model.parameters(), gradients, strict=True)
        )
        self.encoder = _Layers(model.network.encoder, into)
        self.decoder = _Layers(model.network.decoder, into)
        self.learned = list(model.likelihood_parameters.values())
        self.learned_gradients = [into[parameter] for parameter in self.learned]

    @staticmethod
    def applies_to(model: Model) -> bool:
        return (
            type(model.network) is MLPModule
            and type(model.objective) is ELBO
            and type(model.prior) is StandardNormal
        )

    def __call__(
        self, x: Tensor, noise: Tensor, row_weights: Tensor
    ) -> tuple[Tensor, Terms]:
        model, dtype = self.model, self.model.dtype
        with torch.no_grad():
            encoded = self.encoder.forward(x.to(dtype))
            mean, log_variance = encoded.float().chunk(2, dim=-1)
            bounded = log_variance.clamp(-MAX_LOG_VARIANCE, MAX_LOG_VARIANCE)
            deviation = torch.exp(0.5 * bounded).mul_(noise[0])
            raw = self.decoder.forward((mean + deviation).to(dtype))
            kl = model.prior.kl(mean, bounded)

        # The likelihood alone is left to autograd: any likelihood will do.
        raw.requires_grad_()
        outputs = raw.unflatten(-1, (-1, model.network.n_outputs))
        log_likelihood = model.log_likelihood(x, outputs)
        slope, *learned = torch.autograd.grad(
            log_likelihood, [raw, *self.learned], -row_weights
        )

        with torch.no_grad():
            for gradient, value in zip(self.learned_gradients, learned, strict=True):
                gradient.copy_(value)
            slope = self.decoder.backward(slope).float()
            kl_weights = (self.beta * row_weights).unsqueeze(-1)
            mean_slope = torch.addcmul(slope, kl_weights, mean)
            # d kl / d log_variance = (exp(log_variance) - 1) / 2
            variance_slope = slope.mul_(deviation).addcmul_(
                kl_weights, torch.expm1(bounded)
            )
            variance_slope.mul_(0.5).mul_(log_variance == bounded)
            self.encoder.backward(
                torch.cat([mean_slope, variance_slope], dim=-1).to(dtype),
                need_input=False,
            )
        log_likelihood = log_likelihood.detach()
        terms = Terms(log_likelihood=log_likelihood.unsqueeze(0), mean=mean, kl=kl)
        return self.beta * kl - log_likelihood, terms


class _Layers:
    """A stack of linear layers that keeps what its backward pass needs."""

    def __init__(self, layers: nn.Sequential, into: dict[Tensor, Tensor]):
        linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
        self.weights = [layer.weight.detach() for layer in linear]
        self.biases = [layer.bias.detach() for layer in linear]
        self.weight_gradients = [into[layer.weight] for layer in linear]
        self.bias_gradients = [into[layer.bias] for layer in linear]
        # With a single linear layer there is no activation to ask for.
        self.tanh = any(isinstance(layer, nn.Tanh) for layer in layers)
        self.inputs: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.inputs = [x]
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.addmm(bias, x, weight.t())
            if i < last:
                x = x.tanh_() if self.tanh else x.relu_()
                self.inputs.append(x)
        return x

    def backward(self, slope: Tensor, *, need_input: bool = True) -> Tensor:
        """From d loss / d output: write all gradients, return d loss / d input."""
        for i in reversed(range(len(self.weights))):
            x = self.inputs[i]
            torch.mm(slope.t(), x, out=self.weight_gradients[i])
            torch.sum(slope, 0, out=self.bias_gradients[i])
            if i == 0 and not need_input:
                break
            slope = slope.mm(self.weights[i])
            if i > 0 and self.tanh:
                slope = torch.ops.aten.tanh_backward(slope, x)
            elif i > 0:
                slope = torch.ops.aten.threshold_backward(slope, x, 0)
        return slope


def gradient_step(
    model: Model, gradients: Sequence[Tensor]
) -> AutogradStep | ExplicitStep:
    """The fastest correct way for this model."""
    step = ExplicitStep if ExplicitStep.applies_to(model) else AutogradStep
    return step(model, gradients)

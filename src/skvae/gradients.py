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
        self, x: Tensor, noise: Tensor, row_weights: Tensor | None
    ) -> tuple[Tensor, Terms]:
        """Write the gradient of the weighted sum of losses; return losses and terms."""
        with torch.enable_grad():
            terms = self.model.training_terms(x, noise)
            loss = self.model.objective.loss(terms)
            total = loss.sum() if row_weights is None else loss @ row_weights
        values = torch.autograd.grad(total, self.parameters, allow_unused=True)
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
        # Looked up once: a step is short enough to notice.
        self.dtype = model.dtype
        self.arguments = model.likelihood_arguments()
        self.n_outputs = model.likelihood.n_outputs
        into: dict[Tensor, Tensor] = dict(
            zip(model.parameters(), gradients, strict=True)
        )
        self.encoder = _Layers(model.network.encoder, into)
        self.decoder = _Layers(model.network.decoder, into)
        self.likelihood_gradients = {
            name: into[parameter]
            for name, parameter in model.likelihood_parameters.items()
        }

    @staticmethod
    def applies_to(model: Model) -> bool:
        return (
            type(model.network) is MLPModule
            and type(model.objective) is ELBO
            and type(model.prior) is StandardNormal
        )

    @torch.no_grad()
    def __call__(
        self, x: Tensor, noise: Tensor, row_weights: Tensor | None
    ) -> tuple[Tensor, Terms]:
        model, dtype = self.model, self.dtype
        encoded = self.encoder.forward(x.to(dtype)).float()
        mean, log_variance = encoded.chunk(2, dim=-1)
        bounded = log_variance.clamp(-MAX_LOG_VARIANCE, MAX_LOG_VARIANCE)
        deviation = torch.exp(0.5 * bounded).mul_(noise[0])
        raw = self.decoder.forward((mean + deviation).to(dtype))
        # The closed form of StandardNormal.kl, of which expm1 is half a gradient too.
        expm1 = torch.expm1(bounded)
        kl = (mean.square() + expm1).sub_(bounded).sum(-1).mul_(0.5)
        reconstruction, slope, learned = model.likelihood.reconstruction_and_gradient(
            x,
            raw.unflatten(-1, (-1, self.n_outputs)),
            row_weights,
            **self.arguments,
        )

        for name, gradient in learned.items():
            self.likelihood_gradients[name].copy_(gradient)
        slope = self.decoder.backward(slope.flatten(-2)).float()
        # d kl / d mean = mean, d kl / d log_variance = expm1 / 2
        slopes = torch.cat([mean, expm1.mul_(0.5)], dim=-1)
        if row_weights is not None:
            slopes.mul_(row_weights.unsqueeze(-1))
        by_noise = deviation.mul_(0.5).mul_(slope)
        slopes = torch.cat([slope, by_noise], dim=-1).add_(slopes, alpha=self.beta)
        slopes[:, mean.shape[1] :].mul_(log_variance == bounded)
        self.encoder.backward(slopes.to(dtype), need_input=False)
        terms = Terms(log_likelihood=-reconstruction.unsqueeze(0), mean=mean, kl=kl)
        return reconstruction + self.beta * kl, terms


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

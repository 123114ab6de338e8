"""Gradients of the loss: by autograd for any model, by hand for the default one.

The default model (fully connected network, ELBO, standard normal prior) spends a third
of an autograd step outside its matrix products. Its chain rule is short, so it is
written out here, with every gradient landing where the optimiser reads it. Both ways
give the same numbers; a test holds that.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .model import Batch, Model
from .networks import MAX_LOG_VARIANCE, MLPModule
from .objectives import ELBO
from .priors import StandardNormal


@dataclass(frozen=True)
class Rows:
    """What a step came to, by row, in nats: (N,), and the posterior means (N, L)."""

    loss: Tensor
    reconstruction: Tensor
    kl: Tensor
    mean: Tensor


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
        pairs = list(zip(model.parameters(), gradients, strict=True))
        self.trained = [(p, gradient) for p, gradient in pairs if p.requires_grad]
        for parameter, gradient in pairs:
            if not parameter.requires_grad:
                gradient.zero_()

    def __call__(self, batch: Batch) -> Rows:
        """Write the gradient of the weighted sum of the losses of the rows."""
        with torch.enable_grad():
            loss, terms = self.model.loss(batch)
            total = loss.sum() if batch.weights is None else loss @ batch.weights
        parameters = [parameter for parameter, _ in self.trained]
        values = torch.autograd.grad(total, parameters, allow_unused=True)
        for (_, gradient), value in zip(self.trained, values, strict=True):
            if value is None:
                gradient.zero_()
            else:
                gradient.copy_(value)
        return Rows(
            loss.detach(),
            terms.reconstruction.detach(),
            terms.divergence.detach(),
            terms.mean.detach(),
        )


class ExplicitStep:
    """Gradients of an MLP's ELBO by hand; called as :class:`AutogradStep` is."""

    def __init__(self, model: Model, gradients: Sequence[Tensor]):
        assert isinstance(model.objective, ELBO)
        self.model = model
        self.objective = model.objective
        # Looked up once: a step is short enough to notice.
        self.dtype = model.dtype
        self.arguments = model.likelihood_arguments()
        self.n_outputs = model.likelihood.n_outputs
        into: dict[Tensor, Tensor] = dict(
            zip(model.parameters(), gradients, strict=True)
        )
        self.encoder = Layers(model.network.encoder, into)
        self.decoder = Layers(model.network.decoder, into)
        self.likelihood_gradients = {
            name: into[parameter]
            for name, parameter in model.likelihood_parameters.items()
        }

    @staticmethod
    def applies_to(model: Model) -> bool:
        network, objective = model.network, model.objective
        return (
            type(network) is MLPModule
            and not network.dropout
            and all(parameter.requires_grad for parameter in network.parameters())
            and Layers.understands(network.encoder)
            and Layers.understands(network.decoder)
            and type(objective) is ELBO
            and objective.is_weighted_sum
            and type(model.prior) is StandardNormal
        )

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Rows:
        model, dtype, row_weights = self.model, self.dtype, batch.weights
        seen = model.likelihood.network_input(batch.x)
        encoded = self.encoder.forward(seen.to(dtype)).float()
        mean, log_variance = encoded.chunk(2, dim=-1)
        width = mean.shape[1]
        bounded = log_variance.clamp(-MAX_LOG_VARIANCE, MAX_LOG_VARIANCE)
        deviation = torch.exp(0.5 * bounded).mul_(batch.noise[0])
        z = mean + deviation
        if batch.condition is not None:
            z = torch.cat([z, batch.condition], dim=-1)
        raw = self.decoder.forward(z.to(dtype))
        # The closed form of StandardNormal.kl, of which expm1 is half a gradient too.
        expm1 = torch.expm1(bounded)
        kl = (mean.square() + expm1).sub_(bounded).sum(-1).mul_(0.5)
        reconstruction, slope, learned = model.likelihood.reconstruction_and_gradient(
            batch.x,
            raw.unflatten(-1, (-1, self.n_outputs)),
            row_weights,
            **self.arguments,
        )

        for name, gradient in learned.items():
            self.likelihood_gradients[name].copy_(gradient)
        slope = self.decoder.backward(slope.flatten(-2))[:, :width].float()
        # d kl / d mean = mean, d kl / d log_variance = expm1 / 2
        slopes = torch.cat([mean, expm1.mul_(0.5)], dim=-1)
        if row_weights is not None:
            slopes.mul_(row_weights.unsqueeze(-1))
        by_noise = deviation.mul_(0.5).mul_(slope)
        weight = self.objective.kl_weight(batch.progress)
        slopes = torch.cat([slope, by_noise], dim=-1).add_(slopes, alpha=weight)
        slopes[:, width:].mul_(log_variance == bounded)
        self.encoder.backward(slopes.to(dtype), need_input=False)
        return Rows(reconstruction + weight * kl, reconstruction, kl, mean)


class Layers:
    """Linear layers in a row that keep what their backward pass needs."""

    def __init__(self, layers: nn.Sequential, into: dict[Tensor, Tensor]):
        linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
        self.weights = [layer.weight.detach() for layer in linear]
        self.biases = [layer.bias.detach() for layer in linear]
        self.weight_gradients = [into[layer.weight] for layer in linear]
        self.bias_gradients = [into[layer.bias] for layer in linear]
        # With a single linear layer there is no activation to ask for.
        self.tanh = any(isinstance(layer, nn.Tanh) for layer in layers)
        self.inputs: list[Tensor] = []

    @staticmethod
    def understands(layers: nn.Module) -> bool:
        """Linear layers with nothing but ReLU, or nothing but tanh, in between."""
        if type(layers) is not nn.Sequential:
            return False
        kinds = [type(layer) for layer in layers]
        return (
            len(kinds) % 2 == 1
            and len(set(layers[::2])) == len(layers[::2])  # none is there twice
            and all(kind is nn.Linear for kind in kinds[::2])
            and all(layer.bias is not None for layer in layers[::2])
            and set(kinds[1::2]) in (set(), {nn.ReLU}, {nn.Tanh})
        )

    def affine(self, bias: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """What a layer does."""
        return torch.addmm(bias, x, weight.t())

    def write_gradients(self, i: int, slope: Tensor, x: Tensor) -> None:
        """The gradients of layer i, from that of its output and its input."""
        torch.mm(slope.t(), x, out=self.weight_gradients[i])
        torch.sum(slope, 0, out=self.bias_gradients[i])

    def forward(self, x: Tensor) -> Tensor:
        self.inputs = [x]
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = self.affine(bias, x, weight)
            if i < last:
                x = x.tanh_() if self.tanh else x.relu_()
                self.inputs.append(x)
        return x

    def backward(self, slope: Tensor, *, need_input: bool = True) -> Tensor:
        """From d loss / d output: write all gradients, return d loss / d input."""
        for i in reversed(range(len(self.weights))):
            x = self.inputs[i]
            self.write_gradients(i, slope, x)
            if i == 0 and not need_input:
                break
            slope = slope @ self.weights[i]
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

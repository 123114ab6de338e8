"""Gradients of the loss: by autograd for any model, in closed form for the default one.

The default model (fully connected network, ELBO, standard normal prior) spends a third
of an autograd step outside its matrix products. Its chain rule is short, so it is
written out here, with every gradient landing where the optimiser reads it. All ways
give the same numbers; a test holds that.

Every step takes a batch of one model, or of M models side by side with a leading axis M
on every tensor.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ..model import Batch, Model
from ..networks import MAX_LOG_VARIANCE
from .weights import Weights, ordered, point_at


@dataclass(frozen=True)
class Losses:
    """What a step came to, by row, in nats: (..., N), and the means (..., N, L)."""

    loss: Tensor
    reconstruction: Tensor
    kl: Tensor
    mean: Tensor


def summed(losses: Losses, weights: Tensor | None) -> Tensor:
    """Loss, reconstruction and KL, each a weighted sum over the rows, (..., 3)."""
    parts = torch.stack([losses.loss, losses.reconstruction, losses.kl], -1)
    if weights is not None:
        parts = parts * weights.unsqueeze(-1)
    return parts.sum(-2)


class AutogradStep:
    """The gradient of one model by automatic differentiation.

    Parameters
    ----------
    module : Model
    weights : Weights
        What it computes with, and where the gradients go.
    """

    def __init__(self, module: Model, weights: Weights) -> None:
        self.module = module
        point_at(module, weights.values)
        pairs = zip(ordered(module).values(), weights.gradients, strict=True)
        self.trained = [(p, g) for p, g in pairs if p.requires_grad]

    def __call__(self, batch: Batch) -> Losses:
        """Write the gradient of the weighted sum of the losses of the rows."""
        with torch.enable_grad():
            loss, terms = self.module.loss(batch)
            total = loss.sum() if batch.weights is None else loss @ batch.weights
        parameters = [parameter for parameter, _ in self.trained]
        values = torch.autograd.grad(total, parameters, allow_unused=True)
        for (_, gradient), value in zip(self.trained, values, strict=True):
            if value is None:
                gradient.zero_()
            else:
                gradient.copy_(value)
        return Losses(
            loss.detach(),
            terms.reconstruction.detach(),
            terms.divergence.detach(),
            terms.mean.detach(),
        )


class StackedStep:
    """The gradients of M models of one shape, by a vectorised gradient function."""

    def __init__(
        self, module: Model, weights: Weights, buffers: dict[str, Tensor] | None = None
    ) -> None:
        self.module = module
        named = ordered(module)
        self.names = list(named)
        self.values, self.gradients = weights.values, weights.gradients
        self.buffers = buffers or {}
        self.trained = [name for name in named if named[name].requires_grad]
        self.gradient = torch.func.vmap(
            torch.func.grad(self._total, has_aux=True), in_dims=(0, 0, 0, None)
        )

    def _total(
        self,
        trained: dict[str, Tensor],
        fixed: dict[str, Tensor],
        tensors: dict[str, Any],
        others: dict[str, Any],
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        batch = Batch(**tensors, **others)
        loss, terms = torch.func.functional_call(
            self.module, {**trained, **fixed}, (batch,)
        )
        total = loss.sum() if batch.weights is None else loss @ batch.weights
        return total, (loss, terms.reconstruction, terms.divergence, terms.mean)

    def __call__(self, batch: Batch) -> Losses:
        """Write the gradient of the weighted sum of the losses of each model's rows."""
        content = {f.name: getattr(batch, f.name) for f in fields(batch)}
        tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)}
        others = {k: v for k, v in content.items() if k not in tensors}
        values = dict(zip(self.names, self.values, strict=True))
        trained = {name: values.pop(name) for name in self.trained}
        fixed = {**values, **self.buffers}
        gradients, losses = self.gradient(trained, fixed, tensors, others)
        into = dict(zip(self.names, self.gradients, strict=True))
        for name, gradient in gradients.items():
            into[name].copy_(gradient)
        return Losses(*(part.detach() for part in losses))


class ClosedFormStep:
    """The gradients of M >= 1 networks of linear layers under the ELBO.

    Parameters
    ----------
    module : Model
        One of the models, for what they have in common.
    weights : Weights
    """

    def __init__(
        self, module: Model, weights: Weights, buffers: dict[str, Tensor] | None = None
    ) -> None:
        chains = module.network.chains()
        assert chains is not None
        self.module, self.stacked = module, len(weights.master) > 1
        self.objective, self.prior = module.objective, module.prior
        n_encoder, n_network = 2 * len(chains.encoder), weights.n_network
        parts = slice(n_encoder), slice(n_encoder, n_network)
        layers = StackedLayers if self.stacked else Layers
        self.encoder, self.decoder = (
            layers(weights.values[part], weights.gradients[part], tanh)
            for part, tanh in zip(parts, chains.tanh, strict=True)
        )
        self.dtype = self.encoder.weights[0].dtype
        self.gradients = weights.gradients[n_network:]
        # What is learned beside the network, and what is fixed in the likelihood.
        learned = weights.values[n_network:]
        names = [name for name, _ in module.likelihood.named_parameters()]
        self.learned = dict(zip(names, learned, strict=True))
        prefix = "likelihood."
        self.fixed = {
            name.removeprefix(prefix): value
            for name, value in (buffers or {}).items()
            if name.startswith(prefix)
        }
        if not self.stacked:
            point_at(module, weights.values)
        self.parameters = dict(module.likelihood.named_parameters())

    @staticmethod
    def applies_to(module: Model) -> bool:
        """Whether all four choices offer their closed form."""
        point = torch.zeros(1, module.latent_dim, device=module.device)
        return (
            module.network.chains() is not None
            and module.objective.kl_weight(1.0) is not None
            and module.objective.n_draws == 1
            and module.prior.closed_form(point, point) is not None
        )

    @torch.no_grad()
    def __call__(self, batch: Batch, kl_weight: Any = None) -> Losses:
        """Write the gradients of the weighted sums of the losses of the rows.

        ``kl_weight`` may differ between the models, (M, 1).
        """
        weights = batch.weights
        if kl_weight is None:
            kl_weight = self.objective.kl_weight(batch.progress)
        seen = self.module.likelihood.see(batch.x, batch.seen)
        encoded = self.encoder.forward(seen.to(self.dtype)).float()
        mean, log_variance = encoded.chunk(2, dim=-1)
        width = mean.shape[-1]
        bounded = log_variance.clamp(-MAX_LOG_VARIANCE, MAX_LOG_VARIANCE)
        noise = batch.noise[..., 0, :, :] if self.stacked else batch.noise[0]
        deviation = torch.exp(0.5 * bounded).mul_(noise)
        z = mean + deviation
        if batch.condition is not None:
            z = torch.cat([z, batch.condition], dim=-1)
        raw = self.decoder.forward(z.to(self.dtype))
        kl, by_mean, by_log_variance = self.prior.closed_form(mean, bounded)
        reconstruction, slope = self._reconstruction(batch, raw)

        slope = self.decoder.backward(slope)[..., :width].float()
        slopes = torch.cat([by_mean, by_log_variance], dim=-1)
        if weights is not None:
            slopes.mul_(weights.unsqueeze(-1))
        by_noise = deviation.mul_(0.5).mul_(slope)
        direct = torch.cat([slope, by_noise], dim=-1)
        if isinstance(kl_weight, Tensor):
            slopes = slopes.mul_(kl_weight.unsqueeze(-1)).add_(direct)
        else:
            slopes = direct.add_(slopes, alpha=kl_weight)
        slopes[..., width:].mul_(log_variance == bounded)
        self.encoder.backward(slopes.to(self.dtype), need_input=False)
        return Losses(reconstruction + kl_weight * kl, reconstruction, kl, mean)

    def _reconstruction(self, batch: Batch, raw: Tensor) -> tuple[Tensor, Tensor]:
        """-log p(x|z), (..., N), and the gradient of its weighted sums by ``raw``."""
        if batch.observed is None:
            closed = self.module.likelihood.closed_form(batch.x, raw, batch.weights)
            if closed is not None:
                return closed
        dtype = raw.dtype
        with torch.enable_grad():
            raw = raw.detach().float().requires_grad_()
            if self.stacked:
                learned = {
                    k: v.detach().requires_grad_() for k, v in self.learned.items()
                }
                terms = self._of_stack(batch, raw, learned)
            else:
                learned = self.parameters
                terms = -self.module.likelihood.log_prob(batch.x, raw, batch.observed)
            weighted = terms if batch.weights is None else terms * batch.weights
            inputs = [raw, *learned.values()]
            slope, *rest = torch.autograd.grad(weighted.sum(), inputs)
        for gradient, value in zip(self.gradients, rest, strict=True):
            gradient.copy_(value)
        return terms.detach(), slope.to(dtype)

    def _of_stack(
        self, batch: Batch, raw: Tensor, learned: dict[str, Tensor]
    ) -> Tensor:
        """-log p(x|z) of every model's rows, (M, N)."""
        likelihood, fixed = self.module.likelihood, self.fixed
        masks = {} if batch.observed is None else {"observed": batch.observed}

        def negative(x: Tensor, raw: Tensor, state: Any, masks: Any) -> Tensor:
            return -torch.func.functional_call(likelihood, state, (x, raw), masks)

        return torch.func.vmap(negative)(batch.x, raw, {**learned, **fixed}, masks)


class Layers:
    """Linear layers in a row that keep what their backward pass needs.

    Parameters
    ----------
    values, gradients : list of Tensor
        Weight and bias of each layer in turn, and where their gradients go.
    tanh : bool
        Whether the activation is tanh; else it is ReLU.
    """

    def __init__(
        self, values: list[Tensor], gradients: list[Tensor], tanh: bool
    ) -> None:
        self.weights, self.biases = values[::2], values[1::2]
        self.weight_gradients, self.bias_gradients = gradients[::2], gradients[1::2]
        self.tanh = tanh
        self.inputs: list[Tensor] = []

    def affine(self, bias: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """The output of a layer."""
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


class StackedLayers(Layers):
    """Linear layers of M models, weights (M, out, in)."""

    def affine(self, bias: Tensor, x: Any, weight: Tensor) -> Tensor:
        return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))

    def write_gradients(self, i: int, slope: Tensor, x: Any) -> None:
        self.weight_gradients[i].copy_(torch.bmm(slope.transpose(1, 2), x))
        self.bias_gradients[i].copy_(slope.sum(1))


Step = Callable[..., Losses]


def step_of(
    module: Model, weights: Weights, buffers: dict[str, Tensor] | None = None
) -> Step:
    """The fastest correct step for M models like this one.

    ``buffers`` are those of all models by name, (M, ...) each, at M > 1.
    """
    if ClosedFormStep.applies_to(module):
        return ClosedFormStep(module, weights, buffers)
    if len(weights.master) == 1:
        return AutogradStep(module, weights)
    return StackedStep(module, weights, buffers)


class Graph:
    """A function of tensors as a CUDA graph: one launch for all that it does.

    Parameters
    ----------
    function : callable
        Of tensors, to tensors; what else it writes, it writes to the same places.
    *examples : Tensor
        Arguments of the shapes that all later ones have.
    """

    def __init__(self, function: Callable[..., Any], *examples: Tensor) -> None:
        self.inputs = [example.clone() for example in examples]
        # As torch asks: a few runs beside the main stream before the capture.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                function(*self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.outputs = function(*self.inputs)

    def __call__(self, *arguments: Tensor) -> Any:
        for fixed, given in zip(self.inputs, arguments, strict=True):
            fixed.copy_(given)
        self.graph.replay()
        return self.outputs

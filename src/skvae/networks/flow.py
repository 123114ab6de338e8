"""Networks whose posterior is bent by a flow."""

from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from .._compat import Interval, StrOptions
from ..flows import SplineFlow
from ..spec import LOG_2_PI
from .base import (
    ACTIVATIONS,
    MAX_LOG_VARIANCE,
    Network,
    NetworkInputs,
    NetworkModule,
    Posterior,
    only_level,
)
from .mlp import MLP


class FlowMLP(Network):
    r"""An :class:`MLP` whose posterior is bent by a flow.

    .. math:: z = f_{h(x)}(\epsilon), \quad \epsilon \sim \mathcal N(0, I), \qquad
        \log q(z|x) = \log \mathcal N(\epsilon; 0, I)
        - \log \left|\det \partial f / \partial \epsilon\right|

    with a neural spline flow f followed by a scale and a shift; h is the encoder's
    output. ``transform`` gives :math:`f_{h(x)}(0)`, which is the median of a Gaussian
    and near it otherwise. Needs zuko: ``pip install 'skvae[flows]'``.

    Parameters
    ----------
    n_transforms : int, default=2
        Autoregressive spline transforms in a row.
    flow_dim : int, default=64
        Width of the two hidden layers of each transform's network.
    activation : {"relu", "tanh", "silu", "gelu", "softplus"}, default="relu"

    References
    ----------
    Rezende and Mohamed (2015), "Variational inference with normalizing flows"; Durkan
    et al. (2019), "Neural spline flows".

    Examples
    --------
    >>> from skvae import FlowMLP, VAEEstimator
    >>> VAEEstimator(network=FlowMLP(n_transforms=1))
    VAEEstimator(network=FlowMLP(n_transforms=1))
    """

    _parameter_constraints: dict[str, list[Any]] = {
        "n_transforms": [Interval(Integral, 1, None, closed="left")],
        "flow_dim": [Interval(Integral, 1, None, closed="left")],
        "activation": [StrOptions(set(ACTIVATIONS))],
    }

    posterior = "flow"
    needs_float32 = True

    def __init__(
        self, n_transforms: Any = 2, flow_dim: Any = 64, activation: Any = "relu"
    ) -> None:
        self.n_transforms = n_transforms
        self.flow_dim = flow_dim
        self.activation = activation

    def build(self, inputs: NetworkInputs) -> NetworkModule:
        n_latent = only_level(inputs.latent_dim, self)
        mlp = MLP(self.activation).build(inputs)
        flow = SplineFlow(
            n_latent,
            n_context=2 * n_latent,
            n_transforms=int(self.n_transforms),
            hidden_dim=int(self.flow_dim),
            seed=inputs.generator.initial_seed() % 2**31,
        )
        return FlowModule(mlp, flow)


@dataclass(frozen=True)
class FlowPosterior(Posterior):
    """Draws from q(z|x) and their log-densities (S, N), as a flow gives them."""

    log_density: Tensor

    def log_prob(self, *, path_derivative: bool = False) -> Tensor:
        assert not path_derivative
        return self.log_density


class FlowModule(NetworkModule):
    """The module that :class:`FlowMLP` builds."""

    def __init__(self, mlp: Any, flow: SplineFlow) -> None:
        super().__init__()
        self.mlp = mlp
        self.flow = flow
        self.n_noise = mlp.n_noise

    def infer(
        self, seen: Tensor, noise: Tensor, dropout_noise: Tensor | None = None
    ) -> Posterior:
        context = self.mlp.encoder(seen).float()
        shift, log_variance = context.chunk(2, dim=-1)
        log_variance = log_variance.clamp(-MAX_LOG_VARIANCE, MAX_LOG_VARIANCE)
        centre = torch.zeros_like(noise[:1])
        bent, log_slope = self.flow(
            torch.cat([noise, centre]), context.expand(len(noise) + 1, -1, -1)
        )
        z = shift + torch.exp(0.5 * log_variance) * bent
        log_density = (
            -0.5 * (noise.square() + LOG_2_PI + log_variance).sum(-1) - log_slope[:-1]
        )
        return FlowPosterior(z[:-1], z[-1], log_density)

    def decode(
        self,
        z: Tensor,
        condition: Tensor | None = None,
        dropout_noise: Tensor | None = None,
    ) -> Tensor:
        return self.mlp.decode(z, condition)

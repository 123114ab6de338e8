"""Networks: how x becomes q(z|x), and how z becomes the parameters of p(x|z).

A network is a spec with one method, ``build``, which returns a module with

- ``n_noise``, the standard normal numbers that a draw of z takes;
- ``infer(x, noise)``, from rows (N, D) and noise (S, N, ``n_noise``) to a
  :class:`Posterior` of S draws;
- ``decode(z)``, from latent points and conditions (..., L + ``n_conditions``) to raw
  parameters of the likelihood (..., D, ``n_outputs``).
"""

from .base import (
    ACTIVATIONS,
    MAX_LOG_VARIANCE,
    GaussianPosterior,
    Network,
    Posterior,
    log_normal,
)
from .conv import ConvModule, ConvNet
from .flow import FlowMLP, FlowModule, FlowPosterior
from .ladder import LadderModule, LadderNet, LadderPosterior
from .mlp import MLP, EncoderDecoder, MLPModule

__all__ = [
    "ACTIVATIONS",
    "MAX_LOG_VARIANCE",
    "MLP",
    "NETWORKS",
    "ConvModule",
    "ConvNet",
    "EncoderDecoder",
    "FlowMLP",
    "FlowModule",
    "FlowPosterior",
    "GaussianPosterior",
    "LadderModule",
    "LadderNet",
    "LadderPosterior",
    "MLPModule",
    "Network",
    "Posterior",
    "log_normal",
]

NETWORKS: dict[str, type[Network]] = {
    "mlp": MLP,
    "conv": ConvNet,
    "ladder": LadderNet,
    "flow_mlp": FlowMLP,
}

"""Networks: how x becomes q(z|x), and how z becomes the parameters of p(x|z).

A network is a specification whose ``build`` returns a :class:`NetworkModule`.
"""

from .base import (
    ACTIVATIONS,
    MAX_LOG_VARIANCE,
    Chains,
    GaussianPosterior,
    Network,
    NetworkInputs,
    NetworkModule,
    Posterior,
    beside,
    dense,
    log_normal,
    refuse_random_layers,
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
    "Chains",
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
    "NetworkInputs",
    "NetworkModule",
    "Posterior",
    "beside",
    "dense",
    "log_normal",
    "refuse_random_layers",
]

NETWORKS: dict[str, type[Network]] = {
    "mlp": MLP,
    "conv": ConvNet,
    "ladder": LadderNet,
    "flow_mlp": FlowMLP,
}

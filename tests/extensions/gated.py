"""A network: a linear encoder whose inputs are gated first."""

import torch
from torch import nn

from skvae.networks import (
    NETWORKS,
    GaussianPosterior,
    Network,
    NetworkModule,
    beside,
    dense,
)


class Gated(Network):
    """A linear encoder whose inputs are gated first."""

    def build(self, inputs):
        (n_latent,) = inputs.latent_dim
        n, generator = inputs.n_inputs, inputs.generator
        decoder = [n_latent + inputs.n_conditions, *inputs.hidden_dim, inputs.n_raw]
        module = GatedModule()
        module.n_noise = n_latent
        module.gate = dense([n, 4, n], nn.ReLU, generator)
        module.encoder = dense([n, 2 * n_latent], nn.ReLU, generator)
        module.decoder = dense(decoder, nn.ReLU, generator)
        return module


class GatedModule(NetworkModule):
    def infer(self, seen, noise, dropout_noise=None):
        encoded = self.encoder(seen * torch.sigmoid(self.gate(seen))).float()
        return GaussianPosterior.draw(*encoded.chunk(2, dim=-1), noise)

    def decode(self, z, condition=None, dropout_noise=None):
        return self.decoder(beside(z, condition))


NETWORKS["gated"] = Gated

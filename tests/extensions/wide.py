"""A prior: a normal distribution of learned width."""

import torch
from torch import nn

from skvae.priors import PRIORS, Prior, PriorModule


class Wide(Prior):
    """A normal prior of learned width."""

    def build(self, inputs):
        return WideModule(inputs.latent_dim)


class WideModule(PriorModule):
    def __init__(self, latent_dim):
        super().__init__(n_noise=latent_dim)
        self.log_width = nn.Parameter(torch.zeros(latent_dim))

    def log_prob(self, z, condition=None, encode=None):
        square = (z * torch.exp(-self.log_width)).square()
        return (-0.5 * square - self.log_width - 0.9189385).sum(-1)

    def draw(self, noise, condition=None, encode=None):
        return torch.exp(self.log_width) * noise


PRIORS["wide"] = Wide

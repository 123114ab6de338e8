"""A likelihood: independent Laplace columns with one learned scale."""

import math

import torch
from torch import nn

from skvae.likelihoods import LIKELIHOODS, Likelihood, LikelihoodModule


class Laplace(Likelihood):
    """Independent Laplace columns with one learned scale."""

    real_valued = True

    def build(self, columns, summary, units):
        return LaplaceModule(len(columns))


class LaplaceModule(LikelihoodModule):
    def __init__(self, n_columns):
        super().__init__(n_columns)
        self.log_scale = nn.Parameter(torch.zeros(1))

    def log_prob_by_column(self, x, raw):
        distance = (x - raw).abs() * torch.exp(-self.log_scale)
        return -(distance + self.log_scale + math.log(2))

    def mean(self, raw):
        return raw

    def draw(self, raw, generator):
        uniform = torch.rand(raw.shape, generator=generator) - 0.5
        step = uniform.sign() * torch.log1p(-2 * uniform.abs())
        return raw - torch.exp(self.log_scale) * step


LIKELIHOODS["laplace"] = Laplace

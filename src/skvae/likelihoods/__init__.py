"""Likelihoods: what p(x|z) is.

A likelihood turns the decoder's raw outputs, ``n_outputs`` per feature, into a density
over rows. What it learns beside the network (a shared variance) is declared by
``parameters``, what it fixes by ``constants``, and both are handed back to every other
method by name.
"""

from .base import Likelihood
from .categories import Categorical
from .counts import NegativeBinomial, Poisson
from .images import DiscretizedLogisticMixture
from .mixed import Mixed
from .real import Gaussian, StudentT
from .registry import LIKELIHOODS, guess
from .unit_interval import Bernoulli, Beta, ContinuousBernoulli

__all__ = [
    "LIKELIHOODS",
    "Bernoulli",
    "Beta",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedLogisticMixture",
    "Gaussian",
    "Likelihood",
    "Mixed",
    "NegativeBinomial",
    "Poisson",
    "StudentT",
    "guess",
]

"""Likelihoods: what p(x|z) is.

A likelihood is a specification whose ``build`` returns a module: it turns the decoder's
raw outputs into a density over rows of numbers and codes. What it learns beside the
network (a shared variance) are the module's parameters, what it fixes are its buffers.
"""

from collections import ChainMap
from collections.abc import Mapping

from ..support import Support
from .base import Likelihood, LikelihoodModule
from .categories import Categorical
from .counts import NegativeBinomial, Poisson
from .images import DiscretizedLogisticMixture
from .mixed import Auto, Mixed
from .real import Gaussian, StudentT
from .registry import LIKELIHOODS
from .unit_interval import Bernoulli, Beta, ContinuousBernoulli

__all__ = [
    "BY_NAME",
    "LIKELIHOODS",
    "Auto",
    "Bernoulli",
    "Beta",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedLogisticMixture",
    "Gaussian",
    "Likelihood",
    "LikelihoodModule",
    "Mixed",
    "NegativeBinomial",
    "Poisson",
    "StudentT",
    "Support",
]

# All that the parameter ``likelihood`` takes by name.
BY_NAME: Mapping[str, type[Likelihood]] = ChainMap(
    LIKELIHOODS, {"auto": Auto, "mixed": Mixed}
)

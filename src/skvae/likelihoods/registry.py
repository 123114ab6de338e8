"""The likelihoods by their short names, and which of them ``"auto"`` is."""

import numpy as np

from .base import Likelihood
from .categories import Categorical
from .counts import NegativeBinomial, Poisson
from .images import DiscretizedLogisticMixture
from .real import Gaussian, StudentT
from .unit_interval import Bernoulli, Beta, ContinuousBernoulli

LIKELIHOODS: dict[str, type[Likelihood]] = {
    "bernoulli": Bernoulli,
    "beta": Beta,
    "categorical": Categorical,
    "continuous_bernoulli": ContinuousBernoulli,
    "discretized_logistic_mixture": DiscretizedLogisticMixture,
    "gaussian": Gaussian,
    "negative_binomial": NegativeBinomial,
    "poisson": Poisson,
    "student_t": StudentT,
}


def guess(X: np.ndarray) -> Likelihood:
    """The likelihood that ``"auto"`` stands for.

    Bernoulli where every value lies in [0, 1], Gaussian otherwise. Counts and
    categories are never guessed.
    """
    return Bernoulli() if X.min() >= 0 and X.max() <= 1 else Gaussian()

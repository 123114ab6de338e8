"""The likelihoods by their short names."""

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

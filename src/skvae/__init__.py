"""Variational autoencoders as scikit-learn estimators, on PyTorch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> the module that holds it. Names are resolved on first use, so that
# `import skvae` costs milliseconds and not the import of torch.
_PUBLIC = {
    "VAEEstimator": "estimator",
    "MLP": "networks",
    "Bernoulli": "likelihoods",
    "ContinuousBernoulli": "likelihoods",
    "Gaussian": "likelihoods",
    "StandardNormal": "priors",
    "ELBO": "objectives",
    "neg_elbo_scorer": "model_selection",
    "log_likelihood_scorer": "model_selection",
}
_MODULES = ("datasets", "metrics", "model_selection", "plotting")

__all__ = [*_PUBLIC, *_MODULES, "__version__"]

if TYPE_CHECKING:
    from . import datasets as datasets
    from . import metrics as metrics
    from . import model_selection as model_selection
    from . import plotting as plotting
    from .estimator import VAEEstimator as VAEEstimator
    from .likelihoods import Bernoulli as Bernoulli
    from .likelihoods import ContinuousBernoulli as ContinuousBernoulli
    from .likelihoods import Gaussian as Gaussian
    from .model_selection import log_likelihood_scorer as log_likelihood_scorer
    from .model_selection import neg_elbo_scorer as neg_elbo_scorer
    from .networks import MLP as MLP
    from .objectives import ELBO as ELBO
    from .priors import StandardNormal as StandardNormal


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module 'skvae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

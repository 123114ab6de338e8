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
_MODULES = ("datasets", "model_selection", "plotting")

__all__ = [*_PUBLIC, *_MODULES, "__version__"]  # noqa: PLE0604

if TYPE_CHECKING:
    from . import datasets, model_selection, plotting
    from .estimator import VAEEstimator
    from .likelihoods import Bernoulli, ContinuousBernoulli, Gaussian
    from .model_selection import log_likelihood_scorer, neg_elbo_scorer
    from .networks import MLP
    from .objectives import ELBO
    from .priors import StandardNormal


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module 'skvae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

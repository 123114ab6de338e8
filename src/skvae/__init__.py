"""Variational autoencoders as scikit-learn estimators, on PyTorch."""

import os
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> the module that holds it. Names are resolved on first use, so that
# `import skvae` costs milliseconds and not the import of torch.
_PUBLIC = {
    "VAEEstimator": "estimator",
    "ConditionalVAEEstimator": "conditional",
    "MLP": "networks",
    "Bernoulli": "likelihoods",
    "Beta": "likelihoods",
    "Categorical": "likelihoods",
    "ContinuousBernoulli": "likelihoods",
    "DiscretizedLogisticMixture": "likelihoods",
    "Gaussian": "likelihoods",
    "Mixed": "likelihoods",
    "NegativeBinomial": "likelihoods",
    "Poisson": "likelihoods",
    "StudentT": "likelihoods",
    "StandardNormal": "priors",
    "ELBO": "objectives",
    "ConvNet": "networks",
    "LadderNet": "networks",
    "FlowMLP": "networks",
    "EncoderDecoder": "networks",
    "Network": "networks",
    "MixturePrior": "priors",
    "VampPrior": "priors",
    "FlowPrior": "priors",
    "Prior": "priors",
    "IWAE": "objectives",
    "MIWAE": "objectives",
    "InfoVAE": "objectives",
    "WAE": "objectives",
    "BetaTC": "objectives",
    "Objective": "objectives",
    "Likelihood": "likelihoods",
    "PosteriorCollapseWarning": "estimator",
    "OnnxVAE": "onnx",
    "VAEGridSearchCV": "model_selection",
    "VAERandomizedSearchCV": "model_selection",
    "neg_elbo_scorer": "scorers",
    "log_likelihood_scorer": "scorers",
    "save": "persistence",
    "load": "persistence",
}
_MODULES = (
    "datasets",
    "metrics",
    "model_selection",
    "onnx",
    "persistence",
    "plotting",
)

__all__ = [*_PUBLIC, *_MODULES, "__version__"]

if TYPE_CHECKING:
    from . import datasets as datasets
    from . import metrics as metrics
    from . import model_selection as model_selection
    from . import onnx as onnx
    from . import persistence as persistence
    from . import plotting as plotting
    from .conditional import ConditionalVAEEstimator as ConditionalVAEEstimator
    from .estimator import PosteriorCollapseWarning as PosteriorCollapseWarning
    from .estimator import VAEEstimator as VAEEstimator
    from .likelihoods import Bernoulli as Bernoulli
    from .likelihoods import Beta as Beta
    from .likelihoods import Categorical as Categorical
    from .likelihoods import ContinuousBernoulli as ContinuousBernoulli
    from .likelihoods import DiscretizedLogisticMixture as DiscretizedLogisticMixture
    from .likelihoods import Gaussian as Gaussian
    from .likelihoods import Likelihood as Likelihood
    from .likelihoods import Mixed as Mixed
    from .likelihoods import NegativeBinomial as NegativeBinomial
    from .likelihoods import Poisson as Poisson
    from .likelihoods import StudentT as StudentT
    from .model_selection import VAEGridSearchCV as VAEGridSearchCV
    from .model_selection import VAERandomizedSearchCV as VAERandomizedSearchCV
    from .networks import MLP as MLP
    from .networks import ConvNet as ConvNet
    from .networks import EncoderDecoder as EncoderDecoder
    from .networks import FlowMLP as FlowMLP
    from .networks import LadderNet as LadderNet
    from .networks import Network as Network
    from .objectives import ELBO as ELBO
    from .objectives import IWAE as IWAE
    from .objectives import MIWAE as MIWAE
    from .objectives import WAE as WAE
    from .objectives import BetaTC as BetaTC
    from .objectives import InfoVAE as InfoVAE
    from .objectives import Objective as Objective
    from .onnx import OnnxVAE as OnnxVAE
    from .persistence import load as load
    from .persistence import save as save
    from .priors import FlowPrior as FlowPrior
    from .priors import MixturePrior as MixturePrior
    from .priors import Prior as Prior
    from .priors import StandardNormal as StandardNormal
    from .priors import VampPrior as VampPrior
    from .scorers import log_likelihood_scorer as log_likelihood_scorer
    from .scorers import neg_elbo_scorer as neg_elbo_scorer


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(_load(_PUBLIC[name]), name)
    if name in _MODULES:
        return _load(name)
    raise AttributeError(f"module 'skvae' has no attribute {name!r}")


def _load(module: str) -> ModuleType:
    """Import a module of ours, and with the first one torch.

    Torch's OpenMP (libgomp) reads once, when it is loaded, how long an idle thread
    spins before it sleeps. By default it spins for milliseconds, and where two virtual
    processors share a core it takes half of it from the thread that works: training
    steps are a fifth to a half slower. So it spins for a shorter while, unless the user
    has said otherwise; the environment is left as it was.
    """
    said = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(os.environ)
    if not said:
        os.environ["GOMP_SPINCOUNT"] = "20000"
    try:
        return import_module(f".{module}", __name__)
    finally:
        if not said:
            os.environ.pop("GOMP_SPINCOUNT", None)


def __dir__() -> list[str]:
    return sorted(__all__)

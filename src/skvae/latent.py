"""Densities that are fitted to the codes of a trained model, to sample from."""

from inspect import signature
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.mixture import GaussianMixture

# Components of the mixture that prior="mixture" fits.
N_COMPONENTS = 10


def draw_like(
    codes: np.ndarray, n_samples: int, prior: Any, random_state: np.random.RandomState
) -> np.ndarray:
    """Codes from a density that is fitted to these, float32 (n_samples, L)."""
    if isinstance(prior, str) and prior == "mixture":
        density = GaussianMixture(min(N_COMPONENTS, len(codes)), reg_covar=1e-4)
    elif hasattr(prior, "fit") and hasattr(prior, "sample"):
        density = clone(prior)
    else:
        raise ValueError(
            f"prior={prior!r} must be 'model', 'mixture' or a density estimator "
            "with fit and sample, such as sklearn.mixture.GaussianMixture(50)."
        )
    if "random_state" in density.get_params():
        # Fitting and sampling both draw: one instance goes on from the other.
        density.set_params(random_state=random_state)
    # In float64: in float32 a covariance may lose its positive eigenvalues.
    density.fit(codes.astype(np.float64))
    options = {}
    if "random_state" in signature(density.sample).parameters:
        options["random_state"] = random_state  # KernelDensity wants it here
    drawn = density.sample(n_samples, **options)
    # Mixtures hand back the components, too, in whose order the rows are.
    z = drawn[0] if isinstance(drawn, tuple) else drawn
    return random_state.permutation(np.asarray(z, dtype=np.float32))


def draw_by_class(
    codes: np.ndarray,
    known: np.ndarray,
    wanted: np.ndarray,
    prior: Any,
    random_state: np.random.RandomState,
) -> np.ndarray:
    """Codes like those of the same class, given one-hot rows of the classes."""
    classes, asked = known.argmax(axis=1), wanted.argmax(axis=1)
    z = np.empty((len(wanted), codes.shape[1]), dtype=np.float32)
    for code in np.unique(asked):
        rows, alike = asked == code, codes[classes == code]
        alike = alike if len(alike) > 1 else codes
        z[rows] = draw_like(alike, int(rows.sum()), prior, random_state)
    return z

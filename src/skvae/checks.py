"""Checks of arguments that more than one room makes; nothing here imports torch."""

from numbers import Integral
from typing import Any

import numpy as np
from sklearn.utils import check_array


def check_count(name: str, value: Any, least: int) -> None:
    """Refuse what is no int of at least so many."""
    if not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name}={value!r} must be an int of at least {least}.")


def check_codes(Z: Any, latent_dim: int) -> np.ndarray:
    """Codes as a float32 array of shape (n_samples, latent_dim)."""
    Z = check_array(Z, dtype=np.float32, input_name="Z")
    if Z.shape[1] != latent_dim:
        raise ValueError(
            f"Z has {Z.shape[1]} columns, but latent_dim={latent_dim} are expected, as "
            "transform gives."
        )
    return Z


def fresh_if_none(random_state: Any) -> Any:
    """The random state; for None fresh entropy, not NumPy's global generator."""
    if random_state is None:
        return np.random.SeedSequence().generate_state(1)[0]
    return random_state

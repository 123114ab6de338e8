"""Checks of arguments that several modules make; nothing here imports torch."""

import sys
import warnings
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.utils import check_array


def check_count(name: str, value: Any, least: int) -> int:
    """The value as an int; refuse what is no int of at least ``least``."""
    is_bool = isinstance(value, bool | np.bool_)
    if not isinstance(value, Integral) or is_bool or value < least:
        raise ValueError(f"{name}={value!r} must be an int of at least {least}.")
    return int(value)


def check_codes(Z: Any, latent_dim: int) -> np.ndarray:
    """Latent points as a float32 array of shape (n_samples, latent_dim)."""
    Z = check_array(Z, dtype=np.float32, input_name="Z")
    if Z.shape[1] != latent_dim:
        raise ValueError(
            f"Z has {Z.shape[1]} columns, but latent_dim={latent_dim} are expected, as "
            "transform gives."
        )
    return Z


def check_widths(name: str, value: Any) -> tuple[int, ...]:
    """An int, or a sequence of ints of at least 1, as a tuple of ints."""
    if isinstance(value, Integral):
        return (check_count(name, value, 1),)
    for width in value:
        if not isinstance(width, Integral) or isinstance(width, bool) or width < 1:
            raise ValueError(
                f"{name}={value!r} must be an int or a tuple of ints of at least "
                f"1; {width!r} is not."
            )
    return tuple(int(width) for width in value)


def fresh_if_none(random_state: Any) -> Any:
    """The random state; for None fresh entropy, not NumPy's global generator."""
    if random_state is None:
        return np.random.SeedSequence().generate_state(1)[0]
    return random_state


def some(values: Any, most: int = 20) -> str:
    """The first of many values, for a message."""
    values = list(values)
    shown = ", ".join(repr(v) for v in values[:most])
    return f"[{shown}{', ...' if len(values) > most else ''}]"


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line that called the package."""
    frame, level = sys._getframe(1), 2
    package = __name__.split(".")[0]
    while frame.f_back is not None:
        frame, level = frame.f_back, level + 1
        if frame.f_globals.get("__name__", "").split(".")[0] not in (
            package,
            "sklearn",
        ):
            break
    warnings.warn(message, category, stacklevel=level)


def refuse_missing(observed: np.ndarray | None, names: Any) -> None:
    """Refuse missing entries, naming the first column that has one."""
    if observed is None:
        return
    row, column = np.argwhere(~observed)[0]
    raise ValueError(
        f"column {names[column]!r} has a missing entry in row {row}; expected none. "
        "Fill missing entries first (SimpleImputer), or make them a category of their "
        "own."
    )

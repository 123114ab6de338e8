"""From one row to another, through the latent space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.pipeline import Pipeline

from .base import Display
from .rows import (
    decode,
    draw_images,
    draw_lines,
    encode,
    feature_names_of,
    find_image_shape,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..estimator import VAEEstimator


@dataclass(kw_only=True, eq=False, repr=False)
class InterpolationDisplay(Display):
    """Ways through the latent space from one row to another.

    Parameters
    ----------
    interpolations : ndarray of shape (n_pairs, n_steps, n_features)
        Decoded rows from the start to the end of each pair.
    image_shape, feature_names
        As in :class:`ReconstructionDisplay`.

    Attributes
    ----------
    figure_, ax_ : matplotlib Figure and Axes
        Where the interpolations are drawn.

    Examples
    --------
    >>> from skvae import VAEEstimator
    >>> from skvae.datasets import load_digits
    >>> from skvae.plotting import InterpolationDisplay
    >>> X, _ = load_digits(return_X_y=True)
    >>> vae = VAEEstimator(latent_dim=2, hidden_dim=8, epochs=1).fit(X)
    >>> InterpolationDisplay.from_estimator(vae, X[:5], X[5:10])
    <...>
    """

    interpolations: NDArray[Any]
    image_shape: tuple[int, ...] | None = None
    feature_names: Sequence[str] | None = None

    @classmethod
    def from_estimator(
        cls,
        estimator: VAEEstimator | Pipeline,
        X_start: Any,
        X_end: Any,
        *,
        n_steps: int = 10,
        image_shape: tuple[int, ...] | None = None,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Decode the straight lines between posterior means.

        Parameters
        ----------
        estimator : VAEEstimator or Pipeline
            Fitted estimator, or a fitted Pipeline that ends in one.
        X_start, X_end : array-like of shape (n_pairs, n_features)
            Rows at which each way starts and ends.
        n_steps : int, default=10
            Steps of each way, both ends included.
        image_shape, ax, **kwargs
            As in :meth:`ReconstructionDisplay.from_estimator`.

        Returns
        -------
        InterpolationDisplay

        Raises
        ------
        ValueError
            If there are not as many ends as starts, or fewer than two steps.
        """
        if n_steps < 2:
            raise ValueError(
                f"n_steps={n_steps} is less than 2, the start and the end."
            )
        start, end = encode(estimator, X_start), encode(estimator, X_end)
        if len(start) != len(end):
            raise ValueError(
                f"X_start has {len(start)} rows and X_end has {len(end)}: give one end "
                "for each start."
            )
        lines = np.linspace(start, end, n_steps, axis=1)
        interpolations, image_shape = decode(estimator, lines, image_shape)
        display = cls(
            interpolations=interpolations,
            image_shape=image_shape,
            feature_names=feature_names_of(estimator),
        )
        return display.plot(ax=ax, **kwargs)

    def _draw(self, ax: Axes, **kwargs: Any) -> tuple[float, float]:
        n_pairs, n_steps, n_features = self.interpolations.shape
        ax.set_title("Interpolations between pairs of rows")
        steps = ["start", *[""] * (n_steps - 2), "end"]
        shape = find_image_shape(self.image_shape, n_features)
        if shape:
            return draw_images(ax, self.interpolations, shape, None, steps, **kwargs)
        pairs = [f"pair {pair}" for pair in range(n_pairs)]
        return draw_lines(
            ax, self.interpolations, self.feature_names, pairs, steps, **kwargs
        )

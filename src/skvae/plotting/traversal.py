"""One latent dimension at a time, decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.pipeline import Pipeline

from .base import Display, vae_of
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
class LatentTraversalDisplay(Display):
    """What each latent dimension does: one row for each, the others held still.

    Parameters
    ----------
    traversals : ndarray of shape (n_dimensions, n_steps, n_features)
        Decoded rows.
    values : ndarray of shape (n_steps,)
        Values that the latent dimension takes.
    dimensions : sequence of int of shape (n_dimensions,)
        Latent dimension that each row of the picture moves.
    image_shape, feature_names
        As in :class:`ReconstructionDisplay`.

    Attributes
    ----------
    figure_, ax_ : matplotlib Figure and Axes
        Where the traversals are drawn.

    Examples
    --------
    >>> from skvae import VAEEstimator
    >>> from skvae.datasets import load_digits
    >>> from skvae.plotting import LatentTraversalDisplay
    >>> X, _ = load_digits(return_X_y=True)
    >>> vae = VAEEstimator(latent_dim=3, hidden_dim=8, epochs=1).fit(X)
    >>> LatentTraversalDisplay.from_estimator(vae, X, row=0)
    <...>
    """

    traversals: NDArray[Any]
    values: NDArray[Any]
    dimensions: Sequence[int]
    image_shape: tuple[int, ...] | None = None
    feature_names: Sequence[str] | None = None

    @classmethod
    def from_estimator(
        cls,
        estimator: VAEEstimator | Pipeline,
        X: Any = None,
        *,
        row: int | None = None,
        n_dimensions: int = 10,
        n_steps: int = 11,
        limit: float = 3.0,
        image_shape: tuple[int, ...] | None = None,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Decode one latent dimension after the other from -limit to limit.

        Parameters
        ----------
        estimator : VAEEstimator or Pipeline
            Fitted estimator, or a fitted Pipeline that ends in one.
        X : array-like of shape (n_rows, n_features), default=None
            Data by which the most active dimensions, those whose posterior means vary
            most over the rows, come first. None keeps them in their order.
        row : int, default=None
            Row of X at whose posterior mean the other dimensions are held. None holds
            them at 0, the mean of a standard normal prior.
        n_dimensions : int, default=10
            How many latent dimensions to show at most.
        n_steps : int, default=11
            How many values of each.
        limit : float, default=3.0
            Largest value, in standard deviations of a standard normal prior.
        image_shape, ax, **kwargs
            As in :meth:`ReconstructionDisplay.from_estimator`.

        Returns
        -------
        LatentTraversalDisplay

        Raises
        ------
        ValueError
            If ``row`` is given and X is not, or has no such row.
        """
        latent_dim = vae_of(estimator).fitted_.latent_dim
        Z = np.zeros((0, latent_dim)) if X is None else encode(estimator, X)
        if row is not None and not -len(Z) <= row < len(Z):
            raise ValueError(f"row={row} is no row of X, which has {len(Z)} rows.")
        centre = np.zeros(latent_dim) if row is None else Z[row]
        activity = Z.var(axis=0) if len(Z) else np.zeros(latent_dim)
        # Stable, so that equally active dimensions keep their order.
        dimensions = np.argsort(-activity, kind="stable")[:n_dimensions]
        values = np.linspace(-limit, limit, n_steps)
        codes = np.tile(centre, (len(dimensions), n_steps, 1))
        for place, dimension in enumerate(dimensions):
            codes[place, :, dimension] = values
        traversals, image_shape = decode(estimator, codes, image_shape)
        display = cls(
            traversals=traversals,
            values=values,
            dimensions=dimensions.tolist(),
            image_shape=image_shape,
            feature_names=feature_names_of(estimator),
        )
        return display.plot(ax=ax, **kwargs)

    def _draw(self, ax: Axes, **kwargs: Any) -> tuple[float, float]:
        ax.set_title("Latent traversals")
        names = [f"z{dimension}" for dimension in self.dimensions]
        values = [f"{value:.2g}" for value in self.values]
        shape = find_image_shape(self.image_shape, self.traversals.shape[-1])
        if shape:
            ax.set_xlabel("value of the latent dimension")
            return draw_images(ax, self.traversals, shape, names, values, **kwargs)
        lines = [f"z = {value}" for value in values]
        return draw_lines(
            ax, self.traversals, self.feature_names, names, lines, **kwargs
        )

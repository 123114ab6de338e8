"""Rows and what the model makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.pipeline import Pipeline

from .._compat import safe_indexing
from .base import GREY, ORANGE, Display, is_alone, vae_of
from .rows import (
    as_rows,
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
class ReconstructionDisplay(Display):
    """Originals over their reconstructions.

    Parameters
    ----------
    originals : ndarray of shape (n_samples, n_features)
        Rows of data.
    reconstructions : ndarray of shape (n_samples, n_features)
        The same rows, encoded and decoded.
    image_shape : tuple of int, default=None
        (height, width), (channels, height, width) or (height, width, 3). None takes
        square images of at least 8 x 8 where the number of features allows, grey
        before colour (channels first); () says that the rows are no images.
        ``from_estimator`` takes the shape of the images that the estimator was fitted
        on, where it is known.
    feature_names : sequence of str, default=None
        Names to show where the rows are no images.

    Attributes
    ----------
    figure_, ax_ : matplotlib Figure and Axes
        Where the rows are drawn.

    Examples
    --------
    >>> from skvae import VAEEstimator
    >>> from skvae.datasets import load_digits
    >>> from skvae.plotting import ReconstructionDisplay
    >>> X, _ = load_digits(return_X_y=True)
    >>> vae = VAEEstimator(latent_dim=2, hidden_dim=8, epochs=1).fit(X)
    >>> ReconstructionDisplay.from_estimator(vae, X)
    <...>
    """

    originals: NDArray[Any]
    reconstructions: NDArray[Any]
    image_shape: tuple[int, ...] | None = None
    feature_names: Sequence[str] | None = None

    @classmethod
    def from_estimator(
        cls,
        estimator: VAEEstimator | Pipeline,
        X: Any,
        *,
        n_samples: int = 10,
        image_shape: tuple[int, ...] | None = None,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Encode and decode the first rows of X and draw both.

        Parameters
        ----------
        estimator : VAEEstimator or Pipeline
            Fitted estimator, or a fitted Pipeline that ends in one.
        X : array-like of shape (n_rows, n_features), or images of four axes
            Data.
        n_samples : int, default=10
            How many rows to show.
        image_shape : tuple of int, default=None
            As in :class:`ReconstructionDisplay`.
        ax : matplotlib axes, default=None
            Where to draw. None makes a new figure.
        **kwargs
            Keywords of matplotlib's ``imshow`` for images, else of ``plot``.

        Returns
        -------
        ReconstructionDisplay
        """
        X, vae = safe_indexing(X, slice(n_samples)), vae_of(estimator)
        Z = encode(estimator, X)
        checked = vae.fitted_.form.check(vae, X) if is_alone(estimator) else X
        originals, image_shape = as_rows(estimator, checked, image_shape)
        display = cls(
            originals=originals,
            reconstructions=decode(estimator, Z, image_shape)[0],
            image_shape=image_shape,
            feature_names=feature_names_of(estimator),
        )
        return display.plot(ax=ax, **kwargs)

    def _draw(self, ax: Axes, **kwargs: Any) -> tuple[float, float]:
        ax.set_title("Originals and their reconstructions")
        rows = np.stack([self.originals, self.reconstructions])
        labels = ["original", "reconstructed"]
        shape = find_image_shape(self.image_shape, rows.shape[-1])
        if shape:
            return draw_images(ax, rows, shape, labels, **kwargs)
        return draw_lines(
            ax,
            rows.swapaxes(0, 1),
            self.feature_names,
            [f"row {row}" for row in range(len(self.originals))],
            labels,
            colours=[GREY, ORANGE],
            **kwargs,
        )

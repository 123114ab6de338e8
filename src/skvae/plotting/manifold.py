"""A plane of codes, decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.pipeline import Pipeline

from .base import Display, vae_of
from .rows import decode, draw_images, find_image_shape

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..estimator import VAEEstimator


@dataclass(kw_only=True, eq=False, repr=False)
class ManifoldDisplay(Display):
    """The images that a two-dimensional latent space decodes to.

    Parameters
    ----------
    images : ndarray of shape (n_steps, n_steps, n_features)
        Decoded images. Down the first axis z1 falls, along the second z0 rises.
    values : ndarray of shape (n_steps,)
        Values of either latent dimension, rising.
    image_shape : tuple of int, default=None
        As in :class:`ReconstructionDisplay`.

    Attributes
    ----------
    figure_, ax_ : matplotlib Figure and Axes
        Where the sheet is drawn.

    Examples
    --------
    >>> from skvae import VAEEstimator
    >>> from skvae.datasets import load_digits
    >>> from skvae.plotting import ManifoldDisplay
    >>> X, _ = load_digits(return_X_y=True)
    >>> vae = VAEEstimator(latent_dim=2, hidden_dim=8, epochs=1).fit(X)
    >>> ManifoldDisplay.from_estimator(vae, n_steps=5)
    <...>
    """

    images: NDArray[Any]
    values: NDArray[Any]
    image_shape: tuple[int, ...] | None = None

    @classmethod
    def from_estimator(
        cls,
        estimator: VAEEstimator | Pipeline,
        *,
        n_steps: int = 21,
        image_shape: tuple[int, ...] | None = None,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Decode a grid over the quantiles of a standard normal prior.

        Parameters
        ----------
        estimator : VAEEstimator or Pipeline
            Fitted estimator with ``latent_dim=2``, or a Pipeline that ends in one.
        n_steps : int, default=21
            Images along either latent dimension.
        image_shape, ax, **kwargs
            As in :meth:`ReconstructionDisplay.from_estimator`.

        Returns
        -------
        ManifoldDisplay

        Raises
        ------
        ValueError
            If ``latent_dim`` is not 2, or if the rows are no images.
        """
        latent_dim = vae_of(estimator).fitted_.latent_dim
        if latent_dim != 2:
            raise ValueError(
                f"ManifoldDisplay needs latent_dim=2 and got latent_dim={latent_dim}. "
                "Fit with latent_dim=2, or use LatentTraversalDisplay."
            )
        values = norm.ppf((np.arange(n_steps) + 0.5) / n_steps)
        z0, z1 = np.meshgrid(values, values[::-1])
        plane = np.stack([z0, z1], axis=-1)
        images, image_shape = decode(estimator, plane, image_shape)
        display = cls(images=images, values=values, image_shape=image_shape)
        return display.plot(ax=ax, **kwargs)

    def _draw(self, ax: Axes, **kwargs: Any) -> tuple[float, float]:
        n_features = self.images.shape[-1]
        shape = find_image_shape(self.image_shape, n_features)
        if not shape:
            raise ValueError(
                f"ManifoldDisplay draws images, and {n_features} features make no "
                "square image. Give image_shape=(height, width), or use "
                "LatentTraversalDisplay, which draws tables, too."
            )
        ax.set(title="What the latent plane decodes to", xlabel="z0", ylabel="z1")
        labels = [f"{value:.1f}" for value in self.values]
        return draw_images(ax, self.images, shape, labels[::-1], labels, 0, **kwargs)

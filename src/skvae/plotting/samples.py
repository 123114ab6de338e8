"""New rows from the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.pipeline import Pipeline

from .base import BLUE, Display, styled, vae_of
from .rows import (
    as_rows,
    draw_images,
    draw_lines,
    feature_names_of,
    find_image_shape,
    undo_steps,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..estimator import VAEEstimator


@dataclass(kw_only=True, eq=False, repr=False)
class SampleDisplay(Display):
    """A sheet of samples from a fitted model.

    Parameters
    ----------
    samples : ndarray of shape (n_samples, n_features)
        Rows drawn from the model.
    image_shape, feature_names
        As in :class:`ReconstructionDisplay`.

    Attributes
    ----------
    figure_, ax_ : matplotlib Figure and Axes
        Where the samples are drawn.

    Examples
    --------
    >>> from skvae import VAEEstimator
    >>> from skvae.datasets import load_digits
    >>> from skvae.plotting import SampleDisplay
    >>> X, _ = load_digits(return_X_y=True)
    >>> vae = VAEEstimator(latent_dim=2, hidden_dim=8, epochs=1).fit(X)
    >>> SampleDisplay.from_estimator(vae, random_state=0)
    <...>
    """

    samples: NDArray[Any]
    image_shape: tuple[int, ...] | None = None
    feature_names: Sequence[str] | None = None

    @classmethod
    def from_estimator(
        cls,
        estimator: VAEEstimator | Pipeline,
        *,
        n_samples: int = 64,
        random_state: int | np.random.RandomState | None = None,
        image_shape: tuple[int, ...] | None = None,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Sample from a fitted estimator and draw the samples.

        Parameters
        ----------
        estimator : VAEEstimator or Pipeline
            Fitted estimator, or a fitted Pipeline that ends in one: the samples are
            then taken back through the steps before it.
        n_samples : int, default=64
            How many samples to draw.
        random_state : int, RandomState instance or None, default=None
            Seed of the samples.
        image_shape, ax, **kwargs
            As in :meth:`ReconstructionDisplay.from_estimator`.

        Returns
        -------
        SampleDisplay
        """
        drawn = vae_of(estimator).sample(n_samples, random_state=random_state)
        samples, image_shape = as_rows(
            estimator, undo_steps(estimator, drawn), image_shape
        )
        display = cls(
            samples=samples,
            image_shape=image_shape,
            feature_names=feature_names_of(estimator),
        )
        return display.plot(ax=ax, **kwargs)

    def _draw(self, ax: Axes, **kwargs: Any) -> tuple[float, float]:
        n_samples, n_features = self.samples.shape
        ax.set_title(f"{n_samples} samples from the model")
        shape = find_image_shape(self.image_shape, n_features)
        if shape:
            n_across = ceil(sqrt(n_samples))
            n_down = ceil(n_samples / n_across)
            sheet = np.full((n_down * n_across, n_features), np.nan)
            sheet[:n_samples] = self.samples
            sheet = sheet.reshape(n_down, n_across, n_features)
            return draw_images(ax, sheet, shape, **kwargs)
        style = styled(kwargs, colours=[BLUE] * n_samples, alpha=0.3)
        return draw_lines(ax, self.samples[np.newaxis], self.feature_names, **style)

"""Codes of rows, as points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.decomposition import PCA
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import column_or_1d

from .base import BLUE, RAMP, Display, colour_bar, styled, tidy
from .rows import encode

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..estimator import VAEEstimator


@dataclass(kw_only=True, eq=False, repr=False)
class LatentSpaceDisplay(Display):
    """Posterior means of rows in the latent space, coloured by y.

    One latent dimension is drawn as a histogram, or over y where y is continuous.

    Parameters
    ----------
    coordinates : ndarray of shape (n_samples, 1) or (n_samples, 2)
        Where each row lies.
    y : array-like of shape (n_samples,), default=None
        Classes, shown by a legend, or continuous values, shown by a colour bar.
    axis_labels : sequence of str, default=("z0", "z1")
        Names of the coordinates.

    Attributes
    ----------
    figure_, ax_ : matplotlib Figure and Axes
        Where the latent space is drawn.

    Examples
    --------
    >>> from skvae import VAEEstimator
    >>> from skvae.datasets import load_digits
    >>> from skvae.plotting import LatentSpaceDisplay
    >>> X, y = load_digits(return_X_y=True)
    >>> vae = VAEEstimator(latent_dim=2, hidden_dim=8, epochs=1).fit(X)
    >>> LatentSpaceDisplay.from_estimator(vae, X, y)
    <...>
    """

    coordinates: NDArray[Any]
    y: ArrayLike | None = None
    axis_labels: Sequence[str] = ("z0", "z1")

    @classmethod
    def from_estimator(
        cls,
        estimator: VAEEstimator | Pipeline,
        X: Any,
        y: ArrayLike | None = None,
        *,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Encode X and draw where its rows lie.

        More than two latent dimensions are projected on the first two principal
        components of the posterior means; the axes say how much of their variance
        these explain.

        Parameters
        ----------
        estimator : VAEEstimator or Pipeline
            Fitted estimator, or a fitted Pipeline that ends in one.
        X : array-like of shape (n_samples, n_features)
            Data.
        y : array-like of shape (n_samples,), default=None
            Classes or continuous values to colour by. More than 20 different numbers
            are taken as continuous.
        ax : matplotlib axes, default=None
            Where to draw. None makes a new figure.
        **kwargs
            Keywords of matplotlib's ``scatter``, or of ``hist`` for a histogram.

        Returns
        -------
        LatentSpaceDisplay

        Raises
        ------
        ValueError
            If y has another length than X.
        """
        Z = encode(estimator, X)
        axis_labels = ["z0", "z1"]
        if Z.shape[1] > 2:
            pca = PCA(n_components=2, svd_solver="full").fit(Z)
            Z = pca.transform(Z)
            axis_labels = [
                f"principal component {number} ({ratio:.0%} of variance)"
                for number, ratio in enumerate(pca.explained_variance_ratio_, start=1)
            ]
        display = cls(coordinates=Z, y=y, axis_labels=axis_labels)
        return display.plot(ax=ax, **kwargs)

    def _draw(self, ax: Axes, **kwargs: Any) -> tuple[float, float]:
        n_samples, n_dimensions = self.coordinates.shape
        if n_dimensions > 2:
            raise ValueError(
                f"LatentSpaceDisplay draws 1 or 2 coordinates and got {n_dimensions}. "
                "LatentSpaceDisplay.from_estimator projects them by PCA."
            )
        y = None if self.y is None else column_or_1d(self.y)
        if y is not None and len(y) != n_samples:
            raise ValueError(
                f"y has {len(y)} values for {n_samples} rows of X: give one per row."
            )
        ax.set_title("Latent space (posterior means)")
        ax.set_xlabel(self.axis_labels[0])
        tidy(ax)
        points = styled(
            kwargs,
            # Few points are drawn large, many small and seen through.
            s=float(np.clip(10_000 / n_samples, 6, 30)),
            alpha=float(np.clip(2_000 / n_samples, 0.6, 0.9)),
            linewidths=0,
        )
        if y is not None and _is_continuous(y):
            if n_dimensions == 1:
                ax.scatter(self.coordinates, y, **styled(points, color=BLUE))
                ax.set_ylabel("y")
            else:
                style = styled(points, c=y, cmap=RAMP)
                colour_bar(ax.scatter(*self.coordinates.T, **style), ax, "y")
        else:
            classes, member = np.unique(
                np.zeros(n_samples) if y is None else y, return_inverse=True
            )
            colours = _class_colours(len(classes))
            if n_dimensions == 1:
                z = [self.coordinates[member == k, 0] for k in range(len(classes))]
                ax.hist(z, **styled(kwargs, bins=40, stacked=True, color=colours))
                ax.set_ylabel("rows")
            else:
                # All in one call, so that no class covers the ones before it.
                style = styled(points, c=colours[member])
                ax.scatter(*self.coordinates.T, **style)
            if y is not None:
                _class_legend(ax, classes, colours)
        if n_dimensions == 1:
            return 7.0, 4.0
        ax.set_ylabel(self.axis_labels[1])
        ax.set_aspect("equal", adjustable="datalim")
        return 6.8, 5.6


def _is_continuous(y: NDArray[Any]) -> bool:
    return y.dtype.kind in "iuf" and len(np.unique(y)) > 20


def _class_colours(n_classes: int) -> NDArray[Any]:
    from matplotlib import colormaps

    if n_classes <= 20:
        return colormaps["tab10" if n_classes <= 10 else "tab20"](range(n_classes))
    return colormaps["turbo"](np.linspace(0, 1, n_classes))


def _class_legend(ax: Axes, classes: NDArray[Any], colours: NDArray[Any]) -> None:
    from matplotlib.lines import Line2D

    ax.legend(
        handles=[
            Line2D([], [], color=colour, label=str(name), marker="o", linestyle="")
            for name, colour in zip(classes, colours, strict=True)
        ],
        frameon=False,
        loc="center left",
        bbox_to_anchor=(1, 0.5),
        ncols=ceil(len(classes) / 20),
        handletextpad=0.1,
    )

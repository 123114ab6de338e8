"""Displays: what a fitted VAE has learned, in pictures.

As in scikit-learn, a display stores arrays, ``from_estimator`` computes them from a
fitted estimator (or a fitted Pipeline that ends in one) and draws them, and ``plot``
draws them again, on axes of your own. ``figure_`` and ``ax_`` hold what was drawn.

Rows that are images are drawn as images. Others are drawn as lines over the features,
each feature scaled to the range of what is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, isqrt, prod, sqrt
from numbers import Real
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm
from sklearn.decomposition import PCA
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted, column_or_1d

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "InterpolationDisplay",
    "LatentSpaceDisplay",
    "LatentTraversalDisplay",
    "LossCurveDisplay",
    "ManifoldDisplay",
    "ReconstructionDisplay",
    "SampleDisplay",
    "SearchDisplay",
]

# Okabe and Ito's colours, which colour-blind readers can tell apart.
_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#777777"
_RAMP = "viridis"


class _Display:
    """What all displays share: ``plot``. A display says how to ``_draw``."""

    figure_: Any
    ax_: Any

    def _draw(self, ax: Axes, **kwargs: Any) -> tuple[float, float]:
        """Draw on ax; return the width and height in inches that suit the picture."""
        raise NotImplementedError

    def plot(self, ax: Axes | None = None, **kwargs: Any) -> Self:
        """Draw the display.

        Parameters
        ----------
        ax : matplotlib axes, default=None
            Where to draw. None makes a new figure.
        **kwargs
            Keywords of the function of matplotlib that draws, as in
            ``from_estimator``.

        Returns
        -------
        display
            The display itself, with ``figure_`` and ``ax_`` set.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        try:
            import matplotlib.pyplot as plt
        except ImportError as error:
            raise ImportError(
                f"{type(self).__name__} needs matplotlib: pip install 'skvae[plot]'"
            ) from error
        self.ax_ = plt.subplots(layout="constrained")[1] if ax is None else ax
        self.figure_ = self.ax_.figure
        size = self._draw(self.ax_, **kwargs)
        if ax is None:
            self.figure_.set_size_inches(size)
        return self


@dataclass(kw_only=True, eq=False, repr=False)
class LossCurveDisplay(_Display):
    """Loss over the epochs: total and reconstruction in one panel, KL in another.

    Parameters
    ----------
    epoch : array-like of shape (n_epochs,)
        Numbers of the epochs.
    loss, reconstruction, kl : array-like of shape (n_epochs,)
        Nats per row; loss = reconstruction + kl.
    validation_loss, validation_reconstruction, validation_kl : array-like of shape \
(n_epochs,), default=None
        The same on the validation set. None or NaN where there is none.

    Attributes
    ----------
    figure_, ax_ : matplotlib Figure and Axes
        The axes only bound the two panels and carry their title.
    axes_ : ndarray of matplotlib Axes of shape (2,)
        Panel of the loss, panel of the KL.
    lines_ : dict of str to matplotlib Line2D
        The curves, by the names of the parameters.

    Examples
    --------
    >>> from skvae import VAEEstimator
    >>> from skvae.datasets import load_digits
    >>> from skvae.plotting import LossCurveDisplay
    >>> X, _ = load_digits(return_X_y=True)
    >>> vae = VAEEstimator(latent_dim=2, hidden_dim=8, epochs=2).fit(X)
    >>> LossCurveDisplay.from_estimator(vae)
    <...>
    """

    epoch: ArrayLike
    loss: ArrayLike
    reconstruction: ArrayLike
    kl: ArrayLike
    validation_loss: ArrayLike | None = None
    validation_reconstruction: ArrayLike | None = None
    validation_kl: ArrayLike | None = None

    @classmethod
    def from_estimator(
        cls, estimator: Any, *, ax: Axes | None = None, **kwargs: Any
    ) -> Self:
        """Draw the ``history_`` of a fitted estimator.

        Parameters
        ----------
        estimator : VAEEstimator or Pipeline
            Fitted estimator, or a fitted Pipeline that ends in one.
        ax : matplotlib axes, default=None
            Where to draw. None makes a new figure.
        **kwargs
            Keywords of matplotlib's ``plot``.

        Returns
        -------
        LossCurveDisplay
        """
        history = _vae(estimator).history_
        if isinstance(history, list):
            history = {name: [row[name] for row in history] for name in history[0]}
        names = ("loss", "reconstruction", "kl")
        columns = ("epoch", *names, *(f"validation_{name}" for name in names))
        display = cls(**{name: history[name] for name in columns})
        return display.plot(ax=ax, **kwargs)

    def _draw(self, ax: Axes, **kwargs: Any) -> tuple[float, float]:
        ax.set_axis_off()
        ax.set_title("Loss over training")
        # Two panels, because the KL is often a small part of the loss.
        left = ax.inset_axes((0, 0, 0.44, 1))
        right = ax.inset_axes((0.56, 0, 0.44, 1))
        self.axes_ = np.array([left, right])
        self.lines_ = {}
        for panel, name, label, colour in (
            (left, "loss", "total", _BLUE),
            (left, "reconstruction", "reconstruction", _ORANGE),
            (right, "kl", "KL", _GREEN),
        ):
            for prefix, suffix, dashes in (
                ("", "", "-"),
                ("validation_", ", validation", "--"),
            ):
                # A None, where there was no validation set, becomes NaN.
                values = np.asarray(getattr(self, prefix + name), dtype=float)
                if np.isnan(values).all():
                    continue
                style = _style(
                    kwargs,
                    color=colour,
                    linestyle=dashes,
                    label=label + suffix,
                    # A line needs two epochs, a dot one.
                    marker="o" if len(values) == 1 else None,
                )
                (self.lines_[prefix + name],) = panel.plot(self.epoch, values, **style)
        for panel in self.axes_:
            _tidy(panel)
            panel.set(xlabel="epoch", ylabel="nats per row")
            panel.xaxis.get_major_locator().set_params(integer=True)
            panel.legend(frameon=False, fontsize="small")
        return 9.0, 3.6


@dataclass(kw_only=True, eq=False, repr=False)
class ReconstructionDisplay(_Display):
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
        estimator: Any,
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
        X : array-like of shape (n_rows, n_features)
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
        X = X[:n_samples]
        display = cls(
            originals=np.asarray(X),
            reconstructions=_decode(estimator, _encode(estimator, X)),
            image_shape=image_shape,
            feature_names=_feature_names(estimator),
        )
        return display.plot(ax=ax, **kwargs)

    def _draw(self, ax: Axes, **kwargs: Any) -> tuple[float, float]:
        ax.set_title("Originals and their reconstructions")
        rows = np.stack([self.originals, self.reconstructions])
        labels = ["original", "reconstructed"]
        shape = _find_image_shape(self.image_shape, rows.shape[-1])
        if shape:
            return _draw_images(ax, rows, shape, labels, **kwargs)
        return _draw_lines(
            ax,
            rows.swapaxes(0, 1),
            self.feature_names,
            [f"row {row}" for row in range(len(self.originals))],
            labels,
            colours=[_GREY, _ORANGE],
            **kwargs,
        )


@dataclass(kw_only=True, eq=False, repr=False)
class SampleDisplay(_Display):
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
        estimator: Any,
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
        samples = _vae(estimator).sample(n_samples, random_state=random_state)
        if isinstance(estimator, Pipeline) and len(estimator) > 1:
            samples = estimator[:-1].inverse_transform(samples)
        display = cls(
            samples=np.asarray(samples),
            image_shape=image_shape,
            feature_names=_feature_names(estimator),
        )
        return display.plot(ax=ax, **kwargs)

    def _draw(self, ax: Axes, **kwargs: Any) -> tuple[float, float]:
        n_samples, n_features = self.samples.shape
        ax.set_title(f"{n_samples} samples from the model")
        shape = _find_image_shape(self.image_shape, n_features)
        if shape:
            n_across = ceil(sqrt(n_samples))
            n_down = ceil(n_samples / n_across)
            sheet = np.full((n_down * n_across, n_features), np.nan)
            sheet[:n_samples] = self.samples
            sheet = sheet.reshape(n_down, n_across, n_features)
            return _draw_images(ax, sheet, shape, **kwargs)
        style = _style(kwargs, colours=[_BLUE] * n_samples, alpha=0.3)
        return _draw_lines(ax, self.samples[np.newaxis], self.feature_names, **style)


@dataclass(kw_only=True, eq=False, repr=False)
class LatentSpaceDisplay(_Display):
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
        estimator: Any,
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
        Z = _encode(estimator, X)
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
        _tidy(ax)
        points = _style(
            kwargs,
            # Few points are drawn large, many small and seen through.
            s=float(np.clip(10_000 / n_samples, 6, 30)),
            alpha=float(np.clip(2_000 / n_samples, 0.6, 0.9)),
            linewidths=0,
        )
        if y is not None and _is_continuous(y):
            if n_dimensions == 1:
                ax.scatter(self.coordinates, y, **_style(points, color=_BLUE))
                ax.set_ylabel("y")
            else:
                style = _style(points, c=y, cmap=_RAMP)
                _colour_bar(ax.scatter(*self.coordinates.T, **style), ax, "y")
        else:
            classes, member = np.unique(
                np.zeros(n_samples) if y is None else y, return_inverse=True
            )
            colours = _class_colours(len(classes))
            if n_dimensions == 1:
                z = [self.coordinates[member == k, 0] for k in range(len(classes))]
                ax.hist(z, **_style(kwargs, bins=40, stacked=True, color=colours))
                ax.set_ylabel("rows")
            else:
                # All in one call, so that no class covers the ones before it.
                style = _style(points, c=colours[member])
                ax.scatter(*self.coordinates.T, **style)
            if y is not None:
                _class_legend(ax, classes, colours)
        if n_dimensions == 1:
            return 7.0, 4.0
        ax.set_ylabel(self.axis_labels[1])
        ax.set_aspect("equal", adjustable="datalim")
        return 6.8, 5.6


@dataclass(kw_only=True, eq=False, repr=False)
class ManifoldDisplay(_Display):
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
        estimator: Any,
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
        latent_dim = _vae(estimator).latent_dim
        if latent_dim != 2:
            raise ValueError(
                f"ManifoldDisplay needs latent_dim=2 and got latent_dim={latent_dim}. "
                "Fit with latent_dim=2, or use LatentTraversalDisplay."
            )
        values = norm.ppf((np.arange(n_steps) + 0.5) / n_steps)
        z0, z1 = np.meshgrid(values, values[::-1])
        images = _decode(estimator, np.stack([z0, z1], axis=-1))
        display = cls(images=images, values=values, image_shape=image_shape)
        return display.plot(ax=ax, **kwargs)

    def _draw(self, ax: Axes, **kwargs: Any) -> tuple[float, float]:
        n_features = self.images.shape[-1]
        shape = _find_image_shape(self.image_shape, n_features)
        if not shape:
            raise ValueError(
                f"ManifoldDisplay draws images, and {n_features} features make no "
                "square image. Give image_shape=(height, width), or use "
                "LatentTraversalDisplay, which draws tables, too."
            )
        ax.set(title="What the latent plane decodes to", xlabel="z0", ylabel="z1")
        labels = [f"{value:.1f}" for value in self.values]
        return _draw_images(ax, self.images, shape, labels[::-1], labels, 0, **kwargs)


@dataclass(kw_only=True, eq=False, repr=False)
class InterpolationDisplay(_Display):
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
        estimator: Any,
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
        start, end = _encode(estimator, X_start), _encode(estimator, X_end)
        if len(start) != len(end):
            raise ValueError(
                f"X_start has {len(start)} rows and X_end has {len(end)}: give one end "
                "for each start."
            )
        display = cls(
            interpolations=_decode(estimator, np.linspace(start, end, n_steps, axis=1)),
            image_shape=image_shape,
            feature_names=_feature_names(estimator),
        )
        return display.plot(ax=ax, **kwargs)

    def _draw(self, ax: Axes, **kwargs: Any) -> tuple[float, float]:
        n_pairs, n_steps, n_features = self.interpolations.shape
        ax.set_title("Interpolations between pairs of rows")
        steps = ["start", *[""] * (n_steps - 2), "end"]
        shape = _find_image_shape(self.image_shape, n_features)
        if shape:
            return _draw_images(ax, self.interpolations, shape, None, steps, **kwargs)
        pairs = [f"pair {pair}" for pair in range(n_pairs)]
        return _draw_lines(
            ax, self.interpolations, self.feature_names, pairs, steps, **kwargs
        )


@dataclass(kw_only=True, eq=False, repr=False)
class LatentTraversalDisplay(_Display):
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
        estimator: Any,
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
        latent_dim = _vae(estimator).latent_dim
        Z = np.zeros((0, latent_dim)) if X is None else _encode(estimator, X)
        if row is not None and not -len(Z) <= row < len(Z):
            raise ValueError(f"row={row} is no row of X, which has {len(Z)} rows.")
        centre = np.zeros(latent_dim) if row is None else Z[row]
        activity = Z.var(axis=0) if len(Z) else np.zeros(latent_dim)
        # Stable, so that equally active dimensions keep their order.
        dimensions = np.argsort(-activity, kind="stable")[:n_dimensions]
        values = np.linspace(-limit, limit, n_steps)
        traversals = np.tile(centre, (len(dimensions), n_steps, 1))
        for place, dimension in enumerate(dimensions):
            traversals[place, :, dimension] = values
        display = cls(
            traversals=_decode(estimator, traversals),
            values=values,
            dimensions=dimensions.tolist(),
            image_shape=image_shape,
            feature_names=_feature_names(estimator),
        )
        return display.plot(ax=ax, **kwargs)

    def _draw(self, ax: Axes, **kwargs: Any) -> tuple[float, float]:
        ax.set_title("Latent traversals")
        names = [f"z{dimension}" for dimension in self.dimensions]
        values = [f"{value:.2g}" for value in self.values]
        shape = _find_image_shape(self.image_shape, self.traversals.shape[-1])
        if shape:
            ax.set_xlabel("value of the latent dimension")
            return _draw_images(ax, self.traversals, shape, names, values, **kwargs)
        lines = [f"z = {value}" for value in values]
        return _draw_lines(
            ax, self.traversals, self.feature_names, names, lines, **kwargs
        )


@dataclass(kw_only=True, eq=False, repr=False)
class SearchDisplay(_Display):
    """Mean test score of a search over one or two of its hyper-parameters.

    Two hyper-parameters give a heat map, with the best cell framed, or points where a
    random search drew numbers, so that most cells would be empty. One gives a line
    with error bars.

    Parameters
    ----------
    scores : ndarray of shape (n_y, n_x)
        Mean test scores, higher is better, NaN where nothing was tried.
    errors : ndarray of shape (n_y, n_x)
        Standard deviations of the scores over the folds.
    best : tuple of int
        Row and column of the best candidate.
    x_name, x_values : str and sequence of length n_x
        Name and values of the hyper-parameter across.
    y_name, y_values : str and sequence of length n_y, default=None and (None,)
        Name and values of the hyper-parameter upwards, where there is one.
    metric : str, default="score"
        Name of the score.

    Attributes
    ----------
    figure_, ax_ : matplotlib Figure and Axes
        Where the scores are drawn.

    Examples
    --------
    >>> from sklearn.model_selection import GridSearchCV
    >>> from skvae import VAEEstimator
    >>> from skvae.datasets import load_digits
    >>> from skvae.plotting import SearchDisplay
    >>> X, _ = load_digits(return_X_y=True)
    >>> grid = {"latent_dim": [2, 4], "learning_rate": [1e-3, 1e-2]}
    >>> vae = VAEEstimator(hidden_dim=8, epochs=1, random_state=0)
    >>> SearchDisplay.from_search(GridSearchCV(vae, grid, cv=2).fit(X[:200]))
    <...>
    """

    scores: NDArray[Any]
    errors: NDArray[Any]
    best: tuple[int, int]
    x_name: str
    x_values: Sequence[Any]
    y_name: str | None = None
    y_values: Sequence[Any] = (None,)
    metric: str = "score"

    @classmethod
    def from_search(
        cls,
        search: Any,
        *,
        x: str | None = None,
        y: str | None = None,
        metric: str = "score",
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Draw the ``cv_results_`` of a fitted search.

        Each cell shows the best score over all other hyper-parameters. After successive
        halving it is the best of the last iteration that reached the cell.

        Parameters
        ----------
        search : GridSearchCV, RandomizedSearchCV, HalvingGridSearchCV or alike
            Fitted search.
        x, y : str, default=None
            Names of the hyper-parameters as in the grid, ``"vae__latent_dim"`` in a
            Pipeline. None takes those that vary, where they are one or two.
        metric : str, default="score"
            Name of the score, where the search has several.
        ax : matplotlib axes, default=None
            Where to draw. None makes a new figure.
        **kwargs
            Keywords of matplotlib's ``imshow``, ``scatter`` or ``errorbar``.

        Returns
        -------
        SearchDisplay

        Raises
        ------
        ValueError
            If ``x``, ``y`` or ``metric`` is none of the search, if ``x`` is not given
            where more than two hyper-parameters vary, or if every fit has failed.
        """
        check_is_fitted(search, "cv_results_")
        results = search.cv_results_
        candidates = results["params"]
        metrics = _after("mean_test_", results)
        if metric not in metrics:
            raise ValueError(f"metric={metric!r} was not scored; there are {metrics}.")
        x, y = _choose_axes(search, x, y)
        x_values = _distinct(candidates, x)
        y_values = [None] if y is None else _distinct(candidates, y)

        def cell(candidate: Mapping[str, Any]) -> tuple[int, int]:
            row = 0 if y is None else y_values.index(candidate[y])
            return row, x_values.index(candidate[x])

        mean = np.asarray(results[f"mean_test_{metric}"], dtype=float)
        scores = np.full((len(y_values), len(x_values)), np.nan)
        errors = scores.copy()
        # By iteration, then by score: what is written last into a cell is its best.
        drawn = [
            int(index)
            for index in np.lexsort((mean, results.get("iter", np.zeros(len(mean)))))
            if np.isfinite(mean[index]) and {x, y or x} <= candidates[index].keys()
        ]
        if not drawn:
            raise ValueError("No candidate has a finite score: every fit has failed.")
        for index in drawn:
            scores[cell(candidates[index])] = mean[index]
            errors[cell(candidates[index])] = results[f"std_test_{metric}"][index]
        best = getattr(search, "best_index_", None)
        display = cls(
            scores=scores,
            errors=errors,
            best=cell(candidates[best if best in drawn else drawn[-1]]),
            x_name=x,
            x_values=x_values,
            y_name=y,
            y_values=y_values,
            metric=metric,
        )
        return display.plot(ax=ax, **kwargs)

    def _draw(self, ax: Axes, **kwargs: Any) -> tuple[float, float]:
        ax.set(xlabel=self.x_name, title="Cross-validated search")
        label = f"mean test {self.metric} (higher is better)"
        if self.y_name is None:
            ax.set_ylabel(label)
            return self._draw_line(ax, **kwargs)
        ax.set_ylabel(self.y_name)
        sparse = np.isfinite(self.scores).mean() < 0.5
        if sparse and _are_numbers(self.x_values) and _are_numbers(self.y_values):
            return self._draw_points(ax, label, **kwargs)
        return self._draw_cells(ax, label, **kwargs)

    def _draw_line(self, ax: Axes, **kwargs: Any) -> tuple[float, float]:
        x = _place(ax, "x", self.x_values)
        style = _style(kwargs, color=_BLUE, marker="o", capsize=3)
        ax.errorbar(x, self.scores[0], self.errors[0], **style)
        best = self.best[1]
        style = _style({}, color=_ORANGE, ms=9, zorder=3, label="best")
        ax.plot(x[best], self.scores[0, best], "o", **style)
        ax.legend(frameon=False)
        _tidy(ax)
        return 6.4, 4.0

    def _draw_points(self, ax: Axes, label: str, **kwargs: Any) -> tuple[float, float]:
        x, y = _place(ax, "x", self.x_values), _place(ax, "y", self.y_values)
        rows, columns = np.nonzero(np.isfinite(self.scores))
        style = _style(kwargs, c=self.scores[rows, columns], cmap=_RAMP, s=80)
        points = ax.scatter(x[columns], y[rows], **style)
        row, column = self.best
        frame = _style({}, mfc="none", mec=_ORANGE, mew=2, ms=14, label="best")
        ax.plot(x[column], y[row], "o", **frame)
        ax.legend(
            frameon=False, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0
        )
        _tidy(ax)
        _colour_bar(points, ax, label)
        return 7.0, 5.0

    def _draw_cells(self, ax: Axes, label: str, **kwargs: Any) -> tuple[float, float]:
        from matplotlib.patches import Rectangle

        n_y, n_x = self.scores.shape
        style = _style(kwargs, cmap=_RAMP, origin="lower", aspect="auto")
        image = ax.imshow(self.scores, **style)
        ax.set_xticks(range(n_x), [_text(value) for value in self.x_values])
        ax.set_yticks(range(n_y), [_text(value) for value in self.y_values])
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        # As many decimals as tell the scores apart.
        spread = np.nanmax(self.scores) - np.nanmin(self.scores)
        decimals = int(np.clip(2 - np.floor(np.log10(spread or 1)), 0, 6))
        for row, column in np.argwhere(np.isfinite(self.scores)):
            score = self.scores[row, column]
            brightness = np.dot(image.to_rgba(score)[:3], (0.299, 0.587, 0.114))
            colour = "black" if brightness > 0.5 else "white"
            text = ax.text(
                column, row, f"{score:.{decimals}f}", color=colour, clip_on=True
            )
            text.set(ha="center", va="center")
        row, column = self.best
        corner = (column - 0.5, row - 0.5)
        frame = _style({}, fill=False, ec=_ORANGE, lw=3, clip_on=False)
        ax.add_patch(Rectangle(corner, 1, 1, **frame))
        _colour_bar(image, ax, label)
        return min(0.9 * n_x + 2.8, 14.0), min(0.6 * n_y + 1.6, 12.0)


def _style(keywords: Mapping[str, Any], **defaults: Any) -> dict[str, Any]:
    """The defaults, where the user's keywords do not say otherwise."""
    return defaults | dict(keywords)


def _vae(estimator: Any) -> Any:
    """The fitted VAE: the estimator itself, or the last step of a Pipeline."""
    check_is_fitted(estimator)
    return estimator[-1] if isinstance(estimator, Pipeline) else estimator


def _feature_names(estimator: Any) -> Sequence[str] | None:
    return getattr(estimator, "feature_names_in_", None)


def _encode(estimator: Any, X: Any) -> NDArray[Any]:
    return np.asarray(estimator.transform(X))


def _decode(estimator: Any, Z: NDArray[Any]) -> NDArray[Any]:
    """Decode Z (..., latent_dim) to rows (..., n_features)."""
    rows = np.asarray(estimator.inverse_transform(Z.reshape(-1, Z.shape[-1])))
    return rows.reshape(*Z.shape[:-1], -1)


def _find_image_shape(
    image_shape: tuple[int, ...] | None, n_features: int
) -> tuple[int, ...]:
    """The shape of an image, or () where rows are no images."""
    if image_shape is None:
        for channels in ((), (3,)):
            side = isqrt(n_features // prod(channels))
            # 4 or 9 features make a square, but fewer than 8 x 8 are a table.
            if side >= 8 and prod(channels) * side**2 == n_features:
                return (*channels, side, side)
        return ()
    known = len(image_shape) in (0, 2) or (
        len(image_shape) == 3 and (image_shape[0] in (1, 3) or image_shape[2] == 3)
    )
    if not known or (image_shape and prod(image_shape) != n_features):
        raise ValueError(
            f"image_shape={image_shape} does not fit rows of {n_features} features. "
            "Expected (height, width), (1, height, width), (3, height, width) or "
            "(height, width, 3) with that product, or () for rows that are no images."
        )
    return tuple(image_shape)


def _draw_images(
    ax: Axes,
    rows: NDArray[Any],
    image_shape: tuple[int, ...],
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    gap: int | None = None,
    **kwargs: Any,
) -> tuple[float, float]:
    """Draw rows (n_down, n_across, n_features) as one sheet of images."""
    images = rows.reshape(*rows.shape[:2], *image_shape).astype(float)
    if images.ndim == 5 and image_shape[0] in (1, 3):
        images = np.moveaxis(images, 2, -1)
    n_down, n_across, height, width = images.shape[:4]
    # Values about [0, 1] are taken as such, others by their range.
    low, high = np.nanmin(images), np.nanmax(images)
    if low >= -0.5 and high <= 1.5:
        low, high = 0.0, 1.0
    gap = max(1, height // 28) if gap is None else gap
    # Gaps are NaN, which matplotlib leaves blank.
    margins = ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0))[: images.ndim]
    sheet = np.pad(images, margins, constant_values=np.nan).swapaxes(1, 2)
    sheet = sheet.reshape(n_down * (height + gap), n_across * (width + gap), -1)
    sheet = sheet[: len(sheet) - gap, : sheet.shape[1] - gap]
    if sheet.shape[-1] == 3:
        sheet = np.nan_to_num(((sheet - low) / (high - low or 1)).clip(0, 1), nan=1.0)
    else:
        sheet = sheet[..., 0]
    style = _style(kwargs, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
    ax.imshow(sheet, **style)
    for axis, labels, most, step, middle in (
        (ax.yaxis, row_labels or [], 25, height + gap, (height - 1) / 2),
        (ax.xaxis, column_labels or [], 11, width + gap, (width - 1) / 2),
    ):
        # Not so many that they touch; the first and the last always stay.
        shown = np.linspace(0, len(labels) - 1, min(len(labels), most)).round()
        shown = shown.astype(int)
        axis.set_ticks(middle + step * shown, [labels[place] for place in shown])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    sheet_width = min(0.9 * n_across, 9.0)
    sheet_height = sheet_width * sheet.shape[0] / sheet.shape[1]
    scale = min(1.0, 9.0 / sheet_height)
    return (
        max(sheet_width * scale + (0.2 if row_labels is None else 1.0), 3.6),
        sheet_height * scale + (0.5 if column_labels is None else 0.9),
    )


def _draw_lines(
    ax: Axes,
    rows: NDArray[Any],
    feature_names: Sequence[str] | None,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    colours: Sequence[Any] | None = None,
    **kwargs: Any,
) -> tuple[float, float]:
    """Draw rows (n_down, n_lines, n_features) as lines in one band for each n_down."""
    n_down, n_lines, n_features = rows.shape
    low = np.nanmin(rows, axis=(0, 1))
    span = np.nanmax(rows, axis=(0, 1)) - low
    # A feature that never changes lies in the middle of its band.
    scaled = np.where(span > 0, (rows - low) / np.where(span > 0, span, 1), 0.5)
    colours = _ramp(n_lines) if colours is None else list(colours)
    for band in range(n_down):
        for line in range(n_lines):
            style = _style(kwargs, color=colours[line], linewidth=1.2)
            ax.plot(n_down - 1 - band + 0.85 * scaled[band, line], **style)
    if column_labels is not None:
        first, last = ax.lines[0], ax.lines[n_lines - 1]
        ax.legend(
            [first, last],
            [column_labels[0], column_labels[-1]],
            frameon=False,
            ncols=2,
            loc="lower right",
            bbox_to_anchor=(1, 1),
        )
        ax.set_title(ax.get_title(), loc="left")
        ax.set_title("")
    _tidy(ax)
    ax.set_xlim(0, n_features - 1)
    if n_features <= 40:
        ax.set_xticks(range(n_features), feature_names)
        if feature_names is not None:
            for label in ax.get_xticklabels():
                label.set(rotation=45, ha="right", rotation_mode="anchor")
    ax.set_xlabel("feature, each scaled to the range shown")
    ax.set_yticks(
        [n_down - 1 - band + 0.42 for band in range(n_down)],
        [""] * n_down if row_labels is None else row_labels,
    )
    ax.tick_params(length=0)
    ax.grid(False, axis="y")
    # Names are turned: the longest one needs its share of the height.
    names_height = 0.06 * max(
        map(len, [""] if feature_names is None else feature_names)
    )
    return min(0.3 * n_features + 2.5, 10.0), max(
        0.7 * n_down, 2.4
    ) + 1.0 + names_height


def _tidy(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(True, color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)


def _colour_bar(artist: Any, ax: Any, label: str) -> None:
    bar = ax.figure.colorbar(artist, ax=ax, label=label)
    bar.outline.set_visible(False)
    # Points may be seen through, the bar that explains them not.
    bar.solids.set_alpha(1)


def _ramp(n_colours: int) -> list[Any]:
    """Colours from dark to light, the palest left out: it is lost on white paper."""
    from matplotlib import colormaps

    return list(colormaps[_RAMP](np.linspace(0, 0.9, n_colours)))


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


def _is_continuous(y: NDArray[Any]) -> bool:
    return y.dtype.kind in "iuf" and len(np.unique(y)) > 20


def _after(prefix: str, names: Any) -> list[str]:
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def _choose_axes(search: Any, x: str | None, y: str | None) -> tuple[str, str | None]:
    """The hyper-parameters to draw: the ones named, else the ones that vary."""
    names = _after("param_", search.cv_results_)
    for name in (x, y):
        if name is not None and name not in names:
            raise ValueError(f"{name!r} was not searched; there are {names}.")
    if x is not None:
        return x, y
    # The resource of successive halving grows with its iterations.
    known = (y, getattr(search, "resource", None))
    free = [
        name
        for name in names
        if name not in known and len(_distinct(search.cv_results_["params"], name)) > 1
    ]
    if not 1 <= len(free) <= (2 if y is None else 1):
        raise ValueError(
            f"The search varies {free}: name what to draw by x= and y=, or by x= alone."
        )
    return free[0], free[1] if len(free) == 2 else y


def _distinct(candidates: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    """The values that the candidates give a hyper-parameter, numbers in order."""
    values: list[Any] = []
    for candidate in candidates:
        if name in candidate and candidate[name] not in values:
            values.append(candidate[name])
    return sorted(values) if _are_numbers(values) else values


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(v, Real) and not isinstance(v, bool) for v in values)


def _place(ax: Axes, axis: str, values: Sequence[Any]) -> NDArray[Any]:
    """Places of values on the x or y axis: numbers to scale, others side by side."""
    from matplotlib.ticker import LogLocator

    numbers = _are_numbers(values)
    places = np.array(values, dtype=float) if numbers else np.arange(len(values))
    line = getattr(ax, f"{axis}axis")
    if numbers and min(values) > 0 and max(values) >= 10 * min(values):
        ax.set(**{f"{axis}scale": "log"})
        line.set_major_locator(LogLocator(subs=(1, 3)))
        line.set_major_formatter("{x:g}")
        line.set_ticks([], minor=True)
    if len(values) <= 10 or not numbers:
        line.set_ticks(places, [_text(value) for value in values])
    return places


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)

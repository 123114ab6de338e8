"""Displays: what a fitted VAE has learned, in pictures.

As in scikit-learn, a display stores arrays, ``from_estimator`` computes them from a
fitted estimator (or a fitted Pipeline that ends in one) and draws them, and ``plot``
draws them again, wherever you like. The figure is in ``figure_``, its axes in ``ax_``.

Rows that are images are drawn as images. Others are drawn as lines over the features,
each feature scaled to the range of what is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isqrt, prod
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
_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#555555"
# Fewer than 8 x 8 values are hardly ever an image, though 4 and 9 are squares, too.
_SMALLEST_GUESSED_SIDE = 8
_MOST_CLASSES_OF_NUMBERS = 20

_AX = """ax : matplotlib axes, default=None
            Where to draw. None makes a new figure."""


class LossCurveDisplay:
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
    figure_ : matplotlib Figure
        Figure of the curves.
    ax_ : matplotlib Axes
        Bounding axes, which carry the title.
    axes_ : ndarray of matplotlib Axes of shape (2,)
        Panel of the loss, panel of the KL.
    lines_ : dict of str to matplotlib Line2D
        The curves drawn, by the names of the parameters.

    Examples
    --------
    >>> from skvae import VAEEstimator
    >>> from skvae.datasets import load_digits
    >>> from skvae.plotting import LossCurveDisplay
    >>> X, _ = load_digits(return_X_y=True)
    >>> vae = VAEEstimator(latent_dim=2, epochs=2, hidden_dim=16).fit(X)
    >>> LossCurveDisplay.from_estimator(vae)
    <...>
    """

    def __init__(
        self,
        *,
        epoch: ArrayLike,
        loss: ArrayLike,
        reconstruction: ArrayLike,
        kl: ArrayLike,
        validation_loss: ArrayLike | None = None,
        validation_reconstruction: ArrayLike | None = None,
        validation_kl: ArrayLike | None = None,
    ) -> None:
        self.epoch = epoch
        self.loss = loss
        self.reconstruction = reconstruction
        self.kl = kl
        self.validation_loss = validation_loss
        self.validation_reconstruction = validation_reconstruction
        self.validation_kl = validation_kl

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
        check_is_fitted(estimator)
        vae = estimator[-1] if isinstance(estimator, Pipeline) else estimator
        history = vae.history_
        if isinstance(history, list):
            history = {name: [row[name] for row in history] for name in history[0]}
        names = ("loss", "reconstruction", "kl")
        columns = ("epoch", *names, *(f"validation_{name}" for name in names))
        # None, where there was no validation set, becomes NaN.
        arrays = {name: np.asarray(history[name], dtype=float) for name in columns}
        return cls(**arrays).plot(ax=ax, **kwargs)

    def _draw(self, ax: Axes, **kwargs: Any) -> tuple[float, float]:
        self.ax_ = _axes(ax, (9.0, 3.6))
        self.ax_.set_title("Loss over training")
        self.ax_.set_axis_off()
        # Two panels, because the KL is often a small part of the loss.
        left = self.ax_.inset_axes((0, 0, 0.44, 1))
        right = self.ax_.inset_axes((0.56, 0, 0.44, 1))
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
                values = getattr(self, prefix + name)
                if values is None or np.isnan(values).all():
                    continue
                style = {
                    "color": colour,
                    "linestyle": dashes,
                    "label": label + suffix,
                    # A single epoch would be no line at all.
                    "marker": "o" if len(values) == 1 else None,
                }
                (self.lines_[prefix + name],) = panel.plot(
                    self.epoch, values, **style | kwargs
                )
        for panel in self.axes_:
            _tidy(panel)
            panel.set(xlabel="epoch", ylabel="nats per row")
            panel.xaxis.get_major_locator().set_params(integer=True)
            panel.legend(frameon=False)
        return self


class ReconstructionDisplay:
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
    feature_names : array-like of str of shape (n_features,), default=None
        Names to show where the rows are no images.

    Attributes
    ----------
    figure_ : matplotlib Figure
        Figure of the rows.
    ax_ : matplotlib Axes
        Axes of the rows.

    Examples
    --------
    >>> from skvae import VAEEstimator
    >>> from skvae.datasets import load_digits
    >>> from skvae.plotting import ReconstructionDisplay
    >>> X, _ = load_digits(return_X_y=True)
    >>> vae = VAEEstimator(latent_dim=2, epochs=1, hidden_dim=16).fit(X)
    >>> ReconstructionDisplay.from_estimator(vae, X)
    <...>
    """

    def __init__(
        self,
        originals: NDArray[Any],
        reconstructions: NDArray[Any],
        *,
        image_shape: tuple[int, ...] | None = None,
        feature_names: Sequence[str] | None = None,
    ) -> None:
        self.originals = originals
        self.reconstructions = reconstructions
        self.image_shape = image_shape
        self.feature_names = feature_names

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
            np.asarray(X),
            _decode(estimator, _encode(estimator, X)),
            image_shape=image_shape,
            feature_names=getattr(estimator, "feature_names_in_", None),
        )
        return display.plot(ax=ax, **kwargs)

    def _draw(self, ax: Axes, **kwargs: Any) -> tuple[float, float]:
        rows = np.stack([self.originals, self.reconstructions])
        shape = _find_image_shape(self.image_shape, rows.shape[-1])
        if shape:
            self.ax_ = _draw_images(
                ax, rows, shape, ("original", "reconstructed"), **kwargs
            )
            self.ax_.set_title("Originals and their reconstructions")
        else:
            self.ax_ = _draw_lines(
                ax,
                rows.swapaxes(0, 1),
                self.feature_names,
                colours=[_GREY, _ORANGE],
                labels={0: "original", 1: "reconstructed"},
                row_labels=[f"row {row}" for row in range(len(self.originals))],
                **kwargs,
            )
            self.ax_.set_title("Rows and their reconstructions", loc="left")
        return self


class SampleDisplay:
    """A sheet of samples from a fitted model.

    Parameters
    ----------
    samples : ndarray of shape (n_samples, n_features)
        Rows drawn from the model.
    image_shape : tuple of int, default=None
        As in :class:`ReconstructionDisplay`.
    feature_names : array-like of str of shape (n_features,), default=None
        Names to show where the rows are no images.

    Attributes
    ----------
    figure_ : matplotlib Figure
        Figure of the samples.
    ax_ : matplotlib Axes
        Axes of the samples.

    Examples
    --------
    >>> from skvae import VAEEstimator
    >>> from skvae.datasets import load_digits
    >>> from skvae.plotting import SampleDisplay
    >>> X, _ = load_digits(return_X_y=True)
    >>> vae = VAEEstimator(latent_dim=2, epochs=1, hidden_dim=16).fit(X)
    >>> SampleDisplay.from_estimator(vae, random_state=0)
    <...>
    """

    def __init__(
        self,
        samples: NDArray[Any],
        *,
        image_shape: tuple[int, ...] | None = None,
        feature_names: Sequence[str] | None = None,
    ) -> None:
        self.samples = samples
        self.image_shape = image_shape
        self.feature_names = feature_names

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        n_samples: int = 64,
        random_state: Any = None,
        image_shape: tuple[int, ...] | None = None,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Sample from a fitted estimator and draw the samples.

        Parameters
        ----------
        estimator : VAEEstimator or Pipeline
            Fitted estimator, or a fitted Pipeline that ends in one: its samples are
            taken back through the steps before the estimator.
        n_samples : int, default=64
            How many samples to draw.
        random_state : int, RandomState instance or None, default=None
            Seed of the samples.
        image_shape : tuple of int, default=None
            As in :class:`ReconstructionDisplay`.
        ax : matplotlib axes, default=None
            Where to draw. None makes a new figure.
        **kwargs
            Keywords of matplotlib's ``imshow`` for images, else of ``plot``.

        Returns
        -------
        SampleDisplay
        """
        check_is_fitted(estimator)
        vae = estimator[-1] if isinstance(estimator, Pipeline) else estimator
        samples = vae.sample(n_samples, random_state=random_state)
        if isinstance(estimator, Pipeline) and len(estimator) > 1:
            samples = estimator[:-1].inverse_transform(samples)
        display = cls(
            np.asarray(samples),
            image_shape=image_shape,
            feature_names=getattr(estimator, "feature_names_in_", None),
        )
        return display.plot(ax=ax, **kwargs)

    def _draw(self, ax: Axes, **kwargs: Any) -> tuple[float, float]:
        n_samples, n_features = self.samples.shape
        shape = _find_image_shape(self.image_shape, n_features)
        if shape:
            n_across = int(np.ceil(np.sqrt(n_samples)))
            n_down = -(-n_samples // n_across)
            sheet = np.full((n_down * n_across, n_features), np.nan)
            sheet[:n_samples] = self.samples
            self.ax_ = _draw_images(
                ax, sheet.reshape(n_down, n_across, n_features), shape, **kwargs
            )
        else:
            style = {"alpha": 0.4, "linewidth": 0.8}
            self.ax_ = _draw_lines(
                ax,
                self.samples[np.newaxis],
                self.feature_names,
                colours=[_BLUE] * n_samples,
                **style | kwargs,
            )
        self.ax_.set_title(f"{n_samples} samples")
        return self


class LatentSpaceDisplay:
    """Posterior means of rows in the latent space, coloured by y.

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
    figure_ : matplotlib Figure
        Figure of the latent space.
    ax_ : matplotlib Axes
        Axes of the latent space.

    Examples
    --------
    >>> from skvae import VAEEstimator
    >>> from skvae.datasets import load_digits
    >>> from skvae.plotting import LatentSpaceDisplay
    >>> X, y = load_digits(return_X_y=True)
    >>> vae = VAEEstimator(latent_dim=2, epochs=1, hidden_dim=16).fit(X)
    >>> LatentSpaceDisplay.from_estimator(vae, X, y)
    <...>
    """

    def __init__(
        self,
        coordinates: NDArray[Any],
        y: ArrayLike | None = None,
        *,
        axis_labels: Sequence[str] = ("z0", "z1"),
    ) -> None:
        self.coordinates = coordinates
        self.y = y
        self.axis_labels = axis_labels

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
        they explain.

        Parameters
        ----------
        estimator : VAEEstimator or Pipeline
            Fitted estimator, or a fitted Pipeline that ends in one.
        X : array-like of shape (n_samples, n_features)
            Data.
        y : array-like of shape (n_samples,), default=None
            Classes or continuous values to colour by.
        ax : matplotlib axes, default=None
            Where to draw. None makes a new figure.
        **kwargs
            Keywords of matplotlib's ``scatter``, or of ``hist`` where there is one
            latent dimension and y is not continuous.

        Returns
        -------
        LatentSpaceDisplay
        """
        Z = _encode(estimator, X)
        axis_labels = ("z0", "z1")
        if Z.shape[1] > 2:
            pca = PCA(n_components=2, svd_solver="full").fit(Z)
            Z = pca.transform(Z)
            axis_labels = tuple(
                f"principal component {component} ({ratio:.0%} of the variance)"
                for component, ratio in enumerate(pca.explained_variance_ratio_, 1)
            )
        return cls(Z, y, axis_labels=axis_labels).plot(ax=ax, **kwargs)

    def _draw(self, ax: Axes, **kwargs: Any) -> tuple[float, float]:
        n_samples, n_dimensions = self.coordinates.shape
        if n_dimensions > 2:
            raise ValueError(
                f"LatentSpaceDisplay draws one or two coordinates, got {n_dimensions}. "
                "Use LatentSpaceDisplay.from_estimator, which projects them by PCA."
            )
        y = None if self.y is None else column_or_1d(self.y)
        if y is not None and len(y) != n_samples:
            raise ValueError(
                f"y has {len(y)} values and X has {n_samples} rows: give one value "
                "per row."
            )
        self.ax_ = _axes(ax, (6.4, 5.4))
        self.ax_.set_title("Latent space: posterior means")
        self.ax_.set_xlabel(self.axis_labels[0])
        classes = None if y is None or _is_continuous(y) else np.unique(y)
        colours = _class_colours(1 if classes is None else len(classes))
        members = [slice(None)] if classes is None else [y == name for name in classes]
        if n_dimensions == 1 and (y is None or classes is not None):
            z = self.coordinates[:, 0]
            style = {"bins": 40, "stacked": True, "color": colours}
            self.ax_.hist([z[rows] for rows in members], **style | kwargs)
            self.ax_.set_ylabel("rows")
        else:
            vertical = y if n_dimensions == 1 else self.coordinates[:, 1]
            colour: Any = y
            if y is None or classes is not None:
                colour = np.empty((n_samples, 4))
                for rows, rgba in zip(members, colours, strict=True):
                    colour[rows] = rgba
            style = {
                "c": colour,
                # Few rows are drawn large, many small and seen through.
                "s": float(np.clip(8000 / n_samples, 4, 30)),
                "alpha": float(np.clip(1500 / n_samples, 0.5, 0.9)),
                "linewidths": 0,
            }
            points = self.ax_.scatter(self.coordinates[:, 0], vertical, **style | kwargs)
            self.ax_.set_ylabel("y" if n_dimensions == 1 else self.axis_labels[1])
            if n_dimensions == 2:
                self.ax_.set_aspect("equal", adjustable="datalim")
                if y is not None and classes is None:
                    bar = self.figure_.colorbar(points, ax=self.ax_, label="y")
                    bar.solids.set_alpha(1)
                    bar.outline.set_visible(False)
        if classes is not None:
            from matplotlib.lines import Line2D

            self.ax_.legend(
                handles=[
                    Line2D([], [], marker="o", linestyle="", color=c, label=str(name))
                    for name, c in zip(classes, colours, strict=True)
                ],
                frameon=False,
                loc="center left",
                bbox_to_anchor=(1, 0.5),
                ncols=-(-len(classes) // 20),
                handletextpad=0.2,
            )
        _tidy(self.ax_)
        return self


class ManifoldDisplay:
    """The images that a two-dimensional latent space decodes to.

    Parameters
    ----------
    images : ndarray of shape (n_steps, n_steps, n_features)
        Decoded images; the first axis is z1 from high to low, the second z0 from low
        to high.
    quantiles : ndarray of shape (n_steps,)
        Values of either latent dimension, from low to high.
    image_shape : tuple of int, default=None
        As in :class:`ReconstructionDisplay`.

    Attributes
    ----------
    figure_ : matplotlib Figure
        Figure of the sheet.
    ax_ : matplotlib Axes
        Axes of the sheet.

    Examples
    --------
    >>> from skvae import VAEEstimator
    >>> from skvae.datasets import load_digits
    >>> from skvae.plotting import ManifoldDisplay
    >>> X, _ = load_digits(return_X_y=True)
    >>> vae = VAEEstimator(latent_dim=2, epochs=1, hidden_dim=16).fit(X)
    >>> ManifoldDisplay.from_estimator(vae, n_steps=5)
    <...>
    """

    def __init__(
        self,
        images: NDArray[Any],
        quantiles: NDArray[Any],
        *,
        image_shape: tuple[int, ...] | None = None,
    ) -> None:
        self.images = images
        self.quantiles = quantiles
        self.image_shape = image_shape

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        n_steps: int = 20,
        image_shape: tuple[int, ...] | None = None,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Decode a grid over the quantiles of a standard normal prior.

        Parameters
        ----------
        estimator : VAEEstimator or Pipeline
            Fitted estimator with ``latent_dim=2``, or a fitted Pipeline that ends in
            one.
        n_steps : int, default=20
            Images along either latent dimension.
        image_shape : tuple of int, default=None
            As in :class:`ReconstructionDisplay`.
        ax : matplotlib axes, default=None
            Where to draw. None makes a new figure.
        **kwargs
            Keywords of matplotlib's ``imshow``.

        Returns
        -------
        ManifoldDisplay

        Raises
        ------
        ValueError
            If ``latent_dim`` is not 2, or the rows are no images.
        """
        latent_dim = _latent_dim(estimator)
        if latent_dim != 2:
            raise ValueError(
                f"ManifoldDisplay needs latent_dim=2 and got latent_dim={latent_dim}. "
                "Use LatentTraversalDisplay, or fit with latent_dim=2."
            )
        quantiles = norm.ppf((np.arange(n_steps) + 0.5) / n_steps)
        z0, z1 = np.meshgrid(quantiles, quantiles[::-1])
        images = _decode(estimator, np.stack([z0, z1], axis=-1))
        return cls(images, quantiles, image_shape=image_shape).plot(ax=ax, **kwargs)

    def _draw(self, ax: Axes, **kwargs: Any) -> tuple[float, float]:
        n_features = self.images.shape[-1]
        shape = _find_image_shape(self.image_shape, n_features)
        if not shape:
            raise ValueError(
                f"ManifoldDisplay draws images, and rows of {n_features} features are "
                "no square ones. Give image_shape=(height, width), or use "
                "LatentTraversalDisplay, which also draws tables."
            )
        labels = [f"{value:.1f}" for value in self.quantiles]
        self.ax_ = _draw_images(
            ax, self.images, shape, labels[::-1], labels, gap=0, **kwargs
        )
        self.ax_.set(xlabel="z0", ylabel="z1", title="What the latent plane decodes to")
        return self


class InterpolationDisplay:
    """Ways through the latent space from one row to another.

    Parameters
    ----------
    interpolations : ndarray of shape (n_pairs, n_steps, n_features)
        Decoded rows from the start to the end of each pair.
    image_shape : tuple of int, default=None
        As in :class:`ReconstructionDisplay`.
    feature_names : array-like of str of shape (n_features,), default=None
        Names to show where the rows are no images.

    Attributes
    ----------
    figure_ : matplotlib Figure
        Figure of the interpolations.
    ax_ : matplotlib Axes
        Axes of the interpolations.

    Examples
    --------
    >>> from skvae import VAEEstimator
    >>> from skvae.datasets import load_digits
    >>> from skvae.plotting import InterpolationDisplay
    >>> X, _ = load_digits(return_X_y=True)
    >>> vae = VAEEstimator(latent_dim=2, epochs=1, hidden_dim=16).fit(X)
    >>> InterpolationDisplay.from_estimator(vae, X[:5], X[5:10])
    <...>
    """

    def __init__(
        self,
        interpolations: NDArray[Any],
        *,
        image_shape: tuple[int, ...] | None = None,
        feature_names: Sequence[str] | None = None,
    ) -> None:
        self.interpolations = interpolations
        self.image_shape = image_shape
        self.feature_names = feature_names

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
        """Decode straight lines between the posterior means of pairs of rows.

        Parameters
        ----------
        estimator : VAEEstimator or Pipeline
            Fitted estimator, or a fitted Pipeline that ends in one.
        X_start, X_end : array-like of shape (n_pairs, n_features)
            Where each way starts and ends.
        n_steps : int, default=10
            Steps of each way, both ends included.
        image_shape : tuple of int, default=None
            As in :class:`ReconstructionDisplay`.
        ax : matplotlib axes, default=None
            Where to draw. None makes a new figure.
        **kwargs
            Keywords of matplotlib's ``imshow`` for images, else of ``plot``.

        Returns
        -------
        InterpolationDisplay
        """
        start, end = _encode(estimator, X_start), _encode(estimator, X_end)
        if len(start) != len(end):
            raise ValueError(
                f"X_start has {len(start)} rows and X_end has {len(end)}: give one end "
                "per start."
            )
        display = cls(
            _decode(estimator, np.linspace(start, end, n_steps, axis=1)),
            image_shape=image_shape,
            feature_names=getattr(estimator, "feature_names_in_", None),
        )
        return display.plot(ax=ax, **kwargs)

    def _draw(self, ax: Axes, **kwargs: Any) -> tuple[float, float]:
        n_pairs, n_steps, n_features = self.interpolations.shape
        shape = _find_image_shape(self.image_shape, n_features)
        if shape:
            steps = ["start", *[""] * (n_steps - 2), "end"]
            self.ax_ = _draw_images(
                ax, self.interpolations, shape, None, steps, **kwargs
            )
        else:
            self.ax_ = _draw_lines(
                ax,
                self.interpolations,
                self.feature_names,
                colours=_colour_ramp(n_steps),
                labels={0: "start", n_steps - 1: "end"},
                row_labels=[f"pair {pair}" for pair in range(n_pairs)],
                **kwargs,
            )
        self.ax_.set_title("Interpolations", loc="center" if shape else "left")
        return self


class LatentTraversalDisplay:
    """What each latent dimension does: one row for each, all others held still.

    Parameters
    ----------
    traversals : ndarray of shape (n_dimensions, n_steps, n_features)
        Decoded rows.
    values : ndarray of shape (n_steps,)
        Values that the latent dimension takes.
    dimensions : sequence of int of shape (n_dimensions,)
        Which latent dimension each row of the picture moves.
    image_shape : tuple of int, default=None
        As in :class:`ReconstructionDisplay`.
    feature_names : array-like of str of shape (n_features,), default=None
        Names to show where the rows are no images.

    Attributes
    ----------
    figure_ : matplotlib Figure
        Figure of the traversals.
    ax_ : matplotlib Axes
        Axes of the traversals.

    Examples
    --------
    >>> from skvae import VAEEstimator
    >>> from skvae.datasets import load_digits
    >>> from skvae.plotting import LatentTraversalDisplay
    >>> X, _ = load_digits(return_X_y=True)
    >>> vae = VAEEstimator(latent_dim=3, epochs=1, hidden_dim=16).fit(X)
    >>> LatentTraversalDisplay.from_estimator(vae, X, row=0)
    <...>
    """

    def __init__(
        self,
        traversals: NDArray[Any],
        values: NDArray[Any],
        dimensions: Sequence[int],
        *,
        image_shape: tuple[int, ...] | None = None,
        feature_names: Sequence[str] | None = None,
    ) -> None:
        self.traversals = traversals
        self.values = values
        self.dimensions = dimensions
        self.image_shape = image_shape
        self.feature_names = feature_names

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
            most over the rows, come first. None keeps their order.
        row : int, default=None
            Row of X at whose posterior mean the other dimensions are held. None holds
            them at 0, the mean of a standard normal prior.
        n_dimensions : int, default=10
            How many latent dimensions to show at most.
        n_steps : int, default=11
            Values of each.
        limit : float, default=3.0
            Largest value, in standard deviations of a standard normal prior.
        image_shape : tuple of int, default=None
            As in :class:`ReconstructionDisplay`.
        ax : matplotlib axes, default=None
            Where to draw. None makes a new figure.
        **kwargs
            Keywords of matplotlib's ``imshow`` for images, else of ``plot``.

        Returns
        -------
        LatentTraversalDisplay
        """
        latent_dim = _latent_dim(estimator)
        if X is None:
            if row is not None:
                raise ValueError(f"row={row} is a row of X, and X is None. Give X.")
            activity, centre = np.zeros(latent_dim), np.zeros(latent_dim)
        else:
            Z = _encode(estimator, X)
            activity = Z.var(axis=0)
            centre = np.zeros(latent_dim) if row is None else Z[row]
        # Stable, so that equally active dimensions keep their order.
        dimensions = np.argsort(-activity, kind="stable")[:n_dimensions]
        values = np.linspace(-limit, limit, n_steps)
        Z = np.tile(centre, (len(dimensions), n_steps, 1))
        for place, dimension in enumerate(dimensions):
            Z[place, :, dimension] = values
        display = cls(
            _decode(estimator, Z),
            values,
            dimensions.tolist(),
            image_shape=image_shape,
            feature_names=getattr(estimator, "feature_names_in_", None),
        )
        return display.plot(ax=ax, **kwargs)

    def _draw(self, ax: Axes, **kwargs: Any) -> tuple[float, float]:
        shape = _find_image_shape(self.image_shape, self.traversals.shape[-1])
        names = [f"z{dimension}" for dimension in self.dimensions]
        values = [f"{value:.2g}" for value in self.values]
        if shape:
            self.ax_ = _draw_images(
                ax, self.traversals, shape, names, values, **kwargs
            )
            self.ax_.set_xlabel("value of the latent dimension")
        else:
            ends = {0: f"z = {values[0]}", len(values) - 1: f"z = {values[-1]}"}
            self.ax_ = _draw_lines(
                ax,
                self.traversals,
                self.feature_names,
                colours=_colour_ramp(len(values)),
                labels=ends,
                row_labels=names,
                **kwargs,
            )
        self.ax_.set_title("Latent traversals", loc="center" if shape else "left")
        return self


class SearchDisplay:
    """Mean test score of a search over one or two of its hyper-parameters.

    Two hyper-parameters give a heat map, or points where a random search drew numbers
    so that most cells would be empty; one gives a line with error bars.

    Parameters
    ----------
    scores : ndarray of shape (n_y, n_x)
        Mean test scores, higher is better, NaN where nothing was tried.
    x_values, y_values : sequence of length n_x and n_y
        Values of the hyper-parameters.
    x_name, y_name : str
        Names of the hyper-parameters. ``y_name=None`` where there is only one.
    errors : ndarray of shape (n_y, n_x)
        Standard deviations of the scores over the folds.
    best : tuple of int
        Row and column of the best candidate.

    Attributes
    ----------
    figure_ : matplotlib Figure
        Figure of the scores.
    ax_ : matplotlib Axes
        Axes of the scores.

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

    def __init__(
        self,
        scores: NDArray[Any],
        *,
        x_values: Sequence[Any],
        y_values: Sequence[Any],
        x_name: str,
        y_name: str | None,
        errors: NDArray[Any],
        best: tuple[int, int],
    ) -> None:
        self.scores = scores
        self.x_values = x_values
        self.y_values = y_values
        self.x_name = x_name
        self.y_name = y_name
        self.errors = errors
        self.best = best

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

        Each cell shows the best score over all other hyper-parameters. In a search by
        successive halving, it is the best of the last iteration that reached the cell.

        Parameters
        ----------
        search : GridSearchCV, RandomizedSearchCV, HalvingGridSearchCV or alike
            Fitted search.
        x, y : str, default=None
            Names of the hyper-parameters, as in the grid: ``"vae__latent_dim"`` in a
            Pipeline. None takes those that vary, where they are one or two.
        metric : str, default="score"
            Name of the score in a search with several.
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
            If ``x``, ``y`` or ``metric`` is not in ``cv_results_``, if it takes more
            than two hyper-parameters to tell the candidates apart and ``x`` is not
            given, or if every candidate failed.
        """
        check_is_fitted(search, "cv_results_")
        results = search.cv_results_
        candidates = results["params"]
        names = [key.removeprefix("param_") for key in results if key[:6] == "param_"]
        for name in (x, y):
            if name is not None and name not in names:
                raise ValueError(f"{name!r} was not searched; there are {names}.")
        metrics = [key[10:] for key in results if key.startswith("mean_test_")]
        if metric not in metrics:
            raise ValueError(f"metric={metric!r} is not scored; there are {metrics}.")
        if x is None:
            # The resource of successive halving grows with the iterations.
            resource = getattr(search, "resource", None)
            varied = [
                name
                for name in names
                if len(_distinct(candidates, name)) > 1 and name not in (resource, y)
            ]
            n_free = 2 if y is None else 1
            if not 1 <= len(varied) <= n_free:
                raise ValueError(
                    f"The search varies {varied}; name the ones to draw by x= and y=."
                )
            x, *others = varied
            y = others[0] if others else y
        mean = np.asarray(results[f"mean_test_{metric}"], dtype=float)
        deviation = np.asarray(results[f"std_test_{metric}"], dtype=float)
        iteration = results.get("iter", np.zeros(len(mean)))
        x_values = _distinct(candidates, x)
        y_values = [None] if y is None else _distinct(candidates, y)
        scores = np.full((len(y_values), len(x_values)), np.nan)
        errors = scores.copy()

        def cell(candidate: Mapping[str, Any]) -> tuple[int, int]:
            return (
                0 if y is None else y_values.index(candidate[y]),
                x_values.index(candidate[x]),
            )

        drawn = [
            index
            for index in np.lexsort((mean, iteration))
            if np.isfinite(mean[index]) and {x, y or x} <= candidates[index].keys()
        ]
        if not drawn:
            raise ValueError("No candidate has a finite score: every fit failed.")
        # In the order of iteration and score, so that the last one stays.
        for index in drawn:
            scores[cell(candidates[index])] = mean[index]
            errors[cell(candidates[index])] = deviation[index]
        best = getattr(search, "best_index_", None)
        display = cls(
            scores,
            x_values=x_values,
            y_values=y_values,
            x_name=x,
            y_name=y,
            errors=errors,
            best=cell(candidates[drawn[-1] if best not in drawn else best]),
        )
        return display.plot(ax=ax, **kwargs)

    def _draw(self, ax: Axes, **kwargs: Any) -> tuple[float, float]:
        n_y, n_x = self.scores.shape
        if self.y_name is None:
            self._plot_line(ax, **kwargs)
        elif (
            np.isfinite(self.scores).mean() < 0.5
            and _are_numbers(self.x_values)
            and _are_numbers(self.y_values)
        ):
            self._plot_points(ax, **kwargs)
        else:
            self._plot_cells(ax, **kwargs)
        self.ax_.set_xlabel(self.x_name)
        return self

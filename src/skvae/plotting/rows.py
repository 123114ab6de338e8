"""Rows of data as pictures: images where they are images, lines where not."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt, prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.pipeline import Pipeline

from .base import is_alone, ramp, styled, tidy, vae_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..estimator import VAEEstimator

Shape = tuple[int, ...]


def feature_names_of(estimator: VAEEstimator | Pipeline) -> Sequence[str] | None:
    try:
        return estimator.feature_names_in_
    except AttributeError:  # scikit-learn's way to say that X had no names
        return None


def encode(estimator: VAEEstimator | Pipeline, X: Any) -> NDArray[Any]:
    return np.asarray(estimator.transform(X))


def decode(
    estimator: VAEEstimator | Pipeline, Z: NDArray[Any], image_shape: Shape | None
) -> tuple[NDArray[Any], Shape | None]:
    """Decode Z (..., latent_dim) to rows (..., n_features).

    Returns the rows and their image shape, see :func:`as_rows`.
    """
    decoded = vae_of(estimator).inverse_transform(Z.reshape(-1, Z.shape[-1]))
    rows, image_shape = as_rows(estimator, undo_steps(estimator, decoded), image_shape)
    return rows.reshape(*Z.shape[:-1], -1), image_shape


def undo_steps(estimator: VAEEstimator | Pipeline, rows: Any) -> Any:
    """Rows of the VAE, taken back through the steps of the Pipeline before it."""
    if not isinstance(estimator, Pipeline):
        return rows
    rows = undo_steps(estimator[-1], rows)
    return estimator[:-1].inverse_transform(rows) if len(estimator) > 1 else rows


def as_rows(
    estimator: VAEEstimator | Pipeline, X: Any, image_shape: Shape | None
) -> tuple[NDArray[Any], Shape | None]:
    """Rows as the user has them, as numbers (n_samples, n_features).

    Categories of a data frame become their codes.

    Returns the rows and their image shape. Where that is None, it becomes the one of X
    itself, if X has four axes, else the one that the VAE was fitted with, if the rows
    have as many features.
    """
    fitted = vae_of(estimator).fitted_
    array = np.asarray(fitted.form.batch(X)[0] if is_alone(estimator) else X)
    rows = array.reshape(len(array), -1)
    if image_shape is not None:
        return rows, image_shape
    if array.ndim == 4:
        return rows, array.shape[1:]
    known = fitted.form.image_shape or fitted.choices.network.image_shape
    if known is None or prod(known) != rows.shape[1]:
        # Where the numbers differ, a step before the VAE made its features.
        return rows, None
    return rows, tuple(known)


def find_image_shape(image_shape: Shape | None, n_features: int) -> Shape:
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


def draw_images(
    ax: Axes,
    rows: NDArray[Any],
    image_shape: Shape,
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
    style = styled(kwargs, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
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


def draw_lines(
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
    colours = ramp(n_lines) if colours is None else list(colours)
    for band in range(n_down):
        for line in range(n_lines):
            style = styled(kwargs, color=colours[line], linewidth=1.2)
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
    tidy(ax)
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
    # A legend stands beside the title, which takes half of this width.
    width = max(0.3 * n_features + 2.5, 0.0 if column_labels is None else 6.4)
    # Names are turned: the longest one needs its share of the height.
    longest = max(map(len, [""] if feature_names is None else feature_names))
    return min(width, 10.0), max(0.7 * n_down, 2.4) + 1.0 + 0.06 * longest

"""What all displays share: ``plot``, and the look of axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..estimator import VAEEstimator


# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"
RAMP = "viridis"


class Display:
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


def styled(keywords: Mapping[str, Any], **defaults: Any) -> dict[str, Any]:
    """The defaults, where the user's keywords do not say otherwise."""
    return defaults | dict(keywords)


def vae_of(estimator: VAEEstimator | Pipeline) -> VAEEstimator:
    """The fitted VAE: the estimator itself, or the end of a (nested) Pipeline."""
    check_is_fitted(estimator)
    while isinstance(estimator, Pipeline):
        estimator = estimator[-1]
    return estimator


def is_alone(estimator: VAEEstimator | Pipeline) -> bool:
    """Whether no step stands before the VAE."""
    if not isinstance(estimator, Pipeline):
        return True
    return len(estimator) == 1 and is_alone(estimator[-1])


def tidy(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(True, color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)


def colour_bar(artist: Any, ax: Any, label: str) -> None:
    bar = ax.figure.colorbar(artist, ax=ax, label=label)
    bar.outline.set_visible(False)
    # Points may be seen through, the bar that explains them not.
    bar.solids.set_alpha(1)


def ramp(n_colours: int) -> list[Any]:
    """Colours from dark to light, the palest left out: it is lost on white paper."""
    from matplotlib import colormaps

    return list(colormaps[RAMP](np.linspace(0, 0.9, n_colours)))

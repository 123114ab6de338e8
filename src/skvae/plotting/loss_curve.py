"""Losses over the epochs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.pipeline import Pipeline

from .base import BLUE, GREEN, ORANGE, Display, styled, tidy, vae_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..estimator import VAEEstimator


@dataclass(kw_only=True, eq=False, repr=False)
class LossCurveDisplay(Display):
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
        cls,
        estimator: VAEEstimator | Pipeline,
        *,
        ax: Axes | None = None,
        **kwargs: Any,
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
        history = vae_of(estimator).history_
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
            (left, "loss", "total", BLUE),
            (left, "reconstruction", "reconstruction", ORANGE),
            (right, "kl", "KL", GREEN),
        ):
            for prefix, suffix, dashes in (
                ("", "", "-"),
                ("validation_", ", validation", "--"),
            ):
                # A None, where there was no validation set, becomes NaN.
                values = np.asarray(getattr(self, prefix + name), dtype=float)
                if np.isnan(values).all():
                    continue
                style = styled(
                    kwargs,
                    color=colour,
                    linestyle=dashes,
                    label=label + suffix,
                    # A line needs two epochs, a dot one.
                    marker="o" if len(values) == 1 else None,
                )
                (self.lines_[prefix + name],) = panel.plot(self.epoch, values, **style)
        for panel in self.axes_:
            tidy(panel)
            panel.set(xlabel="epoch", ylabel="nats per row")
            panel.xaxis.get_major_locator().set_params(integer=True)
            panel.legend(frameon=False, fontsize="small")
        return 9.0, 3.6

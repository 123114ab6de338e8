"""Scores of a search over its hyper-parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from .base import BLUE, ORANGE, RAMP, Display, colour_bar, styled, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(kw_only=True, eq=False, repr=False)
class SearchDisplay(Display):
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
    others : sequence of str, default=()
        Names of the other hyper-parameters that vary: a cell shows the best over them.

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
    others: Sequence[str] = ()

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
        halving, or a race, it is the best of the last iteration that reached the cell.

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
        iteration = results.get("iter", results.get("rung", np.zeros(len(mean))))
        drawn = [
            int(index)
            for index in np.lexsort((mean, iteration))
            if np.isfinite(mean[index]) and {x, y or x} <= candidates[index].keys()
        ]
        if not drawn:
            raise ValueError("No candidate has a finite score: every fit has failed.")
        for index in drawn:
            scores[cell(candidates[index])] = mean[index]
            errors[cell(candidates[index])] = results[f"std_test_{metric}"][index]
        try:
            best = search.best_index_
        except AttributeError:  # several scores, and none named by refit
            best = drawn[-1]
        display = cls(
            scores=scores,
            errors=errors,
            best=cell(candidates[best if best in drawn else drawn[-1]]),
            x_name=x,
            x_values=x_values,
            y_name=y,
            y_values=y_values,
            metric=metric,
            others=[
                name
                for name in _after("param_", results)
                if name not in (x, y) and len(_distinct(candidates, name)) > 1
            ],
        )
        return display.plot(ax=ax, **kwargs)

    def _draw(self, ax: Axes, **kwargs: Any) -> tuple[float, float]:
        best = f"\nbest over {', '.join(self.others)}" if self.others else ""
        ax.set(xlabel=self.x_name, title=f"Cross-validated search{best}")
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
        style = styled(kwargs, color=BLUE, marker="o", capsize=3)
        ax.errorbar(x, self.scores[0], self.errors[0], **style)
        best = self.best[1]
        style = styled({}, color=ORANGE, ms=9, zorder=3, label="best")
        ax.plot(x[best], self.scores[0, best], "o", **style)
        ax.legend(frameon=False)
        tidy(ax)
        return 6.4, 4.0

    def _draw_points(self, ax: Axes, label: str, **kwargs: Any) -> tuple[float, float]:
        x, y = _place(ax, "x", self.x_values), _place(ax, "y", self.y_values)
        rows, columns = np.nonzero(np.isfinite(self.scores))
        style = styled(kwargs, c=self.scores[rows, columns], cmap=RAMP, s=80)
        points = ax.scatter(x[columns], y[rows], **style)
        row, column = self.best
        frame = styled({}, mfc="none", mec=ORANGE, mew=2, ms=14, label="best")
        ax.plot(x[column], y[row], "o", **frame)
        ax.legend(
            frameon=False, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0
        )
        tidy(ax)
        colour_bar(points, ax, label)
        return 7.0, 5.0

    def _draw_cells(self, ax: Axes, label: str, **kwargs: Any) -> tuple[float, float]:
        from matplotlib.patches import Rectangle

        n_y, n_x = self.scores.shape
        style = styled(kwargs, cmap=RAMP, origin="lower", aspect="auto")
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
        frame = styled({}, fill=False, ec=ORANGE, lw=3, clip_on=False)
        ax.add_patch(Rectangle(corner, 1, 1, **frame))
        colour_bar(image, ax, label)
        return min(0.9 * n_x + 2.8, 14.0), min(0.6 * n_y + 1.6, 12.0)


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
    known = (y, search.get_params(deep=False).get("resource"))
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

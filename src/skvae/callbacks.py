"""How scikit-learn's callbacks and the progress bar hear of the epochs of a fit."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from .fitted import FittedVAE
from .history import Record
from .progress import Progress
from .training.setup import Listener, Rows


@dataclass(frozen=True)
class Seen:
    """What scikit-learn's checks say of the columns of X.

    Attributes
    ----------
    n_features : int
    names : ndarray or None
    """

    n_features: int
    names: np.ndarray | None

    @classmethod
    def of(cls, estimator: Any) -> "Seen":
        try:
            names = estimator.feature_names_in_
        except AttributeError:
            names = None
        return cls(estimator.n_features_in_, names)

    def leave_on(self, estimator: Any) -> None:
        """Set the attributes that scikit-learn's checks set."""
        for name, value in self.attributes().items():
            setattr(estimator, name, value)
        if self.names is None:
            with suppress(AttributeError):
                del estimator.feature_names_in_

    def attributes(self) -> dict[str, Any]:
        attributes: dict[str, Any] = {"n_features_in_": self.n_features}
        if self.names is not None:
            attributes["feature_names_in_"] = self.names
        return attributes

    def stand_in(self, name: str) -> BaseEstimator:
        """An estimator of some class's name that has seen such columns."""
        stand_in = type(name, (BaseEstimator,), {})()
        self.leave_on(stand_in)
        return stand_in


class Epochs(Listener):
    """Tells scikit-learn's callbacks and the progress bar of the epochs of a fit."""

    seen: Seen

    def __init__(self, estimator: Any, context: Any):
        self.estimator, self.context = estimator, context
        self.hooks: dict[str, Any] | None = None
        self.progress = Progress(estimator.epochs) if estimator.verbose else None

    def begin(self, rows: Rows) -> None:
        weights = rows.weights
        self.hooks = {
            "estimator": self.estimator,
            "X": rows.X,
            "y": rows.X if rows.y is None else rows.y,
            "metadata": {} if weights is None else {"sample_weight": weights},
        }
        self.task = self.context.call_on_fit_task_begin(**self.hooks)

    def begin_epoch(self) -> None:
        assert self.hooks is not None
        self.task = self.context.subcontext(task_name="epoch")
        self.task.call_on_fit_task_begin(**self.hooks)

    def end_epoch(self, record: Record, value: Callable[[], FittedVAE]) -> bool:
        assert self.hooks is not None
        if self.progress is not None:
            self.progress(record)

        def current() -> dict[str, Any]:
            return {"fitted_": value(), **self.seen.attributes()}

        return bool(
            self.task.call_on_fit_task_end(
                **self.hooks, reconstruction_attributes=current
            )
        )

    def close(self) -> None:
        if self.progress is not None:
            self.progress.close()

    def end(self, value: FittedVAE) -> None:
        """The fit ends with this value, which the estimator is about to take over."""
        if self.hooks is None:
            return

        def fitted() -> dict[str, Any]:
            return {"fitted_": value, **self.seen.attributes()}

        self.context.call_on_fit_task_end(
            **self.hooks, reconstruction_attributes=fitted
        )

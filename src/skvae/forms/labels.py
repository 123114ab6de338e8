"""Labels: y as a form of data, which becomes the condition of a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from reprlib import repr as brief
from typing import Any, Self

import numpy as np
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d

from ..checks import some
from .base import check_keys, is_missing


@dataclass(frozen=True)
class NoLabels:
    """A model that is not conditional on anything."""

    @property
    def n_conditions(self) -> int:
        """Columns of the condition that the decoder sees beside z."""
        return 0

    def encode(self, y: Any, n_rows: int) -> np.ndarray | None:
        """The condition of so many rows; y is ignored, as scikit-learn's usage is."""
        return None

    def given(self, y: Any, n_rows: int) -> np.ndarray | None:
        """The condition where y is asked for by name: there is none to give."""
        if y is not None:
            raise ValueError(
                f"y={brief(y)} was given, but the model is not conditional on labels; "
                "use ConditionalVAEEstimator, or leave y out."
            )
        return None

    def chosen(
        self, y: Any, n_rows: int, random_state: np.random.RandomState
    ) -> np.ndarray | None:
        """As :meth:`given`; labels would be drawn where y is None."""
        return self.given(y, n_rows)

    def alternatives(
        self, y: Any, n_rows: int
    ) -> Sequence[tuple[float, np.ndarray | None]]:
        """(log p(y), condition) of all labels that a row may have."""
        return [(0.0, None)]

    def counted(
        self, y: Any, weights: np.ndarray | None, *, anew: bool = False
    ) -> Self:
        """With the labels of more rows counted, or of these alone."""
        return self

    def state(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True, eq=False)
class Labels(NoLabels):
    """Class labels.

    Attributes
    ----------
    classes : ndarray of shape (n_classes,)
        The labels, sorted.
    counts : ndarray of float64, shape (n_classes,)
        Weight of the training rows of each class.
    """

    classes: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, y: Any, n_rows: int, classes: Any = None) -> "Labels":
        """The labels of y, none of them counted yet.

        ``classes``, where given, are all labels that will ever come.
        """
        labels = _checked(y, n_rows, warn=False)
        found = labels if classes is None else column_or_1d(classes)
        try:
            found = np.unique(found)
        except TypeError:
            kinds = sorted({type(label).__name__ for label in found})
            raise ValueError(
                f"y mixes labels of the types {kinds}, which have no order; make all "
                "of them strings, such as np.asarray(y, dtype=str)."
            ) from None
        check_classification_targets(labels)
        return cls(found, np.zeros(len(found)))

    @property
    def n_conditions(self) -> int:
        return len(self.classes)

    def encode(self, y: Any, n_rows: int) -> np.ndarray:
        """One-hot rows (n_rows, n_classes) of known labels."""
        return self.one_hot(self._codes(_checked(y, n_rows)))

    def one_hot(self, codes: np.ndarray) -> np.ndarray:
        return np.eye(len(self.classes), dtype=np.float32)[codes]

    def given(self, y: Any, n_rows: int) -> np.ndarray:
        """One-hot rows of one label, or of one for each row."""
        if y is not None and np.ndim(y) == 0:
            y = np.full(n_rows, y, dtype=object)
        return self.encode(y, n_rows)

    def chosen(
        self, y: Any, n_rows: int, random_state: np.random.RandomState
    ) -> np.ndarray:
        """As :meth:`given`; where y is None, labels as frequent as in training."""
        if y is not None:
            return self.given(y, n_rows)
        shares = self.counts / self.counts.sum()
        return self.one_hot(random_state.choice(len(shares), n_rows, p=shares))

    def alternatives(
        self, y: Any, n_rows: int
    ) -> Sequence[tuple[float, np.ndarray | None]]:
        if y is not None:
            return [(0.0, self.encode(y, n_rows))]
        seen = np.flatnonzero(self.counts)
        shares = self.counts[seen] / self.counts.sum()
        return [
            (float(np.log(share)), self.one_hot(np.full(n_rows, code)))
            for code, share in zip(seen, shares, strict=True)
        ]

    def counted(
        self, y: Any, weights: np.ndarray | None, *, anew: bool = False
    ) -> Self:
        codes = self._codes(column_or_1d(y))
        before = np.zeros_like(self.counts) if anew else self.counts
        more = np.bincount(codes, weights, minlength=len(self.classes))
        return type(self)(self.classes, before + more)

    def _codes(self, labels: np.ndarray) -> np.ndarray:
        code = {label: i for i, label in enumerate(self.classes.tolist())}
        try:
            return np.array([code[label] for label in labels.tolist()], dtype=int)
        except KeyError as error:
            raise ValueError(
                f"y has the unknown label {error.args[0]!r}; fit saw the classes "
                f"{some(code)}."
            ) from None

    def state(self) -> dict[str, Any]:
        return {"classes": self.classes, "counts": self.counts}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Labels":
        check_keys(cls.__name__, state, {"classes", "counts"})
        classes, counts = state["classes"], state["counts"]
        if not all(isinstance(a, np.ndarray) and a.ndim == 1 for a in state.values()):
            raise ValueError("classes and counts must be arrays of one dimension.")
        if (
            len(classes) != len(counts)
            or counts.dtype.kind not in "iuf"
            or not np.all((counts >= 0) & np.isfinite(counts))
            or not counts.sum()
        ):
            raise ValueError("counts must hold the weight of each class.")
        try:
            is_sorted = np.array_equal(np.unique(classes), classes)
        except TypeError:
            is_sorted = False
        if not is_sorted:
            raise ValueError("classes must be sorted, each of them once.")
        return cls(classes, counts.astype(np.float64))


def _checked(y: Any, n_rows: int, *, warn: bool = True) -> np.ndarray:
    if y is None:
        raise ValueError(
            "The estimator is conditional and requires y to be passed, but the target "
            "y is None: give one class label for each row."
        )
    labels = column_or_1d(y, warn=warn)
    if len(labels) != n_rows:
        raise ValueError(
            f"y has {len(labels)} labels, but there are {n_rows} rows; expected one "
            "label for each row."
        )
    if any(is_missing(label) for label in labels.tolist()):
        raise ValueError("y has a missing label (NaN or None); drop those rows.")
    return labels

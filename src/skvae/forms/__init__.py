"""Forms: what X looks like to the user, and how it becomes columns and X again.

A form describes X, turns it into compact columns (numbers, and categories as codes) and
turns such columns back into what the user gave. It decides nothing about the model.
"""

from collections import ChainMap
from collections.abc import Mapping
from typing import Any

from .base import Column, Form, Summary
from .images import Images
from .labels import Labels, NoLabels
from .legacy import OneHotRows, OneHotTable
from .rows import Rows
from .table import Table

__all__ = [
    "BY_KIND",
    "FORMS",
    "Column",
    "Form",
    "Images",
    "Labels",
    "NoLabels",
    "Rows",
    "Summary",
    "Table",
    "form_of",
]

# The last form that accepts X is the form of X.
FORMS: dict[str, type[Form]] = {"rows": Rows, "table": Table, "images": Images}
# The forms that a state may name: those, and what version 0.1 has saved.
BY_KIND: Mapping[str, type[Form]] = ChainMap(
    FORMS, {"one_hot_rows": OneHotRows, "one_hot_table": OneHotTable}
)


def form_of(X: Any, kinds: Mapping[Any, str] | None = None) -> Form:
    """The form of X.

    Parameters
    ----------
    X : array-like or data frame
    kinds : mapping or None, default=None
        Kinds of columns by name. Where it is given, even if it is empty, X must be a
        data frame, and one of numbers only is a table, too.

    Raises
    ------
    TypeError
        If X must be a data frame and is none.
    """
    if kinds is not None:
        return Table.of(X, kinds)
    accepting = (form for form in reversed(FORMS.values()) if form.accepts(X))
    return next(accepting).of(X)

"""What an estimator holds, in plain values and arrays: for pickles and for files.

A spec of ours is a name and parameters, the units two arrays, the history one array per
column. A pickle then names no class but the estimator's own (and the user's, if any),
and a file needs no pickle.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields
from math import isnan
from numbers import Integral
from typing import Any

import numpy as np

from .engine import Record
from .likelihoods import LIKELIHOODS, Likelihood, Mixed
from .model import Architecture
from .networks import NETWORKS
from .objectives import OBJECTIVES
from .priors import PRIORS
from .spec import Spec
from .tables import FAMILIES, Column, Table
from .units import Units

# Name -> class of every spec that the registries know.
SPECS: dict[str, type[Spec]] = {
    spec.__name__: spec
    for registry in (NETWORKS, LIKELIHOODS, PRIORS, OBJECTIVES)
    for spec in registry.values()
}
SPECS["Mixed"] = Mixed

# The key under which a dict tells what it stands for.
KIND = "$kind"


def flatten(value: Any, specs: Mapping[str, type[Spec]] = SPECS) -> Any:
    """The value with all that is ours in it as dicts of plain values and arrays.

    A spec whose class is not among ``specs``, or that holds more than parameters, stays
    as it is.
    """
    if isinstance(value, Spec):
        parameters = value.get_params(deep=False)
        kind = type(value).__name__
        if specs.get(kind) is not type(value) or vars(value).keys() != set(parameters):
            return value
        flat = {k: flatten(v, specs) for k, v in parameters.items()}
        return {KIND: kind, "parameters": flat}
    if isinstance(value, Units):
        return {KIND: "Units", "location": value.location, "scale": value.scale}
    if isinstance(value, Architecture | Table | Column):
        content = {f.name: getattr(value, f.name) for f in fields(value)}
        return {KIND: type(value).__name__, **flatten(content, specs)}
    if isinstance(value, np.dtype):
        return {KIND: "dtype", "name": value.name}
    if type(value) is list and value and all(isinstance(v, Record) for v in value):
        columns = {
            field.name: np.array(
                [getattr(record, field.name) for record in value], dtype=np.float64
            )
            for field in fields(Record)
        }
        return {KIND: "records", "columns": columns}
    if type(value) in (list, tuple):
        return type(value)(flatten(v, specs) for v in value)
    if type(value) is dict:
        return {k: flatten(v, specs) for k, v in value.items()}
    return value


def revive(value: Any, specs: Mapping[str, type[Spec]] = SPECS) -> Any:
    """The inverse of :func:`flatten`.

    Raises
    ------
    ValueError
        If the value is not as :func:`flatten` makes it, naming what is wrong.
    """
    if type(value) in (list, tuple):
        return type(value)(revive(v, specs) for v in value)
    if type(value) is not dict:
        return value
    if KIND not in value:
        return {k: revive(v, specs) for k, v in value.items()}
    content = dict(value)
    kind = content.pop(KIND)
    if kind == "Units":
        return _units(**_exactly(kind, content, {"location", "scale"}))
    if kind == "dtype":
        _exactly(kind, content, {"name"})
        if content["name"] not in ("float32", "float64"):
            raise ValueError(
                f"the dtype {content['name']!r} must be 'float32' or 'float64'."
            )
        return np.dtype(content["name"])
    if isinstance(kind, str) and kind in PARTS:
        part, check = PARTS[kind]
        names = {field.name for field in fields(part)}
        found = revive(_exactly(kind, content, names), specs)
        check(found)
        return part(**found)
    if kind == "records":
        return _records(_exactly(kind, content, {"columns"})["columns"])
    if not isinstance(kind, str) or kind not in specs:
        raise UnknownClassError(
            f"the class {kind!r} is not known; expected one of {sorted(specs)}."
        )
    parameters = _exactly(kind, content, {"parameters"})["parameters"]
    return create(specs[kind], revive(parameters, specs))


def _check_architecture(content: dict[str, Any]) -> None:
    widths: list[Any] = []
    for name in ("latent_dim", "hidden_dim", "image_shape"):
        value = content[name]
        if name == "image_shape" and value is None:
            continue
        if type(value) is not tuple:
            raise ValueError(f"{name} must be a tuple of widths, got {value!r}.")
        widths += value
    for width in (*widths, content["n_conditions"] + 1):
        if not isinstance(width, Integral) or int(width) < 1:
            raise ValueError(f"the width {width!r} is not positive.")


def _check_column_kind(content: dict[str, Any]) -> None:
    family, values = content["family"], content["values"]
    if not isinstance(family, Likelihood) and family not in FAMILIES:
        raise ValueError(f"the family {family!r} must be one of {list(FAMILIES)}.")
    if not isinstance(content["dtype"], str) or type(content["ordered"]) is not bool:
        raise ValueError("a column's dtype must be a string, and ordered a bool.")
    if (family in ("binary", "categorical")) != (type(values) is tuple):
        raise ValueError(f"a {family!r} column cannot have the values {values!r}.")


def _check_table(content: dict[str, Any]) -> None:
    columns = content["columns"]
    if type(columns) is not tuple or not all(isinstance(c, Column) for c in columns):
        raise ValueError("the columns of a table must be a tuple of columns.")
    if content["library"] not in ("pandas", "polars"):
        raise ValueError(
            f"the library {content['library']!r} must be 'pandas' or 'polars'."
        )


PARTS: dict[str, tuple[Any, Callable[[dict[str, Any]], None]]] = {
    "Architecture": (Architecture, _check_architecture),
    "Column": (Column, _check_column_kind),
    "Table": (Table, _check_table),
}


class UnknownClassError(ValueError):
    """A class or a parameter that nobody has allowed."""


def create(cls: Any, parameters: Any) -> Any:
    """An estimator or a spec of these parameters, which are not yet validated."""
    known = set(cls._get_param_names())
    if type(parameters) is not dict or not parameters.keys() <= known:
        raise UnknownClassError(
            f"{cls.__name__} takes the parameters {sorted(known)}, got "
            f"{sorted(map(repr, parameters))}."
        )
    return cls(**parameters)


def _exactly(kind: str, content: dict[str, Any], keys: set[str]) -> dict[str, Any]:
    if content.keys() != keys:
        raise ValueError(f"{kind} must hold {sorted(keys)}, got {sorted(content)}.")
    return content


def _units(location: Any, scale: Any) -> Units:
    for name, array in (("location", location), ("scale", scale)):
        _check_column(name, array)
        if not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite.")
    if len(location) != len(scale) or not len(scale):
        raise ValueError(
            f"location {location.shape} and scale {scale.shape} must have one entry "
            "for each feature."
        )
    if not (scale > 0).all():
        raise ValueError(f"scale must be positive, got {scale.min()}.")
    return Units(location, scale)


def _records(columns: Any) -> list[Record]:
    names = {field.name for field in fields(Record)}
    if type(columns) is not dict:
        raise ValueError(f"records must be a dict of columns, got {columns!r}.")
    _exactly("records", columns, names)
    for name, column in columns.items():
        _check_column(name, column)
    if len({len(column) for column in columns.values()}) != 1:
        raise ValueError("the columns of the records must have the same length.")
    lists: dict[str, list[Any]] = {k: v.tolist() for k, v in columns.items()}
    for field in fields(Record):
        values = lists[field.name]
        if field.type is int:
            if not all(v.is_integer() and v >= 0 for v in values):
                raise ValueError(f"{field.name} must be whole numbers of at least 0.")
            lists[field.name] = [int(v) for v in values]
        elif field.type is not float:  # None where there is no validation set
            lists[field.name] = [None if isnan(v) else v for v in values]
    rows = zip(*lists.values(), strict=True)
    return [Record(**dict(zip(lists, row, strict=True))) for row in rows]


def _check_column(name: str, array: Any) -> None:
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype != "float64":
        raise ValueError(f"{name} must be a float64 array of one dimension.")

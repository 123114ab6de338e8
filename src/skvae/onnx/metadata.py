"""What an ONNX file of ours says about itself, and how it is read and written."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from importlib import import_module
from math import inf
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from ..support import Support
from ..units import Units

# Part of the model -> what its graph takes and gives, by name. In a file of
# part="all" each name has its part before it: "encoder.X", "elbo.noise".
PARTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "encoder": (("X",), ("mean",)),
    "decoder": (("Z",), ("X_mean",)),
    "autoencoder": (("X",), ("X_mean",)),
    "elbo": (("X", "noise"), ("elbo", "reconstruction", "kl")),
    "prior": (("noise",), ("Z",)),
}
# The parts that see a class, in a model that is conditional on one.
CONDITIONAL = ("decoder", "autoencoder", "elbo")
# What part="all" holds; the autoencoder is its encoder and its decoder in a row.
ALL = ("encoder", "decoder", "elbo", "prior")


def require(module: str) -> Any:
    """Import a module of the extra, or say how to get it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module} could not be imported ({error}): pip install 'skvae[onnx]'"
        ) from error


@dataclass(frozen=True)
class Metadata:
    """The entries of ``metadata_props``, each as JSON.

    Attributes
    ----------
    skvae, estimator, network, likelihood, prior : str
        Version and choices.
    part : str
        What the file computes: a key of ``PARTS`` or "all".
    dtype : str
        Of the rows that the decoder gives.
    n_features, latent_dim : int
        Columns of X (a category is one column of codes), and width of z.
    n_noise, n_draws : int
        Standard normal numbers that one draw of a row needs, and the draws of an ELBO:
        the input ``noise`` is of shape (rows, n_draws, n_noise).
    n_prior_noise : int
        Standard normal numbers that a draw from the prior needs.
    feature_names, classes : list or None
    location, scale : list of float or None
        The units of X inside the model, where it standardises.
    low, high : list of float or None
        Where values below and above the likelihood's support are moved to before they
        are scored. These and the following have one entry for each column, or a single
        one for all; a None in them stands for a column without bound or step.
    integer : list of bool or None
        Which columns hold whole numbers only.
    step : list of float or None
        Distance of the values that a column may have, other than 1.
    margin : list of float or None
        Distance of ``low`` and ``high`` from the ends of an open interval.
    """

    skvae: str
    estimator: str
    part: str
    network: str
    likelihood: str
    prior: str
    dtype: str
    n_features: int
    latent_dim: int
    n_noise: int
    n_draws: int
    n_prior_noise: int
    feature_names: list[str] | None = None
    classes: list[Any] | None = None
    location: list[float] | None = None
    scale: list[float] | None = None
    low: list[float | None] | None = None
    high: list[float | None] | None = None
    integer: list[bool] | None = None
    step: list[float | None] | None = None
    margin: list[float] | None = None

    @classmethod
    def describe(
        cls,
        units: Units,
        supports: Iterable[tuple[Support, Sequence[int]]],
        **entries: Any,
    ) -> "Metadata":
        """Entries from a model, with what says nothing left out.

        ``supports`` are those of a likelihood and the columns that have each.
        """
        by_column: list[Support] = [Support()] * len(units.scale)
        for support, columns in supports:
            for column in columns:
                by_column[column] = support
        bounds = [support.bounds for support in by_column]
        steps = [support.step for support in by_column]
        other_steps = [None if step == 1 else step for step in steps]
        return cls(
            location=None if units.is_identity else units.location.tolist(),
            scale=None if units.is_identity else units.scale.tolist(),
            low=_compact([_finite(low) for low, _ in bounds], None),
            high=_compact([_finite(high) for _, high in bounds], None),
            integer=_compact([step == 1 for step in steps], False),
            step=_compact(other_steps, None),
            margin=_compact([support.margin for support in by_column], 0.0),
            **entries,
        )

    @cached_property
    def units(self) -> Units:
        if self.location is None or self.scale is None:
            return Units.identity(self.n_features)
        return Units(np.array(self.location), np.array(self.scale))

    @cached_property
    def supports(self) -> list[tuple[Support, list[int]]]:
        """The supports, and the columns that have each."""
        columns: dict[Support, list[int]] = {}
        for column, (low, high, integer, step, margin) in enumerate(
            zip(
                self._by_column(self.low, -inf),
                self._by_column(self.high, inf),
                self._by_column(self.integer, False),
                self._by_column(self.step, None),
                self._by_column(self.margin, 0.0),
                strict=True,
            )
        ):
            step = 1.0 if integer else step
            support = Support(low - margin, high + margin, step, margin)
            columns.setdefault(support, []).append(column)
        return list(columns.items())

    def _by_column(self, values: list[Any] | None, absent: Any) -> list[Any]:
        values = [absent if value is None else value for value in values or [None]]
        return values * self.n_features if len(values) == 1 else values

    def nearest(self, X: np.ndarray) -> np.ndarray:
        """X (N, n_features) with each entry outside the support moved into it."""
        if len(self.supports) == 1:
            return self.supports[0][0].nearest(X)
        nearest = np.empty_like(X)
        for support, columns in self.supports:
            nearest[:, columns] = support.nearest(X[:, columns])
        return nearest

    @property
    def parts(self) -> tuple[str, ...]:
        return ALL if self.part == "all" else (self.part,)

    def name(self, part: str, tensor: str) -> str:
        """How an input or output of a part is called in this file."""
        return f"{part}.{tensor}" if self.part == "all" else tensor

    def write(self, model: Any) -> None:
        """Put the entries into an ONNX ModelProto."""
        for key, value in asdict(self).items():
            if value is not None:
                model.metadata_props.add(key=key, value=json.dumps(value))

    @classmethod
    def read(cls, entries: dict[str, str], source: Any) -> "Metadata":
        """From ``metadata_props`` as a dict; ``source`` is named in the error."""
        names = {field.name for field in fields(cls)}
        try:
            return cls(**{k: json.loads(entries[k]) for k in names & set(entries)})
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{source} was not written by skvae.onnx.export ({error}); it has the "
                f"metadata {sorted(entries)}."
            ) from error


def _finite(bound: float) -> float | None:
    """JSON knows no infinity."""
    return float(bound) if np.isfinite(bound) else None


def _compact(values: list[Any], absent: Any) -> list[Any] | None:
    """One entry where all columns agree, None where all of them have ``absent``."""
    if any(value != values[0] for value in values):
        return values
    return None if values[0] == absent else values[:1]


def info(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What an ONNX file says about itself.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    entries : dict
        Metadata, opset, inputs and outputs with their shapes, and size in bytes.
    """
    onnx = require("onnx")
    model = onnx.load(path)
    entries: dict[str, Any] = {}
    for entry in model.metadata_props:
        try:
            entries[entry.key] = json.loads(entry.value)
        except ValueError:
            entries[entry.key] = entry.value
    entries["opset"] = {i.domain or "ai.onnx": i.version for i in model.opset_import}
    entries["inputs"] = {value.name: shape_of(value) for value in model.graph.input}
    entries["outputs"] = {value.name: shape_of(value) for value in model.graph.output}
    entries["bytes"] = Path(path).stat().st_size
    return entries


def shape_of(value: Any) -> list[int | str]:
    """The shape of a ValueInfoProto, with names for what varies."""
    return [
        d.dim_param or (d.dim_value if d.HasField("dim_value") else "?")
        for d in value.type.tensor_type.shape.dim
    ]


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file that is there as a whole or not at all."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)

"""What an ONNX file of ours says about itself, and how it is read and written."""

import json
import os
from dataclasses import asdict, dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

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
class Support:
    """A box that each feature is moved into before it is scored.

    Attributes
    ----------
    low, high : ndarray of shape (D,)
        Infinite where there is no bound.
    integer : ndarray of bool, shape (D,)
        Whether the feature is rounded first.
    """

    low: np.ndarray
    high: np.ndarray
    integer: np.ndarray

    @classmethod
    def of(cls, likelihood: Any, n_features: int) -> "Support":
        """The box of a likelihood, found by asking for the nearest value of probes.

        A support that is no box (features that depend on each other) is given as all
        of the real numbers: such rows are scored as they come.
        """

        def nearest(X):
            return np.asarray(likelihood.nearest_in_support(X), dtype=np.float64)

        far = np.full((1, n_features), 1e6)
        low, high = nearest(-far)[0], nearest(far)[0]
        box = cls(
            low=np.where(low == -1e6, -np.inf, low),
            high=np.where(high == 1e6, np.inf, high),
            integer=np.zeros(n_features, bool),
        )
        probe = box.clip(np.full((1, n_features), 0.25))
        box.integer[:] = nearest(probe)[0] != probe[0]
        probes = np.random.RandomState(0).uniform(-9, 9, (64, n_features))
        if np.array_equal(box.clip(probes), nearest(probes)):
            return box
        everything = np.full(n_features, np.inf)
        return cls(-everything, everything, np.zeros(n_features, bool))

    def clip(self, X: np.ndarray) -> np.ndarray:
        """X (N, D) moved into the box, in its own dtype."""
        rounded = np.where(self.integer, np.rint(X), X) if self.integer.any() else X
        low, high = self.low.astype(X.dtype), self.high.astype(X.dtype)
        return np.clip(rounded, low, high)


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
    n_noise, n_draws : int
        Standard normal numbers that one draw of a row needs, and the draws of an ELBO:
        the input ``noise`` is of shape (rows, n_draws, n_noise).
    n_prior_noise : int
        Standard normal numbers that a draw from the prior needs.
    feature_names, classes : list or None
    location, scale : list of float or None
        The units of X inside the model, where it standardises.
    low, high : list of float or None
        The likelihood's support, where it is bounded.
    integer : list of bool or None
        Which features are rounded to score them, where there are any.
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
    low: list[float] | None = None
    high: list[float] | None = None
    integer: list[bool] | None = None

    @classmethod
    def describe(cls, units: Units, support: Support, **entries: Any) -> "Metadata":
        """Entries from a model, with what says nothing left out."""
        return cls(
            location=None if units.is_identity else units.location.tolist(),
            scale=None if units.is_identity else units.scale.tolist(),
            low=_unless(np.isneginf(support.low).all(), support.low),
            high=_unless(np.isposinf(support.high).all(), support.high),
            integer=_unless(not support.integer.any(), support.integer),
            **entries,
        )

    @property
    def units(self) -> Units:
        if self.location is None or self.scale is None:
            return Units.identity(self.n_features)
        return Units(np.array(self.location), np.array(self.scale))

    @property
    def support(self) -> Support:
        def box(value, default):
            return np.full(self.n_features, default if value is None else value)

        return Support(
            box(self.low, -np.inf), box(self.high, np.inf), box(self.integer, False)
        )

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


def _unless(absent: Any, values: np.ndarray) -> list[Any] | None:
    # One number where all features agree.
    if absent:
        return None
    return values[:1].tolist() if (values == values[0]).all() else values.tolist()


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
    for kind in ("input", "output"):
        entries[f"{kind}s"] = {
            value.name: shape_of(value) for value in getattr(model.graph, kind)
        }
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

"""From JSON and arrays to an estimator, checked piece by piece."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from .._compat import validate_parameters
from ..estimator import VAEEstimator
from ..fitted import parts_of
from ..forms import Summary
from ..plain import KIND, SPECS, UnknownClassError, create, plain, revived
from ..spec import Spec
from ..version1 import upgraded
from .errors import (
    CorruptedFileError,
    FileFormatError,
    ShapeMismatchError,
    UnsafeFileError,
    check_cap,
    some,
)
from .estimators import DEVICE, ESTIMATORS, LEARNED, OUTPUT, SCALARS, may_be_learned
from .rehearsal import check_model

# Networks, likelihoods, priors and objectives, each of which takes time to be checked.
MAX_SPECS = 1000


class Decoder:
    """From JSON and arrays to an estimator; ``classes`` are the user's."""

    def __init__(
        self,
        version: int,
        arrays: dict[str, np.ndarray],
        classes: Mapping[str, type],
        *,
        build: bool,
    ):
        self.version = version
        self.arrays = arrays
        self.classes = classes
        self.specs = {**SPECS, **classes}
        self.build = build
        self.n_specs = 0

    def root(self, tree: Any) -> Any:
        try:
            estimator = self.estimator(tree)
        except FileFormatError:
            raise
        except UnknownClassError as error:
            raise UnsafeFileError(
                f"The file is refused: {error} A class of yours must be given, "
                "load(path, classes=[...]); one of a newer skvae needs an upgrade."
            ) from error
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            TypeError,
            ValueError,
        ) as error:
            raise CorruptedFileError(f"The content is not valid: {error}") from error
        if self.arrays:
            raise CorruptedFileError(
                f"The file has arrays that belong to nothing: "
                f"{some(sorted(self.arrays))}."
            )
        return estimator

    def estimator(self, tree: Any) -> Any:
        name, parameters, learned = (
            tree[key] for key in ("class", "parameters", "learned")
        )
        known = {
            k: v
            for k, v in {**ESTIMATORS, **self.classes}.items()
            if issubclass(v, VAEEstimator)
        }
        if not isinstance(name, str) or name not in known:
            raise UnknownClassError(
                f"the estimator {some(name)} is not known; expected one of "
                f"{sorted(known)}."
            )
        cls = known[name]
        parameters, learned = (
            {k: self.value(v) for k, v in part.items()}
            for part in (parameters, learned)
        )
        if self.version == 1:
            learned = upgraded(parameters, learned, self.specs)
        parameters = revived(parameters, self.specs)
        learned = revived(learned, self.specs)
        device = parameters.get("device", "auto")
        if device != "auto" and not DEVICE.fullmatch(str(device)):
            raise ValueError(
                f"the device {some(device)} is not known; expected 'auto', 'cpu', "
                "'cuda', 'xpu' or 'mps'."
            )
        estimator = create(cls, parameters)
        validate_parameters(estimator)
        _validate_specs(parameters)
        if not learned:
            return estimator
        _check_learned(cls, learned)
        if "fitted_" in learned:
            _check_fitted(learned, self.specs)
        if self.build:
            estimator.__setstate__({**estimator.__getstate__(), **learned})
        return estimator

    def value(self, node: Any) -> Any:
        if type(node) is int and abs(node) >= 2**63:
            raise ValueError(f"{some(node)} is too large.")
        if node is None or type(node) in (bool, int, float, str):
            return node
        if type(node) is list:
            return [self.value(v) for v in node]
        if len(node) != 1:
            raise ValueError(f"{some(node)} must have one key.")
        ((tag, content),) = node.items()
        if tag == "tuple" and type(content) is list:
            return tuple(self.value(v) for v in content)
        if tag in ("tuple", "list") and type(content) is dict:
            array = self.value(content)
            if not isinstance(array, np.ndarray) or array.ndim != 1:
                raise ValueError(f"{some(content)} is no list.")
            return tuple(array.tolist()) if tag == "tuple" else array.tolist()
        if tag == "dict" and type(content) is dict:
            self.n_specs += content.get(KIND) in self.specs
            check_cap("list of specifications", self.n_specs, MAX_SPECS, "entries")
            return {k: self.value(v) for k, v in content.items()}
        if tag == "float" and content in ("nan", "inf", "-inf"):
            return float(content)
        if tag == "scalar":
            dtype, item = content
            item = self.value(item)
            if dtype in SCALARS and type(item) in (bool, int, float):
                with np.errstate(over="ignore"):
                    return np.array(item, dtype=dtype)[()]
        if tag == "device" and type(content) is str and DEVICE.fullmatch(content):
            return torch.device(content)
        if tag == "estimator":
            return self.estimator(content)
        if tag in ("array", "strings", "objects") and content in self.arrays:
            array = self.arrays.pop(content)
            return array if tag == "array" else _text(array, tag)
        raise ValueError(f"{some(node)} means nothing.")


def _text(points: np.ndarray, kind: str) -> np.ndarray:
    """Strings from code points, the last axis of which goes along a string."""
    if points.dtype != np.uint32 or points.ndim < 1 or not points.shape[-1]:
        raise ValueError("strings must be arrays of code points.")
    if points.size and points.max() > 0x10FFFF:
        raise ValueError(f"{points.max():#x} is no code point.")
    *shape, width = points.shape
    text = points.reshape(-1).view(f"U{width}").reshape(shape)
    return text.astype(object) if kind == "objects" else text


def _check_learned(cls: type[VAEEstimator], learned: dict[str, Any]) -> None:
    """Refuse learned attributes that are not all there, or not what they must be."""
    unknown = [name for name in learned if not may_be_learned(cls, name)]
    fitted = "fitted_" in learned
    if unknown or any((name in learned) != fitted for name in LEARNED[:2]):
        raise ValueError(
            f"{cls.__name__} must hold {list(LEARNED)}, got {some(sorted(learned))}."
        )
    output = learned.get(OUTPUT, {})
    if output and output not in [
        {"transform": library} for library in ("default", "pandas", "polars")
    ]:
        raise ValueError(f"the output of transform is no {some(output)}.")


def _validate_specs(value: Any) -> None:
    """Validate every spec within a value, as ``fit`` does."""
    if isinstance(value, Spec):
        value.validate()
        value = value.get_params(deep=False)
    if type(value) is dict:
        value = list(value.values())
    if type(value) in (list, tuple):
        for item in value:
            _validate_specs(item)


def _check_fitted(learned: dict[str, Any], specs: Mapping[str, type[Spec]]) -> None:
    """Refuse a fitted model that is not sound, before anything large is built."""
    fitted = learned["fitted_"]
    _validate_specs(fitted["choices"])
    parts = parts_of(fitted)
    form, likelihood = parts["form"], parts["choices"].likelihood
    names = learned.get("feature_names_in_")
    n_features = learned["n_features_in_"]
    if n_features != form.n_features or not (
        names is None or (names.shape == (form.n_features,) and names.dtype == object)
    ):
        raise ShapeMismatchError(
            f"n_features_in_={some(n_features)}, the units of {form.n_features} "
            "features and the names of the features must agree."
        )
    resolved = likelihood.resolve(form.columns, Summary.unknown(form.n_columns))
    if plain(resolved, specs) != plain(likelihood, specs):
        raise ValueError(
            f"the {type(likelihood).__name__} of the fitted model does not tell the "
            f"family of each of its {form.n_columns} columns."
        )
    check_model(parts, fitted["weights"])

"""From an estimator to JSON and arrays."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator

from ..estimator import VAEEstimator
from ..plain import SPECS, plain
from ..spec import Spec
from .estimators import ESTIMATORS, LEFT_OUT, SCALARS, may_be_learned

# Lists of more items of one kind are arrays: the JSON stays short.
MAX_ITEMS = 100


class Encoder:
    """From an estimator to JSON, with the arrays and the user's classes put aside."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self.classes: dict[str, type] = {}

    def estimator(self, estimator: Any, where: str = "") -> dict[str, Any]:
        cls = type(estimator)
        if not issubclass(cls, VAEEstimator):
            raise TypeError(
                f"{where or 'the estimator'} is a {cls.__name__}, which cannot be "
                f"saved; expected one of {sorted(ESTIMATORS)}, or a subclass. "
                "joblib.dump and skops.io.dump save pipelines and estimators of any "
                "kind."
            )
        self._allow(cls, ESTIMATORS)
        state = estimator.__getstate__()
        parameters = {k: state.pop(k) for k in estimator.get_params(deep=False)}
        learned = {k: v for k, v in sorted(state.items()) if k not in LEFT_OUT}
        for name in learned:
            if not may_be_learned(cls, name):
                raise TypeError(
                    f"{cls.__name__}.{name} cannot be saved: only parameters and "
                    "what fit has learned are, in a class of your own under names "
                    f"that end in an underscore. Delete it first: del estimator.{name}."
                )
        return {
            "class": cls.__name__,
            "parameters": {
                k: self.value(v, where + k, parameter=True)
                for k, v in parameters.items()
            },
            "learned": {
                k: self.value(v, where + k, parameter=False) for k, v in learned.items()
            },
        }

    def _allow(self, cls: type, known: Mapping[str, type]) -> None:
        """Remember a class of the user's."""
        name = cls.__name__
        other = known.get(name) or self.classes.get(name)
        if other not in (None, cls):
            raise TypeError(
                f"{cls!r} cannot be saved beside {other!r}: a file knows classes by "
                f"name. Rename yours."
            )
        if name not in known:
            self.classes[name] = cls

    def value(self, value: Any, where: str, *, parameter: bool) -> Any:
        if value is None or type(value) in (bool, str):
            return value
        if type(value) is int:
            if abs(value) < 2**63:
                return value
        elif type(value) is float:
            return value if np.isfinite(value) else {"float": str(value)}
        elif type(value) is list:
            items = self._items(value, where, parameter)
            return items if type(items) is list else {"list": items}
        elif type(value) is tuple:
            return {"tuple": self._items(value, where, parameter)}
        elif type(value) is dict:
            if all(type(k) is str for k in value):
                return {
                    "dict": {
                        k: self.value(v, f"{where}.{k}", parameter=parameter)
                        for k, v in value.items()
                    }
                }
        elif isinstance(value, Spec):
            self._allow(type(value), SPECS)
            flat = plain(value, {**SPECS, type(value).__name__: type(value)})
            return self.value(flat, where, parameter=parameter)
        elif isinstance(value, np.str_):
            return str(value)
        elif isinstance(value, np.bool_ | np.integer | np.floating):
            item = self.value(value.item(), where, parameter=parameter)
            if value.dtype.name in SCALARS:
                return {"scalar": [value.dtype.name, item]}
        elif isinstance(value, torch.device):
            return {"device": str(value)}
        elif isinstance(value, np.ndarray) and not parameter:
            return self._array(value, where)
        elif isinstance(value, BaseEstimator) and not isinstance(value, type):
            return {"estimator": self.estimator(value, f"{where}.")}
        advice = ""
        if isinstance(value, np.random.RandomState):
            advice = " Give an int, such as random_state=0."
        elif isinstance(value, torch.nn.Module):
            advice = (
                " A module is code, which a file does not hold: make a subclass of "
                "skvae.Network whose build makes it, or use joblib.dump."
            )
        raise TypeError(
            f"{where}={value!r} cannot be saved; expected a number, a string, a bool, "
            "None, a torch.device, a spec, or a tuple, a list or a dict of these."
            f"{advice}"
        )

    def _items(self, values: Sequence[Any], where: str, parameter: bool) -> Any:
        """Items one by one; of many numbers or strings an array."""
        if len(values) > MAX_ITEMS:
            kinds = {type(v) for v in values}
            if kinds == {int} and all(abs(v) < 2**63 for v in values):
                return self._array(np.array(values, dtype=np.int64), where)
            if kinds == {str} and not any(v.endswith("\0") for v in values):
                return self._array(np.array(values, dtype=object), where)
        return [
            self.value(v, f"{where}[{i}]", parameter=parameter)
            for i, v in enumerate(values)
        ]

    def _array(self, array: np.ndarray, where: str) -> dict[str, Any]:
        kind = "array"
        if array.dtype == object and all(type(v) is str for v in array.flat):
            kind = "objects"
        elif array.dtype.kind == "U":
            kind = "strings"
        elif array.dtype.name not in SCALARS:
            raise TypeError(
                f"{where} is an array of {array.dtype}, which cannot be saved; "
                "expected numbers, booleans or strings."
            )
        array = np.asarray(array, order="C")
        if kind != "array":  # as code points
            text = array.astype(str)
            if (text != array).any():
                raise TypeError(
                    f"{where} has a string that ends in a null character, which "
                    "cannot be saved."
                )
            width = text.dtype.itemsize // 4
            array = text.reshape(-1).view(np.uint32).reshape(*text.shape, width)
        self.arrays[where] = array
        return {kind: where}

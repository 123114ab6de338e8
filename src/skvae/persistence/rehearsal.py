"""A model is built without memory first, to see whether the file has its weights."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..fitted import untrained
from .errors import FileFormatError, ShapeMismatchError, UnsafeFileError, some

# To build a model may take so many calls of torch for each array that the file has, and
# tensors so many times as large as all of them together (or of a million numbers).
MAX_CALLS_PER_TENSOR = 200
MAX_GROWTH = 16


def check_model(parts: dict[str, Any], weights: Any) -> None:
    """Refuse weights that do not fit the model, before anything large is built."""
    if type(weights) is not dict:
        raise ValueError(f"the weights must be a dict, got {some(weights)}.")
    for name, array in weights.items():
        if not isinstance(array, np.ndarray):
            raise ValueError(f"the weight {some(name)} must be an array.")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"the weight {some(name)} must be finite.")
    rehearsal = _Rehearsal(
        calls=MAX_CALLS_PER_TENSOR * (len(weights) + 10),
        size=max(2**20, MAX_GROWTH * sum(array.size for array in weights.values())),
    )
    try:
        with _environment_kept(), torch.device("meta"), rehearsal:
            model = untrained(parts)
    except FileFormatError:
        raise
    except Exception as error:  # whatever a network says to widths that it cannot have
        raise ShapeMismatchError(
            f"The model that the file describes cannot be built: "
            f"{str(error) or repr(error)}"
        ) from error
    expected = {
        name: (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in model.state_dict().items()
    }
    given = {name: (array.shape, array.dtype.name) for name, array in weights.items()}
    for name in sorted(expected.keys() | given.keys()):
        if expected.get(name) != given.get(name):
            raise ShapeMismatchError(
                f"The model that the file describes needs {some(name)} as "
                f"{expected.get(name)}, but the file has {given.get(name)}."
            )


@contextmanager
def _environment_kept() -> Iterator[None]:
    """Within, torch imports its compiler, which leaves the folder of its cache."""
    name = "TORCHINDUCTOR_CACHE_DIR"
    known = name in os.environ
    try:
        yield
    finally:
        if not known:
            os.environ.pop(name, None)


class _Rehearsal(TorchFunctionMode):
    """Within, tensors have a shape and no memory, and only so many are made.

    Parameters
    ----------
    calls : int
        Of functions of torch.
    size : int
        Numbers in a tensor.
    """

    def __init__(self, *, calls: int, size: int):
        super().__init__()
        self.calls = calls
        self.size = size

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if "device" in kwargs:
            kwargs["device"] = "meta"
        if "generator" in kwargs:
            kwargs["generator"] = None  # there is none for this device
        self.calls -= 1
        result = func(*args, **kwargs)
        large = isinstance(result, Tensor) and result.numel() > self.size
        if self.calls < 0 or large:
            raise UnsafeFileError(
                "The model that the file describes is larger than the file: it would "
                f"take more than {self.size:,} numbers in one array, or too many steps "
                "to build."
            )
        return result

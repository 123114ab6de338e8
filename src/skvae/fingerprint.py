"""Fingerprints: whether two searches, stacks or candidates ask for the same."""

from functools import partial
from types import CodeType, FunctionType
from typing import Any
from uuid import uuid4

import joblib
from torch import nn

from .spec import Spec

PLAIN = (str, bytes, int, float, complex, bool, type(None))


def fingerprint(*values: Any) -> str:
    """A hash that is the same for what does the same, in any process.

    A function counts by what it does: one that has been edited has the same name still.
    What cannot be told apart for sure (what cannot be pickled) is never the same.
    """
    try:
        return joblib.hash(_content(values))
    except Exception:
        return uuid4().hex


def _content(value: Any) -> Any:
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, list | tuple):
        return [type(value).__name__, *map(_content, value)]
    if isinstance(value, dict):
        return {str(key): _content(item) for key, item in value.items()}
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        around = _content([value.__defaults__, value.__kwdefaults__, cells])
        return value.__qualname__, _code(value.__code__), around
    if isinstance(value, partial):
        return _content(["partial", value.func, value.args, value.keywords])
    if isinstance(value, Spec):
        # By its parameters, which may be modules.
        return _content([type(value), value.get_params(deep=False)])
    if isinstance(value, nn.Module):
        # By its numbers: a pickle of torch's has addresses in it.
        weights = {name: t.cpu().numpy() for name, t in value.state_dict().items()}
        return repr(value), weights
    if callable(value) and not isinstance(value, type) and hasattr(value, "__dict__"):
        return type(value).__qualname__, _content(vars(value))  # a scorer, mostly
    return joblib.hash(value)


def _code(code: CodeType) -> tuple[Any, ...]:
    constants = [
        _code(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts
    ]
    return code.co_code, code.co_names, constants

"""Specifications as plain values: what pickles and files hold of them."""

from collections.abc import Mapping
from typing import Any

from .likelihoods import BY_NAME
from .networks import NETWORKS, EncoderDecoder
from .objectives import OBJECTIVES
from .priors import PRIORS
from .spec import Spec

# Name -> class of every specification of the package.
SPECS: dict[str, type[Spec]] = {
    spec.__name__: spec
    for registry in (NETWORKS, BY_NAME, PRIORS, OBJECTIVES)
    for spec in registry.values()
}
SPECS["EncoderDecoder"] = EncoderDecoder

# The key under which a dict names the class that it describes.
KIND = "$kind"


class UnknownClassError(ValueError):
    """A class or a parameter that is not among those that are allowed."""


def plain(value: Any, specs: Mapping[str, type[Spec]] = SPECS) -> Any:
    """The value with every specification in it as a dict of its parameters.

    A specification whose class is not among ``specs`` stays as it is.
    """
    if isinstance(value, Spec):
        kind = type(value).__name__
        if specs.get(kind) is not type(value):
            return value
        parameters = value.get_params(deep=False)
        return {KIND: kind, "parameters": plain(parameters, specs)}
    if type(value) in (list, tuple):
        return type(value)(plain(v, specs) for v in value)
    if type(value) is dict:
        return {k: plain(v, specs) for k, v in value.items()}
    return value


def revived(value: Any, specs: Mapping[str, type[Spec]] = SPECS) -> Any:
    """The inverse of :func:`plain`.

    Raises
    ------
    ValueError
        If the value is not as :func:`plain` makes it.
    """
    if type(value) in (list, tuple):
        return type(value)(revived(v, specs) for v in value)
    if type(value) is not dict:
        return value
    if KIND not in value:
        return {k: revived(v, specs) for k, v in value.items()}
    kind = value[KIND]
    if not isinstance(kind, str) or kind not in specs:
        raise UnknownClassError(
            f"the class {kind!r} is not known; expected one of {sorted(specs)}."
        )
    if value.keys() != {KIND, "parameters"}:
        raise ValueError(
            f"{kind} must hold its parameters, got {sorted(map(str, value))}."
        )
    return create(specs[kind], revived(value["parameters"], specs))


def create(cls: Any, parameters: Any) -> Any:
    """An estimator or a specification of these parameters, not yet validated."""
    known = set(cls._get_param_names())
    if type(parameters) is not dict or not parameters.keys() <= known:
        got = parameters
        if type(parameters) is dict:
            got = sorted(map(repr, parameters))
        raise UnknownClassError(
            f"{cls.__name__} takes the parameters {sorted(known)}, got {got}."
        )
    return cls(**parameters)

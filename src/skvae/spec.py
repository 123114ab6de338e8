"""What the four choices share: parameters, cloning, look-up by name, plain state."""

from collections.abc import Mapping
from typing import Any, TypeVar

from sklearn.base import BaseEstimator, clone

# log(2 pi), of every Gaussian density.
LOG_2_PI = 1.8378770664093453


class Spec(BaseEstimator):
    """A plain description of one choice (network, likelihood, prior or objective).

    A spec holds parameters and nothing learned, so that it can be cloned, printed,
    compared and searched (``objective__beta`` in a grid). Think twice before adding
    anything here.
    """

    _parameter_constraints: dict[str, list[Any]] = {}

    def validate(self) -> None:
        """Refuse parameters that are not as expected."""
        self._validate_params()


SpecType = TypeVar("SpecType", bound=Spec)


def resolve(
    value: Any, registry: Mapping[str, type[SpecType]], axis: str, base: type[SpecType]
) -> SpecType:
    """Return a validated copy of a spec given as an object or by its short name."""
    if isinstance(value, str):
        if value not in registry:
            raise ValueError(
                f"{axis}={value!r} is not known; expected one of "
                f"{sorted(registry)} or a {base.__name__} object."
            )
        return registry[value]()
    if not isinstance(value, base):
        advice = (
            f" Create it first: {value.__name__}()." if isinstance(value, type) else ""
        )
        raise TypeError(
            f"{axis} must be one of {sorted(registry)} or a {base.__name__} object, "
            f"got {value!r}.{advice}"
        )
    spec = clone(value)
    spec.validate()
    return spec

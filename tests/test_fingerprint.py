"""What is the same, and what is not."""

import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from sklearn.metrics import make_scorer
from torch import nn

from skvae import ELBO, EncoderDecoder, Gaussian, Mixed
from skvae.fingerprint import fingerprint


def weighted(weight):
    return lambda estimator, X, y=None: weight * estimator.score(X)


def define(body):
    """A function of this name, whatever it does."""
    space = {}
    exec(f"def score(estimator, X, y=None):\n    return {body}", space)
    return space["score"]


def layer(value):
    one = nn.utils.skip_init(nn.Linear, 2, 3)
    nn.init.constant_(one.weight, value)
    nn.init.zeros_(one.bias)
    return one


MAKE = {
    "number": lambda v: v,
    "array": lambda v: np.full(5, v),
    "list": lambda v: [1, v, "a"],
    "dict": lambda v: {"a": {"b": v}},
    "closure": weighted,
    "edited function": lambda v: define(f"{v} * estimator.score(X)"),
    "nested function": lambda v: define(f"(lambda: {v})()"),
    "default": lambda v: lambda e, X, y=None, weight=v: weight,
    "partial": lambda v: partial(max, v),
    "scorer": lambda v: make_scorer(define(v)),
    "scorers": lambda v: {"a": make_scorer(define(1)), "b": weighted(v)},
    "module": lambda v: (layer(0), layer(v)),
    "spec": lambda v: ELBO(beta=v),
    "spec of modules": lambda v: EncoderDecoder(layer(0), layer(v)),
    "spec of specs": lambda v: Mixed(((Gaussian(scale=v), 2),)),
    "mixed list": lambda v: [layer(1), v],
}


@pytest.mark.parametrize("kind", MAKE)
def test_the_same_and_another(kind):
    one, two, other = MAKE[kind](1.0), MAKE[kind](1.0), MAKE[kind](2.0)
    assert fingerprint(one) == fingerprint(two)
    assert fingerprint(one) != fingerprint(other)


def test_kinds_are_not_mixed_up():
    values = [1, "1", 1.5, None, (1,), [1], [[1]], Gaussian(), Gaussian, define(1)]
    assert len({fingerprint(value) for value in values}) == len(values)
    assert fingerprint(1, 2) != fingerprint((1, 2))


def test_what_cannot_be_told_is_never_the_same():
    def endless():
        return endless  # its closure holds itself

    for value in (endless, iter([1]), define):
        assert len(fingerprint(value)) == 32
    assert fingerprint(endless) != fingerprint(endless)
    stream = (i for i in range(3))
    assert fingerprint(stream) != fingerprint(stream)
    assert list(stream) == [0, 1, 2]


@pytest.mark.slow  # another process imports torch
def test_another_process_says_the_same():
    values = "Gaussian(scale='feature'), {'a': 1.5}, lambda x: {x, 1}"
    script = (
        "from skvae import Gaussian; from skvae.fingerprint import fingerprint;"
        f"print(fingerprint({values}))"
    )
    there = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    ).stdout
    assert there.strip() == fingerprint(*eval(values))

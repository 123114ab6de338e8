"""What the ONNX tests share: small fitted models, and each export made once."""

from contextlib import suppress
from functools import cache

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits

from skvae import ConvNet, FlowMLP, VAEEstimator
from skvae.onnx import export
from skvae.onnx.metadata import Metadata
from skvae.units import Units

# onnxscript parses the sources of its 500 functions anew in each export, which is half
# of the time of a small one.
with suppress(ImportError, AttributeError):
    from onnxscript.values import TracedOnnxFunction

    TracedOnnxFunction.function_ir = property(
        cache(TracedOnnxFunction.function_ir.fget)
    )

# The time of an export grows with the number of operators, not with the widths.
SMALL = {
    "conv": ConvNet(channels=(2,), n_residual=0),
    "flow_mlp": FlowMLP(n_transforms=1, flow_dim=4),
}


def fitted(likelihood="auto", X=None, estimator=VAEEstimator, y=None, **parameters):
    """A small VAE fitted for an epoch, by default on 40 rows of 16 grey values."""
    if X is None:
        X = np.random.RandomState(0).uniform(0, 1, (40, 16))
    options = {"latent_dim": 2, "hidden_dim": 8, "epochs": 1, "random_state": 0}
    if "network" in parameters:
        parameters["network"] = SMALL.get(parameters["network"], parameters["network"])
    vae = estimator(likelihood=likelihood, **{**options, **parameters})
    return vae.fit(X, y)


@cache
def digits():
    """scikit-learn's digits as grey values in [0, 1]."""
    X = load_digits().data / 16
    X.flags.writeable = False
    return X


@cache
def table():
    """A data frame of six numbers of unlike units."""
    X = np.random.RandomState(0).normal(3, 2, (50, 6)) * [1, 1, 1, 10, 100, 0.1]
    return pd.DataFrame(X, columns=list("abcdef"))


@cache
def model(name):
    """A fitted model: "digits" is wide enough to be worth quantising."""
    if name == "digits":
        return fitted(
            "bernoulli", digits()[:1000], hidden_dim=(320, 16), epochs=10, latent_dim=3
        )
    return fitted("gaussian", table(), latent_dim=3)


def exported(name, part="all"):
    """The ModelProto of a model; not to be changed."""
    return _exported(name, part)


@cache
def _exported(name, part):
    return export(model(name), None, part)


def write(name, folder, part="all"):
    """A file of a model, in a folder."""
    path = folder / f"{part}.onnx"
    path.write_bytes(exported(name, part).SerializeToString())
    return path


# onnxruntime's sigmoid is off by 1e-7 however small it is.
FLOOR = 0.05


def errors(got, wanted, size=None):
    """Absolute differences over the size of the numbers.

    The size of a number is its own, but at least the root mean square of its column
    in ``size``, an array of the same columns, and at least ``FLOOR``.
    """
    assert got.shape == wanted.shape
    assert got.dtype == wanted.dtype
    size = wanted if size is None else size
    typical = np.sqrt(np.mean(np.square(size), axis=0))
    return np.abs(got - wanted) / np.maximum(np.maximum(np.abs(wanted), typical), FLOOR)


def assert_same(got, wanted, size=None):
    """Relative errors of float32 arithmetic: 2.5e-6 is the worst that was seen."""
    assert errors(got, wanted, size).max() < 1e-5


def assert_computes_the_same(copy, vae, X, y=None):
    """Codes, means and scores of one row and of all rows of an array X.

    Neither is a number of rows that was traced.
    """
    Z = vae.transform(X)
    decoded, scores = vae.inverse_transform(Z, y), vae.score_samples(X, y)
    for n in (1, len(X)):
        few = None if y is None else y[:n]
        assert_same(copy.transform(X[:n]), Z[:n], Z)
        assert_same(copy.inverse_transform(Z[:n], few), decoded[:n], decoded)
        assert_same(copy.score_samples(X[:n], few), scores[:n], scores)


def described(supports, n_columns, **entries):
    """Metadata of a model of which little is known but its supports."""
    texts = ("skvae", "estimator", "part", "network", "likelihood", "prior")
    numbers = ("latent_dim", "n_noise", "n_draws", "n_prior_noise")
    known = dict.fromkeys(texts, "") | dict.fromkeys(numbers, 1) | entries
    return Metadata.describe(
        Units.identity(n_columns),
        supports,
        dtype="float32",
        n_features=n_columns,
        **known,
    )

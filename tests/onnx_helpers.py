"""What the tests of the ONNX side share."""

import numpy as np

from skvae import ConvNet, FlowMLP, VAEEstimator

# Small ones of the larger kinds, so that tracing them is quick.
SMALL = {
    "conv": ConvNet(channels=(4, 8)),
    "flow_mlp": FlowMLP(n_transforms=1, flow_dim=8),
}


def fitted(likelihood="auto", X=None, **parameters):
    """A small VAE fitted for an epoch on rows within the likelihood's support."""
    if X is None:
        X = np.random.RandomState(0).uniform(0, 1, (40, 16))
    options = {"latent_dim": 3, "hidden_dim": 8, "epochs": 1, "random_state": 0}
    if "network" in parameters:
        parameters["network"] = SMALL.get(parameters["network"], parameters["network"])
    vae = VAEEstimator(likelihood=likelihood, **{**options, **parameters})
    return vae.fit(X)


def assert_same(got, wanted):
    """Mean error of 1e-5 and worst of 1e-4, relative to the size of the numbers."""
    assert got.shape == wanted.shape
    assert got.dtype == wanted.dtype
    size = np.maximum(np.abs(wanted), np.sqrt(np.mean(np.square(wanted))))
    error = np.abs(got - wanted) / size
    assert error.mean() < 1e-5
    assert error.max() < 1e-4

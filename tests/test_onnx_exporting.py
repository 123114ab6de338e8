import numpy as np
import onnx
import onnxruntime
import pytest
import scipy.special
import torch
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline

from onnx_helpers import SMALL, assert_same, fitted
from skvae import ConditionalVAEEstimator, Gaussian, OnnxVAE, VAEEstimator
from skvae.likelihoods import LIKELIHOODS, Likelihood
from skvae.networks import NETWORKS
from skvae.noise import hash_rows, row_noise
from skvae.onnx import export
from skvae.priors import PRIORS, FlowPrior


def run(model, feeds, outputs=None):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return session.run(outputs, feeds)


@pytest.mark.parametrize("likelihood", sorted(LIKELIHOODS))
@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_every_part_is_what_the_estimator_computes(network, likelihood, tmp_path):
    rng = np.random.RandomState(0)
    # Any family makes rows of its own support out of these.
    family = LIKELIHOODS[likelihood]()
    n_features = 16 * getattr(family, "n_channels", 1)
    X = family.nearest_in_support(rng.uniform(0, 3, (40, n_features)))
    vae = fitted(likelihood, X, network=network)
    export(vae, tmp_path / "vae.onnx")
    copy = OnnxVAE(tmp_path / "vae.onnx")
    for rows in (X[:1], X):  # two sizes of batch, neither the one that was traced
        Z = vae.transform(rows)
        assert_same(copy.transform(rows), Z)
        assert_same(copy.inverse_transform(Z), vae.inverse_transform(Z))
        assert_same(copy.score_samples(rows), vae.score_samples(rows))


@pytest.mark.parametrize("prior", sorted(PRIORS))
def test_the_prior_draws_as_the_model_does(prior):
    vae = fitted(prior=FlowPrior(1, hidden_dim=8) if prior == "flow" else prior)
    shape = (7, vae.model_.n_prior_noise)
    noise = np.random.RandomState(0).normal(size=shape).astype(np.float32)
    with torch.no_grad():
        wanted = vae.model_.draw_latent(torch.from_numpy(noise)).numpy()
    assert_same(run(export(vae, None, "prior"), {"noise": noise})[0], wanted)
    elbo = run(
        export(vae, None, "elbo"),
        {"X": np.full((2, 16), 0.5, np.float32), "noise": np.zeros((2, 4, 3), "f4")},
    )
    assert np.isfinite(elbo[0]).all()


def test_a_hierarchy(tmp_path):
    X = np.random.RandomState(0).uniform(0, 1, (40, 16))
    vae = fitted("bernoulli", X, network="ladder", latent_dim=(4, 2))
    export(vae, tmp_path / "vae.onnx")
    copy = OnnxVAE(tmp_path / "vae.onnx")
    for rows in (X[:1], X):
        assert_same(copy.transform(rows), vae.transform(rows))
        assert_same(copy.score_samples(rows), vae.score_samples(rows))
    assert copy.sample(3, random_state=0).shape == (3, 16)


@pytest.mark.parametrize("network", ["mlp", "conv", "ladder"])
def test_a_conditional_model(network, tmp_path):
    rng = np.random.RandomState(0)
    X, y = rng.uniform(0, 1, (40, 16)), rng.choice(["a", "b", "c"], 40)
    vae = ConditionalVAEEstimator(
        3, hidden_dim=8, epochs=1, network=SMALL.get(network, network), random_state=0
    ).fit(X, y)
    export(vae, tmp_path / "vae.onnx")
    copy = OnnxVAE(tmp_path / "vae.onnx")
    for n in (1, 40):
        Z = vae.transform(X[:n])
        assert_same(copy.transform(X[:n]), Z)
        assert_same(copy.inverse_transform(Z, y=y[:n]), vae.inverse_transform(Z, y[:n]))
        scores = vae.score_samples(X[:n], y[:n])
        assert_same(copy.score_samples(X[:n], y=y[:n]), scores)
    assert copy.sample(3, random_state=0, y="b").shape == (3, 16)
    with pytest.raises(ValueError, match="give y"):
        copy.sample(3)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_a_file_of_one_part_computes_that_part(network, likelihood):
    X = np.random.RandomState(0).uniform(0, 1, (40, 16))
    vae = fitted(likelihood, X, network=network)
    x = X if likelihood == "gaussian" else X.astype(np.float32)
    z = vae.transform(X)
    noise = row_noise(
        hash_rows(vae.units_.standardize(X)), 4, vae.model_.n_noise
    ).swapaxes(0, 1)
    reconstructed = vae.reconstruct(X).astype(x.dtype)
    wanted = {
        "encoder": ({"X": x}, [z]),
        "decoder": ({"Z": z}, [reconstructed]),
        "autoencoder": ({"X": x}, [reconstructed]),
        "elbo": ({"X": x, "noise": noise}, [vae.score_samples(X)]),
        "prior": ({"noise": z}, [z]),
    }
    for part, (feeds, outputs) in wanted.items():
        model = export(vae, None, part)
        for n in (1, len(X)):
            got = run(model, {k: v[:n] for k, v in feeds.items()})
            for a, b in zip(got, outputs, strict=False):
                assert_same(a, b[:n])


def test_reconstruction_and_kl_make_the_elbo():
    vae = fitted()
    feeds = {
        "X": np.random.RandomState(1).uniform(0, 1, (5, 16)).astype(np.float32),
        "noise": np.random.RandomState(2).normal(size=(5, 4, 3)).astype(np.float32),
    }
    elbo, reconstruction, kl = run(export(vae, None, "elbo"), feeds)
    np.testing.assert_array_equal(elbo, -(reconstruction + kl))
    assert (kl > 0).all()


def test_units_are_kept_in_double_precision():
    # In float32 these columns are constant: 1e8 and its neighbours are 8 apart.
    X = 1e8 + np.random.RandomState(0).normal(size=(50, 4))
    vae = fitted("gaussian", X)
    z, x = vae.transform(X), vae.reconstruct(X)
    assert np.ptp(z, axis=0).min() > 0
    assert_same(run(export(vae, None, "encoder"), {"X": X})[0], z)
    (got,) = run(export(vae, None, "autoencoder"), {"X": X})
    np.testing.assert_allclose(got, x, rtol=0, atol=1e-4)


def test_rows_outside_the_support_are_scored_as_the_nearest_within():
    X = np.random.RandomState(0).uniform(0, 1, (40, 16)).astype(np.float32)
    vae = fitted("bernoulli", X)
    model = export(vae, None, "elbo")
    noise = np.random.RandomState(1).normal(size=(40, 4, 3)).astype(np.float32)
    outside = run(model, {"X": X * 3 - 1, "noise": noise})[0]
    inside = run(model, {"X": np.clip(X * 3 - 1, 0, 1), "noise": noise})[0]
    np.testing.assert_array_equal(outside, inside)


FUNCTIONS = {
    "lgamma": (torch.lgamma, scipy.special.gammaln, np.geomspace(1e-3, 1e4, 400)),
    "expm1": (torch.expm1, np.expm1, np.geomspace(1e-6, 50, 400)),
    "log1p": (torch.log1p, np.log1p, np.geomspace(1e-6, 1e6, 400)),
    "softplus": (
        lambda x: torch.nn.functional.softplus(x, beta=2.0),
        lambda x: np.logaddexp(0, 2 * x) / 2,
        np.linspace(-30, 30, 400),
    ),
    "log_sigmoid": (
        torch.nn.functional.logsigmoid,
        lambda x: -np.logaddexp(0, -x),
        np.linspace(-200, 10, 400),
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_keep_their_digits(name):
    function, truth, x = FUNCTIONS[name]

    class Density(Likelihood):
        def log_prob(self, x, raw, **parameters):
            return -(function(x) + 0 * raw.squeeze(-1)).sum(-1)

        def mean(self, raw, **parameters):
            return raw.squeeze(-1)

    X = x.reshape(-1, 1).astype(np.float32)
    model = export(fitted(Density(), X), None, "elbo")
    noise = np.zeros((len(X), 4, 3), np.float32)
    (reconstruction,) = run(model, {"X": X, "noise": noise}, ["reconstruction"])
    wanted = truth(X[:, 0].astype(np.float64))
    np.testing.assert_allclose(reconstruction, wanted, rtol=3e-7, atol=1e-7)


@pytest.mark.parametrize("opset", [18, 20, 22])
def test_opset_is_a_parameter(opset):
    X = np.random.RandomState(0).uniform(0, 1, (40, 16))
    vae = fitted()
    model = export(vae, None, "encoder", opset=opset)
    assert [i.version for i in model.opset_import if not i.domain] == [opset]
    assert_same(run(model, {"X": X.astype(np.float32)})[0], vae.transform(X))


def test_the_whole_file_has_the_weights_once(tmp_path):
    vae = fitted(hidden_dim=200)
    n_bytes = sum(4 * p.numel() for p in vae.model_.parameters())
    export(vae, tmp_path / "vae.onnx")
    assert n_bytes < (tmp_path / "vae.onnx").stat().st_size < n_bytes + 20_000


def test_nothing_of_this_machine_is_written(tmp_path):
    export(fitted(), tmp_path / "vae.onnx")
    content = (tmp_path / "vae.onnx").read_bytes()
    assert b".py" not in content
    assert [path.name for path in tmp_path.iterdir()] == ["vae.onnx"]


def test_weights_keep_the_names_of_the_network():
    names = {w.name for w in export(fitted(), None).graph.initializer}
    assert {"encoder.0.weight", "encoder.0.bias", "decoder.2.weight"} <= names


def test_nodes_say_which_step_they_belong_to():
    bands = [n.name.split("/")[0] for n in export(fitted(), None, "elbo").graph.node]
    assert set(bands) == {"input", "encoder", "posterior", "decoder", "loss"}
    whole = {tuple(n.name.split("/")[:2]) for n in export(fitted(), None).graph.node}
    assert {("encoder", "encoder"), ("elbo", "loss"), ("decoder", "output")} <= whole


def test_an_error_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "vae.onnx"
    path.write_bytes(b"old")

    def fail(*_, **__):
        raise RuntimeError("no")

    monkeypatch.setattr(onnx.checker, "check_model", fail)
    with pytest.raises(RuntimeError, match="no"):
        export(fitted(), path)
    assert path.read_bytes() == b"old"


def test_the_model_stays_as_it_was():
    vae = fitted(Gaussian(scale=0.5))
    X = np.random.RandomState(1).uniform(0, 1, (5, 16))
    before = vae.score_samples(X)
    export(vae, None, "elbo")
    np.testing.assert_array_equal(vae.score_samples(X), before)


def test_what_cannot_be_exported_is_refused():
    vae = fitted()
    with pytest.raises(ValueError, match=r"part='loss' must be one of \['all'"):
        export(vae, None, "loss")
    with pytest.raises(ValueError, match="opset=17 must be an int from 18"):
        export(vae, None, opset=17)
    with pytest.raises(NotFittedError):
        export(VAEEstimator(), None)
    with pytest.raises(TypeError, match=r"got Pipeline.*register"):
        export(make_pipeline(vae), None)

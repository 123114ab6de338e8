import copy
import re

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import scipy.special
import torch
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline

from onnx_helpers import (
    assert_computes_the_same,
    assert_same,
    described,
    digits,
    exported,
    fitted,
    model,
    table,
    write,
)
from skvae import (
    Beta,
    ConditionalVAEEstimator,
    ContinuousBernoulli,
    DiscretizedLogisticMixture,
    FlowPrior,
    Mixed,
    MixturePrior,
    NegativeBinomial,
    OnnxVAE,
    Poisson,
    StudentT,
    VAEEstimator,
    VampPrior,
)
from skvae.likelihoods import LIKELIHOODS, Likelihood, LikelihoodModule
from skvae.networks import NETWORKS
from skvae.noise import hash_rows, row_noise
from skvae.onnx import export
from skvae.onnx.exporting import _Nearest
from skvae.onnx.metadata import shape_of
from skvae.priors import PRIORS


def run(proto, feeds, outputs=None):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    return session.run(outputs, feeds)


def slow_unless(quick, *values):
    return pytest.param(*values, marks=() if quick else pytest.mark.slow)


def rows_of(likelihood, dtype=np.float64):
    """Rows within the support, and the same made larger and smaller."""
    family = LIKELIHOODS[likelihood]()
    n_columns = 48 if likelihood == "discretized_logistic_mixture" else 16
    X = np.random.RandomState(0).uniform(0, 3, (40, n_columns)).astype(dtype)
    return family.nearest(X), X * 1.3 - 0.6


# An export takes seconds. The quick tests have one network (that of the shared models)
# and every likelihood once, as a column of a table; the other networks are slow.


@pytest.mark.slow
@pytest.mark.parametrize("likelihood", sorted(LIKELIHOODS))
@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_every_part_is_what_the_estimator_computes(network, likelihood, tmp_path):
    X, beyond = rows_of(likelihood)
    vae = fitted(likelihood, X, network=network)
    export(vae, tmp_path / "vae.onnx")
    served = OnnxVAE(tmp_path / "vae.onnx")
    assert_computes_the_same(served, vae, X)
    assert_scores_what_is_outside(served, vae, beyond)


@pytest.mark.parametrize("name", ["digits", "table"])
def test_shared_models_compute_what_the_estimator_does(name, tmp_path):
    X = digits()[:20] if name == "digits" else table()
    served = OnnxVAE(write(name, tmp_path))
    assert_computes_the_same(served, model(name), X)
    assert_scores_what_is_outside(served, model(name), X * 1.3 - 0.6)


def assert_scores_what_is_outside(served, vae, X):
    if vae.likelihood_.contains(np.asarray(X)).all():
        assert_same(served.score_samples(X), vae.score_samples(X))
        return
    with pytest.warns(UserWarning, match="outside the support"):
        wanted = vae.score_samples(X)
    with pytest.warns(UserWarning, match="outside the support"):
        assert_same(served.score_samples(X), wanted)


PRIOR_OBJECTS = {
    "mixture": MixturePrior(3),
    "vamp": VampPrior(3),
    "flow": FlowPrior(1, hidden_dim=4),
}


@pytest.mark.parametrize(
    "prior",
    [slow_unless(name == "normal", name) for name in sorted(PRIORS)],
)
def test_the_prior_draws_and_scores_as_the_model_does(prior, tmp_path):
    if prior == "normal":
        vae, proto, X = model("digits"), exported("digits"), digits()[:20]
    else:
        X = np.random.RandomState(0).uniform(0, 1, (40, 16))
        vae = fitted("bernoulli", X, prior=PRIOR_OBJECTS[prior])
        proto = export(vae, None)
    module = vae.fitted_.module
    shape = (7, module.n_prior_noise)
    noise = np.random.RandomState(0).normal(size=shape).astype(np.float32)
    with torch.no_grad():
        wanted = module.draw_latent(torch.from_numpy(noise)).numpy()
    assert_same(run(proto, {"prior.noise": noise}, ["prior.Z"])[0], wanted)
    (tmp_path / "vae.onnx").write_bytes(proto.SerializeToString())
    got = OnnxVAE(tmp_path / "vae.onnx").score_samples(X)
    assert_same(got, vae.score_samples(X))


@pytest.mark.slow
def test_a_flow(tmp_path):
    X = np.random.RandomState(0).uniform(0, 1, (40, 16))
    vae = fitted("bernoulli", X, network="flow_mlp")
    export(vae, tmp_path / "vae.onnx", "elbo")
    served, scores = OnnxVAE(tmp_path / "vae.onnx"), vae.score_samples(X)
    for n in (1, len(X)):
        assert_same(served.score_samples(X[:n]), scores[:n], scores)


@pytest.mark.slow
def test_a_hierarchy(tmp_path):
    X = np.random.RandomState(0).uniform(0, 1, (40, 16))
    vae = fitted("bernoulli", X, network="ladder", latent_dim=(4, 2))
    export(vae, tmp_path / "vae.onnx")
    served = OnnxVAE(tmp_path / "vae.onnx")
    assert_computes_the_same(served, vae, X)
    assert served.sample(3, random_state=0).shape == (3, 16)
    # The means are an output, and what the lower levels follow from.
    encoder = export(vae, None, "encoder")
    assert_same(run(encoder, {"X": X.astype(np.float32)})[0], vae.transform(X))


@pytest.mark.parametrize(
    "network", [slow_unless(name == "mlp", name) for name in ("mlp", "conv", "ladder")]
)
def test_a_conditional_model(network, tmp_path):
    rng = np.random.RandomState(0)
    X, y = rng.uniform(0, 1, (40, 16)), rng.choice(["a", "b", "c"], 40)
    vae = fitted("bernoulli", X, ConditionalVAEEstimator, y, network=network)
    export(vae, tmp_path / "vae.onnx")
    served = OnnxVAE(tmp_path / "vae.onnx")
    assert_computes_the_same(served, vae, X, y)
    assert list(served.classes_) == ["a", "b", "c"]
    assert served.sample(3, random_state=0, y="b").shape == (3, 16)
    wrong = {"give y": None, "value 'd'": "d", "y has 2 entries": ["a", "b"]}
    for message, labels in wrong.items():
        with pytest.raises(ValueError, match=message):
            served.sample(3, y=labels)
    with pytest.raises(ValueError, match="value 4"):
        served.score_samples(X[:1], y=[4])


def inputs_and_outputs(vae, X):
    """What each part takes and gives, from the estimator."""
    value = vae.fitted_
    x = X if vae.likelihood_.real_valued else X.astype(np.float32)
    z = vae.transform(X)
    hashes = hash_rows(value.units.standardize(np.asarray(X)))
    noise = row_noise(hashes, 4, value.module.n_noise).swapaxes(0, 1)
    reconstructed = np.asarray(vae.reconstruct(X)).astype(x.dtype)
    prior = np.random.RandomState(0).normal(size=(len(X), value.module.n_prior_noise))
    prior = prior.astype(np.float32)
    with torch.no_grad():
        drawn = value.module.draw_latent(torch.from_numpy(prior)).numpy()
    reconstruction, kl = value.elbo_parts(X)
    return {
        "encoder": ({"X": x}, [z]),
        "decoder": ({"Z": z}, [reconstructed]),
        "autoencoder": ({"X": x}, [reconstructed]),
        "elbo": ({"X": x, "noise": noise}, [vae.score_samples(X), reconstruction, kl]),
        "prior": ({"noise": prior}, [drawn]),
    }


def assert_parts_are_computed(vae, X, export_part):
    for part, (feeds, outputs) in inputs_and_outputs(vae, X).items():
        proto = export_part(part)
        for n in (1, len(X)):
            got = run(proto, {k: v[:n] for k, v in feeds.items()})
            for a, b in zip(got, outputs, strict=True):
                assert_same(a, b[:n], b)


def test_a_file_of_one_part_computes_that_part():
    X = digits()[1000:1020]
    parts = lambda part: exported("digits", part)  # noqa: E731
    assert_parts_are_computed(model("digits"), X, parts)


@pytest.mark.slow
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_a_file_of_one_part_of_every_network(network, likelihood):
    X = np.random.RandomState(0).uniform(0, 1, (40, 16))
    vae = fitted(likelihood, X, network=network)
    assert_parts_are_computed(vae, X, lambda part: export(vae, None, part))


def test_reconstruction_and_kl_make_the_elbo():
    feeds = {
        "X": digits()[:5].astype(np.float32),
        "noise": np.random.RandomState(2).normal(size=(5, 4, 3)).astype(np.float32),
    }
    elbo, reconstruction, kl = run(exported("digits", "elbo"), feeds)
    np.testing.assert_array_equal(elbo, -(reconstruction + kl))
    assert (kl > 0).all()


def test_units_are_kept_in_double_precision():
    # In float32 these columns are constant: 1e8 and its neighbours are 8 apart.
    X = 1e8 + np.random.RandomState(0).normal(size=(50, 4))
    vae = fitted("gaussian", X)
    x = vae.reconstruct(X)
    assert np.ptp(x, axis=0).min() > 0.1
    (got,) = run(export(vae, None, "autoencoder"), {"X": X})
    np.testing.assert_allclose(got, x, rtol=0, atol=1e-5)


# ---------------------------------------------------------------------- the support


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("likelihood", sorted(LIKELIHOODS))
def test_the_graph_moves_rows_into_the_support(likelihood, dtype):
    family = LIKELIHOODS[likelihood]()
    X = np.concatenate(rows_of(likelihood, dtype))
    if likelihood == "beta":
        X[:3, 0] = 0, 1e-9, 1  # the second lies within, nearer to 0 than the first may
    metadata = described(family.supports(X.shape[1]), X.shape[1])
    nearest = _Nearest(metadata, torch.from_numpy(X).dtype)
    got, wanted = nearest(torch.from_numpy(X)).numpy(), family.nearest(X)
    if likelihood == "discretized_logistic_mixture":
        # What is less than half a thousandth of a level off is rounded, too.
        np.testing.assert_allclose(got, wanted, rtol=0, atol=5e-4 / 255)
        np.testing.assert_array_equal(np.rint(255 * got), np.rint(255 * wanted))
    else:
        np.testing.assert_array_equal(got, wanted)


def test_rows_outside_the_support_are_scored_as_the_nearest_within():
    X = digits()[:40].astype(np.float32)
    noise = np.random.RandomState(1).normal(size=(40, 4, 3)).astype(np.float32)
    elbo = exported("digits", "elbo")
    outside = run(elbo, {"X": X * 3 - 1, "noise": noise})[0]
    inside = run(elbo, {"X": np.clip(X * 3 - 1, 0, 1), "noise": noise})[0]
    np.testing.assert_array_equal(outside, inside)
    assert np.abs(run(elbo, {"X": X, "noise": noise})[0] - inside).min() > 0.01


# ---------------------------------------------------------------------- data frames


@pytest.fixture(scope="module")
def people():
    """A column for every likelihood, and one that holds dates."""
    rng = np.random.RandomState(0)
    n = 50
    return pd.DataFrame(
        {
            "height": rng.normal(170, 10, n),
            "children": rng.poisson(2, n),
            "town": rng.choice(["Rome", "Oslo", "Lima"], n),
            "smokes": rng.uniform(size=n) < 0.3,
            "born": pd.Timestamp("1990-01-01") + pd.to_timedelta(rng.uniform(size=n)),
            "share": rng.beta(2, 3, n),
            "grey": rng.uniform(size=n),
            "byte": rng.randint(256, size=n) / 255,
            "income": rng.standard_t(3, n),
            "visits": rng.negative_binomial(2, 0.3, n),
        }
    )


FAMILIES = {
    "children": Poisson(),
    "share": Beta(),
    "grey": ContinuousBernoulli(),
    "byte": DiscretizedLogisticMixture(2, 1),
    "income": StudentT(),
    "visits": NegativeBinomial(),
}


def test_a_table_is_numbers_and_codes_by_the_names_of_its_columns(people, tmp_path):
    vae = fitted(Mixed(FAMILIES), people)
    families = {type(family) for family, _ in vae.likelihood_.groups}
    assert families == set(LIKELIHOODS.values())
    export(vae, tmp_path / "vae.onnx")
    served, value = OnnxVAE(tmp_path / "vae.onnx"), vae.fitted_
    assert list(served.feature_names_in_) == list(people.columns)
    assert served.n_features_in_ == served.metadata_.n_features == people.shape[1]
    X = pd.DataFrame(value.form.batch(people)[0], columns=people.columns)
    assert set(X["town"]) == {0, 1, 2}
    Z = vae.transform(people)
    assert_same(served.transform(X), Z)
    decoded = value.decode(Z)
    assert_same(served.inverse_transform(Z), decoded)
    np.testing.assert_array_equal(served.inverse_transform(Z)[:, 2], decoded[:, 2])
    assert_same(served.score_samples(X), vae.score_samples(people))
    # Codes, counts and levels between two that there are, and beyond the last.
    beyond = X + 0.2
    beyond["town"] *= 2
    for name in ("smokes", "born"):  # no frame holds what lies between two of them
        beyond[name] = X[name]
    rows = value.choices.likelihood.nearest(beyond.to_numpy())
    assert set(rows[:, 2]) == {0, 2}
    np.testing.assert_array_equal(served.metadata_.nearest(beyond.to_numpy()), rows)
    with pytest.warns(UserWarning, match="outside the support"):
        got = served.score_samples(beyond)
    moved = pd.DataFrame(rows, columns=X.columns)
    assert_same(got, served.score_samples(moved))
    assert_same(got, vae.score_samples(value.form.decode(rows)))


# ---------------------------------------------------------------------- functions

FUNCTIONS = [
    (torch.lgamma, scipy.special.gammaln, np.geomspace(1e-3, 1e4, 400)),
    (torch.expm1, np.expm1, np.geomspace(1e-6, 50, 400)),
    (torch.log1p, np.log1p, np.geomspace(1e-6, 1e6, 400)),
    (
        lambda x: torch.nn.functional.softplus(x, beta=2.0),
        lambda x: np.logaddexp(0, 2 * x) / 2,
        np.linspace(-30, 30, 400),
    ),
    (
        torch.nn.functional.logsigmoid,
        lambda x: -np.logaddexp(0, -x),
        np.linspace(-200, 10, 400),
    ),
]


class Functions(Likelihood):
    """Its mean is a function of each column's raw output, which is the code."""

    def build(self, columns, summary, units):
        return FunctionsModule(len(columns))


class FunctionsModule(LikelihoodModule):
    def log_prob_by_column(self, x, raw):
        return -(x - raw).square()

    def mean(self, raw):
        parts = raw.unbind(-1)
        return torch.stack(
            [f(part) for (f, _, _), part in zip(FUNCTIONS, parts, strict=True)], -1
        )


def test_functions_keep_their_digits():
    encoder = torch.nn.utils.skip_init(torch.nn.Linear, 5, 10)
    decoder = torch.nn.utils.skip_init(torch.nn.Linear, 5, 5, bias=False)
    torch.nn.init.zeros_(encoder.weight)
    torch.nn.init.zeros_(encoder.bias)
    torch.nn.init.eye_(decoder.weight).requires_grad_(False)
    network = encoder, decoder
    X = np.stack([x for _, _, x in FUNCTIONS], -1).astype(np.float32)
    vae = fitted(Functions(), X, network=network, latent_dim=5)
    (got,) = run(export(vae, None, "decoder"), {"Z": X})
    for column, (_, truth, _) in enumerate(FUNCTIONS):
        wanted = truth(X[:, column].astype(np.float64))
        np.testing.assert_allclose(got[:, column], wanted, rtol=3e-7, atol=1e-7)


# ---------------------------------------------------------------------- the file


@pytest.mark.parametrize("opset", [slow_unless(False, 20), 22])
def test_opset_is_a_parameter(opset):
    versions = [i.version for i in exported("digits", "encoder").opset_import]
    assert versions == [18]
    proto = export(model("digits"), None, "encoder", opset=opset)
    assert [i.version for i in proto.opset_import if not i.domain] == [opset]
    X = digits()[:10]
    got = run(proto, {"X": X.astype(np.float32)})[0]
    assert_same(got, model("digits").transform(X))


def test_the_whole_file_has_the_weights_once():
    n_weights = sum(p.numel() for p in model("digits").model_.parameters())
    size = exported("digits").ByteSize()
    assert 4 * n_weights < size < 4 * n_weights + 20_000


def test_what_is_written_is_what_is_returned_and_the_model_stays(tmp_path):
    vae = model("digits")
    before = vae.score_samples(digits()[:5])
    module, network = vae.fitted_.module, vae.fitted_.module.network
    proto = export(vae, tmp_path / "vae.onnx", "prior")
    assert onnx.load(tmp_path / "vae.onnx") == proto
    assert [path.name for path in tmp_path.iterdir()] == ["vae.onnx"]
    assert vae.fitted_.module is module
    assert module.network is network
    np.testing.assert_array_equal(vae.score_samples(digits()[:5]), before)


def test_nothing_of_this_machine_is_written():
    for part in ("all", "elbo"):
        content = exported("digits", part).SerializeToString()
        assert b".py" not in content
        assert not re.search(rb"/(home|tmp|work|root|Users)", content)


def test_weights_keep_the_names_of_the_network():
    names = {weight.name for weight in exported("digits").graph.initializer}
    assert {"encoder.0.weight", "encoder.0.bias", "decoder.2.weight"} <= names
    names = {weight.name for weight in exported("table").graph.initializer}
    assert "location" in names


def test_nodes_say_which_step_they_belong_to():
    nodes = exported("digits", "elbo").graph.node
    assert {node.name.split("/")[0] for node in nodes} == {
        *("input", "encoder", "posterior", "decoder", "loss")
    }
    whole = {tuple(n.name.split("/")[:2]) for n in exported("digits").graph.node}
    assert {("encoder", "encoder"), ("elbo", "loss"), ("decoder", "output")} <= whole


def test_names_of_axes_say_rows_and_widths_are_fixed():
    graph = exported("table").graph
    shapes = {value.name: shape_of(value) for value in (*graph.input, *graph.output)}
    assert shapes["encoder.X"] == ["encoder_rows", 6]
    assert shapes["elbo.noise"] == ["elbo_rows", 4, 3]
    assert shapes["decoder.X_mean"] == ["decoder_rows", 6]
    assert shapes["prior.Z"] == ["prior_rows", 3]


def test_an_error_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "vae.onnx"
    path.write_bytes(b"old")

    def fail(*_, **__):
        raise RuntimeError("no")

    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: Program())
    monkeypatch.setattr(onnx.checker, "check_model", fail)
    with pytest.raises(RuntimeError, match="no"):
        export(model("digits"), path, "prior")
    assert path.read_bytes() == b"old"


class Program:
    """What the tracer returns."""

    @property
    def model_proto(self):
        return copy.deepcopy(exported("digits", "prior"))


def test_what_cannot_be_exported_is_refused():
    vae = model("digits")
    with pytest.raises(ValueError, match=r"part='loss' must be one of \['all'"):
        export(vae, None, "loss")
    with pytest.raises(ValueError, match="opset=17 must be an int from 18"):
        export(vae, None, opset=17)
    with pytest.raises(NotFittedError):
        export(VAEEstimator(), None)
    with pytest.raises(TypeError, match=r"got Pipeline.*register"):
        export(make_pipeline(vae), None)

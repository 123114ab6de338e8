"""save and load: the same estimator to the bit, or one clear error."""

import json
import os
import pickle
import resource
import stat
import subprocess
import sys
import time
import tracemalloc
from contextlib import suppress
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load as read_tensors
from safetensors.numpy import save as write_tensors
from sklearn.base import BaseEstimator
from sklearn.callback import ProgressBar
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler

import skvae
from skvae import MLP, Gaussian, VAEEstimator, persistence
from skvae.engine import DivergenceError
from skvae.likelihoods import LIKELIHOODS
from skvae.networks import NETWORKS
from skvae.objectives import OBJECTIVES
from skvae.persistence import (
    BLANK,
    DIGEST,
    ESTIMATORS,
    CorruptedFileError,
    FileFormatError,
    NotASkvaeFileError,
    ShapeMismatchError,
    TruncatedFileError,
    UnsafeFileError,
    VersionError,
    dump,
    parse,
)
from skvae.priors import PRIORS
from test_estimator import assert_equal, snapshot, tiny

MEMBERS = [
    *(("network", name) for name in NETWORKS),
    *(("likelihood", name) for name in ["auto", *LIKELIHOODS]),
    *(("prior", name) for name in PRIORS),
    *(("objective", name) for name in OBJECTIVES),
]


class Deep(MLP):
    """A network of the user's."""

    def __init__(self, activation="tanh", layer_norm=False, dropout=0.0, extra=None):
        super().__init__(activation, layer_norm, dropout)
        self.extra = extra


class Mine(VAEEstimator):
    """An estimator of the user's that learns something more."""

    _state_constraints = {**VAEEstimator._state_constraints, "labels_": [np.ndarray]}


class Around(BaseEstimator):
    """An estimator of the user's that holds another one."""

    _parameter_constraints = {"estimator": [VAEEstimator]}
    _state_constraints = {"estimator_": [VAEEstimator], "threshold_": [float]}

    def __init__(self, estimator=None):
        self.estimator = estimator


class Scaled(MLP):
    """A network of the user's with a weight that has no axes, and a buffer."""

    def build(self, **arguments):
        module = super().build(**arguments)
        module.gain = torch.nn.Parameter(torch.ones(()))
        module.register_buffer("steps", torch.arange(3))
        return module


class Unready(MLP):
    """A network of the user's that cannot be built without data."""

    def build(self, **arguments):
        assert arguments["output_bias"].sum().item() < 1e9
        return super().build(**arguments)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "vae.safetensors"


@pytest.fixture(scope="module")
def content(_digits):
    """A small file."""
    rows = _digits[:60, 20:26]
    return dump(tiny(hidden_dim=3, epochs=1, likelihood=Gaussian()).fit(rows))


def reseal(content):
    """With the checksum that belongs to the content."""
    blank = content[: DIGEST.start] + BLANK.encode() + content[DIGEST.stop :]
    digest = persistence.hashlib.sha256(blank).hexdigest().encode()
    return content[: DIGEST.start] + digest + content[DIGEST.stop :]


def edit(content, change):
    """A file whose description and arrays were changed, with the right checksum."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    metadata = json.loads(header["__metadata__"]["skvae"])
    arrays = read_tensors(content)
    change(metadata, arrays)
    metadata = {"sha256": BLANK, **{k: v for k, v in metadata.items() if k != "sha256"}}
    text = json.dumps(metadata, separators=(",", ":"))
    return reseal(write_tensors(arrays, {"skvae": text}))


def assert_same(a, b, X):
    """Every answer is the same, to the bit."""
    assert_equal(snapshot(a), snapshot(b))
    np.testing.assert_array_equal(a.transform(X), b.transform(X))
    np.testing.assert_array_equal(a.score_samples(X), b.score_samples(X))
    told = {"y": a.classes_[0]} if hasattr(a, "classes_") else {}
    np.testing.assert_array_equal(
        a.sample(5, random_state=3, **told), b.sample(5, random_state=3, **told)
    )
    pd.testing.assert_frame_equal(a.history_, b.history_, check_exact=True)
    np.testing.assert_array_equal(a.get_feature_names_out(), b.get_feature_names_out())


# ---------------------------------------------------------------------- round trips


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize(("axis", "member"), MEMBERS)
def test_round_trip_is_exact(name, axis, member, digits, path):
    model = ESTIMATORS[name](
        **tiny(**{axis: member}, validation_fraction=0.2).get_params(deep=False)
    )
    X = (digits[:100, 14:50] > 0.5).astype(np.float32)  # in the support of nearly all
    if member == "beta":
        X = 0.25 + X / 2
    elif member == "categorical":
        X = np.eye(36, dtype=np.float32)[np.arange(100) % 36]
    labels = np.arange(100) % 3
    model.fit(X, labels)
    skvae.save(model, path)
    assert_same(model, skvae.load(path), X)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize(("axis", "member"), MEMBERS)
def test_unfitted_estimators_come_back(name, axis, member, path):
    registries = {
        "network": NETWORKS,
        "likelihood": LIKELIHOODS,
        "prior": PRIORS,
        "objective": OBJECTIVES,
    }
    spec = member if member == "auto" else registries[axis][member]()
    model = ESTIMATORS[name](**{axis: spec})
    skvae.save(model, path)
    twin = skvae.load(path)
    assert type(twin) is type(model)
    assert_equal(snapshot(model), snapshot(twin))


def test_parameters_keep_their_types(path):
    parameters = {
        "latent_dim": np.int64(3),
        "hidden_dim": (5, np.int32(4)),
        "learning_rate": np.float32(0.1),
        "max_gradient_norm": 0.1 + 0.2,
        "device": torch.device("cpu"),
        "standardize": False,
        "random_state": np.uint32(2**32 - 1),
        "likelihood": Gaussian(scale=np.float64(0.5)),
    }
    skvae.save(VAEEstimator(**parameters), path)
    twin = skvae.load(path)
    for name, value in parameters.items():
        assert type(getattr(twin, name)) is type(value), name
        assert_equal(getattr(twin, name), value, name)
    assert type(twin.hidden_dim[1]) is np.int32
    assert type(twin.likelihood.scale) is np.float64
    twin = parse(
        dump(VAEEstimator(network=Deep(extra=(-np.inf, np.nan)))), classes=[Deep]
    )
    assert twin.network.extra[0] == -np.inf
    assert np.isnan(twin.network.extra[1])


def test_lists_tuples_and_dicts_are_kept_apart(path):
    extra = ([1, (2, [])], {"a": {"b": (None, True)}}, ())
    model = VAEEstimator(network=Deep(extra=extra))
    skvae.save(model, path)
    assert skvae.load(path, classes=[Deep]).network.extra == extra


def test_feature_names_and_output_come_back(digits, path):
    names = ["pixel 1", "päxel", "", "日本", "\n\x00x"]
    X = pd.DataFrame(digits[:50, 20:25], columns=names)
    model = tiny().fit(X).set_output(transform="pandas")
    skvae.save(model, path)
    twin = skvae.load(path)
    assert list(twin.feature_names_in_) == names
    assert twin.feature_names_in_.dtype == object
    pd.testing.assert_frame_equal(twin.transform(X), model.transform(X))
    with pytest.raises(ValueError, match="feature names"):
        twin.transform(X.rename(columns={"päxel": "pixel"}))


def test_training_goes_on_as_after_a_pickle(digits, path):
    X = digits[:100]
    model = tiny(warm_start=True).fit(X)
    skvae.save(model, path)
    saved, pickled = skvae.load(path), pickle.loads(pickle.dumps(model))
    for twin in (saved, pickled):
        twin.fit(X).partial_fit(X)
    np.testing.assert_array_equal(saved.transform(X), pickled.transform(X))
    assert saved.history_.epoch.tolist() == [1, 2, 3, 4, 5]


def test_widths_of_numpy_come_back(digits, path):
    X = digits[:50]
    model = tiny(latent_dim=np.int64(2), hidden_dim=(np.int32(4), 3)).fit(X)
    skvae.save(model, path)
    assert_same(model, skvae.load(path), X)


def test_a_diverged_model_comes_back(digits, path):
    model = tiny(learning_rate=1e30, likelihood="gaussian", epochs=5)
    with pytest.raises(DivergenceError):
        model.fit(digits[:100])
    skvae.save(model, path)
    assert_equal(snapshot(model), snapshot(skvae.load(path)))


def test_classes_of_the_user(digits, path):
    X = digits[:50]
    skvae.save(tiny(network=Deep()).fit(X), path)
    with pytest.raises(UnsafeFileError, match=r"'Deep' is not known.*classes=\["):
        skvae.load(path)
    twin = skvae.load(path, classes=[Deep])
    assert type(twin.network_) is Deep
    model = Mine(**tiny().get_params()).fit(X)
    model.labels_ = np.array(["a", "bcd"])
    skvae.save(model, path)
    with pytest.raises(UnsafeFileError, match="'Mine' is not known"):
        skvae.load(path, classes=[Deep])
    twin = skvae.load(path, classes=[Mine])
    assert twin.labels_.dtype == "<U3"
    assert list(twin.labels_) == ["a", "bcd"]
    np.testing.assert_array_equal(twin.transform(X), model.transform(X))


def test_weights_of_any_shape(digits, path):
    model = tiny(network=Scaled(), epochs=1).fit(digits[:50])
    model.model_.network.gain.data.fill_(0.1)
    skvae.save(model, path)
    assert_equal(snapshot(model), snapshot(skvae.load(path, classes=[Scaled])))


def test_a_network_that_needs_data_is_refused_at_save(digits, path):
    with pytest.raises(ValueError, match=r"cannot be saved.*cannot be built"):
        skvae.save(tiny(network=Unready()).fit(digits[:50]), path)


@pytest.mark.parametrize(
    "labels",
    [
        np.array(["a", "bcd"]),
        np.array(["a", "bcd", ""], dtype=object).reshape(3, 1),
        np.array("word"),
        np.array([], dtype="U5"),
        np.array([True, False]),
        np.array([[3, -(2**62)]]),
        np.array(0.1, dtype=np.float16),
        np.arange(6, dtype=np.uint8).reshape(2, 3)[:, ::2],
    ],
    ids=repr,
)
def test_arrays_keep_dtype_and_shape(labels, digits):
    model = Mine(**tiny().get_params()).fit(digits[:50])
    model.labels_ = labels
    twin = parse(dump(model), classes=[Mine])
    assert twin.labels_.dtype == labels.dtype
    assert twin.labels_.shape == labels.shape
    np.testing.assert_array_equal(twin.labels_, labels)


@pytest.mark.parametrize(
    "labels", [np.array([1, "a"], dtype=object), np.array(["a\0"], dtype=object), 1j]
)
def test_arrays_that_a_file_cannot_hold_are_refused(labels, digits):
    model = Mine(**tiny().get_params()).fit(digits[:50])
    model.labels_ = np.array(labels)
    with pytest.raises(TypeError, match=r"labels_ .* cannot be saved"):
        dump(model)


def test_estimators_within_estimators(digits, path):
    X = digits[:50]
    model = Around(tiny(latent_dim=3, network=Deep()))
    skvae.save(model, path)
    assert repr(skvae.load(path, classes=[Around, Deep])) == repr(model)
    model.estimator_, model.threshold_ = tiny(network=Deep()).fit(X), -0.5
    skvae.save(model, path)
    twin = skvae.load(path, classes=[Around, Deep])
    assert twin.threshold_ == -0.5
    assert_same(twin.estimator_, model.estimator_, X)
    assert not hasattr(twin.estimator, "model_")


def test_classes_are_known_by_name(path):
    other = type("MLP", (MLP,), {})
    with pytest.raises(TypeError, match=r"knows classes by name\. Rename yours"):
        skvae.save(VAEEstimator(network=other()), path)
    skvae.save(VAEEstimator(), path)
    with pytest.raises(ValueError, match="another MLP is known already"):
        skvae.load(path, classes=[other])
    with pytest.raises(TypeError, match=r"list of classes: classes=\["):
        skvae.load(path, classes=Deep)
    with pytest.raises(TypeError, match="classes must hold networks"):
        skvae.load(path, classes=[dict])


def test_a_file_of_a_gpu_opens_without_one(content, monkeypatch):
    def on_gpu(metadata, arrays):
        metadata["estimator"]["parameters"]["device"] = "cuda:7"

    twin = parse(edit(content, on_gpu))
    assert twin.device == "cuda:7"
    assert twin.model_.device.type == "cpu"
    assert np.isfinite(twin.transform(np.ones((2, 6)))).all()


def test_skops_holds_a_pipeline_with_one_trusted_type(digits):
    skops = pytest.importorskip("skops.io")
    X = digits[:100] * 16
    pipe = Pipeline([("scale", MinMaxScaler()), ("vae", tiny(network=MLP()))]).fit(X)
    content = skops.dumps(pipe)
    trusted = ["skvae.estimator.VAEEstimator"]
    assert skops.get_untrusted_types(data=content) == trusted
    twin = skops.loads(content, trusted=trusted)
    np.testing.assert_array_equal(twin.transform(X), pipe.transform(X))
    assert_equal(snapshot(twin[-1]), snapshot(pipe[-1]))


def test_joblib_holds_it_too(digits, tmp_path):
    model = tiny(network=Deep(extra=np.random.RandomState(0))).fit(digits[:50])
    joblib.dump(model, tmp_path / "vae.joblib")
    twin = joblib.load(tmp_path / "vae.joblib")
    np.testing.assert_array_equal(
        twin.transform(digits[:50]), model.transform(digits[:50])
    )
    with pytest.raises(NotASkvaeFileError, match=r"joblib\.load"):
        skvae.load(tmp_path / "vae.joblib")


# ---------------------------------------------------------------- refused at save


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            VAEEstimator(random_state=np.random.RandomState(0)),
            r"random_state=RandomState.* cannot be saved; .* such as random_state=0",
        ),
        (
            VAEEstimator(network=Deep(extra=(1, {"f": print}))),
            r"network\.parameters\.extra\[1\]\.f=.*print.* cannot be saved; expected",
        ),
        (VAEEstimator(network=Deep(extra=np.ones(2))), r"extra=array.*cannot be saved"),
        (VAEEstimator(network=Deep(extra={1: 2})), r"extra=\{1: 2\} cannot be saved"),
        (VAEEstimator(network=Deep(extra=2**63)), "extra=9223372036854775808 cannot"),
        (VAEEstimator(network=Deep(extra=1j)), "extra=1j cannot be saved"),
        (make_pipeline(MinMaxScaler(), VAEEstimator()), r"Pipeline.*joblib\.dump"),
        (VAEEstimator, "is a type, which cannot be saved"),
    ],
)
def test_what_a_file_cannot_hold_is_refused(model, message, path):
    path.write_bytes(b"before")
    with pytest.raises(TypeError, match=message):
        skvae.save(model, path)
    assert path.read_bytes() == b"before"
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"latent_dim": 0}, "VAEEstimator cannot be saved.*latent_dim"),
        ({"network": MLP(activation="sine")}, "cannot be saved.*activation"),
        ({"device": "vulkan"}, "cannot be saved.*the device 'vulkan' is not known"),
    ],
)
def test_what_could_not_be_loaded_is_refused(parameters, message, path):
    with pytest.raises(ValueError, match=message):
        skvae.save(VAEEstimator(**parameters), path)
    assert not path.exists()


def test_attributes_of_others_are_refused_and_callbacks_left_out(digits, path):
    model = tiny(verbose=0).fit(digits[:50])
    model.set_callbacks(ProgressBar())
    with sklearn.config_context(enable_metadata_routing=True):
        model.set_fit_request(sample_weight=True)
    skvae.save(model, path)
    assert not {"_skl_callbacks", "_metadata_request"} & vars(skvae.load(path)).keys()
    model.note = 1
    with pytest.raises(TypeError, match=r"VAEEstimator\.note .* del estimator\.note"):
        skvae.save(model, path)


# --------------------------------------------------------------- refused at load


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        skvae.load(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        skvae.load(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NotASkvaeFileError, match="no regular file"):
        skvae.load(tmp_path / "pipe")


@pytest.mark.parametrize(
    "other",
    [
        b"hello, this is no model",
        pickle.dumps(VAEEstimator()),
        b"PK\x03\x04" + bytes(100),
        write_tensors({"a": np.zeros(3)}, {"format": "pt"}),
        write_tensors({"a": np.zeros(3)}),
        bytes(200),
        b"\xff" * 200,
    ],
)
def test_not_ours(other, path):
    path.write_bytes(other)
    with pytest.raises(NotASkvaeFileError, match=r"no file of skvae\.save"):
        skvae.load(path)


def test_truncated_anywhere(content, path):
    for size in [*range(0, 300, 7), *range(300, len(content), 211), len(content) - 1]:
        path.write_bytes(content[:size])
        with pytest.raises(TruncatedFileError, match=f"ends after {size} bytes"):
            skvae.load(path)


def test_any_flipped_bit_is_noticed(content):
    bits = np.random.default_rng(0).integers(0, 8 * len(content), 300)
    for bit in [*bits, *range(8 * DIGEST.start, 8 * DIGEST.stop, 5)]:
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(FileFormatError):
            parse(bytes(flipped))
    flipped = bytearray(content)
    flipped[-1] ^= 1  # a weight's last
    with pytest.raises(CorruptedFileError, match="checksum does not agree"):
        parse(bytes(flipped))
    with pytest.raises(CorruptedFileError):
        parse(content + b"\0")
    with pytest.raises(CorruptedFileError, match="cannot be read"):
        parse(reseal(content + b"\0"))


def test_huge_header(content, path):
    path.write_bytes((2**62).to_bytes(8, "little") + content[8:])
    with pytest.raises(UnsafeFileError, match="header of 4,611,686"):
        skvae.load(path)


def test_newer_version(content):
    def newer(metadata, arrays):
        metadata |= {"version": 2, "skvae": "3.1", "estimator": "something else"}

    with pytest.raises(
        VersionError, match=r"format version 2 .*'3\.1'.* up to 1.*--upgrade skvae"
    ):
        parse(edit(content, newer))


@pytest.mark.parametrize("version", [0, -1, True, "1", None, 1.0])
def test_no_version(content, version):
    with pytest.raises(CorruptedFileError, match="is no version"):
        parse(edit(content, lambda m, a: m.update(version=version)))


def at(metadata, *keys):
    node = metadata["estimator"]
    for key in keys:
        node = node[key]
    return node


def learned(metadata, name, value):
    at(metadata, "learned")[name] = value


def widths(metadata, latent_dim, hidden_dim):
    at(metadata, "learned", "_architecture", "dict").update(
        latent_dim={"tuple": latent_dim}, hidden_dim={"tuple": hidden_dim}
    )


def parameter(metadata, name, value):
    at(metadata, "parameters")[name] = value


def spec(name, **parameters):
    return {"dict": {"$kind": name, "parameters": {"dict": parameters}}}


BIG = 10**9
EDITS = {
    # Unknown names: nothing is looked up anywhere but in the registries.
    "class": (
        UnsafeFileError,
        "'os.system' is not known",
        lambda m, a: m["estimator"].update({"class": "os.system"}),
    ),
    "spec": (
        UnsafeFileError,
        "'subprocess.Popen' is not known",
        lambda m, a: parameter(m, "network", spec("subprocess.Popen")),
    ),
    "spec parameter": (
        UnsafeFileError,
        "MLP takes the parameters",
        lambda m, a: parameter(m, "network", spec("MLP", __class__="x")),
    ),
    "parameter": (
        UnsafeFileError,
        "VAEEstimator takes the parameters",
        lambda m, a: parameter(m, "fit", 3),
    ),
    "attribute": (
        CorruptedFileError,
        "must hold",
        lambda m, a: learned(m, "transform", 3),
    ),
    "missing attribute": (
        CorruptedFileError,
        "must hold",
        lambda m, a: at(m, "learned").pop("units_"),
    ),
    # Values.
    "value": (
        CorruptedFileError,
        "'latent_dim' parameter",
        lambda m, a: parameter(m, "latent_dim", -2),
    ),
    "spec value": (
        CorruptedFileError,
        "'activation' parameter",
        lambda m, a: learned(m, "network_", spec("MLP", activation="sine")),
    ),
    "wrong axis": (
        CorruptedFileError,
        "'prior_' parameter",
        lambda m, a: learned(m, "prior_", spec("MLP", activation="relu")),
    ),
    "device": (
        CorruptedFileError,
        "device 'vulkan' is not known",
        lambda m, a: parameter(m, "device", "vulkan"),
    ),
    "tag": (
        CorruptedFileError,
        "means nothing",
        lambda m, a: parameter(m, "tol", {"eval": "1"}),
    ),
    "scalar": (
        CorruptedFileError,
        "not valid",
        lambda m, a: parameter(m, "tol", {"scalar": ["uint8", 300]}),
    ),
    "array twice": (
        CorruptedFileError,
        "means nothing",
        lambda m, a: at(m, "learned", "units_", "dict").update(
            location={"array": "units_.scale"}
        ),
    ),
    "array of nobody": (
        CorruptedFileError,
        "belong to nothing",
        lambda m, a: a.update(extra=np.zeros(3)),
    ),
    "scale": (
        CorruptedFileError,
        "scale must be positive",
        lambda m, a: a["units_.scale"].fill(0),
    ),
    "nan": (
        CorruptedFileError,
        "must be finite",
        lambda m, a: a["model_.network.encoder.0.bias"].fill(np.nan),
    ),
    "code points": (
        CorruptedFileError,
        "is no code point",
        lambda m, a: (
            a.update(names=np.full((6, 1), 0x110000, np.uint32)),
            learned(m, "feature_names_in_", {"objects": "names"}),
        ),
    ),
    # Sizes and shapes.
    "hidden_dim": (
        UnsafeFileError,
        "larger than the file",
        lambda m, a: widths(m, [2], [BIG]),
    ),
    "latent_dim": (
        UnsafeFileError,
        "larger than the file",
        lambda m, a: widths(m, [BIG], [3]),
    ),
    "overflow": (
        ShapeMismatchError,
        "cannot be built",
        lambda m, a: widths(m, [2], [2**62, 2**62]),
    ),
    "depth": (
        UnsafeFileError,
        "too many steps",
        lambda m, a: widths(m, [2], [1] * 100_000),
    ),
    "width": (
        ShapeMismatchError,
        r"network.decoder.0.bias.* as \(\(4,\), 'float32'\), but .*\(3,\)",
        lambda m, a: widths(m, [2], [4]),
    ),
    "negative": (
        CorruptedFileError,
        "the width -2 is not positive",
        lambda m, a: widths(m, [-2], [3]),
    ),
    "empty layer": (
        CorruptedFileError,
        "the width 0 is not positive",
        lambda m, a: widths(m, [2], [0]),
    ),
    "dtype": (
        ShapeMismatchError,
        "float64",
        lambda m, a: a.update(
            {
                "model_.network.encoder.0.bias": a[
                    "model_.network.encoder.0.bias"
                ].astype(np.float64)
            }
        ),
    ),
    "features": (
        ShapeMismatchError,
        "must agree",
        lambda m, a: learned(m, "n_features_in_", BIG),
    ),
    "nesting": (
        UnsafeFileError,
        "nesting of the description",
        lambda m, a: parameter(m, "tol", json.loads("[" * 900 + "]" * 900)),
    ),
    "tensors": (
        UnsafeFileError,
        "list of tensors",
        lambda m, a: a.update({str(i): np.zeros(0) for i in range(5000)}),
    ),
    "axis": (
        UnsafeFileError,
        "longest axis",
        lambda m, a: a.update(a=np.zeros((0, 2**32))),
    ),
    "axes": (
        UnsafeFileError,
        "9 axes",
        lambda m, a: a.update(a=np.zeros((1,) * 9)),
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_file_of_a_stranger_is_refused_before_anything_is_built(name, content):
    error, message, change = EDITS[name]
    stranger = edit(content, change)
    repr(VAEEstimator())  # scikit-learn imports its printer at the first use
    modules = set(sys.modules)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    start = time.perf_counter()
    try:
        with pytest.raises(error, match=message):
            parse(stranger)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - start < 5
    assert peak < 30_000_000
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident
    assert resident < 100_000  # KiB, torch's memory as well
    assert set(sys.modules) == modules


def test_a_header_within_the_cap_cannot_hang(content):
    length = int.from_bytes(content[:8], "little")
    for filler in (b'"' + b'\\"' * 500_000, b"[" * 1_000_000, b"[]," * 300_000):
        header = content[8 : 8 + length].rstrip() + filler
        bad = len(header).to_bytes(8, "little") + header + content[8 + length :]
        start = time.perf_counter()
        with pytest.raises(FileFormatError):
            parse(reseal(bad))
        assert time.perf_counter() - start < 5


def test_doubled_keys_are_refused(content):
    bad = content.replace(b'\\"tol\\":', b'\\"device\\":')
    length = len(bad) - len(content) + int.from_bytes(content[:8], "little")
    with pytest.raises(CorruptedFileError, match="a key occurs twice"):
        parse(reseal(length.to_bytes(8, "little") + bad[8:]))


@given(data=st.data())
def test_a_mutated_file_loads_the_same_or_is_refused(content, data):
    mutated = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(mutated)))
        kind = data.draw(st.sampled_from(["replace", "insert", "delete", "copy"]))
        some = data.draw(st.binary(min_size=1, max_size=8))
        if kind == "replace":
            mutated[start : start + len(some)] = some
        elif kind == "insert":
            mutated[start:start] = some
        elif kind == "delete":
            del mutated[start : start + data.draw(st.integers(1, 64))]
        else:
            other = data.draw(st.integers(0, len(mutated)))
            mutated[start : start + 16] = mutated[other : other + 16]
    if data.draw(st.booleans()):  # what no checksum tells
        with suppress(FileFormatError):
            assert isinstance(parse(reseal(bytes(mutated))), VAEEstimator)
        return
    try:
        twin = parse(bytes(mutated))
    except FileFormatError:
        return
    assert_equal(snapshot(parse(content)), snapshot(twin))


# ----------------------------------------------------------------------- writing


def test_the_same_estimator_gives_the_same_bytes(digits):
    model = tiny().fit(digits[:50])
    assert dump(model) == dump(parse(dump(model)))


def test_a_failed_write_leaves_the_old_file_and_no_other(path, monkeypatch):
    skvae.save(VAEEstimator(latent_dim=3), path)

    def fail(*args):
        raise OSError("disk full")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(persistence.os, name, fail)
            with pytest.raises(OSError, match="disk full"):
                skvae.save(VAEEstimator(latent_dim=4), path)
        assert os.listdir(path.parent) == [path.name]
        assert skvae.load(path).latent_dim == 3


def test_file_and_folder_are_flushed_in_order(path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace

    def watched(descriptor):
        mode = os.fstat(descriptor).st_mode
        calls.append("folder" if stat.S_ISDIR(mode) else "file")
        fsync(descriptor)

    def watched_replace(source, target):
        calls.append("replace")
        assert Path(source).parent == Path(target).parent
        replace(source, target)

    monkeypatch.setattr(persistence.os, "fsync", watched)
    monkeypatch.setattr(persistence.os, "replace", watched_replace)
    skvae.save(VAEEstimator(), path)
    assert calls == ["file", "replace", "folder"]


def test_mode_and_links_are_kept(path, tmp_path):
    skvae.save(VAEEstimator(), path)
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    path.chmod(0o600)
    link = tmp_path / "link"
    link.symlink_to(path)
    skvae.save(VAEEstimator(latent_dim=7), str(link))
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert skvae.load(path).latent_dim == 7


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no kill -9")
def test_kill_leaves_the_old_file_or_the_new(tmp_path):
    script = Path(__file__).parents[1] / "benchmarks" / "fuzz_persistence.py"
    result = subprocess.run(
        [sys.executable, script, "kill", "--times", "10", "--folder", str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "killed 10 times; files whole 10, broken 0" in result.stdout

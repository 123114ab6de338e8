"""save and load: the same estimator to the bit, or one clear error."""

import errno
import json
import os
import pickle
import stat
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
import sklearn
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save as write_tensors
from sklearn.callback import ProgressBar
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler

import skvae
from estimator_helpers import GREY, assert_equal, snapshot, tiny, tiny_conditional
from persistence_helpers import (
    assert_refused,
    description,
    edit,
    fitted,
    learned,
    reseal,
    spec,
)
from skvae import MLP, Gaussian, Mixed, VAEEstimator
from skvae.likelihoods import BY_NAME, LIKELIHOODS
from skvae.networks import NETWORKS
from skvae.objectives import OBJECTIVES
from skvae.persistence import (
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
from skvae.persistence.container import DIGEST
from skvae.priors import PRIORS
from skvae.training import DivergenceError

MEMBERS = [
    *(("network", name) for name in NETWORKS),
    *(("likelihood", name) for name in BY_NAME),
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


class Scaled(MLP):
    """A network of the user's with a weight that has no axes, and a buffer."""

    def build(self, inputs):
        module = super().build(inputs)
        module.gain = torch.nn.Parameter(torch.ones(()))
        module.register_buffer("steps", torch.arange(3))
        return module


class Unready(MLP):
    """A network of the user's that cannot be built without data."""

    def build(self, inputs):
        assert inputs.output_bias.sum().item() < 1e9
        return super().build(inputs)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "vae.safetensors"


ROWS = np.random.default_rng(1).normal(size=(40, 6))
GREEK = np.array(["alpha", "beta", "gamma"])[np.arange(40) % 3]


@pytest.fixture(scope="module")
def vae():
    """A small fitted model; no test changes it."""
    return tiny(hidden_dim=3, epochs=1, likelihood=Gaussian()).fit(ROWS)


@pytest.fixture(scope="module")
def content(vae):
    """Its file."""
    return dump(vae)


@pytest.fixture(scope="module")
def conditional():
    """A small file of a conditional model of a table."""
    frame = pd.DataFrame(
        {"size": ROWS[:, 0], "town": np.array(["Rome", "Oslo", "Bern", "Oslo"] * 10)}
    )
    return dump(tiny_conditional(hidden_dim=3, epochs=1).fit(frame, GREEK))


@pytest.fixture(scope="module")
def mine(vae):
    """A function that gives a user's estimator with something that it has learned."""

    def make(**attributes):
        one = Mine(**vae.get_params(deep=False))
        one.__setstate__({**vae.__getstate__(), **attributes})
        return one

    return make


def assert_same(a, b, X):
    """Every answer is the same, to the bit."""
    assert_equal(snapshot(a), snapshot(b))
    np.testing.assert_array_equal(a.transform(X), b.transform(X))
    np.testing.assert_array_equal(a.score_samples(X), b.score_samples(X))
    np.testing.assert_array_equal(
        a.sample(5, random_state=3), b.sample(5, random_state=3)
    )
    pd.testing.assert_frame_equal(a.history_, b.history_, check_exact=True)
    np.testing.assert_array_equal(a.get_feature_names_out(), b.get_feature_names_out())


# ---------------------------------------------------------------------- round trips


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize(("axis", "member"), MEMBERS)
def test_round_trip_is_exact(name, axis, member, path):
    model = ESTIMATORS[name](
        **tiny(**{axis: member}, epochs=1, hidden_dim=4).get_params(deep=False)
    )
    X = (ROWS[:, :4] > 0).astype(np.float32)  # in the support of nearly all
    if member == "beta":
        X = 0.25 + X / 2
    elif member == "conv":
        model.set_params(network=NETWORKS[member](channels=(2,)))
    elif member == "discretized_logistic_mixture":
        model.set_params(likelihood=LIKELIHOODS[member](n_channels=1))
    elif member == "mixed":
        X = pd.DataFrame(X, columns=list("abcd")).assign(town=GREEK)
    model.fit(X, GREEK)
    skvae.save(model, path)
    assert_same(model, skvae.load(path), X)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize(("axis", "member"), MEMBERS)
def test_unfitted_estimators_come_back(name, axis, member, path):
    registries = {
        "network": NETWORKS,
        "likelihood": BY_NAME,
        "prior": PRIORS,
        "objective": OBJECTIVES,
    }
    model = ESTIMATORS[name](**{axis: registries[axis][member]()})
    skvae.save(model, path)
    twin = skvae.load(path)
    assert type(twin) is type(model)
    assert_equal(snapshot(model), snapshot(twin))


@pytest.mark.parametrize("library", [pd, pl], ids=["pandas", "polars"])
def test_tables_come_back(library, path):
    X = library.DataFrame(
        {
            "height": ROWS[:, 0],
            "visits": np.arange(40) % 4,
            "smokes": ROWS[:, 1] > 0,
            "town": GREEK.tolist(),
            "day": np.array(["2020-01-01", "2021-05-06"] * 20, "datetime64[us]"),
        }
    )
    families = {"visits": "count", "town": "categorical"}
    model = tiny(likelihood=Mixed(families), epochs=1).fit(X)
    skvae.save(model, path)
    twin = skvae.load(path)
    assert_equal(snapshot(model), snapshot(twin))
    assert twin.reconstruct(X).equals(model.reconstruct(X))
    np.testing.assert_array_equal(twin.score_samples(X), model.score_samples(X))


def test_images_come_back(path):
    X = GREY.reshape(10, 1, 4, 4)
    model = tiny(network=skvae.ConvNet((2,), 0), epochs=1).fit(X)
    skvae.save(model, path)
    assert_same(model, skvae.load(path), X)
    assert skvae.load(path).fitted_.form.image_shape == (1, 4, 4)


def test_long_lists_are_arrays():
    # The JSON of a file has a cap, which 3,000 names or values are not to come near.
    n = 3000
    X = pd.DataFrame(np.ones((4, n)), columns=[f"gene {i}" for i in range(n)])
    families = (("gaussian", [*range(1, n)]), ("poisson", [0]))
    model = tiny(hidden_dim=(), latent_dim=1, epochs=1, likelihood=Mixed(families))
    wide = dump(model.fit(X))
    assert len(json.dumps(description(wide))) < 10_000
    twin = parse(wide)
    assert twin.likelihood.families == families
    assert twin.likelihood_.families[0][1] == (*range(1, n),)
    assert twin.fitted_.form.names == list(X.columns)
    towns = [f"town {i}" for i in range(n)]
    table = tiny(hidden_dim=(), latent_dim=1, epochs=1)
    table.fit(pd.DataFrame({"town": pd.Categorical(towns[:4], categories=towns)}))
    twin = parse(dump(table))
    assert twin.fitted_.form.table[0].values == tuple(towns)
    numbers = list(range(-150, 150))
    mixed = [*numbers, 0.5], [*numbers, True], (*numbers, 2**62), ["\0", *towns]
    twin = parse(dump(VAEEstimator(network=Deep(extra=mixed))), classes=[Deep])
    assert_equal(twin.network.extra, mixed)


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


def test_feature_names_and_output_come_back(path):
    names = ["pixel 1", "päxel", "", "日本", "\n\x00x", "z"]
    X = pd.DataFrame(ROWS, columns=names)
    model = tiny(epochs=1).fit(X).set_output(transform="pandas")
    skvae.save(model, path)
    twin = skvae.load(path)
    assert list(twin.feature_names_in_) == names
    assert twin.feature_names_in_.dtype == object
    pd.testing.assert_frame_equal(twin.transform(X), model.transform(X))
    with pytest.raises(ValueError, match="feature names"):
        twin.transform(X.rename(columns={"päxel": "pixel"}))


def test_training_goes_on_as_after_a_pickle():
    model = tiny(warm_start=True).fit(ROWS)
    saved, pickled = parse(dump(model)), pickle.loads(pickle.dumps(model))
    for twin in (saved, pickled):
        twin.fit(ROWS).partial_fit(ROWS)
    np.testing.assert_array_equal(saved.transform(ROWS), pickled.transform(ROWS))
    assert saved.history_.epoch.tolist() == [1, 2, 3, 4, 5]


def test_widths_of_numpy_come_back(path):
    model = tiny(latent_dim=np.int64(2), hidden_dim=(np.int32(4), 3)).fit(ROWS)
    skvae.save(model, path)
    assert_same(model, skvae.load(path), ROWS)


def test_what_a_divergence_leaves_comes_back(vae, mine):
    model = tiny(learning_rate=1e30, likelihood="gaussian", epochs=5, batch_size=5)
    with pytest.raises(DivergenceError):
        model.fit(ROWS)
    assert_equal(snapshot(model), snapshot(parse(dump(model))))
    model = mine()
    model.fitted_ = replace(vae.fitted_, result="diverged")
    assert parse(dump(model), classes=[Mine]).fitted_.result == "diverged"


def test_classes_of_the_user(mine, path):
    model = tiny(network=Deep(), epochs=1).fit(ROWS)
    skvae.save(model, path)
    with pytest.raises(UnsafeFileError, match=r"'Deep' is not known.*classes=\["):
        skvae.load(path)
    twin = skvae.load(path, classes=[Deep])
    assert type(twin.network_) is Deep
    assert_same(model, twin, ROWS)
    model = mine(labels_=np.array(["a", "bcd"]))
    skvae.save(model, path)
    with pytest.raises(UnsafeFileError, match="'Mine' is not known"):
        skvae.load(path, classes=[Deep])
    twin = skvae.load(path, classes=[Mine])
    assert twin.labels_.dtype == "<U3"
    assert list(twin.labels_) == ["a", "bcd"]
    np.testing.assert_array_equal(twin.transform(ROWS), model.transform(ROWS))


def test_weights_of_any_shape(path):
    model = tiny(network=Scaled(), epochs=1).fit(ROWS)
    model.model_.network.gain.data.fill_(0.1)
    skvae.save(model, path)
    assert_equal(snapshot(model), snapshot(skvae.load(path, classes=[Scaled])))


def test_a_network_that_needs_data_is_refused_at_save(path):
    with pytest.raises(ValueError, match=r"cannot be saved.*cannot be built"):
        skvae.save(tiny(network=Unready(), epochs=1).fit(ROWS), path)


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
def test_arrays_keep_dtype_and_shape(labels, mine):
    twin = parse(dump(mine(labels_=labels)), classes=[Mine])
    assert twin.labels_.dtype == labels.dtype
    assert twin.labels_.shape == labels.shape
    np.testing.assert_array_equal(twin.labels_, labels)


@pytest.mark.parametrize(
    "labels", [np.array([1, "a"], dtype=object), np.array(["a\0"], dtype=object), 1j]
)
def test_arrays_that_a_file_cannot_hold_are_refused(labels, mine):
    with pytest.raises(TypeError, match=r"labels_ .* cannot be saved"):
        dump(mine(labels_=np.array(labels)))


def test_estimators_within_estimators(vae, mine):
    second = tiny(network=Deep(), epochs=1)
    model = mine(first_=vae, second_=[second], threshold_=-0.5)
    content = dump(model)
    with pytest.raises(UnsafeFileError, match="'Deep' is not known"):
        parse(content, classes=[Mine])
    twin = parse(content, classes=[Mine, Deep])
    assert twin.threshold_ == -0.5
    assert_same(twin.first_, vae, ROWS)
    assert repr(twin.second_) == repr([second])


def test_classes_are_known_by_name(path):
    other = type("MLP", (MLP,), {})
    namesake = type("VAEEstimator", (VAEEstimator,), {})
    with pytest.raises(TypeError, match=r"knows classes by name\. Rename yours"):
        skvae.save(VAEEstimator(network=other()), path)
    skvae.save(VAEEstimator(), path)
    with pytest.raises(ValueError, match="another MLP is known already"):
        skvae.load(path, classes=[other])
    with pytest.raises(TypeError, match=r"list of classes: classes=\["):
        skvae.load(path, classes=Deep)
    with pytest.raises(TypeError, match="cannot be saved beside"):
        skvae.save(namesake(), path)
    for unknown in (dict, Pipeline, tiny):
        with pytest.raises(TypeError, match="classes must hold networks"):
            skvae.load(path, classes=[unknown])


def test_a_file_of_a_gpu_opens_without_one(content, monkeypatch):
    def on_gpu(metadata, arrays):
        metadata["estimator"]["parameters"]["device"] = "cuda:7"

    twin = parse(edit(content, on_gpu))
    assert twin.device == "cuda:7"
    assert twin.model_.device.type == "cpu"
    assert np.isfinite(twin.transform(np.ones((2, 6)))).all()


def test_skops_holds_a_pipeline_with_one_trusted_type():
    skops = pytest.importorskip("skops.io")
    pipe = Pipeline([("scale", MinMaxScaler()), ("vae", tiny(network=MLP()))])
    content = skops.dumps(pipe.fit(ROWS))
    trusted = ["skvae.estimator.VAEEstimator"]
    assert skops.get_untrusted_types(data=content) == trusted
    twin = skops.loads(content, trusted=trusted)
    np.testing.assert_array_equal(twin.transform(ROWS), pipe.transform(ROWS))
    assert_equal(snapshot(twin[-1]), snapshot(pipe[-1]))


def test_joblib_holds_it_too(tmp_path):
    model = tiny(network=Deep(extra=np.random.RandomState(0)), epochs=1).fit(ROWS)
    joblib.dump(model, tmp_path / "vae.joblib")
    twin = joblib.load(tmp_path / "vae.joblib")
    np.testing.assert_array_equal(twin.transform(ROWS), model.transform(ROWS))
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
        (
            VAEEstimator(network=(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))),
            r"network\[0\]=Linear.* cannot be saved; .* a subclass of skvae\.Network",
        ),
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


def test_attributes_of_others_are_refused_and_callbacks_left_out(path):
    model = tiny(epochs=1).fit(ROWS)
    model.set_callbacks(ProgressBar())
    with sklearn.config_context(enable_metadata_routing=True):
        model.set_fit_request(sample_weight=True)
    skvae.save(model, path)
    kept = snapshot(skvae.load(path)).keys()
    assert not {"_skl_callbacks", "_metadata_request"} & kept
    model.note_ = 1
    with pytest.raises(TypeError, match=r"VAEEstimator\.note_ .* del estimator\.note_"):
        skvae.save(model, path)


@pytest.mark.parametrize("name", ["note", "_note_", "score_samples", "n_iter_"])
def test_names_that_a_user_cannot_learn(name, mine):
    # n_iter_ is a property: in __dict__ it would never be read.
    model = mine()
    state = {**model.__getstate__(), name: 1}
    model.__setstate__(state)
    with pytest.raises(TypeError, match=rf"Mine\.{name} cannot be saved"):
        dump(model)


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
        metadata |= {"version": 3, "skvae": "3.1", "estimator": "something else"}

    with pytest.raises(
        VersionError, match=r"format version 3 .*'3\.1'.* up to 2.*--upgrade skvae"
    ):
        parse(edit(content, newer))


@pytest.mark.parametrize("version", [0, -1, True, "1", None, 1.0])
def test_no_version(content, version):
    with pytest.raises(CorruptedFileError, match="is no version"):
        parse(edit(content, lambda m, a: m.update(version=version)))


def parameter(metadata, name, value):
    metadata["estimator"]["parameters"][name] = value


def choice(metadata, **choices):
    fitted(metadata, "choices").update(choices)


def form(metadata, **content):
    fitted(metadata)["form"] = {"dict": content}


def column(metadata, **content):
    fitted(metadata, "form")["columns"][1]["dict"].update(content)


def widths(metadata, latent_dim, hidden_dim):
    fitted(metadata, "architecture").update(
        latent_dim={"tuple": latent_dim}, hidden_dim={"tuple": hidden_dim}
    )


def mixed(metadata, *pairs):
    """A likelihood of (family, positions or a number of columns)."""
    pairs = [(family, {"tuple": c} if type(c) is list else c) for family, c in pairs]
    families = {"tuple": [{"tuple": list(pair)} for pair in pairs]}
    choice(metadata, likelihood=spec("Mixed", families=families))


BIG = 10**9
NUMBERS = spec("Gaussian", scale="feature", min_scale=0.001)
EDITS = {
    # Unknown names: nothing is looked up anywhere but in the registries.
    "class": (
        *(UnsafeFileError, "'os.system' is not known"),
        lambda m, a: m["estimator"].update({"class": "os.system"}),
    ),
    "spec": (
        *(UnsafeFileError, "'subprocess.Popen' is not known"),
        lambda m, a: parameter(m, "network", spec("subprocess.Popen")),
    ),
    "learned spec": (
        *(UnsafeFileError, "'subprocess.Popen' is not known"),
        lambda m, a: choice(m, network=spec("subprocess.Popen")),
    ),
    "spec parameter": (
        *(UnsafeFileError, "MLP takes the parameters"),
        lambda m, a: parameter(m, "network", spec("MLP", __class__="x")),
    ),
    "parameter": (
        *(UnsafeFileError, "VAEEstimator takes the parameters"),
        lambda m, a: parameter(m, "fit", 3),
    ),
    "attribute": (
        *(CorruptedFileError, "must hold"),
        lambda m, a: learned(m).update(transform=3),
    ),
    "private attribute": (
        *(CorruptedFileError, "must hold"),
        lambda m, a: learned(m).update(_training=3),
    ),
    "missing attribute": (
        *(CorruptedFileError, "must hold"),
        lambda m, a: learned(m).pop("n_features_in_"),
    ),
    "missing part": (
        *(CorruptedFileError, "must hold"),
        lambda m, a: fitted(m).pop("units"),
    ),
    "no fitted model": (
        *(CorruptedFileError, "must hold"),
        lambda m, a: learned(m).update(fitted_={"dict": {"choices": {"dict": {}}}}),
    ),
    "form": (
        *(CorruptedFileError, "the form 'os' must be one of"),
        lambda m, a: form(m, kind="os"),
    ),
    # Values.
    "value": (
        *(CorruptedFileError, "'latent_dim' parameter"),
        lambda m, a: parameter(m, "latent_dim", -2),
    ),
    "spec value": (
        *(CorruptedFileError, "'activation' parameter"),
        lambda m, a: choice(m, network=spec("MLP", activation="sine")),
    ),
    "wrong axis": (
        *(CorruptedFileError, "MLP is no prior"),
        lambda m, a: choice(m, prior=spec("MLP", activation="relu")),
    ),
    "no spec": (
        *(CorruptedFileError, "str is no objective"),
        lambda m, a: choice(m, objective="elbo"),
    ),
    "unresolved likelihood": (
        *(CorruptedFileError, "does not tell the family of each"),
        lambda m, a: choice(m, likelihood=spec("Auto")),
    ),
    "module": (
        *(CorruptedFileError, "coder' parameter of EncoderDecoder"),
        lambda m, a: choice(m, network=spec("EncoderDecoder", encoder=1, decoder=2)),
    ),
    "device": (
        *(CorruptedFileError, "device 'vulkan' is not known"),
        lambda m, a: parameter(m, "device", "vulkan"),
    ),
    "output": (
        *(CorruptedFileError, "the output of transform"),
        lambda m, a: learned(m).update(
            _sklearn_output_config={"dict": {"transform": "x"}}
        ),
    ),
    "tag": (
        *(CorruptedFileError, "means nothing"),
        lambda m, a: parameter(m, "tol", {"eval": "1"}),
    ),
    "scalar": (
        *(CorruptedFileError, "not valid"),
        lambda m, a: parameter(m, "tol", {"scalar": ["uint8", 300]}),
    ),
    "list": (
        *(CorruptedFileError, "is no list"),
        lambda m, a: (
            a.update(x=np.zeros((2, 2))),
            parameter(m, "hidden_dim", {"list": {"array": "x"}}),
        ),
    ),
    "array twice": (
        *(CorruptedFileError, "means nothing"),
        lambda m, a: fitted(m, "units").update(
            location={"array": "fitted_.units.scale"}
        ),
    ),
    "array of nobody": (
        *(CorruptedFileError, "belong to nothing"),
        lambda m, a: a.update(extra=np.zeros(3)),
    ),
    "scale": (
        *(CorruptedFileError, "scales must be positive"),
        lambda m, a: a["fitted_.units.scale"].fill(0),
    ),
    "nan": (
        *(CorruptedFileError, "must be finite"),
        lambda m, a: a["fitted_.weights.network.encoder.0.bias"].fill(np.nan),
    ),
    "weight": (
        *(CorruptedFileError, "must be an array"),
        lambda m, a: (
            fitted(m, "weights").update({"network.encoder.0.bias": 3}),
            a.pop("fitted_.weights.network.encoder.0.bias"),
        ),
    ),
    "code points": (
        *(CorruptedFileError, "is no code point"),
        lambda m, a: (
            a.update(names=np.full((6, 1), 0x110000, np.uint32)),
            learned(m).update(feature_names_in_={"objects": "names"}),
        ),
    ),
    "result": (
        *(CorruptedFileError, "result='good' must be one of"),
        lambda m, a: fitted(m).update(result="good"),
    ),
    "precision": (
        *(CorruptedFileError, "precision='float8' must be one of"),
        lambda m, a: fitted(m).update(precision="float8"),
    ),
    "draws": (
        *(CorruptedFileError, "draws=1 must be one of"),
        lambda m, a: fitted(m).update(draws=1),
    ),
    "seed": (
        *(CorruptedFileError, "seed=4294967296 must be"),
        lambda m, a: fitted(m).update(seed=2**32),
    ),
    "best epoch": (
        *(CorruptedFileError, "best_epoch=9 must be an int from 0 to 1"),
        lambda m, a: fitted(m).update(best_epoch=9),
    ),
    "history": (
        *(CorruptedFileError, "must have the same length"),
        lambda m, a: a.update({"fitted_.history.loss": np.zeros(10**6)}),
    ),
    "codes": (
        *(CorruptedFileError, "codes and codes_condition must be"),
        lambda m, a: a.update({"fitted_.codes": np.zeros((40, 3), np.float32)}),
    ),
    "precision of codes": (
        *(CorruptedFileError, "codes and codes_condition must be"),
        lambda m, a: a.update({"fitted_.codes": np.zeros((40, 2))}),
    ),
    "conditions without labels": (
        *(CorruptedFileError, "codes and codes_condition must be"),
        lambda m, a: (
            a.update(x=np.zeros((40, 0), np.float32)),
            fitted(m).update(codes_condition={"array": "x"}),
        ),
    ),
    "labels": (
        *(CorruptedFileError, "the labels do not fit"),
        lambda m, a: (
            a.update(x=np.arange(3), y=np.ones(3)),
            fitted(m).update(
                labels={"dict": {"classes": {"array": "x"}, "counts": {"array": "y"}}}
            ),
        ),
    ),
    # Sizes and shapes.
    "hidden_dim": (
        *(UnsafeFileError, "larger than the file"),
        lambda m, a: widths(m, [2], [BIG]),
    ),
    "latent_dim": (
        *(CorruptedFileError, "codes and codes_condition must be"),
        lambda m, a: widths(m, [BIG], [3]),
    ),
    "latent_dim without codes": (
        *(UnsafeFileError, "larger than the file"),
        lambda m, a: (
            widths(m, [BIG], [3]),
            fitted(m).update(codes=None),
            a.pop("fitted_.codes"),
        ),
    ),
    "overflow": (
        *(ShapeMismatchError, "cannot be built"),
        lambda m, a: widths(m, [2], [2**62, 2**62]),
    ),
    "depth": (
        *(UnsafeFileError, "too many steps"),
        lambda m, a: widths(m, [2], [1] * 100_000),
    ),
    "width": (
        ShapeMismatchError,
        r"network.decoder.0.bias.* as \(\(4,\), 'float32'\), but .*\(3,\)",
        lambda m, a: widths(m, [2], [4]),
    ),
    "negative": (
        *(CorruptedFileError, "the width -2 is not positive"),
        lambda m, a: widths(m, [-2], [3]),
    ),
    "empty layer": (
        *(CorruptedFileError, "the width 0 is not positive"),
        lambda m, a: widths(m, [2], [0]),
    ),
    "dtype": (
        *(ShapeMismatchError, "float64"),
        lambda m, a: a.update({"fitted_.weights.network.encoder.0.bias": np.zeros(3)}),
    ),
    "features": (
        *(ShapeMismatchError, "must agree"),
        lambda m, a: learned(m).update(n_features_in_=BIG),
    ),
    "names": (
        *(CorruptedFileError, "the form has 7 columns"),
        lambda m, a: fitted(m, "form").update(names=list(range(7))),
    ),
    "images": (
        *(CorruptedFileError, "columns; expected 6"),
        lambda m, a: form(
            m, kind="images", image_shape={"tuple": [1, BIG, BIG]}, dtype="float64"
        ),
    ),
    "overflowing images": (
        *(CorruptedFileError, "must hold three sides"),
        lambda m, a: form(
            m,
            kind="images",
            image_shape={"tuple": [1, 1, {"scalar": ["uint8", 6]}]},
            dtype="float64",
        ),
    ),
    "blocks": (
        *(CorruptedFileError, "blocks must hold columns of X"),
        lambda m, a: form(
            m,
            kind="one_hot_rows",
            inner={
                "dict": {"kind": "rows", "names": list("abcdef"), "dtype": "float64"}
            },
            blocks={"tuple": [{"tuple": [0, 6]}]},
        ),
    ),
    "columns by number": (
        *(CorruptedFileError, f"but these have {BIG + 1} columns"),
        lambda m, a: mixed(m, (NUMBERS, BIG), (NUMBERS, 1)),
    ),
    "columns twice": (
        *(CorruptedFileError, r"in several: \[0\]"),
        lambda m, a: mixed(m, (NUMBERS, [*range(6)]), (NUMBERS, [0] * 100_000)),
    ),
    "columns not in order": (
        *(CorruptedFileError, "does not tell the family of each"),
        lambda m, a: mixed(m, (NUMBERS, [1, 0, 2, 3, 4, 5])),
    ),
    "categories": (
        *(UnsafeFileError, "larger than the file"),
        lambda m, a: choice(
            m, likelihood=spec("Categorical", n_categories={"tuple": [BIG] * 6})
        ),
    ),
    "categories within": (
        *(UnsafeFileError, "larger than the file"),
        lambda m, a: mixed(
            m,
            (NUMBERS, [1, 2, 3, 4, 5]),
            (spec("Categorical", n_categories={"tuple": [BIG]}), [0]),
        ),
    ),
    "components": (
        *(UnsafeFileError, "larger than the file"),
        lambda m, a: choice(
            m,
            likelihood=spec(
                "DiscretizedLogisticMixture", n_components=BIG, n_channels=1
            ),
        ),
    ),
    "pseudo-inputs": (
        *(UnsafeFileError, "larger than the file"),
        lambda m, a: choice(m, prior=spec("VampPrior", n_components=BIG)),
    ),
    "transforms": (
        *(UnsafeFileError, "too many steps"),
        lambda m, a: choice(m, prior=spec("FlowPrior", n_transforms=BIG)),
    ),
    "residual blocks": (
        *(UnsafeFileError, "too many steps"),
        lambda m, a: choice(
            m,
            network=spec(
                "ConvNet",
                channels=[1],
                n_residual=BIG,
                image_shape={"tuple": [1, 2, 3]},
            ),
        ),
    ),
    "specifications": (
        *(UnsafeFileError, "list of specifications"),
        lambda m, a: mixed(m, *[(NUMBERS, [0])] * 1001),
    ),
    "nesting": (
        *(UnsafeFileError, "nesting of the description"),
        lambda m, a: parameter(m, "tol", json.loads("[" * 900 + "]" * 900)),
    ),
    "tensors": (
        *(UnsafeFileError, "list of tensors"),
        lambda m, a: a.update({str(i): np.zeros(0) for i in range(5000)}),
    ),
    "axis": (
        *(UnsafeFileError, "longest axis"),
        lambda m, a: a.update(a=np.zeros((0, 2**32))),
    ),
    "axes": (
        *(UnsafeFileError, "9 axes"),
        lambda m, a: a.update(a=np.zeros((1,) * 9)),
    ),
}
# The same in a conditional model of a table.
TABLE_EDITS = {
    "conditions": (
        *(CorruptedFileError, "codes and codes_condition must be"),
        lambda m, a: a.update(
            {"fitted_.codes_condition": np.zeros((39, 3), np.float32)}
        ),
    ),
    "counts": (
        *(CorruptedFileError, "counts must hold the weight of each class"),
        lambda m, a: a["fitted_.labels.counts"].fill(-1),
    ),
    "number of labels": (
        *(CorruptedFileError, "counts must hold the weight of each class"),
        lambda m, a: a.update({"fitted_.labels.counts": np.ones(10**6)}),
    ),
    "n_conditions": (
        *(CorruptedFileError, "the labels do not fit"),
        lambda m, a: fitted(m, "architecture").update(n_conditions=BIG),
    ),
    "library": (
        *(CorruptedFileError, "library 'os' must be one of"),
        lambda m, a: fitted(m, "form").update(library="os"),
    ),
    "values": (
        *(CorruptedFileError, "must be a tuple of numbers, strings"),
        lambda m, a: column(m, values={"tuple": [["x"], {"dict": {}}]}),
    ),
    "values twice": (
        *(CorruptedFileError, "is there twice"),
        lambda m, a: column(m, values={"tuple": [1, True, 1.0]}),
    ),
    "more values": (
        *(CorruptedFileError, "has 4 categories, but n_categories"),
        lambda m, a: column(m, values={"tuple": list("abcd")}),
    ),
    "kind": (
        *(CorruptedFileError, "a column of kind 'number' cannot have the values"),
        lambda m, a: column(m, kind="number"),
    ),
    "dtype": (
        *(CorruptedFileError, "cannot have the dtype 'V1000000000'"),
        lambda m, a: column(m, dtype="V1000000000"),
    ),
    "column": (
        *(CorruptedFileError, "a column must hold"),
        lambda m, a: column(m, command="rm"),
    ),
    "names": (
        *(CorruptedFileError, "two columns have the same name"),
        lambda m, a: column(m, name="size"),
    ),
    "unhashable name": (
        *(CorruptedFileError, "has no name of a data frame"),
        lambda m, a: column(m, name=["size"]),
    ),
    "columns": (
        *(CorruptedFileError, "the form has 1 columns"),
        lambda m, a: fitted(m, "form")["columns"].pop(),
    ),
    "one_hot": (
        *(CorruptedFileError, "one_hot must be a tuple of categories"),
        lambda m, a: fitted(m, "form").update(
            kind="one_hot_table", one_hot={"tuple": [0]}
        ),
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_file_of_a_stranger_is_refused_before_anything_is_built(name, content):
    error, message, change = EDITS[name]
    assert_refused(edit(content, change), error, message)


@pytest.mark.parametrize("name", TABLE_EDITS)
def test_a_table_of_a_stranger_is_refused(name, conditional):
    error, message, change = TABLE_EDITS[name]
    assert_refused(edit(conditional, change), error, message)


def test_what_a_user_has_learned_hides_nothing(mine):
    content = dump(mine(labels_=1))
    for name in ("labels", "fit_", "_labels_", "n_iter_", "score", "__class__"):
        change = edit(content, lambda m, a, n=name: learned(m).update({n: 1}))
        if name == "fit_":  # what the user's class may learn
            assert parse(change, classes=[Mine]).fit_ == 1
            continue
        with pytest.raises(CorruptedFileError, match="must hold"):
            parse(change, classes=[Mine])


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
    bad = content.replace(b'\\"tol\\":', b'\\"device\\":', 1)
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


def test_the_same_estimator_gives_the_same_bytes(content):
    assert dump(parse(content)) == content


def test_a_failed_write_leaves_the_old_file_and_no_other(path, monkeypatch):
    skvae.save(VAEEstimator(latent_dim=3), path)

    def fail(*args):
        raise OSError("disk full")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(OSError, match="disk full"):
                skvae.save(VAEEstimator(latent_dim=4), path)
        assert os.listdir(path.parent) == [path.name]
        assert skvae.load(path).latent_dim == 3


def test_a_failed_write_names_the_file(path, monkeypatch):
    missing = path.parent / "missing" / "vae.safetensors"
    with pytest.raises(FileNotFoundError, match=r"missing/vae\.safetensors'$"):
        skvae.save(VAEEstimator(), missing)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left .*/vae\.safetensors'$"):
        skvae.save(VAEEstimator(), path)


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

    monkeypatch.setattr(os, "fsync", watched)
    monkeypatch.setattr(os, "replace", watched_replace)
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


@pytest.mark.slow  # processes that save are started and killed
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


@pytest.mark.slow  # a process of its own, which imports torch
def test_saving_leaves_the_environment_as_it_was(path):
    script = (
        "import os, sys, skvae, skvae.persistence as p; before = dict(os.environ);"
        "vae = skvae.VAEEstimator(1, hidden_dim=2, epochs=1, device='cpu');"
        "p.parse(p.dump(vae.fit([[0.0], [1.0], [0.5]])));"
        "assert dict(os.environ) == before"
    )
    subprocess.run([sys.executable, "-c", script], check=True)

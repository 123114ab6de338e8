import json

import numpy as np
import onnx
import pytest

from onnx_helpers import described, digits, exported, table, write
from skvae import Categorical, __version__
from skvae.likelihoods import LIKELIHOODS
from skvae.likelihoods.mixed import Mixed
from skvae.onnx import info
from skvae.onnx.metadata import Metadata, write_atomically

TOGETHER = Mixed(
    (
        ("poisson", [3]),
        ("beta", [0]),
        (Categorical((3, 2)), [1, 2]),
        ("gaussian", [4]),
        ("discretized_logistic_mixture", [5]),
    )
)
FAMILIES = {name: family() for name, family in LIKELIHOODS.items()}


def entries_of(metadata):
    proto = onnx.ModelProto()
    metadata.write(proto)
    return {entry.key: entry.value for entry in proto.metadata_props}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("family", [*FAMILIES.values(), TOGETHER], ids=str)
def test_supports_are_those_of_the_likelihood_after_reading(family, dtype):
    X = np.random.RandomState(1).uniform(-2, 4, (300, 6))
    X[:100] = family.nearest(X[:100])
    X[0], X[1], X[2] = 0, 1, 1e-9
    X = X.astype(dtype)
    written = described(family.supports(6), 6)
    read = Metadata.read(entries_of(written), "here")
    wanted = family.nearest(X)
    np.testing.assert_array_equal(read.nearest(X), wanted)
    assert read.nearest(X).dtype == dtype
    assert entries_of(read) == entries_of(written)


def test_what_says_nothing_is_left_out_and_what_agrees_is_said_once():
    def entries(family):
        found = entries_of(described(family.supports(6), 6))
        keys = ("low", "high", "integer", "step", "margin")
        return {k: json.loads(found[k]) for k in keys if k in found}

    assert entries(FAMILIES["gaussian"]) == {}
    assert entries(FAMILIES["bernoulli"]) == {"low": [0], "high": [1]}
    assert entries(FAMILIES["poisson"]) == {"low": [0], "integer": [True]}
    margin = 2.0**-24
    assert entries(FAMILIES["beta"]) == {
        "low": [margin],
        "high": [1 - margin],
        "margin": [margin],
    }
    # JSON knows no infinity.
    assert entries(TOGETHER) == {
        "low": [margin, 0, 0, 0, None, 0],
        "high": [1 - margin, 2, 1, None, None, 1],
        "integer": [False, True, True, True, False, False],
        "step": [None, None, None, None, None, 1 / 255],
        "margin": [margin, 0, 0, 0, 0, 0],
    }


def test_files_of_version_0_1_are_read():
    """They have bounds, which may be infinite, and whole numbers."""
    entries = entries_of(described(FAMILIES["gaussian"].supports(3), 3))
    entries |= {"low": "[0.0, -Infinity, 0.1]", "integer": "[true, false, false]"}
    X = np.array([[-1.0, -2.5, 0.0], [1.4, 7.5, 0.05], [1.6, 0.0, 0.2]])
    wanted = [[0, -2.5, 0.1], [1, 7.5, 0.1], [2, 0, 0.2]]
    np.testing.assert_array_equal(Metadata.read(entries, "here").nearest(X), wanted)


def test_entries_are_json_and_tell_of_the_model():
    entries = {e.key: e.value for e in exported("table", "all").metadata_props}
    assert json.loads(entries["likelihood"]) == "Gaussian()"
    assert json.loads(entries["feature_names"]) == list("abcdef")
    metadata = Metadata.read(entries, "here")
    assert (metadata.part, metadata.latent_dim, metadata.n_draws) == ("all", 3, 4)
    assert (metadata.dtype, metadata.n_features) == ("float64", 6)
    np.testing.assert_allclose(metadata.units.location, table().mean(), rtol=1e-12)
    deviation = table().std(ddof=0)
    np.testing.assert_allclose(metadata.units.scale, deviation, rtol=1e-12)
    assert entries_of(metadata) == entries


def test_info_tells_what_a_file_holds(tmp_path):
    path = write("digits", tmp_path, "elbo")
    entries = info(path)
    assert entries["skvae"] == __version__
    assert entries["opset"] == {"ai.onnx": 18}
    assert entries["inputs"] == {"X": ["rows", 64], "noise": ["rows", 4, 3]}
    assert entries["outputs"]["elbo"] == ["rows"]
    assert entries["bytes"] == path.stat().st_size
    assert entries["n_features"] == digits().shape[1]
    assert "feature_names" not in entries


def test_strange_files_are_refused_by_name():
    with pytest.raises(ValueError, match=r"here was not written by skvae.onnx.export"):
        Metadata.read({"author": "someone"}, "here")


def test_writing_is_whole_or_not_at_all(tmp_path):
    write_atomically(tmp_path / "a", b"1")
    write_atomically(tmp_path / "a", b"2")
    assert (tmp_path / "a").read_bytes() == b"2"
    with pytest.raises(OSError, match="folder"):
        write_atomically(tmp_path / "folder" / "a", b"1")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]

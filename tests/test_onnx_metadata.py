import json

import numpy as np
import onnx
import pytest

from onnx_helpers import fitted
from skvae import Bernoulli, Gaussian, __version__
from skvae.likelihoods import Likelihood
from skvae.onnx import export, info
from skvae.onnx.metadata import Metadata, Support, write_atomically


class Counts(Likelihood):
    def nearest_in_support(self, X):
        return np.clip(np.rint(X), 0, None)


class Pairs(Likelihood):
    """A support that is no box: both columns the same."""

    def nearest_in_support(self, X):
        return np.repeat(X.mean(axis=1, keepdims=True), X.shape[1], axis=1)


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(), Counts()])
def test_support_is_what_the_likelihood_says(likelihood):
    X = np.random.RandomState(1).uniform(-5, 5, (200, 3))
    support = Support.of(likelihood, 3)
    np.testing.assert_array_equal(support.clip(X), likelihood.nearest_in_support(X))
    assert support.clip(X.astype(np.float32)).dtype == np.float32


def test_a_support_that_is_no_box_is_left_alone():
    X = np.random.RandomState(1).uniform(-5, 5, (20, 2))
    np.testing.assert_array_equal(Support.of(Pairs(), 2).clip(X), X)


def test_entries_round_trip_and_are_json():
    X = np.random.RandomState(0).normal(7, 3, (40, 4))
    model = export(fitted(Gaussian(), X), None, "decoder")
    entries = {e.key: e.value for e in model.metadata_props}
    assert json.loads(entries["likelihood"]) == "Gaussian()"
    metadata = Metadata.read(entries, "here")
    assert (metadata.part, metadata.latent_dim, metadata.n_draws) == ("decoder", 3, 4)
    np.testing.assert_array_equal(metadata.units.location, X.mean(axis=0))
    assert np.isinf(metadata.support.high).all()
    again = onnx.ModelProto()
    metadata.write(again)
    assert {e.key: e.value for e in again.metadata_props} == entries


def test_info_tells_what_a_file_holds(tmp_path):
    export(fitted(), tmp_path / "vae.onnx", "elbo")
    entries = info(tmp_path / "vae.onnx")
    assert entries["skvae"] == __version__
    assert entries["opset"] == {"ai.onnx": 18}
    assert entries["inputs"] == {"X": ["rows", 16], "noise": ["rows", 4, 3]}
    assert entries["outputs"]["elbo"] == ["rows"]
    assert entries["bytes"] == (tmp_path / "vae.onnx").stat().st_size


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

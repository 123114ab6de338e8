import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import skvae
from onnx_helpers import assert_same, fitted
from skvae import Gaussian, OnnxVAE
from skvae.onnx import export


@pytest.fixture(scope="module")
def X():
    return np.random.RandomState(0).normal(3, 2, (50, 6))


@pytest.fixture(scope="module")
def vae(X):
    return fitted("gaussian", X)


@pytest.fixture(scope="module")
def path(vae, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "vae.onnx"
    export(vae, path)
    return path


WITHOUT_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "onnx", "onnxscript"):
            raise ImportError(f"{name} is not here")
sys.meta_path.insert(0, Refuse())
import numpy as np, skvae
try:
    import torch
except ImportError:
    pass
else:
    raise SystemExit("torch could be imported")
vae = skvae.OnnxVAE(sys.argv[1])
X = np.load(sys.argv[2])
Z = vae.fit(X).transform(X)
np.savez(sys.argv[3], Z=Z, X=vae.inverse_transform(Z), elbo=vae.score_samples(X),
         sample=vae.sample(3, random_state=0))
"""


def test_everything_runs_where_torch_cannot_be_imported(vae, path, X, tmp_path):
    np.save(tmp_path / "X.npy", X)
    files = [str(path), str(tmp_path / "X.npy"), str(tmp_path / "out.npz")]
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *files], check=True)
    with np.load(files[2]) as out:
        assert_same(out["Z"], vae.transform(X))
        assert_same(out["X"], vae.reconstruct(X))
        assert_same(out["elbo"], vae.score_samples(X))
        assert out["sample"].shape == (3, 6)


def test_a_row_scores_the_same_in_any_company(path, X):
    copy = OnnxVAE(path)
    alone = np.concatenate([copy.score_samples(row[None]) for row in X])
    np.testing.assert_allclose(alone, copy.score_samples(X), rtol=1e-5)
    order = np.random.RandomState(1).permutation(len(X))
    np.testing.assert_allclose(
        copy.score_samples(X[order]), copy.score_samples(X)[order], rtol=1e-5
    )


def test_many_rows_go_in_blocks(path, X, monkeypatch):
    copy = OnnxVAE(path)
    whole = copy.score_samples(X)
    monkeypatch.setattr("skvae.onnx.runtime.BLOCK_ROWS", 7)
    np.testing.assert_allclose(copy.score_samples(X), whole, rtol=1e-5)


def test_float32_rows_are_taken(path, vae, X):
    x = X.astype(np.float32)
    assert_same(OnnxVAE(path).score_samples(x), vae.score_samples(x))


def test_samples_are_decoded_draws_from_the_prior(path, vae):
    copy = OnnxVAE(path)
    z = np.random.RandomState(5).standard_normal((4, 3)).astype(np.float32)
    assert_same(copy.sample(4, random_state=5), vae.inverse_transform(z))
    np.testing.assert_array_equal(copy.sample(4, 5), copy.sample(4, 5))
    assert (copy.sample(1) != copy.sample(1)).any()
    with pytest.raises(ValueError, match="n_samples=0"):
        copy.sample(0)


def test_rows_outside_the_support_are_moved_with_one_warning(tmp_path):
    X = np.random.RandomState(0).uniform(0, 1, (40, 16))
    vae = fitted("bernoulli", X)
    export(vae, tmp_path / "vae.onnx")
    copy = OnnxVAE(tmp_path / "vae.onnx")
    message = "outside the support of Bernoulli"
    with pytest.warns(UserWarning, match=message) as record:
        got = copy.score_samples(X * 1.5)
    assert len(record) == 1
    with pytest.warns(UserWarning, match="outside the support"):
        wanted = vae.score_samples(X * 1.5)
    assert_same(got, wanted)


def test_names_of_features_are_known(tmp_path, X):
    frame = pd.DataFrame(X, columns=list("abcdef"))
    export(fitted(Gaussian(), frame), tmp_path / "vae.onnx")
    copy = OnnxVAE(tmp_path / "vae.onnx")
    assert copy.transform(frame).shape == (50, 3)
    assert list(copy.feature_names_in_) == list("abcdef")
    with pytest.raises(ValueError, match="feature names should match"):
        copy.transform(frame[list("fedcba")])
    names = copy.set_output(transform="pandas").transform(frame).columns
    assert list(names) == ["onnxvae0", "onnxvae1", "onnxvae2"]


def test_it_can_be_pickled_and_cloned(path, X):
    copy = OnnxVAE(path)
    wanted = copy.transform(X)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(copy)).transform(X), wanted)
    assert skvae.OnnxVAE(path, n_threads=1).get_params()["n_threads"] == 1


def test_bad_input_is_refused(path, X, vae, tmp_path):
    copy = OnnxVAE(path)
    with pytest.raises(
        ValueError, match="X has 5 features, but OnnxVAE is expecting 6"
    ):
        copy.transform(X[:, :5])
    with pytest.raises(ValueError, match="Z has 2 columns, but latent_dim=3"):
        copy.inverse_transform(np.zeros((1, 2)))
    with pytest.raises(ValueError, match="y was given, but VAEEstimator has no"):
        copy.score_samples(X, y=0)
    with pytest.raises(FileNotFoundError, match=r"no file '.*missing.onnx'"):
        OnnxVAE(tmp_path / "missing.onnx").transform(X)
    export(vae, tmp_path / "encoder.onnx", "encoder")
    with pytest.raises(ValueError, match="holds 'encoder', and this needs 'elbo'"):
        OnnxVAE(tmp_path / "encoder.onnx").score_samples(X)


def test_the_extra_is_named_where_it_is_missing(path, X, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"pip install 'skvae\[onnx\]'"):
        OnnxVAE(path).transform(X)

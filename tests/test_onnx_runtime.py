import pickle
import subprocess
import sys

import numpy as np
import pytest
from sklearn.base import clone

from onnx_helpers import assert_same, digits, model, table, write
from skvae import OnnxVAE


@pytest.fixture(scope="module")
def X():
    return table()


@pytest.fixture(scope="module")
def vae():
    return model("table")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write("table", tmp_path_factory.mktemp("onnx"))


WITHOUT_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "onnx", "onnxscript"):
            raise ImportError(f"{name} is not here")
sys.meta_path.insert(0, Refuse())
import numpy as np, pandas as pd, skvae
try:
    import torch
except ImportError:
    pass
else:
    raise SystemExit("torch could be imported")
vae = skvae.OnnxVAE(sys.argv[1])
X = pd.DataFrame(np.load(sys.argv[2]), columns=list("abcdef"))
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


def test_the_score_of_a_row_does_not_depend_on_the_others(path, X):
    served = OnnxVAE(path)
    scores = served.score_samples(X)
    alone = [served.score_samples(X[i : i + 1])[0] for i in range(10)]
    np.testing.assert_allclose(alone, scores[:10], rtol=1e-5)
    order = np.random.RandomState(1).permutation(len(X))
    np.testing.assert_allclose(
        served.score_samples(X.iloc[order]), scores[order], rtol=1e-5
    )


def test_many_rows_go_in_blocks(path, X, monkeypatch):
    served = OnnxVAE(path)
    whole = served.score_samples(X)
    monkeypatch.setattr("skvae.onnx.runtime.BLOCK_ROWS", 7)
    np.testing.assert_allclose(served.score_samples(X), whole, rtol=1e-5)


def test_float32_rows_are_taken(path, vae, X):
    x = X.astype(np.float32)
    assert_same(OnnxVAE(path).score_samples(x), vae.score_samples(x))


def test_samples_are_decoded_draws_from_the_prior(path, vae):
    served = OnnxVAE(path)
    z = np.random.RandomState(5).standard_normal((4, 3)).astype(np.float32)
    assert_same(served.sample(4, random_state=5), vae.inverse_transform(z))
    np.testing.assert_array_equal(served.sample(4, 5), served.sample(4, 5))
    assert (served.sample(1) != served.sample(1)).any()
    with pytest.raises(ValueError, match="n_samples=0"):
        served.sample(0)


def test_rows_outside_the_support_are_moved_with_one_warning(tmp_path):
    served, X = OnnxVAE(write("digits", tmp_path, "elbo")), digits()[:40].copy()
    message = "outside the support of Bernoulli"
    with pytest.warns(UserWarning, match=message) as record:
        got = served.score_samples(X * 1.5)
    assert len(record) == 1
    assert record[0].filename == __file__
    with pytest.warns(UserWarning, match="outside the support"):
        wanted = model("digits").score_samples(X * 1.5)
    assert_same(got, wanted)
    # A row within is scored as it is, whether or not another is moved.
    X[1:] *= 1.5
    with pytest.warns(UserWarning, match=message):
        together = served.score_samples(X)
    assert_same(together[:1], served.score_samples(X[:1]))


def test_names_of_features_are_known(path, X, tmp_path):
    served = OnnxVAE(path)
    assert served.transform(X).shape == (50, 3)
    assert list(served.feature_names_in_) == list("abcdef")
    with pytest.raises(ValueError, match="feature names should match"):
        served.transform(X[list("fedcba")])
    names = served.set_output(transform="pandas").transform(X).columns
    assert list(names) == ["onnxvae0", "onnxvae1", "onnxvae2"]
    nameless = OnnxVAE(write("digits", tmp_path, "encoder"))
    with pytest.raises(AttributeError, match="no feature names"):
        nameless.feature_names_in_  # noqa: B018
    assert nameless.transform(digits()[:2]).shape == (2, 3)


def test_it_can_be_pickled_and_cloned(path, X):
    served = OnnxVAE(path, n_threads=1)
    wanted = served.transform(X)
    for other in (pickle.loads(pickle.dumps(served)), clone(served)):
        np.testing.assert_array_equal(other.transform(X), wanted)
        assert other.get_params() == {"path": path, "n_threads": 1}


def test_bad_input_is_refused(path, X, tmp_path):
    served = OnnxVAE(path)
    with pytest.raises(ValueError, match="Z has 2 columns, but latent_dim=3"):
        served.inverse_transform(np.zeros((1, 2)))
    with pytest.raises(ValueError, match="y was given, but VAEEstimator has no"):
        served.score_samples(X, y=0)
    with pytest.raises(AttributeError, match="not conditional"):
        served.classes_  # noqa: B018
    huge = X.copy()
    huge.iloc[3, 2] = 1e30
    with pytest.raises(ValueError, match=r"the value 1e\+30 in row 3, column 'c'"):
        served.score_samples(huge)
    with pytest.raises(FileNotFoundError, match=r"no file '.*missing.onnx'"):
        OnnxVAE(tmp_path / "missing.onnx").transform(X)
    encoder = OnnxVAE(write("digits", tmp_path, "encoder"))
    with pytest.raises(ValueError, match="holds 'encoder', and this needs 'elbo'"):
        encoder.score_samples(digits()[:2])
    with pytest.raises(
        ValueError, match="X has 5 features, but OnnxVAE is expecting 64"
    ):
        encoder.transform(digits()[:2, :5])


def test_the_extra_is_named_where_it_is_missing(path, X, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"pip install 'skvae\[onnx\]'"):
        OnnxVAE(path).transform(X)

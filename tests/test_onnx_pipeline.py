import numpy as np
import onnxruntime
import pytest
from skl2onnx import to_onnx
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

import skvae.onnx
from onnx_helpers import assert_same
from skvae import VAEEstimator
from skvae.onnx import draw


@pytest.fixture(autouse=True, scope="module")
def _registered():
    skvae.onnx.register()


def run(model, X):
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (result,) = session.run(None, {"X": X})
    return result


SCALERS = {
    "all columns": lambda: MinMaxScaler(clip=True),
    "some columns": lambda: ColumnTransformer(
        [("a", StandardScaler(), [0, 1, 2]), ("b", MinMaxScaler(), [4])]
    ),
}


@pytest.mark.parametrize("scaler", SCALERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_pipeline_becomes_one_graph(scaler, dtype):
    X = np.random.RandomState(0).normal(5, 3, (60, 6)).astype(dtype)
    vae = VAEEstimator(latent_dim=2, hidden_dim=8, epochs=1, random_state=0)
    pipeline = make_pipeline(SCALERS[scaler](), vae).fit(X)
    model = to_onnx(pipeline, X[:1])
    for rows in (X[:1], X):
        assert_same(run(model, rows), pipeline.transform(rows))
    bands = draw(model)
    assert "Encoder" in bands
    assert "Preprocessing" in bands

    options = {VAEEstimator: {"reconstruct": True}}
    model = to_onnx(pipeline, X[:1], options=options)
    for rows in (X[:1], X):
        wanted = pipeline[-1].reconstruct(pipeline[:-1].transform(rows))
        got = run(model, rows)
        assert_same(got.astype(wanted.dtype), wanted)
    assert "Decoder" in draw(model)


def test_two_estimators_in_one_graph_keep_their_names_apart():
    X = np.random.RandomState(0).normal(5, 3, (60, 6))
    options = {"latent_dim": 2, "hidden_dim": 8, "epochs": 1}
    both = ColumnTransformer(
        [
            ("a", VAEEstimator(**options, random_state=0), [0, 1, 2]),
            ("b", VAEEstimator(**options, random_state=1), [3, 4, 5]),
        ]
    ).fit(X)
    assert_same(run(to_onnx(both, X[:1]), X), both.transform(X))


def test_subclasses_are_registered_too():
    class Other(VAEEstimator):
        pass

    skvae.onnx.register(Other)
    X = np.random.RandomState(0).uniform(size=(30, 4))
    vae = Other(latent_dim=2, hidden_dim=8, epochs=1, random_state=0).fit(X)
    assert_same(run(to_onnx(vae, X[:1]), X), vae.transform(X))


def test_an_old_opset_is_refused():
    X = np.random.RandomState(0).uniform(size=(30, 4))
    vae = VAEEstimator(latent_dim=2, hidden_dim=8, epochs=1, random_state=0).fit(X)
    with pytest.raises(ValueError, match="target_opset=15 is older than 18"):
        to_onnx(vae, X[:1], target_opset=15)

from itertools import product

import numpy as np
import onnxruntime
import pytest
from skl2onnx import to_onnx
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

import skvae.onnx
from onnx_helpers import assert_same, model, table
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


QUICK = {("all columns", np.float32, True), ("some columns", np.float64, False)}
CASES = [
    pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
    for case in product(SCALERS, (np.float32, np.float64), (False, True))
]


@pytest.mark.parametrize(("scaler", "dtype", "reconstruct"), CASES)
def test_a_pipeline_becomes_one_graph(scaler, dtype, reconstruct):
    X = np.random.RandomState(0).normal(5, 3, (60, 6)).astype(dtype)
    vae = VAEEstimator(latent_dim=2, hidden_dim=8, epochs=1, random_state=0)
    pipeline = make_pipeline(SCALERS[scaler](), vae).fit(X)
    options = {VAEEstimator: {"reconstruct": True}} if reconstruct else None
    proto = to_onnx(pipeline, X[:1], options=options)
    before = pipeline[:-1].transform(X)
    wanted = vae.reconstruct(before) if reconstruct else vae.transform(before)
    for n in (1, len(X)):
        got = run(proto, X[:n])
        assert_same(got.astype(wanted.dtype), wanted[:n], wanted)
    drawn = draw(proto)
    assert "Preprocessing" in drawn
    assert "Encoder" in drawn
    assert ("Decoder" in drawn) == reconstruct


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
    with pytest.raises(ValueError, match="target_opset=15 is older than 18"):
        to_onnx(model("table"), table().to_numpy()[:1], target_opset=15)

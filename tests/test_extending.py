"""What it costs to add to the package: one file of at most 40 lines, and no other."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone

import skvae
from extensions.gated import Gated
from extensions.laplace import Laplace
from extensions.spectra import Spectra
from extensions.square_root import SquareRootKL
from extensions.wide import Wide
from skvae import VAEEstimator
from skvae.forms import FORMS
from skvae.likelihoods import LIKELIHOODS
from skvae.networks import NETWORKS
from skvae.objectives import OBJECTIVES
from skvae.plotting import LatentSpaceDisplay, LossCurveDisplay, SampleDisplay
from skvae.priors import PRIORS
from skvae.training import prepare, train_stack
from skvae.training.engine import Stack
from skvae.training.setup import request_of

FOLDER = Path(__file__).parent / "extensions"
ROWS = np.random.RandomState(0).randn(40, 64).astype(np.float32)
CHOICES = {
    "network": Gated(),
    "likelihood": Laplace(),
    "prior": Wide(),
    "objective": SquareRootKL(),
}
CASES = [*CHOICES, "form"]


# What the registry lines have added, taken out for the tests of other files.
ADDED = [
    (registry, name, registry.pop(name))
    for registry, name in (
        (LIKELIHOODS, "laplace"),
        (NETWORKS, "gated"),
        (PRIORS, "wide"),
        (OBJECTIVES, "square_root_kl"),
        (FORMS, "spectra"),
    )
]


@pytest.fixture(autouse=True, scope="module")
def _registered():
    with pytest.MonkeyPatch.context() as patch:
        for registry, name, added in ADDED:
            patch.setitem(registry, name, added)
        yield


def estimator_of(case):
    options = {"latent_dim": 2, "hidden_dim": 4, "epochs": 2, "batch_size": 20}
    if case in CHOICES:
        options[case] = CHOICES[case]
    return VAEEstimator(random_state=0, **options)


def rows_of(case):
    return ROWS[:, :32] + 1j * ROWS[:, 32:] if case == "form" else ROWS


@pytest.fixture(scope="module", params=CASES)
def fitted(request):
    vae = estimator_of(request.param).fit(rows_of(request.param))
    return request.param, vae


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda p: p.stem)
def test_an_addition_takes_at_most_forty_lines(path):
    lines = path.read_text("utf-8").rstrip().split("\n")
    assert len(lines) <= 40
    registries = ("LIKELIHOODS", "NETWORKS", "PRIORS", "OBJECTIVES", "FORMS")
    assert lines[-1].startswith(registries)  # the registry line


def test_fit_transform_score_sample(fitted):
    case, vae = fitted
    X = rows_of(case)
    assert vae.transform(X).shape == (40, 2)
    assert vae.reconstruct(X).shape == X.shape
    assert vae.sample(3, random_state=0).dtype.kind == X.dtype.kind
    assert np.isfinite(vae.score(X))
    assert np.isfinite(vae.log_likelihood(X[:5], 10)).all()
    if case == "form":
        assert type(vae.fitted_.form) is Spectra


def test_a_stack_gives_what_each_gets_alone(fitted):
    case, vae = fitted
    X = rows_of(case)
    trainings, alone = [], []
    for rate in (1e-3, 1e-2):
        one = clone(vae).set_params(learning_rate=rate, precision="float32")
        trainings.append(prepare(request_of(lambda vae=one: vae.fit(X)))[0])
        alone.append(one.fit(X).history_.loss)
    assert Stack.fits(trainings)
    for _ in train_stack(trainings):
        pass
    for training, expected in zip(trainings, alone, strict=True):
        losses = [record.loss for record in training.records]
        np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_save_and_load(fitted, tmp_path):
    case, vae = fitted
    path = tmp_path / "vae.safetensors"
    skvae.save(vae, path)
    classes = [type(CHOICES[case])] if case in CHOICES else []
    again = skvae.load(path, classes=classes)
    np.testing.assert_array_equal(
        again.score_samples(rows_of(case)), vae.score_samples(rows_of(case))
    )


@pytest.mark.slow
def test_onnx(fitted, tmp_path):
    pytest.importorskip("onnxscript")
    case, vae = fitted
    path = tmp_path / "vae.onnx"
    skvae.onnx.export(vae, path)
    served = skvae.OnnxVAE(path)
    X = rows_of(case)
    columns, _ = vae.fitted_.form.batch(X)
    np.testing.assert_allclose(
        served.transform(columns), vae.transform(X), rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(
        served.score_samples(columns), vae.score_samples(X), rtol=1e-4, atol=1e-3
    )


def test_pictures(fitted):
    plt = pytest.importorskip("matplotlib.pyplot")
    case, vae = fitted
    LossCurveDisplay.from_estimator(vae)
    LatentSpaceDisplay.from_estimator(vae, rows_of(case))
    if case != "form":  # complex numbers have no picture of their own
        SampleDisplay.from_estimator(vae, n_samples=4, random_state=0)
    plt.close("all")

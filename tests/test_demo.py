import base64
import re
from functools import partial

import numpy as np
import pytest

from skvae import VAEEstimator, demo
from skvae.metrics import elbo_parts

PICTURES = {
    "loss",
    "reconstructions",
    "samples",
    "latent_space",
    "interpolations",
    "traversals",
    "manifold",
    "search",
}


def few_digits():
    X_train, X_test, y_train, y_test = demo._digits()
    return X_train[:200], X_test[:100], y_train[:200], y_test[:100]


@pytest.fixture
def quick(monkeypatch):
    settings = {"load": few_digits, "epochs": 2, "search_epochs": 1}
    monkeypatch.setitem(demo.DATASETS, "digits", settings)
    monkeypatch.setattr(demo, "VAEEstimator", partial(VAEEstimator, hidden_dim=16))
    monkeypatch.setattr(demo, "GRID", {"latent_dim": [2, 3], "learning_rate": [1e-3]})
    monkeypatch.setattr(demo, "SEARCH_ROWS", 60)
    monkeypatch.setattr(demo, "SEARCH_JOBS", 1)


def test_demo_writes_every_picture_and_a_report_that_holds_them(
    quick, tmp_path, capsys
):
    check_demo(tmp_path, capsys, layers="64-16-20-16-64", rows=200, candidates=2)


@pytest.mark.slow
def test_demo_as_it_is_but_for_its_epochs(monkeypatch, tmp_path, capsys):
    settings = {**demo.DATASETS["digits"], "epochs": 20, "search_epochs": 2}
    monkeypatch.setitem(demo.DATASETS, "digits", settings)
    check_demo(tmp_path, capsys, layers="64-400-20-400-64", rows=1437, candidates=12)


def check_demo(folder, capsys, layers, rows, candidates):
    report = demo.run("digits", folder / "new" / "folder")
    text = report.read_text("utf-8")
    assert {path.stem for path in report.parent.glob("*.png")} == PICTURES
    embedded = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert len(embedded) == len(PICTURES)
    assert all(base64.b64decode(data).startswith(b"\x89PNG") for data in embedded)
    # Self-contained: nothing is fetched from anywhere.
    assert not re.search(r'(?:src|href)="(?!data:)', text)
    assert layers in text
    printed = capsys.readouterr().out
    assert f"{rows:,} images to learn from" in printed
    assert "per batch of 100 images" in printed
    assert f"best of {candidates} candidates" in printed


def test_loss_table_counts_per_image_and_per_batch():
    X = demo._digits()[0][:200]
    vae = VAEEstimator(hidden_dim=8, epochs=1, random_state=0).fit(X)
    table = demo.loss_table(vae, {"train": X})
    values = [float(v.replace(",", "")) for v in table.splitlines()[-1].split()[1:]]
    means = [v.mean(dtype=np.float64) for v in elbo_parts(vae, X).values()]
    np.testing.assert_allclose(values[:3], means, atol=0.006)
    np.testing.assert_allclose(values[3:], 100 * np.array(means), atol=0.6)


def test_digits_are_split_by_class():
    X_train, X_test, y_train, y_test = demo._digits()
    assert len(X_train) + len(X_test) == 1797
    assert set(y_train) == set(y_test) == set(range(10))
    assert X_train.max() == 1

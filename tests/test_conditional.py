"""ConditionalVAEEstimator: labels become a condition, and that is all it adds."""

import pickle

import numpy as np
import pandas as pd
import polars as pl
import pytest
from scipy.special import logsumexp
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from estimator_helpers import assert_equal, snapshot
from estimator_helpers import tiny as tiny_plain
from estimator_helpers import tiny_conditional as tiny
from skvae import ELBO, ConditionalVAEEstimator
from skvae.datasets import load_digits

X, Y = load_digits(return_X_y=True)
FEW, FEW_Y = X[:200], Y[:200]


@pytest.fixture(scope="module")
def fitted():
    """An estimator that no test changes."""
    vae = tiny(latent_dim=4, hidden_dim=64, epochs=40, learning_rate=5e-3)
    return vae.fit(X, Y)


@pytest.fixture(scope="module")
def judge():
    return KNeighborsClassifier(3).fit(X, Y)


# ------------------------------------------------------------------ what labels do


def test_samples_of_a_class_look_like_it(fitted, judge):
    classes = np.repeat(np.arange(10), 30)
    rows = fitted.sample(300, y=classes, random_state=0)
    assert np.mean(judge.predict(rows) == classes) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "prior"), [(ELBO(beta=4), "model"), ("elbo", "mixture")]
)
def test_samples_of_mnist_are_what_they_are_called(mnist, objective, prior):
    rows, labels = mnist.X_train[:12_000], mnist.y_train[:12_000]
    judge = KNeighborsClassifier(3).fit(rows, labels)
    vae = ConditionalVAEEstimator(
        10,
        hidden_dim=256,
        epochs=8,
        learning_rate=2e-3,
        objective=objective,
        random_state=0,
    ).fit(rows, labels)
    classes = np.repeat(np.arange(10), 50)
    rows = vae.sample(500, y=classes, random_state=0, prior=prior)
    assert np.mean(judge.predict(rows) == classes) >= 0.9


def test_style_transfer_changes_the_class_and_keeps_the_code(fitted, judge):
    codes = fitted.transform(X[:200])
    moved = fitted.inverse_transform(codes, y=3)
    assert np.mean(judge.predict(moved) == 3) > 0.9
    # Not one picture for all: the style is that of the row.
    assert moved.std(axis=0).max() > 0.05
    np.testing.assert_allclose(fitted.reconstruct(X[:200], np.full(200, 3)), moved)


def test_the_encoder_sees_no_label(fitted):
    assert fitted.transform(X[:5]).shape == (5, 4)
    pipeline = make_pipeline(MinMaxScaler(), tiny(epochs=1)).fit(FEW, FEW_Y)
    assert pipeline.transform(FEW).shape == (len(FEW), 2)


def test_labels_help(fitted):
    plain = tiny_plain(latent_dim=4, hidden_dim=64, epochs=40, learning_rate=5e-3)
    assert fitted.score(X, Y) > plain.fit(X).score(X) + 0.5


@pytest.mark.parametrize("network", ["conv", "ladder", "mlp"])
def test_every_network_takes_the_condition(network):
    vae = tiny(network=network, epochs=1).fit(FEW[:100], FEW_Y[:100])
    a, b = (vae.inverse_transform(np.zeros((1, 2)), y) for y in (0, 1))
    assert np.abs(a - b).max() > 0


# ------------------------------------------------------------------ scores


def test_without_labels_the_score_is_that_of_the_mixture_of_classes(fitted):
    rows = X[:40]
    shares = np.bincount(Y) / len(Y)
    np.testing.assert_array_equal(fitted.class_count_, np.bincount(Y))
    for method in (
        fitted.score_samples,
        lambda rows, y=None: fitted.log_likelihood(rows, 8, y=y),
    ):
        by_class = [method(rows, y=np.full(40, c)) for c in range(10)]
        expected = logsumexp(np.log(shares)[:, None] + by_class, axis=0)
        np.testing.assert_allclose(method(rows), expected, rtol=1e-5)
    assert fitted.score(rows) == pytest.approx(fitted.score_samples(rows).mean())


def test_scores_use_the_labels_they_are_given(fitted):
    right = fitted.score_samples(X[:100], Y[:100])
    wrong = fitted.score_samples(X[:100], (Y[:100] + 1) % 10)
    assert np.mean(right > wrong) > 0.9
    np.testing.assert_allclose(
        fitted.score_samples(X[:100], Y[:100])[30:40],
        fitted.score_samples(X[30:40], Y[30:40]),
        rtol=1e-5,
    )


def test_search_scores_with_labels():
    grid = {"learning_rate": [1e-9, 1e-2]}
    search = GridSearchCV(tiny(epochs=5), grid, cv=2).fit(FEW, FEW_Y)
    assert search.best_params_ == {"learning_rate": 1e-2}
    best = clone(search.best_estimator_).fit(FEW, FEW_Y)
    assert search.score(FEW, FEW_Y) == pytest.approx(best.score(FEW, FEW_Y), abs=1e-2)


# ------------------------------------------------------------------ what labels are

LABELS = {
    "str": np.array(list("abc"))[FEW_Y % 3],
    "object": np.array(list("abc"), dtype=object)[FEW_Y % 3],
    "bool": FEW_Y % 3 == 0,
    "category": pd.Series(np.array(list("abc"))[FEW_Y % 3], dtype="category"),
    "polars": pl.Series(np.array(list("abc"))[FEW_Y % 3]),
    "float": (FEW_Y % 3).astype(np.float64),
    "uint8": (FEW_Y % 3).astype(np.uint8),
    "list": (FEW_Y % 3).tolist(),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_any_dtype(kind):
    labels = LABELS[kind]
    vae = tiny(epochs=1).fit(FEW, labels)
    assert list(vae.classes_) == sorted(set(labels))
    assert vae.class_count_.sum() == len(FEW)
    one = vae.classes_[0]
    assert vae.sample(3, y=one, random_state=0).shape == (3, 64)
    assert np.isfinite(vae.score(FEW, labels))
    again = pickle.loads(pickle.dumps(vae))
    np.testing.assert_array_equal(
        again.reconstruct(FEW, labels), vae.reconstruct(FEW, labels)
    )


MISSING = np.where(FEW_Y == 3, np.nan, FEW_Y)
BAD_LABELS = {
    "none": (None, "requires y to be passed"),
    "missing": (MISSING, "missing label"),
    "missing object": (
        np.array([None, "a"] * 100, dtype=object),
        "missing label|types",
    ),
    "too few": (FEW_Y[:10], r"10 labels, but there are 200 rows"),
    "mixed types": (
        np.array([1, "a"] * 100, dtype=object),
        r"\['int', 'str'\].*strings",
    ),
    "numbers": (np.linspace(0, 1, 200), "(?i)continuous|classification"),
    "two columns": (np.stack([FEW_Y, FEW_Y], 1), "1d array"),
}


@pytest.mark.parametrize("kind", BAD_LABELS)
def test_bad_labels_are_refused_and_change_nothing(kind):
    labels, message = BAD_LABELS[kind]
    for model in (tiny(), tiny(epochs=1).fit(FEW, FEW_Y)):
        before = snapshot(model)
        with pytest.raises(ValueError, match=message):
            model.fit(FEW, labels)
        assert_equal(before, snapshot(model))


def test_a_column_of_labels_is_taken_with_one_warning():
    with pytest.warns(UserWarning, match="column-vector y was passed") as seen:
        tiny(epochs=1).fit(FEW, FEW_Y[:, None])
    assert len(seen) == 1


def test_missing_or_unknown_labels_are_refused_by_name(fitted):
    for call in (
        lambda y: fitted.inverse_transform(np.zeros((2, 4)), y),
        lambda y: fitted.interpolate(X[0], X[1], y=y),
        lambda y: fitted.reconstruct(X[:2], None if y is None else [y, y]),
    ):
        with pytest.raises(ValueError, match="y to be passed"):
            call(None)
        with pytest.raises(ValueError, match=r"unknown label 11; .*\[0, 1, 2"):
            call(11)
    with pytest.raises(ValueError, match=r"unknown label 11; .*\[0, 1, 2"):
        fitted.sample(2, y=11)
    with pytest.raises(ValueError, match="unknown label"):
        fitted.score_samples(X[:2], [3, 11])
    with pytest.raises(ValueError, match="3 labels, but there are 2 rows"):
        fitted.sample(2, y=[1, 2, 3])
    with pytest.raises(ValueError, match="n_samples='a' must be an int"):
        fitted.sample("a", y=1)


# ------------------------------------------------------------ labels that are drawn

IRIS, KIND = load_iris(return_X_y=True)
# Three clusters that nobody mistakes, and a class of each, one of them rare.
FAR = np.concatenate([IRIS[:20] + 30 * k for k in range(3)])
FAR_Y = np.repeat(["few", "more", "most"], 20)


@pytest.fixture(scope="module")
def weighted():
    weights = np.repeat([1.0, 4.0, 15.0], 20)
    vae = tiny(latent_dim=1, epochs=60, learning_rate=1e-2, batch_size=20)
    return vae.fit(FAR, FAR_Y, sample_weight=weights)


@pytest.mark.parametrize("prior", ["model", "mixture"])
def test_labels_that_are_not_given_are_as_frequent_as_in_training(weighted, prior):
    np.testing.assert_array_equal(weighted.class_count_, [20, 80, 300])
    rows = weighted.sample(1000, 0, prior=prior)
    cluster = np.clip(np.rint((rows[:, 0] - 5) / 30), 0, 2).astype(int)
    shares = np.bincount(cluster, minlength=3) / 1000
    np.testing.assert_allclose(shares, [0.05, 0.2, 0.75], atol=0.05)
    np.testing.assert_array_equal(rows, weighted.sample(1000, 0, prior=prior))


def test_rows_that_are_not_trained_on_are_not_counted():
    weights = np.where(np.arange(60) % 4 == 0, 0.0, 1.0)
    vae = tiny(epochs=1).fit(FAR, FAR_Y, sample_weight=weights)
    np.testing.assert_array_equal(vae.class_count_, [15, 15, 15])
    vae = tiny(epochs=1, validation_fraction=0.5).fit(FAR, FAR_Y)
    assert vae.class_count_.sum() == 30
    vae = tiny(epochs=1).fit(FAR, FAR_Y, X_val=FAR[:7], y_val=FAR_Y[:7])
    np.testing.assert_array_equal(vae.class_count_, [20, 20, 20])
    # A class whose rows all weigh nothing is known, and has no share.
    nothing = np.where(FAR_Y == "few", 0.0, 1.0)
    vae = tiny(epochs=1).fit(FAR, FAR_Y, sample_weight=nothing)
    assert list(vae.classes_) == ["few", "more", "most"]
    np.testing.assert_array_equal(vae.class_count_, [0, 20, 20])
    assert np.isfinite(vae.score_samples(FAR)).all()


def test_partial_fit_knows_the_classes_to_come():
    few = FEW_Y < 5
    vae = tiny().partial_fit(FEW[few], FEW_Y[few], classes=np.arange(10))
    vae.partial_fit(FEW[~few], FEW_Y[~few])
    np.testing.assert_array_equal(vae.class_count_, np.bincount(FEW_Y))
    short = tiny().partial_fit(FEW[few], FEW_Y[few])
    with pytest.raises(ValueError, match="unknown label"):
        short.partial_fit(FEW[~few], FEW_Y[~few])
    with pytest.raises(ValueError, match="unknown label"):
        tiny().partial_fit(FEW, FEW_Y, classes=[0, 1])


def test_warm_start_counts_the_rows_of_the_last_fit():
    vae = tiny(warm_start=True, epochs=1).fit(FAR, FAR_Y).fit(FAR[10:], FAR_Y[10:])
    np.testing.assert_array_equal(vae.class_count_, [10, 20, 20])


# ------------------------------------------------------------------ validation sets


def test_explicit_validation_set_takes_labels():
    vae = tiny(epochs=1).fit(FEW[:150], FEW_Y[:150], X_val=FEW[150:], y_val=FEW_Y[150:])
    assert np.isfinite(vae.history_.validation_loss).all()
    held_out = tiny(epochs=1, validation_fraction=0.2).fit(FEW, FEW_Y)
    assert np.isfinite(held_out.history_.validation_loss).all()
    for options, message in (
        ({"X_val": FEW}, "y to be passed"),
        ({"y_val": FEW_Y}, r"y_val was given without X_val"),
        ({"X_val": FEW, "y_val": FEW_Y + 7}, "unknown label"),
        ({"X_val": FEW, "y_val": FEW_Y[:9]}, "9 labels, but there are 200 rows"),
    ):
        with pytest.raises(ValueError, match=message):
            vae.fit(FEW, FEW_Y, **options)


def test_labels_of_a_validation_set_without_one_are_refused_by_both():
    with pytest.raises(ValueError, match=r"y_val was given without X_val"):
        tiny_plain().fit(FEW, y_val=FEW_Y)


# ------------------------------------------------------------------ other methods


def test_mixture_of_codes_and_noise():
    vae = tiny(epochs=1).fit(FEW, FEW_Y)
    rows = vae.sample(20, 0, y=4, prior="mixture", observation_noise=True)
    assert set(np.unique(rows)) <= {0.0, 1.0}


def test_interpolation_of_a_class(fitted):
    line = fitted.interpolate(X[0], X[1], 5, y=4)
    assert line.shape == (5, 64)
    ends = fitted.inverse_transform(fitted.transform(X[:2]), [4, 4])
    np.testing.assert_allclose(line[[0, -1]], ends, rtol=1e-5, atol=1e-6)
    lines = fitted.interpolate(X[:3], X[3:6], 5, y=[1, 2, 3])
    assert lines.shape == (3, 5, 64)
    starts = fitted.inverse_transform(fitted.transform(X[:3]), [1, 2, 3])
    np.testing.assert_allclose(lines[:, 0], starts, rtol=1e-5, atol=1e-6)


def test_a_table_comes_back_as_a_table():
    """Numbers and names, not the codes inside."""
    frame = pd.DataFrame({"size": IRIS[:, 0], "town": np.array(list("abc"))[KIND]})
    vae = tiny(epochs=1).fit(frame, KIND)
    codes = vae.transform(frame)
    for out in (
        vae.inverse_transform(codes, KIND),
        vae.reconstruct(frame, KIND),
        vae.sample(150, 0, y=1),
        vae.sample(150, 0),
        vae.interpolate(frame[:50], frame[50:100], 3, y=1),
    ):
        assert isinstance(out, pd.DataFrame)
        assert len(out) == 150
        assert list(out.dtypes) == list(frame.dtypes)
        assert set(out["town"]) <= set("abc")

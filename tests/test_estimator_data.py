"""Data in any form: arrays, views, memory maps, frames; what is refused, and how."""

import pickle
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse

import skvae.fitted
from estimator_helpers import (
    GREY,
    assert_equal,
    assert_same_weights,
    snapshot,
    tiny,
    with_value,
)
from skvae import Bernoulli, Gaussian

# ----------------------------------------------------------------------- refusals

BAD_X = {
    "nan": (with_value(GREY, 3, 1, np.nan), "NaN"),
    "inf": (with_value(GREY, 3, 1, np.inf), "infinity"),
    "-inf": (with_value(GREY, 3, 1, -np.inf), "infinity"),
    "csr": (sparse.csr_matrix(GREY), "(?i)sparse"),
    "csc array": (sparse.csc_array(GREY), "(?i)sparse"),
    "strings": (np.array([["a", "b", "c", "d"]] * 3), "'a'|string"),
    "objects": (np.array([[1, 2, 3, {}]] * 3, dtype=object), "dict"),
    "None": (None, "None|scalar"),
    "a number": (3.0, "(?i)scalar"),
    "no rows": (np.empty((0, 4)), "0 sample"),
    "no columns": (np.empty((5, 0)), "0 feature"),
    "1-D": (np.zeros(4), "1D array"),
    "3-D": (np.zeros((2, 4, 4)), "3 axes|dim 3"),
    "complex": (GREY + 1j, "(?i)complex"),
    "ragged": ([[1, 2, 3, 4], [1, 2]], "inhomogeneous|ragged"),
}
INFERENCE = ["transform", "reconstruct", "score", "score_samples", "log_likelihood"]


@pytest.fixture(scope="module")
def of_grey():
    """An estimator that no test changes."""
    return tiny(epochs=1).fit(GREY)


@pytest.mark.parametrize("kind", BAD_X)
def test_training_refuses_bad_data_and_stays_as_it_was(kind):
    X, message = BAD_X[kind]
    model = tiny()
    for _ in range(2):  # unfitted, then fitted
        before = snapshot(model)
        for method in (model.fit, model.partial_fit):
            with pytest.raises((ValueError, TypeError), match=message):
                method(X)
            assert_equal(before, snapshot(model))
        model.partial_fit(GREY)


@pytest.mark.parametrize("kind", BAD_X)
def test_inference_refuses_bad_data(of_grey, kind):
    X, message = BAD_X[kind]
    before = snapshot(of_grey)
    for method in INFERENCE:
        with pytest.raises((ValueError, TypeError), match=message):
            getattr(of_grey, method)(X)
    assert_equal(before, snapshot(of_grey))


def test_images_of_three_axes_are_told_how_to_be_images():
    with pytest.raises(
        ValueError, match=r"X of shape \(5, 8, 8\).*X\.reshape\(5, 1, 8, 8\)"
    ):
        tiny().fit(np.zeros((5, 8, 8)))


OUTSIDE = {
    "above": (1.5, {"likelihood": "bernoulli"}),
    "below": (-0.25, {"likelihood": Bernoulli()}),
    "continuous": (1.0001, {"likelihood": "continuous_bernoulli"}),
}


@pytest.mark.parametrize("kind", OUTSIDE)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_data_outside_the_support_are_refused_by_column_and_value(kind, method):
    value, parameters = OUTSIDE[kind]
    X, model = with_value(GREY, 7, 2, value), tiny(**parameters)
    for _ in range(2):  # unfitted, then fitted
        before = snapshot(model)
        with pytest.raises(ValueError, match=rf"{value} in row 7, column 2.*Bernoulli"):
            getattr(model, method)(X)
        assert_equal(before, snapshot(model))
        getattr(model, method)(GREY)


def test_refusal_names_the_column_of_a_frame():
    frame = pd.DataFrame(
        with_value(GREY, 7, 2, 1.5), columns=["sepal", "petal", "stem", "leaf"]
    )
    with pytest.raises(ValueError, match=r"1\.5.*stem"):
        tiny(likelihood="bernoulli").fit(frame)


def test_refusal_counts_rows_as_the_user_does():
    # Row 2 has weight 0 and is left out; row 7 is still row 7.
    weights = np.ones(40)
    weights[2] = 0
    with pytest.raises(ValueError, match=r"1\.5 in row 7, column 2"):
        tiny(likelihood="bernoulli").fit(
            with_value(GREY, 7, 2, 1.5), sample_weight=weights
        )


@pytest.mark.parametrize(
    ("X_val", "parameters", "message"),
    [
        (GREY, {"validation_fraction": 0.2}, "validation_fraction=0.2 and X_val"),
        (with_value(GREY, 7, 2, 1.5), {}, "X_val has the value 1.5 in row 7, column 2"),
        (with_value(GREY, 7, 2, np.nan), {}, "X.*NaN"),
        (np.zeros((5, 3)), {}, "3 features, but .* 4 features"),
        (np.zeros(4), {}, "1D array"),
        (np.empty((0, 4)), {}, "0 sample"),
        (sparse.csr_matrix(GREY), {}, "(?i)sparse"),
    ],
)
def test_bad_validation_sets(X_val, parameters, message):
    model = tiny(epochs=1).fit(GREY).set_params(**parameters)
    before = snapshot(model)
    with pytest.raises((ValueError, TypeError), match=message):
        model.fit(GREY, X_val=X_val)
    assert_equal(before, snapshot(model))


# -------------------------------------------------------------- numbers without bounds


@pytest.mark.parametrize("method", INFERENCE)
@pytest.mark.parametrize("value", [1e39, -1e39, 1e300])
def test_numbers_too_large_for_float32_are_refused_by_name(method, value):
    """They would be infinite inside the model, and every answer NaN."""
    frame = pd.DataFrame(GREY * 3, columns=list("abcd"))
    model = tiny(epochs=1).fit(frame)
    assert isinstance(model.likelihood_, Gaussian)
    far = frame.copy()
    far.loc[1, "c"] = value
    with pytest.raises(ValueError, match=r"in row 1, column 'c'.*too large.*[Dd]rop"):
        getattr(model, method)(far)
    with pytest.raises(ValueError, match=r"too large|outside"):
        model.fit(frame, X_val=far)


def test_rows_as_far_as_float32_bears_have_finite_answers(iris, fitted_iris):
    """1e10 standard deviations: a bad row, not a NaN."""
    far = with_value(iris[:3], 1, 1, 1e10)
    for method in INFERENCE:
        assert np.isfinite(getattr(fitted_iris, method)(far)).all(), method


def test_a_far_grey_value_scores_as_the_nearest(of_grey):
    far = with_value(GREY[:3], 1, 1, 1e39)
    with pytest.warns(UserWarning, match="outside the support"):
        scores = of_grey.score_samples(far)
    np.testing.assert_array_equal(
        scores, of_grey.score_samples(with_value(GREY[:3], 1, 1, 1.0))
    )
    with pytest.raises(ValueError, match=r"in row 1, column 1.*too large"):
        of_grey.transform(far)


@pytest.mark.parametrize("largest", [1.7e38, 1e260, 1e300])
def test_the_largest_finite_numbers_fit_or_are_refused(largest):
    """No mean and no variance overflows on the way to the model's units."""
    X = np.array([[1, 1], [-1, 0], [0.5, 0]]) * largest
    if largest < 1e38 * 4:
        X = X.astype(np.float32)
    model = tiny(epochs=1)
    if largest > 1e270:
        with pytest.raises(ValueError, match=r"column 0 has values up to .*divide"):
            model.fit(X)
        return
    model.fit(X)
    for method in INFERENCE:
        assert np.isfinite(getattr(model, method)(X)).all(), method
    assert np.isfinite(model.sample(3, 0, observation_noise=False)).all()


# ----------------------------------------------------------------- forms of the input


@pytest.fixture(params=["gaussian", "bernoulli"])
def rows(request, digits, iris):
    return iris if request.param == "gaussian" else digits[:150]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_form_of_the_input_does_not_matter(rows, dtype, tmp_path):
    X = np.ascontiguousarray(rows, dtype=dtype)
    expected = tiny().fit(X)
    Z, scores = expected.transform(X), expected.score_samples(X)
    path = tmp_path / "rows.npy"
    np.save(path, X)
    wide = np.repeat(X, 2, axis=0)
    read_only = X.copy()
    read_only.flags.writeable = False
    forms = {
        "fortran": np.asfortranarray(X),
        "strided": wide[::2],
        "reversed twice": X[::-1].copy()[::-1],
        "read-only": read_only,
        "memmap": np.load(path, mmap_mode="r"),
        "memmap copy-on-write": np.load(path, mmap_mode="c"),
        "memmap slice": np.load(path, mmap_mode="r")[:],
        "frame": pd.DataFrame(X).to_numpy(),
    }
    if dtype is np.float64:
        forms["list"] = X.tolist()
        forms["big-endian"] = X.astype(">f8")
    for name, form in forms.items():
        model = tiny().fit(form)
        assert_same_weights(model, expected)
        np.testing.assert_array_equal(model.transform(form), Z, err_msg=name)
        np.testing.assert_array_equal(model.score_samples(form), scores, err_msg=name)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("flip", [np.flipud, np.fliplr, np.transpose])
def test_views_are_what_they_show(rows, dtype, flip):
    view = flip(np.ascontiguousarray(rows[:64], dtype=dtype))
    model = tiny().fit(view)
    shown = np.ascontiguousarray(view)
    for method in (
        model.transform,
        model.reconstruct,
        model.score_samples,
        lambda X: model.log_likelihood(X, 10),
    ):
        np.testing.assert_allclose(method(view), method(shown), rtol=1e-5, atol=1e-6)
    Z = flip(model.transform(view)[: model.latent_dim])
    np.testing.assert_allclose(
        model.inverse_transform(Z),
        model.inverse_transform(np.ascontiguousarray(Z)),
        rtol=1e-5,
    )
    assert np.isfinite(model.interpolate(view[0], view[1])).all()
    model.partial_fit(view)
    model.fit(view, X_val=view)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_rows_of_the_user_are_left_alone(rows, dtype):
    X = np.ascontiguousarray(rows, dtype=dtype)
    before = X.copy()
    weights = np.linspace(1, 2, len(X))
    model = tiny(validation_fraction=0.2).fit(X, sample_weight=weights)
    model.partial_fit(X)
    model.reconstruct(X)
    model.log_likelihood(X, 10)
    np.testing.assert_array_equal(X, before)
    np.testing.assert_array_equal(weights, np.linspace(1, 2, len(X)))
    # And the model does not follow them when they change.
    Z = model.transform(before)
    X[:] = 0
    np.testing.assert_array_equal(model.transform(before), Z)


# ------------------------------------------------------------------- memory maps


def test_memmaps_are_read_in_blocks(digits, tmp_path, monkeypatch):
    X = digits.astype(np.float32)
    np.save(tmp_path / "rows.npy", X)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    model = tiny(epochs=1).fit(X)
    whole = model.transform(X), model.score_samples(X)
    monkeypatch.setattr(skvae.fitted, "BLOCK", 64 * 100)
    np.testing.assert_allclose(model.transform(mapped), whole[0], atol=1e-5)
    np.testing.assert_allclose(model.score_samples(mapped), whole[1], rtol=1e-5)
    np.testing.assert_allclose(
        model.transform(mapped[5:900:3]), whole[0][5:900:3], atol=1e-5
    )
    np.testing.assert_array_equal(mapped, X)


def test_bad_memmaps_are_refused_as_arrays_are(digits, tmp_path):
    model = tiny(epochs=1).fit(digits)

    def mapped(X):
        np.save(tmp_path / "rows.npy", X)
        return np.load(tmp_path / "rows.npy", mmap_mode="r")

    for X, message in (
        (with_value(digits, 1700, 3, np.nan), "NaN"),
        (digits[:, :5], "5 features"),
        (digits[0], "1D array|any features"),
        (digits[:50].reshape(50, 8, 8), "3 axes|dim 3|8 features"),
        (digits.astype(complex), "(?i)complex"),
        (np.full((9, 64), "a"), "string|numeric"),
    ):
        with pytest.raises(ValueError, match=message):
            model.transform(mapped(X))
    np.save(tmp_path / "one.npy", digits[:1])
    with pytest.raises(ValueError, match="0 sample"):
        model.transform(np.load(tmp_path / "one.npy", mmap_mode="r")[:0])
    integers = (digits * 16).astype(np.uint8)
    counted = tiny(epochs=1).fit(integers)
    np.testing.assert_array_equal(
        counted.transform(mapped(integers)), counted.transform(integers)
    )


# ------------------------------------------------------------------- data frames


def test_rows_of_a_frame_are_taken_by_the_names_of_their_columns(iris):
    """``interpolate`` looks at names as every other method does."""
    frame = pd.DataFrame(iris, columns=list("abcd"))
    model = tiny(epochs=20).fit(frame)
    line = tiny(epochs=20).fit(iris).interpolate(iris[0], iris[100], n_steps=5)
    as_series = model.interpolate(frame.iloc[0], frame.iloc[100], n_steps=5)
    np.testing.assert_allclose(as_series, line, rtol=1e-5)
    as_frame = model.interpolate(frame[:2], frame[100:102], n_steps=5)
    assert as_frame.shape == (2, 5, 4)
    np.testing.assert_allclose(as_frame[0], line, rtol=1e-5)
    # Another order, or other names, are no rows of this model.
    for a, b in (
        (frame.iloc[0][list("dcba")], frame.iloc[100][list("dcba")]),
        (frame.iloc[0], frame.iloc[100][list("dcba")]),
        (frame[:2][list("badc")], frame[100:102][list("badc")]),
        (frame.iloc[0].rename({"a": "z"}), frame.iloc[100]),
    ):
        with pytest.raises(ValueError, match="feature names should match"):
            model.interpolate(a, b)


TABLE = pd.DataFrame(
    {
        "height": np.linspace(1.5, 1.9, 40),
        "children": np.arange(40) % 4,
        "smokes": np.arange(40) % 3 == 0,
        "town": np.array(["Oslo", "Rome", "Bonn", "Lima"])[np.arange(40) // 10],
    },
    index=np.arange(100, 140),
)


@pytest.fixture(scope="module", params=["pandas", "polars"])
def table(request):
    """A frame of several kinds of columns, and an estimator fitted to it."""
    frame = TABLE if request.param == "pandas" else pl.DataFrame(TABLE.to_dict("list"))
    return frame, tiny(epochs=1).fit(frame)


def test_a_table_gives_tables(table):
    frame, model = table
    kind, names = type(frame), list(frame.columns)
    for out, n_rows in (
        (model.reconstruct(frame), 40),
        (model.inverse_transform(model.transform(frame)), 40),
        (model.sample(7, 0), 7),
        (model.sample(7, 0, prior="mixture"), 7),
        (model.interpolate(frame[:2], frame[2:4], 3), 6),
    ):
        assert type(out) is kind
        assert list(out.columns) == names
        assert len(out) == n_rows
        assert list(out.dtypes) == list(frame.dtypes)
        assert set(out["town"]) <= {"Oslo", "Rome", "Bonn", "Lima"}
    assert np.isfinite(model.score_samples(frame)).all()


def test_reconstructions_of_a_table_have_its_index():
    model = tiny(epochs=1).fit(TABLE)
    shuffled = TABLE.sample(frac=1, random_state=0)
    assert model.reconstruct(shuffled).index.equals(shuffled.index)
    # Assigned back, every row is the reconstruction of itself.
    whole = model.reconstruct(TABLE)
    pd.testing.assert_frame_equal(model.reconstruct(shuffled).loc[TABLE.index], whole)


def test_a_row_of_a_table_is_a_series_or_a_frame():
    model = tiny(epochs=1).fit(TABLE)
    line = model.interpolate(TABLE.iloc[0], TABLE.iloc[30], 3)
    pairs = model.interpolate(TABLE.iloc[:1], TABLE.iloc[30:31], 3)
    pd.testing.assert_frame_equal(line, pairs)
    pd.testing.assert_frame_equal(
        line.iloc[[0, 2]].reset_index(drop=True),
        model.reconstruct(TABLE.iloc[[0, 30]]).reset_index(drop=True),
    )
    with pytest.raises(ValueError, match=r"columns that fit saw|feature names"):
        model.interpolate(TABLE.iloc[0][::-1], TABLE.iloc[30][::-1])
    with pytest.raises(ValueError, match="data frame with the columns"):
        model.interpolate(np.zeros(4), np.zeros(4))


# ------------------------------------------------------------------- any finite array

FORMS = ["C", "F", "strided", "reversed", "read-only", "memmap", "frame", "list"]


def as_form(X, form, folder):
    if form == "F":
        return np.asfortranarray(X)
    if form == "strided":
        return np.repeat(np.repeat(X, 2, axis=0), 3, axis=1)[::2, ::3]
    if form == "reversed":
        return np.ascontiguousarray(X[::-1, ::-1])[::-1, ::-1]
    if form == "read-only":
        X = X.copy()
        X.flags.writeable = False
    if form == "memmap":
        np.save(Path(folder) / "rows.npy", X)
        return np.load(Path(folder) / "rows.npy", mmap_mode="r")
    if form == "frame":
        return pd.DataFrame(X, columns=[f"c{i}" for i in range(X.shape[1])])
    if form == "list":
        return X.tolist()
    return X


def finite_arrays(limit):
    """2-D arrays of any float dtype with finite values of at most this size."""

    def of_dtype(dtype):
        largest = float(dtype.type(min(limit, float(np.finfo(dtype).max))))
        return hnp.arrays(
            dtype,
            st.tuples(st.integers(1, 8), st.integers(1, 4)),
            elements=st.floats(
                -largest,
                largest,
                width=8 * dtype.itemsize,
                allow_nan=False,
                allow_infinity=False,
            )
            | st.sampled_from([0.0, 1.0, 0.5]),
        )

    return st.sampled_from([np.float16, np.float32, np.float64]).flatmap(
        lambda dtype: of_dtype(np.dtype(dtype))
    )


PARAMETERS = st.sampled_from(
    [{}, {"likelihood": "gaussian"}, {"likelihood": Gaussian(scale="feature")}]
)


@given(
    st.one_of(finite_arrays(limit=1e6), finite_arrays(limit=1e30)),
    st.sampled_from(FORMS),
    PARAMETERS,
)
def test_any_finite_array_fits_transforms_and_round_trips(X, form, parameters):
    with tempfile.TemporaryDirectory() as folder:
        given_X = as_form(X, form, folder)
        model = tiny(hidden_dim=3, epochs=1, **parameters).fit(given_X)
        Z = model.transform(given_X)
        assert Z.shape == (len(X), 2)
        assert Z.dtype == np.float32
        assert np.isfinite(Z).all()
        assert np.isfinite(model.score_samples(given_X)).all()
        assert np.isfinite(model.reconstruct(given_X)).all()
        twin = pickle.loads(pickle.dumps(model))
        np.testing.assert_array_equal(twin.transform(given_X), Z)
        np.testing.assert_array_equal(
            twin.score_samples(given_X), model.score_samples(given_X)
        )
        np.testing.assert_array_equal(twin.sample(2, 0), model.sample(2, 0))
        # The memory map must be let go before its folder is.
        del given_X


@given(
    finite_arrays(limit=1e3).filter(lambda X: X.shape[1] == 3),
    st.sampled_from(FORMS),
    st.sampled_from([np.nan, np.inf, -np.inf, 1.5, -0.5]),
    st.data(),
)
def test_one_bad_value_is_named_and_changes_nothing(X, form, value, data):
    column = data.draw(st.integers(0, 2), label="column")
    row = data.draw(st.integers(0, len(X) - 1), label="row")
    X = np.clip(np.abs(X), 0, 1)
    X[row, column] = value
    model = tiny(hidden_dim=3, epochs=1, likelihood="bernoulli")
    for method in ("fit", "partial_fit"):
        with tempfile.TemporaryDirectory() as folder:
            getattr(model, method)(as_form(np.eye(3), form, folder))
        before = snapshot(model)
        message = {np.inf: "infinity", -np.inf: "infinity"}.get(value, str(value))
        message = "NaN" if np.isnan(value) else message
        with tempfile.TemporaryDirectory() as folder:
            bad = as_form(X, form, folder)
            with pytest.raises(ValueError, match=message) as refusal:
                getattr(model, method)(bad)
            del bad
        if np.isfinite(value):
            label = f"'c{column}'" if form == "frame" else column
            assert f"row {row}, column {label}, outside" in str(refusal.value)
        assert_equal(before, snapshot(model))

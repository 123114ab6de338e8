"""What every form of data keeps to; rows and images."""

import datetime as dt
import pickle

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.base import BaseEstimator

from skvae.forms import FORMS, Column, Form, Images, Rows, Table, form_of
from skvae.forms.base import check_keys

PIXELS = np.arange(4 * 3 * 2 * 2, dtype=np.float64).reshape(4, 3, 2, 2)
NUMBERS = np.array([[1.5, -2.0], [0.0, 1e6], [3.0, 4.0], [-1.0, 0.25]])
MIXED = {
    "number": [1.5, -2.0, 0.0, 3.25],
    "integer": [1, -2, 0, 7],
    "flag": [True, False, True, True],
    "text": ["a", "b", "", "a"],
    "when": [dt.datetime(2020, 1, d, 3, 4, 5, 678901) for d in (1, 2, 3, 4)],
}

# Data of every form, in every container that it comes in.
EXAMPLES = {
    "float64": ("rows", NUMBERS),
    "float32": ("rows", NUMBERS.astype(np.float32)),
    "integers": ("rows", np.arange(8).reshape(4, 2)),
    "list": ("rows", NUMBERS.tolist()),
    "tensor": ("rows", torch.tensor(NUMBERS)),
    "frame of numbers": ("rows", pd.DataFrame(NUMBERS, columns=["a", "b"])),
    "polars of numbers": ("rows", pl.DataFrame(NUMBERS, schema=["a", "b"])),
    "frame without names": ("rows", pd.DataFrame(NUMBERS)),
    "images": ("images", PIXELS),
    "float32 images": ("images", PIXELS.astype(np.float32)),
    "grey images": ("images", PIXELS[:, :1]),
    "tensor of images": ("images", torch.tensor(PIXELS)),
    "pandas": ("table", pd.DataFrame(MIXED, index=[7, 3, 5, 1])),
    "polars": ("table", pl.DataFrame(MIXED)),
}


class Checker(BaseEstimator):
    """What scikit-learn's checks leave their findings on."""


def checked(form, X):
    return form.check(Checker(), X, reset=True)


def assert_same(got, expected):
    """Equal values in a container of the same kind."""
    if isinstance(expected, pd.DataFrame):
        pd.testing.assert_frame_equal(got, expected)
    elif isinstance(expected, pl.DataFrame):
        assert got.schema == expected.schema
        assert got.equals(expected)
    else:
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("example", EXAMPLES)
class TestContract:
    def test_the_last_that_accepts_is_the_form(self, example):
        kind, X = EXAMPLES[example]
        accepting = [name for name, form in FORMS.items() if form.accepts(X)]
        assert accepting[-1] == kind
        form = form_of(X)
        assert type(form) is FORMS[kind]
        assert isinstance(form, Form)
        assert form == FORMS[kind].of(X)

    def test_columns(self, example):
        _, X = EXAMPLES[example]
        form = form_of(X)
        array, observed = form.batch(checked(form, X))
        assert observed is None
        assert array.shape == (4, form.n_columns)
        assert array.dtype in (np.float64, np.float32)
        assert len(form.columns) == len(form.names) == form.n_columns
        assert form.names == [column.name for column in form.columns]
        for i, column in enumerate(form.columns):
            assert isinstance(column, Column)
            if column.n_values is not None:
                assert set(array[:, i]) <= set(range(column.n_values))

    def test_there_and_back(self, example):
        kind, X = EXAMPLES[example]
        form = form_of(X)
        array, _ = form.batch(checked(form, X))
        back = form.decode(array, like=X)
        if kind == "table":
            assert_same(back, X)
        else:  # rows of numbers, whatever they came in
            assert_same(back, np.asarray(X).reshape(4, -1))
            assert back.dtype == form.dtype

    def test_dtype_is_that_of_the_checked_rows(self, example):
        kind, X = EXAMPLES[example]
        form = form_of(X)
        if kind != "table":
            assert checked(form, X).dtype == form.dtype
        assert form.dtype in (np.float64, np.float32)

    def test_state_there_and_back(self, example):
        _, X = EXAMPLES[example]
        form = form_of(X)
        twin = type(form).from_state(pickle.loads(pickle.dumps(form.state())))
        assert twin.dtype == form.dtype
        assert twin.image_shape == form.image_shape
        array, _ = form.batch(checked(form, X))
        np.testing.assert_array_equal(twin.batch(checked(twin, X))[0], array)
        assert_same(twin.decode(array, like=X), form.decode(array, like=X))
        assert twin.columns == form.columns
        assert twin == form

    def test_number_of_columns_is_checked_where_it_is_known(self, example):
        _, X = EXAMPLES[example]
        form = form_of(X)
        assert type(form).from_state(form.state(), form.n_columns) == form

    def test_states_of_other_keys_are_refused(self, example):
        form = form_of(EXAMPLES[example][1])
        state = form.state()
        for bad in (None, [], {}, {**state, "more": 1}, {1: 2, "a": 3}):
            with pytest.raises(ValueError, match="must hold"):
                type(form).from_state(bad)
        for key in state:
            for value in (None, 7, "x", [], {}, ()):
                with pytest.raises(ValueError, match=r"."):
                    type(form).from_state({**state, key: value})

    def test_check_compares_with_what_fit_saw(self, example):
        _, X = EXAMPLES[example]
        form, estimator = form_of(X), Checker()
        form.check(estimator, X, reset=True)
        assert estimator.n_features_in_ == form.n_features
        form.check(estimator, X)
        if hasattr(X, "columns"):
            # By name or by number: some columns are missing.
            names = list(X.columns)[:-1]
            with pytest.raises(ValueError, match=r"feature|columns that fit saw"):
                form.check(estimator, X[names])
        assert form.check(estimator, X[:2]) is not None

    def test_a_row_alone_is_an_X_of_one_row(self, example):
        _, X = EXAMPLES[example]
        form = form_of(X)
        if isinstance(X, pd.DataFrame):
            alone = form.row(X.iloc[1])
        elif isinstance(X, pl.DataFrame):
            alone = form.row(X[1:2]) if type(form) is Table else form.row(X.row(1))
        else:
            alone = form.row(X[1])
        expected = form.batch(checked(form, X))[0][1:2]
        got = form.batch(checked(form_of(X), alone))[0] if alone is not None else None
        np.testing.assert_array_equal(got, expected)


def test_a_frame_that_is_asked_for_is_a_table():
    """Kinds by name, even none of them, ask for a data frame."""
    X = pd.DataFrame(NUMBERS, columns=["a", "b"])
    assert type(form_of(X, {})) is Table
    assert [c.kind for c in form_of(X, {"a": "category"}).columns] == [
        "category",
        "number",
    ]
    with pytest.raises(TypeError, match="from a data frame; got ndarray"):
        form_of(NUMBERS, {})


def test_forms_are_values():
    one, same = form_of(NUMBERS), form_of(2 * NUMBERS)
    assert one == same
    assert one != form_of(NUMBERS.astype(np.float32))
    with pytest.raises(AttributeError):
        one.dtype = np.dtype(np.float32)


def test_keys_of_a_state():
    check_keys("a thing", {"a": 1}, {"a"})
    with pytest.raises(ValueError, match=r"a thing must hold \['a'\], got \['b'\]"):
        check_keys("a thing", {"b": 1}, {"a"})
    with pytest.raises(ValueError, match="got list"):
        check_keys("a thing", [], {"a"})


# ------------------------------------------------------------------ rows


@given(
    arrays(
        st.sampled_from([np.float64, np.float32, np.int8, np.uint64, np.float16, bool]),
        st.tuples(st.integers(1, 5), st.integers(1, 4)),
    )
)
def test_arrays_of_any_dtype(X):
    if X.dtype.kind == "f":
        X[~np.isfinite(X)] = 1
    form = form_of(X)
    rows = checked(form, X)
    assert rows.dtype == form.dtype
    assert form.dtype == (np.float32 if X.dtype == np.float32 else np.float64)
    np.testing.assert_array_equal(form.batch(rows)[0], X.astype(form.dtype))


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        (("float32", "float32"), np.float32),
        (("float32", "float64"), np.float64),
        (("int64", "Int64"), np.float64),
        (("Float32", "float32"), np.float32),
        (("float32", "int8"), np.float64),
    ],
)
def test_frames_of_numbers(dtypes, expected):
    X = pd.DataFrame({"a": [1, 2], "b": [3, 4]}).astype(
        dict(zip("ab", dtypes, strict=True))
    )
    form = form_of(X)
    assert type(form) is Rows
    assert form.names == ["a", "b"]
    assert form.dtype == expected
    np.testing.assert_array_equal(form.batch(checked(form, X))[0], [[1, 3], [2, 4]])


def test_numbers_of_dtype_object_are_numbers():
    """Finding 17c: such columns became categories."""
    X = pd.DataFrame({"a": [1, 2.5, 3], "b": [4, 5, 6]}, dtype=object)
    form = form_of(X)
    assert type(form) is Rows
    np.testing.assert_array_equal(form.batch(checked(form, X))[0], X.astype(float))
    beside = X.assign(c=["x", "y", "x"])
    kinds = [column.kind for column in form_of(beside).columns]
    assert kinds == ["number", "number", "category"]


def test_sparse_columns_of_pandas_are_numbers():
    X = pd.DataFrame({"a": pd.arrays.SparseArray([0.0, 0, 1]), "b": [1.0, 2, 3]})
    form = form_of(X)
    assert type(form) is Rows
    with pytest.warns(UserWarning, match="sparse"):  # scikit-learn's
        rows = checked(form, X)
    np.testing.assert_array_equal(form.batch(rows)[0], X.astype(float))


def test_names_are_those_of_the_frame_only_where_they_are_strings():
    assert form_of(pd.DataFrame(NUMBERS, columns=["a", "b"])).names == ["a", "b"]
    assert form_of(pd.DataFrame(NUMBERS, columns=[5, 6])).names == [0, 1]
    assert form_of(NUMBERS).names == [0, 1]


def test_duplicate_names_of_numbers_are_refused():
    X = pd.DataFrame(NUMBERS, columns=["a", "a"])
    with pytest.raises(ValueError, match=r"unique column names.*\n- 'a' 2 times"):
        checked(form_of(X), X)


def test_three_axes_are_refused_with_advice():
    with pytest.raises(ValueError, match=r"3 axes; .*X\.reshape\(7, 1, 8, 9\)"):
        form_of(np.zeros((7, 8, 9)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_missing_numbers_are_refused(bad):
    X = NUMBERS.copy()
    X[1, 1] = bad
    with pytest.raises(ValueError, match=r"Input X contains (NaN|infinity)"):
        checked(form_of(X), X)


def test_fill_leaves_what_was_there():
    X = np.array([[1.0, np.nan], [np.nan, 4.0]])
    filled = form_of(NUMBERS).fill(X, np.full((2, 2), 9.0))
    np.testing.assert_array_equal(filled, [[1, 9], [9, 4]])


def test_stacked_rows():
    decoded = np.arange(12.0).reshape(6, 2)
    stacked = form_of(NUMBERS).stack(decoded, (2, 3))
    np.testing.assert_array_equal(stacked, decoded.reshape(2, 3, 2))


def test_memory_maps_are_read_block_by_block(tmp_path):
    path = tmp_path / "X.npy"
    np.save(path, NUMBERS)
    X = np.load(path, mmap_mode="r")
    form, estimator = form_of(X), Checker()
    form.check(estimator, X, reset=True)
    again = form.check(estimator, X)
    assert isinstance(again, np.memmap)
    np.testing.assert_array_equal(form.batch(again[1:3])[0], NUMBERS[1:3])
    bad = NUMBERS.copy()
    bad[2, 0] = np.nan
    np.save(path, bad)
    X = np.load(path, mmap_mode="r")
    rows = form.check(estimator, X)  # nothing was read
    with pytest.raises(ValueError, match="NaN"):
        form.batch(rows[2:3])


# ------------------------------------------------------------------ images


def test_images_are_rows_of_their_pixels_channels_first():
    form = form_of(PIXELS)
    assert form.image_shape == (3, 2, 2)
    assert form.n_columns == form.n_features == 12
    np.testing.assert_array_equal(
        form.batch(checked(form, PIXELS))[0], PIXELS.reshape(4, 12)
    )
    # Rows of as many numbers are taken as well.
    rows = form.check(Checker(), PIXELS.reshape(4, 12), reset=True)
    np.testing.assert_array_equal(rows, PIXELS.reshape(4, 12))
    assert form.row(PIXELS[0]).shape == (1, 3, 2, 2)


def test_channels_that_come_last_are_refused():
    with pytest.raises(ValueError, match=r"8 channels; .*np\.moveaxis\(X, -1, 1\)"):
        form_of(np.zeros((5, 8, 8, 1)))


def test_images_of_another_shape_are_refused():
    form, estimator = form_of(PIXELS), Checker()
    form.check(estimator, PIXELS, reset=True)
    with pytest.raises(
        ValueError, match=r"shape \(3, 1, 4\).*fitted on images of shape \(3, 2, 2\)"
    ):
        form.check(estimator, PIXELS.reshape(4, 3, 1, 4))


def test_images_are_refused_where_fit_saw_rows():
    rows = PIXELS.reshape(4, 12)
    form, estimator = form_of(rows), Checker()
    form.check(estimator, rows, reset=True)
    with pytest.raises(ValueError, match=r"shape \(3, 2, 2\).*fitted on rows"):
        form.check(estimator, PIXELS)


@pytest.mark.parametrize(
    "shape", [(1, 2), (1, 2, 0), (1, 2, -1), (1, 2, 2.0), [1, 2, 2], (1, 2, True)]
)
def test_image_shapes_of_a_state_are_three_sides(shape):
    with pytest.raises(ValueError, match="image_shape must hold three sides"):
        Images.from_state({"image_shape": shape, "dtype": "float32"})


def test_a_state_cannot_ask_for_more_columns_than_there_are():
    state = {"image_shape": (1, 10**6, 10**6), "dtype": "float32"}
    with pytest.raises(ValueError, match="expected 12"):
        Images.from_state(state, 12)

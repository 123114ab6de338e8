"""Labels: y as a form of data."""

import pickle

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skvae.forms import Labels, NoLabels

Y = np.array(["b", "a", "b", "c"])


def test_labels_are_sorted_and_not_yet_counted():
    labels = Labels.of(Y, 4)
    assert labels.classes.tolist() == ["a", "b", "c"]
    assert labels.counts.tolist() == [0, 0, 0]
    assert labels.n_conditions == 3
    # All that will ever come may be more than those of the first chunk.
    assert Labels.of(Y, 4, classes=["z", "b", "a", "c"]).n_conditions == 4


@given(
    # Of more labels scikit-learn warns where more than half of them are different.
    st.lists(st.integers(-5, 5), min_size=1, max_size=20)
    | st.lists(st.text(max_size=2), min_size=1, max_size=20)
    | st.lists(st.booleans(), min_size=1, max_size=20)
)
def test_one_hot_rows_are_those_of_the_labels(y):
    labels = Labels.of(y, len(y))
    condition = labels.encode(y, len(y))
    assert condition.dtype == np.float32
    assert condition.sum(axis=1).tolist() == [1] * len(y)
    np.testing.assert_array_equal(labels.classes[condition.argmax(axis=1)], y)


@pytest.mark.parametrize(
    "y",
    [
        Y.tolist(),
        Y.astype(object),
        pd.Series(Y, index=[3, 1, 2, 0]),
        pd.Series(pd.Categorical(Y, categories=["c", "b", "a"])),
        pd.array(Y, dtype="string"),
    ],
    ids=lambda y: type(y).__name__,
)
def test_labels_come_in_any_container(y):
    labels = Labels.of(y, 4)
    np.testing.assert_array_equal(
        labels.encode(y, 4), [[0, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]
    )


def test_a_column_is_taken_with_scikit_learns_warning():
    from sklearn.exceptions import DataConversionWarning

    # One, not one for each time that a fit looks at them.
    labels = Labels.of(Y[:, None], 4)
    with pytest.warns(DataConversionWarning, match="column-vector y"):
        assert labels.encode(Y[:, None], 4).shape == (4, 3)


def test_weights_are_counted():
    labels = Labels.of(Y, 4)
    assert labels.counted(Y, None).counts.tolist() == [1, 2, 1]
    weighted = labels.counted(Y, np.array([0.5, 1.0, 2.0, 0.0]))
    assert weighted.counts.tolist() == [1, 2.5, 0]
    # Those of more rows are added; the labels themselves do not change.
    assert weighted.counted(Y[:1], None).counts.tolist() == [1, 3.5, 0]
    assert labels.counts.tolist() == [0, 0, 0]
    assert labels.counted(Y[:0], None).counts.tolist() == [0, 0, 0]


def test_one_label_for_all_rows():
    labels = Labels.of(Y, 4)
    np.testing.assert_array_equal(labels.given("b", 2), [[0, 1, 0]] * 2)
    np.testing.assert_array_equal(labels.given(["c", "a"], 2), [[0, 0, 1], [1, 0, 0]])
    numbers = Labels.of([3, 5], 2)
    np.testing.assert_array_equal(numbers.given(np.int64(5), 2), [[0, 1]] * 2)
    with pytest.raises(ValueError, match="y is None: give one class label"):
        labels.given(None, 2)


def test_labels_are_drawn_as_frequent_as_they_were():
    """Finding 35: sample(y=None)."""
    labels = Labels.of(Y, 4).counted(Y, np.array([1.0, 6.0, 2.0, 1.0]))
    state = np.random.RandomState(0)
    condition = labels.chosen(None, 20_000, state)
    np.testing.assert_allclose(condition.mean(axis=0), [0.6, 0.3, 0.1], atol=0.02)
    np.testing.assert_array_equal(labels.chosen("a", 2, state), [[1, 0, 0]] * 2)


def test_alternatives_of_a_row_are_all_labels_that_were_seen():
    labels = Labels.of(Y, 4).counted(Y[:3], np.array([2.0, 3.0, 4.0]))
    parts = labels.alternatives(None, 2)
    assert [share for share, _ in parts] == pytest.approx(np.log([1 / 3, 2 / 3]))
    conditions = [condition.tolist() for _, condition in parts]
    assert conditions == [[[1, 0, 0]] * 2, [[0, 1, 0]] * 2]
    ((share, condition),) = labels.alternatives(["c", "a"], 2)
    assert share == 0
    assert condition.tolist() == [[0, 0, 1], [1, 0, 0]]


@pytest.mark.parametrize(
    ("y", "match"),
    [
        (None, "y is None: give one class label"),
        (["a", "b"], "y has 2 labels, but there are 4 rows"),
        (["a", "b", None, "c"], "missing label"),
        ([1.0, np.nan, 2.0, 1.0], "missing label"),
        (pd.array(["a", None, "b", "c"], dtype="string"), "missing label"),
        (pd.array([1, None, 2, 3], dtype="Int64"), "missing label"),
        (pd.Series(pd.Categorical(["a", None, "b", "c"])), "missing label"),
        (
            np.array(["a", 1, "b", 2], object),
            r"mixes labels of the types \['int', 'str'\].*dtype=str",
        ),
        ([0.1, 0.2, 0.35, 0.4], "Unknown label type: continuous"),
    ],
    ids=str,
)
def test_what_are_no_labels_is_refused(y, match):
    with pytest.raises(ValueError, match=match):
        Labels.of(y, 4)


def test_unknown_labels_are_refused_by_name():
    labels = Labels.of(Y, 4)
    message = r"unknown label 'x'; fit saw the classes \['a', 'b', 'c'\]"
    with pytest.raises(ValueError, match=message):
        labels.encode(["a", "x"], 2)
    with pytest.raises(ValueError, match=message):
        labels.given("x", 3)
    with pytest.raises(ValueError, match=r"unknown label 1\b"):
        labels.given(1, 3)
    with pytest.raises(ValueError, match="missing label"):
        labels.encode(["a", None], 2)


# ------------------------------------------------------------------ no labels


def test_without_labels_y_is_ignored_but_where_it_is_asked_for():
    none = NoLabels()
    assert none.n_conditions == 0
    assert none.encode(Y, 4) is None
    assert none.encode(None, 7) is None
    assert none.given(None, 4) is None
    assert none.chosen(None, 4, np.random.RandomState(0)) is None
    assert none.alternatives(Y, 4) == [(0.0, None)]
    assert none.counted(Y, None) is none
    for refuse in (
        none.given,
        lambda y, n: none.chosen(y, n, np.random.RandomState(0)),
    ):
        with pytest.raises(ValueError, match=r"y='a' was given.*ConditionalVAE"):
            refuse("a", 4)


# ------------------------------------------------------------------ states


@pytest.mark.parametrize("y", [Y, [3, 1, 3], [True, False], [0.0, 2.0]])
def test_state_there_and_back(y):
    labels = Labels.of(y, len(y)).counted(y, None)
    twin = Labels.from_state(pickle.loads(pickle.dumps(labels.state())))
    np.testing.assert_array_equal(twin.classes, labels.classes)
    np.testing.assert_array_equal(twin.counts, labels.counts)
    np.testing.assert_array_equal(twin.encode(y, len(y)), labels.encode(y, len(y)))
    assert NoLabels().state() == {}


ONE = np.array([1.0])


@pytest.mark.parametrize(
    ("state", "match"),
    [
        ({}, "must hold"),
        (None, "must hold"),
        ({"classes": ONE}, "must hold"),
        ({"classes": ["a"], "counts": ONE}, "arrays of one dimension"),
        ({"classes": np.array([["a"]]), "counts": ONE}, "arrays of one dimension"),
        ({"classes": np.array(["a", "b"]), "counts": ONE}, "weight of each class"),
        ({"classes": np.array(["a"]), "counts": -ONE}, "weight of each class"),
        ({"classes": np.array(["a"]), "counts": 0 * ONE}, "weight of each class"),
        ({"classes": np.array(["a"]), "counts": np.nan * ONE}, "weight of each class"),
        ({"classes": np.array(["a"]), "counts": np.inf * ONE}, "weight of each class"),
        ({"classes": np.array(["a"]), "counts": np.array(["b"])}, "weight of each"),
        ({"classes": np.array(["a", "a"]), "counts": np.ones(2)}, "sorted"),
        ({"classes": np.array(["b", "a"]), "counts": np.ones(2)}, "sorted"),
        ({"classes": np.array(["b", 1], object), "counts": np.ones(2)}, "sorted"),
    ],
    ids=str,
)
def test_bad_states_are_refused(state, match):
    with pytest.raises(ValueError, match=match):
        Labels.from_state(state)

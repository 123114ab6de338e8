"""Data frames with columns of several kinds: into columns of numbers, and back."""

import datetime as dt
import pickle

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator, clone
from sklearn.model_selection import cross_val_score

from skvae import Mixed, NegativeBinomial, StudentT, VAEEstimator
from skvae.checks import refuse_missing
from skvae.forms import Table


class Checker(BaseEstimator):
    """What scikit-learn's checks leave their findings on."""


def columns_of(form, X):
    return form.batch(form.check(Checker(), X, reset=True))


def there_and_back(X, kinds=None):
    form = Table.of(X, kinds)
    array, observed = columns_of(form, X)
    assert observed is None
    return form, array, form.decode(array, like=X)


# ------------------------------------------------------------------ every column kind

TEXT = st.text("aBé \n'\"", max_size=3)
DATES = st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2100, 1, 1))
WHOLE = {
    bits: st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16, 32)
}
NATURAL = {bits: st.integers(0, 2**bits - 1) for bits in (8, 16, 32)}
# Larger ones are no float64.
LARGE, LARGE_NATURAL = st.integers(-(2**53), 2**53), st.integers(0, 2**53)
FLOATS = st.floats(-1e300, 1e300)
NARROW = st.floats(-(2.0**99), 2.0**99, width=32)
# Longer ones are no number of microseconds.
SPANS = st.timedeltas(dt.timedelta(-(10**4)), dt.timedelta(10**4))

# dtype -> (kind, values)
PANDAS = {
    **{f"int{bits}": ("number", values) for bits, values in WHOLE.items()},
    **{f"uint{bits}": ("number", values) for bits, values in NATURAL.items()},
    **{f"Int{bits}": ("number", values) for bits, values in WHOLE.items()},
    "int64": ("number", LARGE),
    "uint64": ("number", LARGE_NATURAL),
    "UInt64": ("number", LARGE_NATURAL),
    "float64": ("number", FLOATS),
    "Float64": ("number", FLOATS),
    "float32": ("number", NARROW),
    "Float32": ("number", NARROW),
    "bool": ("boolean", st.booleans()),
    "boolean": ("boolean", st.booleans()),
    "str": ("category", TEXT),
    "string": ("category", TEXT),
    "object": ("category", st.one_of(TEXT, st.booleans())),
    "category": ("category", TEXT),
    "datetime64[us]": ("date", DATES),
    "datetime64[ns]": ("date", DATES),
    "datetime64[s]": ("date", DATES.map(lambda when: when.replace(microsecond=0))),
    "datetime64[us, UTC]": ("date", DATES),
    "datetime64[ns, Europe/Berlin]": ("date", DATES),
    "timedelta64[us]": ("category", SPANS),
}
POLARS = {
    **{getattr(pl, f"Int{bits}"): ("number", values) for bits, values in WHOLE.items()},
    **{getattr(pl, f"UInt{b}"): ("number", values) for b, values in NATURAL.items()},
    pl.Int64: ("number", LARGE),
    pl.UInt64: ("number", LARGE_NATURAL),
    pl.Int128: ("number", LARGE),
    pl.Float64: ("number", FLOATS),
    pl.Float32: ("number", NARROW),
    pl.Decimal(12, 2): ("number", st.decimals(-1000, 1000, places=2)),
    pl.Boolean: ("boolean", st.booleans()),
    pl.String: ("category", TEXT),
    pl.Categorical: ("category", TEXT),
    pl.Enum(["b", "a", "(c", "d='e'"]): (
        "category",
        st.sampled_from(["a", "b", "(c", "d='e'"]),
    ),
    pl.Date: ("date", st.dates(dt.date(1900, 1, 1), dt.date(2100, 1, 1))),
    pl.Datetime("us"): ("date", DATES),
    pl.Datetime("ns"): ("date", DATES),
    pl.Datetime("ms"): ("date", DATES.map(lambda when: when.replace(microsecond=0))),
    pl.Datetime("us", "Europe/Berlin"): ("date", DATES),
    pl.Time: ("category", st.times()),
    pl.Duration("us"): ("category", SPANS),
}


def pandas_column(values, dtype):
    if dtype.startswith("datetime64") and "," in dtype:
        zone = dtype.partition(", ")[2][:-1]
        naive = pd.Series(values, dtype="datetime64[us]").dt.tz_localize("UTC")
        return naive.dt.tz_convert(zone).astype(dtype)
    return pd.Series(values, dtype=dtype)


@pytest.mark.parametrize("dtype", PANDAS)
@settings(max_examples=10)
@given(data=st.data())
def test_pandas_columns_come_back(dtype, data):
    kind, values = PANDAS[dtype]
    column = pandas_column(data.draw(st.lists(values, min_size=1, max_size=8)), dtype)
    column.index = column.index[::-1] + 5
    X = pd.DataFrame({"x": column})
    form, array, back = there_and_back(X, {})
    assert form.columns[0].kind == kind
    assert form.columns[0].integral == ("int" in dtype.lower())
    assert array.dtype == np.float64
    pd.testing.assert_frame_equal(back, X)
    twin = Table.from_state(pickle.loads(pickle.dumps(form.state())))
    pd.testing.assert_frame_equal(twin.decode(array, like=X), X)


@pytest.mark.parametrize("dtype", POLARS, ids=str)
@settings(max_examples=10)
@given(data=st.data())
def test_polars_columns_come_back(dtype, data):
    kind, values = POLARS[dtype]
    column = pl.Series(data.draw(st.lists(values, min_size=1, max_size=8)))
    if dtype == pl.Datetime("us", "Europe/Berlin"):
        column = column.dt.replace_time_zone("UTC")
    X = pl.DataFrame({"x": column.cast(dtype)})
    form, array, back = there_and_back(X, {})
    assert form.columns[0].kind == kind
    assert form.columns[0].integral == ("Int" in str(dtype))
    assert array.dtype == np.float64
    assert back.schema == X.schema
    assert back.equals(X)
    twin = Table.from_state(pickle.loads(pickle.dumps(form.state())))
    assert twin.decode(array).equals(X)


@pytest.mark.parametrize("ordered", [False, True])
def test_categories_keep_their_order_and_those_without_a_row(ordered):
    X = pd.DataFrame(
        {"x": pd.Categorical(["b", "a"], categories=["b", "c", "a"], ordered=ordered)}
    )
    form, array, back = there_and_back(X)
    (column,) = form.columns
    assert (column.kind, column.n_values, column.ordered) == ("category", 3, ordered)
    assert array.ravel().tolist() == [0, 2]
    pd.testing.assert_frame_equal(back, X)


@pytest.mark.parametrize(
    "values", [[3, 1, 2], [2.5, 1.0, 7.0], [True, False, True], ["x", "y", "z"]]
)
def test_categories_of_any_values(values):
    X = pd.DataFrame({"x": pd.Categorical(values)})
    _, array, back = there_and_back(X)
    assert sorted(set(values)) == [
        sorted(set(values))[int(c)] for c in np.unique(array)
    ]
    pd.testing.assert_frame_equal(back, X)
    X = pd.DataFrame({"x": pd.Series(values)})
    _, _, back = there_and_back(X, {"x": "category"})
    pd.testing.assert_frame_equal(back, X)


def test_encoded_by_hand():
    X = pd.DataFrame({"a": [1.5, 2.0], "b": ["y", "x"], "c": [True, False]})
    _, array, back = there_and_back(X)
    np.testing.assert_array_equal(array, [[1.5, 1, 1], [2.0, 0, 0]])
    assert back.equals(X)


def test_numbers_of_dtype_object_come_back_as_numbers():
    """Finding 17c: they became categories."""
    X = pd.DataFrame({"a": [1, 2.5, 3], "b": ["x", "y", "x"]}).astype({"a": object})
    form, array, back = there_and_back(X)
    assert form.columns[0].kind == "number"
    np.testing.assert_array_equal(array[:, 0], [1, 2.5, 3])
    assert back["a"].tolist() == [1, 2.5, 3]


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_whole_numbers_stay_whole_and_within_their_dtype(library):
    frame = pd.DataFrame if library == "pandas" else pl.DataFrame
    dtypes = {"a": "int8", "b": "uint8", "c": "int64", "d": "uint64"}
    numbers = {name: np.array([1, 2], dtype) for name, dtype in dtypes.items()}
    form = Table.of(frame({**numbers, "e": ["x", "y"]}))
    wild = np.array([[1e30] * 4 + [0], [-1e30] * 4 + [5], [0.6] * 4 + [-3]])
    rows = form.decode(wild)
    assert [rows[name][1] for name in dtypes] == [-128, 0, -(2**63), 0]
    assert [rows[name][0] for name in "ab"] == [127, 255]
    assert 2**63 - 2048 < rows["c"][0] < 2**63
    assert 2**64 - 4096 < rows["d"][0] < 2**64
    assert [rows[name][2] for name in dtypes] == [1] * 4
    assert list(rows["e"]) == ["x", "y", "x"]


def test_an_index_comes_back_only_with_rows_of_its_own():
    X = pd.DataFrame({"a": ["x", "y"], "b": [1, 2]}, index=["one", "two"])
    form, array, back = there_and_back(X)
    assert list(back.index) == ["one", "two"]
    assert list(form.decode(array).index) == [0, 1]
    assert list(form.decode(array[:1], like=X).index) == [0]
    # Of codes that were given as a data frame, too.
    codes = pd.DataFrame(np.zeros((2, 3)), index=["three", "four"])
    assert list(form.decode(array, like=codes).index) == ["three", "four"]
    assert list(form.decode(array, like=np.zeros((2, 3))).index) == [0, 1]


def test_categories_of_any_values_go_through_a_pickle():
    """Whatever it is that a data frame takes for a category."""
    values = [dt.date(2020, 1, 1), dt.date(2021, 1, 1)] * 10
    X = pd.DataFrame(
        {"day": pd.Series(values, dtype=object), "span": pd.to_timedelta([1, 2] * 10)}
    )
    vae = VAEEstimator(1, hidden_dim=3, epochs=1, random_state=0).fit(X)
    again = pickle.loads(pickle.dumps(vae))
    pd.testing.assert_frame_equal(again.reconstruct(X), vae.reconstruct(X))
    assert set(again.sample(9, random_state=0)["day"]) <= set(values)


def test_names_need_not_be_strings():
    X = pd.DataFrame({0: [1.5, 2.5], 1: ["x", "y"]})
    form, _, back = there_and_back(X)
    assert form.names == [0, 1]
    pd.testing.assert_frame_equal(back, X)


# ------------------------------------------------------------------ missing entries

HOLES = {
    "float": pd.Series([1.5, np.nan, 2.5]),
    "Int64": pd.Series([1, None, 3], dtype="Int64"),
    "boolean": pd.Series([True, None, False], dtype="boolean"),
    "object flags": pd.Series([True, None, False], dtype=object),
    "object numbers": pd.Series([1.5, None, 2], dtype=object),
    "text": pd.Series(["x", None, "y"]),
    "string": pd.Series(["x", None, "y"], dtype="string"),
    "category": pd.Series(pd.Categorical(["x", None, "y"])),
    "date": pd.Series(pd.to_datetime(["2020-01-01", None, "2021-01-01"])),
    "zoned": pd.Series(pd.to_datetime(["2020-01-01", None, "2021-01-01"], utc=True)),
}
POLARS_HOLES = {
    "float": pl.Series([1.5, None, 2.5]),
    "NaN": pl.Series([1.5, float("nan"), 2.5]),
    "integer": pl.Series([1, None, 3]),
    "flag": pl.Series([True, None, False]),
    "text": pl.Series(["x", None, "y"]),
    "category": pl.Series(["x", None, "y"], dtype=pl.Categorical),
    "enum": pl.Series(["x", None, "y"], dtype=pl.Enum(["y", "x"])),
    "date": pl.Series([dt.date(2020, 1, 1), None, dt.date(2021, 1, 1)]),
    "zoned": pl.Series([dt.datetime(2020, 1, 1), None, dt.datetime(2021, 1, 1)])
    .dt.replace_time_zone("UTC"),
}  # fmt: skip
FRAMES = {
    **{f"pandas {k}": pd.DataFrame({"x": s}) for k, s in HOLES.items()},
    **{f"polars {k}": pl.DataFrame({"x": s}) for k, s in POLARS_HOLES.items()},
}


@pytest.mark.parametrize("name", FRAMES)
class TestMissing:
    def test_they_are_not_observed(self, name):
        X = FRAMES[name]
        form = Table.of(X, {})
        array, observed = columns_of(form, X)
        assert observed.ravel().tolist() == [True, False, True]
        assert np.isnan(array[1, 0])
        assert np.isfinite(array[[0, 2], 0]).all()
        # Without the hole the other rows are the same.
        rows = X.iloc[[0, 2]] if isinstance(X, pd.DataFrame) else X[[0, 2]]
        whole, observed = form.batch(rows)
        assert observed is None
        np.testing.assert_array_equal(whole, array[[0, 2]])

    def test_they_are_refused_by_name(self, name):
        X = FRAMES[name]
        form = Table.of(X, {})
        with pytest.raises(
            ValueError, match=r"column 'x' has a missing entry in row 1.*SimpleImputer"
        ):
            refuse_missing(columns_of(form, X)[1], form.names)

    def test_fill_leaves_what_was_there(self, name):
        X = FRAMES[name]
        form = Table.of(X, {})
        array, _ = columns_of(form, X)
        decoded = form.decode(array[[0, 0, 0]], like=X)
        filled = form.fill(X, decoded)
        assert type(filled) is type(X)
        again, observed = columns_of(form, filled)
        assert observed is None
        np.testing.assert_array_equal(again, array[[0, 0, 2]])
        if "object" not in name:
            assert filled["x"].dtype == X["x"].dtype


@pytest.mark.parametrize("column", ["numbers", "text"])
def test_the_estimator_refuses_missing_entries_by_name(column):
    X = pd.DataFrame({"numbers": np.arange(20.0), "text": ["a", "b"] * 10})
    bad = X.copy()
    bad.loc[3, column] = None
    vae = VAEEstimator(1, hidden_dim=3, epochs=1, random_state=0)
    with pytest.raises(ValueError, match=rf"column '{column}' .*missing.* in row 3"):
        vae.fit(bad)
    assert not hasattr(vae, "fitted_")
    with pytest.raises(ValueError, match=rf"column '{column}' .*missing.* in row 3"):
        vae.fit(X).score(bad)


# ------------------------------------------------------------------ what is refused


def test_unknown_categories_are_refused_by_name():
    X = pd.DataFrame({"drink": ["tea", "coffee"], "n": [1, 2]})
    form = Table.of(X)
    with pytest.raises(
        ValueError,
        match=r"'drink' has the unknown value 'gin'; fit saw \['coffee', 'tea'\]",
    ):
        form.batch(X.assign(drink="gin"))
    many = pd.DataFrame({"id": [f"{i:03}" for i in range(500)]})
    with pytest.raises(ValueError, match=r"unknown value 'x'.*'000', .*\.\.\.\]"):
        Table.of(many).batch(pd.DataFrame({"id": ["x"]}))


@pytest.mark.parametrize("auto", [None, {}])
def test_duplicate_names_are_refused_by_name(auto):
    X = pd.DataFrame([[1.0, "x", "y"]], columns=["a", "b", "b"])
    assert Table.accepts(X)
    with pytest.raises(ValueError, match=r"several columns of the name 'b'; rename"):
        Table.of(X, auto)
    vae = VAEEstimator(likelihood="auto" if auto is None else "mixed")
    with pytest.raises(ValueError, match="several columns of the name 'b'"):
        vae.fit(X)


def test_columns_are_those_that_fit_saw():
    X = pd.DataFrame({6: ["x", "y"], 5: [1, 2]})
    form = Table.of(X)
    for other in (X[[5, 6]], X[[6]], X.rename(columns={6: 7}), X.to_numpy()):
        with pytest.raises(ValueError, match=r"columns that fit saw, \[6, 5\]; got"):
            form.check(Checker(), other, reset=True)


def test_no_rows_are_refused():
    X = pd.DataFrame({"a": ["x", "y"], "b": [1, 2]})
    with pytest.raises(ValueError, match=r"0 rows \(shape=\(0, 2\)\).*by Checker"):
        Table.of(X).check(Checker(), X[:0], reset=True)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ([[1], [2]], r"'x' has values such as \[1\], which are neither numbers nor"),
        ([{"a": 1}, {}], "which are neither numbers nor categories"),
        ([1j, 2j], "which are neither numbers nor categories"),
    ],
)
def test_values_of_no_kind_are_refused_by_name(values, match):
    X = pd.DataFrame({"x": values})
    with pytest.raises(ValueError, match=match):
        Table.of(X)
    if not isinstance(values[0], complex):
        with pytest.raises(ValueError, match=match):
            Table.of(pl.DataFrame({"x": values}))


@pytest.mark.parametrize("asked", [None, {"x": "number"}])
def test_infinity_is_refused_by_name(asked):
    X = pd.DataFrame({"x": [1.0, np.inf], "y": ["a", "b"]})
    with pytest.raises(ValueError, match="'x' has the value inf in row 1"):
        Table.of(X, asked).batch(X)


def test_text_is_no_number():
    X = pd.DataFrame({"x": ["tea", "gin"]})
    with pytest.raises(ValueError, match=r"must hold numbers, but .*'tea'; .*categor"):
        Table.of(X, {"x": "number"})
    numbers = Table.of(pd.DataFrame({"x": [1.0, 2.0]}), {})
    with pytest.raises(ValueError, match=r"'x' must hold numbers"):
        numbers.batch(X)


def test_dates_stay_dates():
    X = pd.DataFrame({"x": pd.to_datetime(["2020-01-01", "2021-01-01"])})
    with pytest.raises(ValueError, match="'x' held dates at fit, and now"):
        Table.of(X).batch(pd.DataFrame({"x": [1.0, 2.0]}))
    # Asked for as numbers they still are, and flags as well.
    assert Table.of(X, {"x": "number"}).columns[0].kind == "date"
    flags = pd.DataFrame({"x": [True, False]})
    assert Table.of(flags, {"x": "number"}).columns[0].kind == "boolean"


def test_unknown_names_are_refused():
    X = pd.DataFrame({"height": [1.0]})
    with pytest.raises(ValueError, match=r"the column 'hight', but X has \['height'\]"):
        Table.of(X, {"hight": "number"})


# ------------------------------------------------------------------ bad states


def state(**changes):
    column = {
        "name": "x",
        "kind": "category",
        "dtype": "str",
        "values": ("a", "b"),
        "ordered": False,
    }
    return {"columns": [{**column, **changes}], "library": "pandas"}


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (state() | {"library": "numpy"}, "library 'numpy' must be one of"),
        (state() | {"library": ["pandas"]}, "library"),
        (state() | {"columns": []}, "must be a list of columns"),
        (state() | {"columns": None}, "must be a list of columns"),
        (state() | {"columns": [3]}, "must hold"),
        (state() | {"columns": [{"name": "x"}]}, "must hold"),
        (state(kind="complex"), "kind 'complex'"),
        (state(kind=["category"]), "kind"),
        (state(kind="number"), "cannot have the values"),
        (state(values=None), "cannot have the values None"),
        (state(values=["a"]), "the values of column 'x' must be a tuple"),
        (state(values=("a", "a")), "a value of column 'x' is there twice"),
        (state(values=([1], [2])), "the values of column 'x' must be"),
        (state() | {"columns": 2 * state()["columns"]}, "two columns have the same"),
        (state() | {"columns": 2 * state(name=[1])["columns"]}, "the same name"),
        (state(kind="number", values=None, dtype="f8,f8,f8"), "cannot have the dtype"),
        (state(dtype=7), "dtype must be a string"),
        (state(ordered=1), "ordered a bool"),
    ],
    ids=str,
)
def test_bad_states_are_refused(bad, match):
    with pytest.raises(ValueError, match=match):
        Table.from_state(bad)


@pytest.mark.parametrize(
    "dtype", ["nonsense", "read_csv", "Datetime(time_unit='x')", "Int9", "__class__"]
)
def test_states_of_unknown_dtypes_cannot_be_decoded(dtype):
    for library in ("pandas", "polars"):
        bad = state(kind="number", values=None, dtype=dtype) | {"library": library}
        with pytest.raises((ValueError, TypeError), match=r"type|time_unit"):
            Table.from_state(bad).decode(np.zeros((2, 1)))


# ------------------------------------------------------------------ a row alone


def test_a_row_of_a_table():
    X = pd.DataFrame(
        {
            "a": pd.Categorical(["x", "y"]),
            "b": [1, 2],
            "c": [0.5, np.pi],
            "d": pd.to_datetime(["2020-01-01", "2021-01-01"]),
            "e": [True, False],
        }
    )
    form = Table.of(X)
    array, _ = columns_of(form, X)
    np.testing.assert_array_equal(form.batch(form.row(X.iloc[1]))[0], array[1:])
    assert form.row(X) is X
    with pytest.raises(ValueError, match="a row of a table must be a data frame"):
        form.row([1, 2, 3])


# ------------------------------------------------------------------ to the end


@pytest.fixture(scope="module")
def people():
    """Two groups of people: the town tells the height, the number of children, ..."""
    rng = np.random.default_rng(0)
    n = 400
    group = rng.integers(2, size=n)
    return pd.DataFrame(
        {
            "height": rng.normal(160 + 20 * group, 4).astype(np.float32),
            "age": rng.integers(20, 60, size=n),
            "children": rng.poisson(1 + 4 * group),
            "smokes": rng.random(n) < 0.1 + 0.8 * group,
            "town": pd.Categorical(
                np.where(rng.random(n) < 0.9, group, 2).tolist(),
                categories=[0, 1, 2, 9],
            ).rename_categories(["Rome", "Oslo", "Bern", "Nowhere"]),
            "drink": np.where(group == 1, "tea", "coffee"),
        }
    )


FAMILIES = {"children": "count"}


def fit(X, **parameters):
    defaults = {
        "latent_dim": 2,
        "likelihood": Mixed(FAMILIES),
        "hidden_dim": 32,
        "epochs": 60,
        "learning_rate": 1e-2,
        "random_state": 0,
    }
    return VAEEstimator(**{**defaults, **parameters}).fit(X)


@pytest.fixture(scope="module")
def fitted(people):
    return fit(people)


@pytest.fixture(scope="module")
def quick(people):
    return fit(people, epochs=2, hidden_dim=8)


def test_families_follow_the_dtypes(quick):
    kinds = [repr(family) for family, _ in quick.likelihood_.families]
    assert kinds == [
        "Gaussian(scale='feature')",
        "NegativeBinomial()",
        "Bernoulli()",
        "Categorical(n_categories=(4, 2))",
    ]


def test_samples_are_a_data_frame_like_the_first(fitted, people):
    rows = fitted.sample(500, random_state=0)
    assert rows.dtypes.equals(people.dtypes)
    assert list(rows["town"].cat.categories) == ["Rome", "Oslo", "Bern", "Nowhere"]
    assert set(rows["drink"]) == {"tea", "coffee"}
    assert (rows["children"] >= 0).all()
    # What belongs together stays together.
    by_drink = rows.groupby("drink")["height"].mean()
    assert by_drink["tea"] - by_drink["coffee"] > 8
    assert abs(rows["children"].mean() - people["children"].mean()) < 0.7


def test_reconstruction_keeps_dtypes_and_index(fitted, people):
    """Finding 17c: assigned back, rows were misaligned."""
    rows = people[:50].sample(frac=1, random_state=0)
    again = fitted.reconstruct(rows)
    assert again.dtypes.equals(people.dtypes)
    assert again.index.equals(rows.index)
    assert (again["drink"] == rows["drink"]).mean() > 0.9
    codes = fitted.transform(rows)
    assert codes.shape == (50, 2)
    back = fitted.inverse_transform(codes)
    pd.testing.assert_frame_equal(back, again.reset_index(drop=True))
    line = fitted.interpolate(people[:2], people[2:4], 5)
    assert line.shape == (10, 6)
    ends = fitted.interpolate(people.iloc[0], people.iloc[2], 5)
    pd.testing.assert_frame_equal(ends, line[:5])


def test_scores_are_those_of_the_parts(fitted, quick, people):
    assert fitted.score(people) > quick.score(people) + 1
    scores = fitted.score_samples(people)
    alone = fitted.score_samples(people[7:9])
    np.testing.assert_allclose(alone, scores[7:9], rtol=1e-4)


def test_a_unit_is_a_matter_of_the_user(quick, people):
    """A density in metres is 100 times higher."""
    metres = people.assign(height=people["height"] / 100)
    shift = fit(metres, epochs=2, hidden_dim=8).score(metres) - quick.score(people)
    assert shift == pytest.approx(np.log(100), abs=0.01)


def test_polars_to_the_end(people):
    """Finding 25a: Categorical and Enum columns crashed with polars 2."""
    plain = pl.DataFrame({name: people[name].to_list() for name in people})
    towns = pl.Enum(["Rome", "Oslo", "Bern", "Nowhere"])
    plain = plain.with_columns(pl.col("town").cast(towns))
    X = plain.with_columns(pl.col("drink").cast(pl.Categorical))
    vae = fit(X, epochs=1, hidden_dim=4)
    rows = vae.sample(5, random_state=0)
    assert isinstance(rows, pl.DataFrame)
    assert rows.schema == X.schema
    assert "n_categories=(4, 2)" in repr(vae.likelihood_)
    assert vae.reconstruct(X[:5]).schema == X.schema
    # The same numbers as of pandas, it is the same model.
    vae = fit(plain, epochs=1, hidden_dim=4)
    assert vae.score(plain) == pytest.approx(
        fit(people, epochs=1, hidden_dim=4).score(people)
    )


def test_in_a_search_and_a_pickle(quick, people):
    vae = clone(quick)
    assert np.isfinite(cross_val_score(vae, people, cv=2)).all()
    again = pickle.loads(pickle.dumps(quick))
    np.testing.assert_array_equal(again.transform(people), quick.transform(people))
    pd.testing.assert_frame_equal(
        again.sample(5, random_state=0), quick.sample(5, random_state=0)
    )


def test_families_may_be_likelihoods(people):
    families = {"height": StudentT(), "children": NegativeBinomial("shared")}
    vae = fit(people, likelihood=Mixed(families), epochs=1, hidden_dim=4)
    assert "StudentT()" in repr(vae.likelihood_)


@pytest.mark.parametrize("likelihood", ["mixed", "auto"])
def test_by_name_and_with_validation(people, likelihood):
    X = people.drop(columns="children")
    options = {"likelihood": likelihood, "epochs": 1, "hidden_dim": 4}
    vae = fit(X, validation_fraction=0.2, **options)
    assert vae.sample(2).shape == (2, 5)
    assert np.isfinite(vae.history_.validation_loss).all()
    vae = VAEEstimator(2, **options).fit(X[:300], X_val=X[300:])
    assert np.isfinite(vae.history_.validation_loss).all()


def test_dates_have_a_density_of_their_own():
    rng = np.random.default_rng(0)
    days = pd.to_timedelta(rng.integers(0, 3650, 200), unit="D")
    X = pd.DataFrame({"when": pd.Timestamp("2010-01-01") + days, "flag": True})
    vae = fit(X, likelihood="auto", epochs=2, hidden_dim=4)
    rows = vae.sample(100, random_state=0)
    assert rows["when"].dt.year.between(1990, 2040).all()
    assert rows["when"].std() > pd.Timedelta(300, "D")
    # A date that fit has not seen is a date like any other.
    new = pd.DataFrame({"when": [pd.Timestamp("2012-03-04 05:06:07")], "flag": [True]})
    assert np.isfinite(vae.score(new))


def test_clear_errors(quick, people):
    with pytest.raises(TypeError, match=r"from a data frame; got ndarray"):
        fit(people[["height"]].to_numpy())
    with pytest.raises(ValueError, match="unknown value 'gin'"):
        quick.transform(people[:3].assign(drink="gin"))
    with pytest.raises(ValueError, match="families names the column 'hight'"):
        fit(people, likelihood=Mixed({"hight": "count"}))
    with pytest.raises(ValueError, match="the family 'number'; expected one of"):
        fit(people, likelihood=Mixed({"height": "number"}))
    with pytest.raises(ValueError, match="'drink' must hold numbers"):
        fit(people, likelihood=Mixed({"drink": "count"}))
    with pytest.raises(ValueError, match="'age' has 40 values, but its family"):
        fit(people, likelihood=Mixed({"age": "binary"}))
    with pytest.raises(ValueError, match=r"column 'height' .*missing"):
        fit(people.assign(height=np.nan))
    with pytest.raises(ValueError, match=r"column 'drink' .*missing"):
        fit(people.assign(drink=[None, *people["drink"][1:]]))
    with pytest.raises(ValueError, match=r"-1.* column 'children'"):
        fit(people.assign(children=-1))
    with pytest.raises(ValueError, match=r"column 'town' holds categories, which Gau"):
        fit(people, likelihood="gaussian")

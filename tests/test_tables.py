import pickle

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.model_selection import cross_val_score

from skvae import Mixed, NegativeBinomial, StudentT, VAEEstimator
from skvae.tables import Table


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


def test_families_follow_the_dtypes(people):
    table = Table.fit(people, FAMILIES)
    assert [column.family for column in table.columns] == [
        "numeric", "numeric", "count", "binary", "categorical", "categorical",
    ]  # fmt: skip
    assert table.columns[4].values == ("Rome", "Oslo", "Bern", "Nowhere")
    assert table.encoded_names[-3:] == ["town=Nowhere", "drink=coffee", "drink=tea"]
    kinds = [repr(family) for family, _ in table.likelihood.families]
    assert kinds == [
        "Gaussian(scale='feature')",
        "NegativeBinomial()",
        "Bernoulli()",
        "Categorical(n_categories=(4, 2))",
    ]


def test_encoded_by_hand():
    X = pd.DataFrame({"a": [1.5, 2.0], "b": ["x", "y"], "c": [True, False]})
    table = Table.fit(X, None)
    expected = [[1.5, 1, 0, 1], [2.0, 0, 1, 0]]
    np.testing.assert_array_equal(table.encode(X), expected)
    assert table.decode(np.array(expected)).equals(X)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(-1e6, 1e6), st.integers(-(10**9), 10**9), st.booleans(),
            st.sampled_from(["", "a", "B", "é"]),
        ),
        min_size=1,
        max_size=20,
    ),
    st.sampled_from(["pandas", "polars"]),
)  # fmt: skip
def test_decode_undoes_encode(rows, library):
    names = ["number", "integer", "flag", "text"]
    data = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    X = pd.DataFrame(data) if library == "pandas" else pl.DataFrame(data)
    table = Table.fit(X, {"flag": "binary"})
    again = table.decode(table.encode(X))
    assert type(again) is type(X)
    assert again.equals(X)


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


def test_reconstruction_and_inverse_keep_dtypes(fitted, people):
    again = fitted.reconstruct(people[:50])
    assert again.dtypes.equals(people.dtypes)
    assert (again["drink"] == people["drink"][:50]).mean() > 0.9
    codes = fitted.transform(people[:50])
    assert codes.shape == (50, 2)
    pd.testing.assert_frame_equal(fitted.inverse_transform(codes), again)
    line = fitted.interpolate(people[:2], people[2:4], 5)
    assert line.shape == (10, 6)


def test_scores_are_those_of_the_parts(fitted, people):
    assert fitted.score(people) > fit(people, epochs=1).score(people) + 1
    scores = fitted.score_samples(people)
    np.testing.assert_allclose(
        fitted.score_samples(people[7:9]), scores[7:9], rtol=1e-4
    )
    # A column's unit is a matter of the user: a density in metres is 100 times higher.
    metres = people.assign(height=people["height"] / 100)
    shift = fit(metres, epochs=5).score(metres) - fit(people, epochs=5).score(people)
    assert shift == pytest.approx(np.log(100), abs=0.01)


def test_polars(people):
    X = pl.DataFrame({name: people[name].to_list() for name in people})
    vae = fit(X, epochs=2)
    rows = vae.sample(5, random_state=0)
    assert isinstance(rows, pl.DataFrame)
    assert rows.schema == X.schema


def test_in_a_search_and_a_pickle(people):
    vae = clone(fit(people, epochs=1))
    assert np.isfinite(cross_val_score(vae, people, cv=2)).all()
    vae.fit(people)
    again = pickle.loads(pickle.dumps(vae))
    np.testing.assert_array_equal(again.transform(people), vae.transform(people))


def test_families_may_be_likelihoods(people):
    families = {"height": StudentT(), "children": NegativeBinomial("shared")}
    vae = fit(people, likelihood=Mixed(families), epochs=1)
    assert "StudentT()" in repr(vae.likelihood_)


def test_by_name_and_with_validation(people):
    vae = fit(people.drop(columns="children"), likelihood="mixed", epochs=2)
    assert vae.sample(2).shape == (2, 5)
    vae = fit(people, epochs=2, validation_fraction=0.2)
    assert np.isfinite(vae._records[-1].validation_loss)
    vae = VAEEstimator(2, likelihood="mixed", epochs=1).fit(
        people[:300], X_val=people[300:]
    )
    assert np.isfinite(vae._records[-1].validation_loss)


def test_clear_errors(fitted, people):
    with pytest.raises(TypeError, match=r"from a data frame; got ndarray"):
        fit(people[["height"]].to_numpy())
    with pytest.raises(ValueError, match="unknown value 'gin'"):
        fitted.transform(people[:3].assign(drink="gin"))
    with pytest.raises(ValueError, match="families names the column 'hight'"):
        fit(people, likelihood=Mixed({"hight": "count"}))
    with pytest.raises(ValueError, match="the family 'number'; expected one of"):
        fit(people, likelihood=Mixed({"height": "number"}))
    with pytest.raises(ValueError, match="'drink' has the family 'count'"):
        fit(people, likelihood=Mixed({"drink": "count"}))
    with pytest.raises(ValueError, match="is to be binary, but has the values"):
        fit(people, likelihood=Mixed({"age": "binary"}))
    with pytest.raises(ValueError, match="Impute"):
        fit(people.assign(height=np.nan))
    with pytest.raises(ValueError, match="missing values"):
        fit(people.assign(drink=[None, *people["drink"][1:]]))
    with pytest.raises(ValueError, match=r"-1.* column 'children'"):
        fit(people.assign(children=-1))

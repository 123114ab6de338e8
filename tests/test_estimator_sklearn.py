"""One more step among scikit-learn's: names, outputs, pipelines, grids, routing."""

import sys

import numpy as np
import pandas as pd
import polars as pl
import pytest
import sklearn
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler

from estimator_helpers import (
    HISTORY,
    assert_equal,
    assert_same_weights,
    snapshot,
    tiny,
)

# ------------------------------------------------------------------ names and outputs


def test_feature_names_out(iris):
    model = tiny(latent_dim=3, epochs=1).fit(iris)
    names = ["vaeestimator0", "vaeestimator1", "vaeestimator2"]
    assert list(model.get_feature_names_out()) == names
    pipe = make_pipeline(MinMaxScaler(), tiny(latent_dim=3, epochs=1)).fit(iris)
    assert list(pipe.get_feature_names_out()) == names


@pytest.mark.parametrize(("name", "module"), [("pandas", pd), ("polars", pl)])
def test_set_output(iris, name, module):
    frame = pd.DataFrame(iris, columns=list("abcd"), index=np.arange(150) * 2)
    X = frame if name == "pandas" else pl.DataFrame(iris, schema=list("abcd"))
    model = tiny().set_output(transform=name).fit(X)
    for out in (model.transform(X), tiny().set_output(transform=name).fit_transform(X)):
        assert isinstance(out, module.DataFrame)
        assert list(out.columns) == ["vaeestimator0", "vaeestimator1"]
        np.testing.assert_allclose(
            out.to_numpy(), tiny().fit(iris).transform(iris), atol=1e-5
        )
    if name == "pandas":
        assert out.index.equals(frame.index)
    # The other methods work on frames and give arrays.
    assert isinstance(model.reconstruct(X), np.ndarray)
    assert isinstance(model.score_samples(X), np.ndarray)
    assert isinstance(model.inverse_transform(out), np.ndarray)
    pipe = make_pipeline(MinMaxScaler(), tiny()).set_output(transform=name).fit(X)
    assert isinstance(pipe.transform(X), module.DataFrame)
    assert np.isfinite(pipe.score(X))


def test_transform_output_of_the_user_does_not_matter(iris, fitted_iris):
    model = fitted_iris
    with sklearn.config_context(transform_output="pandas"):
        assert isinstance(model.transform(iris), pd.DataFrame)
        assert isinstance(model.reconstruct(iris), np.ndarray)
        assert isinstance(model.interpolate(iris[0], iris[1]), np.ndarray)
        assert isinstance(tiny().fit_transform(iris), pd.DataFrame)


def test_feature_names(iris):
    frame = pd.DataFrame(iris, columns=list("abcd"))
    model = tiny().fit(frame)
    assert list(model.feature_names_in_) == list("abcd")
    for method in (
        model.transform,
        model.reconstruct,
        model.score,
        model.score_samples,
        model.log_likelihood,
        model.partial_fit,
        lambda X: model.fit(frame, X_val=X),
    ):
        before = snapshot(model)
        with pytest.raises(ValueError, match="feature names should match"):
            method(frame[list("badc")])
        assert_equal(before, snapshot(model))
        with pytest.warns(UserWarning, match="does not have valid feature names"):
            method(iris)
    assert not hasattr(tiny().fit(iris), "feature_names_in_")
    # A fit to rows without names forgets those of the fit before.
    assert not hasattr(model.fit(iris), "feature_names_in_")


def test_html_repr_links_to_the_documentation(iris):
    link = "https://skvae.readthedocs.io/en/latest/api/skvae.VAEEstimator.html"
    for model in (tiny(), tiny(epochs=1).fit(iris)):
        assert link in model._repr_html_()
    assert link in make_pipeline(MinMaxScaler(), tiny())._repr_html_()


# ------------------------------------------------------------------ the history


def test_history_is_a_table_of_numbers(iris):
    frame = tiny(epochs=3).fit(iris).history_
    assert isinstance(frame, pd.DataFrame)
    assert list(frame.columns) == HISTORY
    assert list(frame.epoch) == [1, 2, 3]
    assert frame.active_units.between(0, 2).all()
    assert (frame.seconds > 0).all()
    assert (frame.kl >= 0).all()
    # Plotting and arithmetic fail on columns of objects: a missing loss is NaN.
    assert {str(dtype) for dtype in frame.dtypes} <= {"int64", "float64"}
    assert frame.validation_loss.isna().all()
    assert np.isnan(frame.validation_loss.min())
    with_validation = tiny(validation_fraction=0.2).fit(iris).history_
    assert with_validation.notna().all(axis=None)
    assert list(with_validation.columns) == HISTORY


def test_history_is_a_copy(fitted_iris):
    table = fitted_iris.history_
    table.loc[0, "loss"] = 0
    assert fitted_iris.history_.loss[0] != 0


def test_history_without_pandas(fitted_iris, monkeypatch):
    expected = fitted_iris.history_.to_dict("records")
    monkeypatch.setitem(sys.modules, "pandas", None)
    records = fitted_iris.history_
    assert isinstance(records, list)
    assert [list(record) for record in records] == [HISTORY, HISTORY]
    for record, row in zip(records, expected, strict=True):
        assert record["loss"] == row["loss"]
        assert record["epoch"] == row["epoch"]


# ------------------------------------------------------------------ among other steps


def test_column_transformer(iris):
    frame = pd.DataFrame(iris, columns=list("abcd"))
    both = ColumnTransformer(
        [("vae", tiny(epochs=1), ["a", "b", "c"])], remainder="passthrough"
    )
    out = both.set_output(transform="pandas").fit_transform(frame)
    assert list(out.columns) == [
        "vae__vaeestimator0",
        "vae__vaeestimator1",
        "remainder__d",
    ]


def test_codes_are_arrays_that_any_other_step_takes(iris):
    pipe = make_pipeline(tiny(epochs=1), FunctionTransformer(np.abs)).fit(iris)
    assert (pipe.transform(iris) >= 0).all()
    assert np.isfinite(pipe.transform(iris)).all()


def test_a_pipeline_goes_back_to_the_units_of_the_user(digits):
    pipe = make_pipeline(MinMaxScaler(), tiny(epochs=5)).fit(digits * 16)
    out = pipe.inverse_transform(pipe.transform(digits * 16))
    assert out.shape == digits.shape
    assert 8 < out.max() <= 16


def test_a_grid_of_numpy_numbers(iris):
    """What ``np.arange`` and ``np.array`` put into a grid are numbers."""
    pipe = make_pipeline(MinMaxScaler(clip=True), tiny(epochs=1))
    grid = {
        "vaeestimator__batch_size": np.array([20, 200], dtype=np.uint8),
        "vaeestimator__latent_dim": np.arange(1, 3),
        "vaeestimator__learning_rate": np.logspace(-3, -2, 2).astype(np.float32),
    }
    search = GridSearchCV(pipe, grid, cv=2).fit(iris)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    search.best_estimator_[-1].partial_fit(iris / 8)


def test_grid_search_chooses_by_the_bound(iris):
    grid = {"learning_rate": [1e-9, 1e-2]}
    search = GridSearchCV(tiny(epochs=10), grid, cv=2).fit(iris)
    assert search.best_params_ == {"learning_rate": 1e-2}
    alone = clone(search.best_estimator_).fit(iris)
    assert search.score(iris) == pytest.approx(alone.score(iris), abs=1e-3)


# ------------------------------------------------------------------------- routing


@pytest.mark.usefixtures("one_thread")
def test_sample_weight_is_routed_through_a_pipeline(digits):
    X = digits[:100] * 3
    scaled = MinMaxScaler().fit_transform(X)
    weights = np.linspace(0.1, 3, 100)
    expected = tiny().fit(scaled, sample_weight=weights)
    with sklearn.config_context(enable_metadata_routing=True):
        pipe = make_pipeline(
            MinMaxScaler(),
            tiny()
            .set_fit_request(sample_weight=True)
            .set_score_request(sample_weight=True),
        ).fit(X, sample_weight=weights)
        assert_same_weights(pipe[-1], expected)
        assert pipe.score(X, sample_weight=weights) == pytest.approx(
            expected.score(scaled, sample_weight=weights), rel=1e-6
        )
        with pytest.raises(sklearn.exceptions.UnsetMetadataPassedError):
            make_pipeline(MinMaxScaler(), tiny()).fit(X, sample_weight=weights)
    plain = make_pipeline(MinMaxScaler(), tiny())
    plain.fit(X, vaeestimator__sample_weight=weights)
    assert_same_weights(plain[-1], expected)


@pytest.mark.usefixtures("one_thread")
def test_validation_set_is_routed_and_scaled_in_a_pipeline(digits):
    X, X_val = digits[:100] * 3, digits[100:150] * 3
    scaler = MinMaxScaler(clip=True).fit(X)
    expected = tiny().fit(scaler.transform(X), X_val=scaler.transform(X_val))
    with sklearn.config_context(enable_metadata_routing=True):
        pipe = Pipeline(
            [
                ("scale", MinMaxScaler(clip=True)),
                ("vae", tiny().set_fit_request(X_val=True)),
            ],
            transform_input=["X_val"],
        ).fit(X, X_val=X_val)
    pd.testing.assert_frame_equal(
        pipe[-1].history_.drop(columns="seconds"),
        expected.history_.drop(columns="seconds"),
    )

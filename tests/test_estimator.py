"""VAEEstimator keeps scikit-learn's contract: parameters, checks, clear refusals."""

import inspect
import pickle

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks

from estimator_helpers import (
    GREY,
    TINY,
    assert_equal,
    snapshot,
    tiny,
    tiny_conditional,
)
from skvae import (
    ELBO,
    MLP,
    ConditionalVAEEstimator,
    Gaussian,
    StandardNormal,
    VAEEstimator,
)


@parametrize_with_checks(
    [
        VAEEstimator(**{**TINY, "batch_size": 20}),
        ConditionalVAEEstimator(**{**TINY, "batch_size": 20}),
    ],
    expected_failed_checks=lambda estimator: {
        "check_sample_weight_equivalence_on_dense_data": (
            "in mini-batches a row of weight 2 is not a row given twice"
        )
    },
)
def test_scikit_learn_checks(estimator, check):
    before = np.random.get_state()  # noqa: NPY002
    check(estimator)
    if check.func.__name__ == "check_methods_sample_order_invariance":
        # The check itself draws from the global generator.
        np.random.set_state(before)  # noqa: NPY002


# ---------------------------------------------------------------------- parameters


def test_clone_and_parameters(iris):
    objective, likelihood = ELBO(beta=2), Gaussian(scale="feature")
    model = tiny(objective=objective, likelihood=likelihood).fit(iris)
    assert model.objective is objective
    assert model.likelihood is likelihood
    assert model.objective_ is not objective
    assert objective.get_params() == ELBO(beta=2).get_params()
    twin = clone(model)
    assert not hasattr(twin, "model_")
    assert twin.objective is not objective
    assert repr(twin) == repr(model)
    assert model.get_params()["objective__beta"] == 2
    assert "latent_dim=2" in repr(model)
    assert repr(VAEEstimator()) == "VAEEstimator()"


def test_parameters_changed_after_fit_do_not_touch_what_was_learned(iris):
    model = tiny(objective=ELBO()).fit(iris)
    before = model.transform(iris), model.score(iris), model.sample(3, 0)
    model.set_params(latent_dim=7, hidden_dim=(3, 3), likelihood="bernoulli")
    model.set_params(objective__beta=5.0, network=MLP(activation="tanh"))
    assert model.objective_.beta == 1
    for m in (model, pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(m.transform(iris), before[0])
        assert m.score(iris) == before[1]
        np.testing.assert_array_equal(m.sample(3, 0), before[2])
        assert len(m.get_feature_names_out()) == 2


BAD_PARAMETERS = [
    *[("latent_dim", value) for value in (0, -1, 2.5, "a", None, 1e9)],
    *[
        ("hidden_dim", value)
        for value in (0, -3, (8, 0), (8, 2.5), "8", None, 8.5, ((8,),), {8})
    ],
    *[("epochs", value) for value in (0, 1.5, "2")],
    *[("batch_size", value) for value in (0, 2.5, None)],
    *[("learning_rate", value) for value in (0, -1e-3, np.nan, np.inf, "fast")],
    *[("learning_rate_schedule", value) for value in ("step", None)],
    *[("network", value) for value in ("cnn", MLP, ELBO())],
    *[("likelihood", value) for value in ("normal", Gaussian, None)],
    *[("prior", value) for value in ("x", StandardNormal, None)],
    *[("objective", value) for value in ("x", ELBO, None)],
    *[("standardize", value) for value in ("yes", None, 2)],
    *[("validation_fraction", value) for value in (0, 0.0, 1, 1.5, -0.1, np.nan, "a")],
    *[("early_stopping", value) for value in ("yes", None)],
    *[("n_iter_no_change", value) for value in (0, 1.5)],
    *[("tol", value) for value in (-1e-3, None, np.nan)],
    *[("max_gradient_norm", value) for value in (0, -1, "a")],
    *[("device", value) for value in ("tpu", "cuda:99", "meta", "", 3, None)],
    *[("precision", value) for value in ("float64", "float16", None)],
    *[("random_state", value) for value in ("a", -1, 0.5)],
    *[("verbose", value) for value in ("yes", -1)],
    *[("warm_start", value) for value in ("yes", None)],
]


@pytest.fixture(scope="module")
def of_grey():
    """A fitted estimator whose parameters a test may set, if it sets them back."""
    return tiny().fit(GREY)


@pytest.mark.parametrize(("name", "value"), BAD_PARAMETERS)
def test_bad_parameters_are_refused_at_fit_by_name(of_grey, name, value):
    unfitted = tiny(**{name: value})  # __init__ stores and does not check
    fitted = of_grey.set_params(**{name: value})
    for model, methods in ((fitted, ["fit"]), (unfitted, ["fit", "partial_fit"])):
        before = snapshot(model)
        for method in methods:
            with pytest.raises((ValueError, TypeError), match=name):
                getattr(model, method)(GREY)
            assert_equal(before, snapshot(model))
    of_grey.set_params(**tiny().get_params())


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"network": MLP(activation="sine")}, "'activation' parameter of MLP"),
        ({"network": MLP(dropout=1.0)}, "'dropout' parameter of MLP"),
        ({"network": (1, 2, 3)}, "network=.* must be a pair .* it has 3 items"),
        ({"likelihood": Gaussian(scale=-1)}, "'scale' parameter of Gaussian"),
        ({"likelihood": Gaussian(scale="column")}, "'scale' parameter of Gaussian"),
        ({"likelihood": Gaussian(min_scale=0)}, "'min_scale' parameter of Gaussian"),
        ({"objective": ELBO(beta=-1)}, "'beta' parameter of ELBO"),
        ({"objective": ELBO(beta="a")}, "'beta' parameter of ELBO"),
        ({"latent_dim": ()}, r"latent_dim=\(\) has no level"),
        (
            {"standardize": True, "likelihood": "bernoulli"},
            "standardize=True .*support",
        ),
        ({"validation_fraction": 0.99}, "validation_fraction=0.99 of 40 rows"),
    ],
)
def test_bad_choices_name_what_is_wrong(of_grey, parameters, message):
    model = of_grey.set_params(**parameters)
    before = snapshot(model)
    with pytest.raises((ValueError, TypeError), match=message):
        model.fit(GREY)
    assert_equal(before, snapshot(model))
    of_grey.set_params(**tiny().get_params())


@pytest.mark.parametrize("name", ["latent_dim", "hidden_dim"])
def test_widths_that_no_memory_holds_are_refused_before_it_is_taken(name):
    with pytest.raises(ValueError, match=rf"{name}=1000000000.*take \d+ GB.*smaller"):
        tiny(**{name: 10**9}).fit(GREY)


@pytest.mark.parametrize("device", ["tpu", "gpu", "nonsense:1"])
def test_a_missing_device_names_what_is_there_and_no_more(device):
    with pytest.raises(ValueError, match=r"expected one of \[.*'cpu'") as refusal:
        tiny(device=device).fit(GREY)
    message = str(refusal.value)
    assert f"device={device!r} is not known" in message
    assert "vulkan" not in message  # torch itself lists twenty kinds of devices


@pytest.mark.parametrize(
    "parameters",
    [
        {"batch_size": np.uint8(200)},
        {"epochs": np.int64(2)},
        {"n_iter_no_change": np.int16(1), "early_stopping": np.bool_(True)},
        {"latent_dim": np.int64(2), "hidden_dim": np.uint8(200)},
        {"hidden_dim": (np.int64(8), np.uint8(4))},
        {"learning_rate": np.float32(1e-3), "tol": np.float64(0)},
        {"max_gradient_norm": np.float32(1.0), "validation_fraction": np.float32(0.2)},
        {"random_state": np.int64(3), "verbose": np.int64(0)},
        {"standardize": np.bool_(True), "likelihood": "gaussian"},
    ],
    ids=str,
)
def test_numpy_numbers_are_numbers(parameters):
    plain = {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in parameters.items()
    }
    if isinstance(plain.get("hidden_dim"), tuple):
        plain["hidden_dim"] = (8, 4)
    X = np.tile(GREY, (8, 1))  # more rows than a uint8 counts
    numpy, python = tiny(**parameters).fit(X), tiny(**plain).fit(X)
    np.testing.assert_allclose(numpy.transform(X), python.transform(X), atol=1e-5)
    assert numpy.n_iter_ == python.n_iter_
    numpy.partial_fit(X)


def test_a_batch_may_be_larger_than_any_data():
    options = {"epochs": 10, "learning_rate": 1e-2}
    whole = tiny(batch_size=40, **options).fit(GREY)
    for batch_size in (10**6, 10**20, 10**40):
        model = tiny(batch_size=batch_size, **options).fit(GREY)
        np.testing.assert_allclose(
            model.transform(GREY), whole.transform(GREY), atol=1e-4
        )
        model.partial_fit(GREY)


# ---------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m.transform(GREY),
        lambda m: m.inverse_transform(GREY[:, :2]),
        lambda m: m.reconstruct(GREY),
        lambda m: m.sample(),
        lambda m: m.interpolate(GREY[0], GREY[1]),
        lambda m: m.score(GREY),
        lambda m: m.score_samples(GREY),
        lambda m: m.log_likelihood(GREY),
        lambda m: m.get_feature_names_out(),
        lambda m: m.history_,
        lambda m: m.model_,
    ],
)
@pytest.mark.parametrize("make", [tiny, tiny_conditional])
def test_not_fitted(make, call):
    with pytest.raises(NotFittedError, match="not fitted yet"):
        call(make())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.sample(0), "n_samples=0"),
        (lambda m: m.sample(-2), "n_samples=-2"),
        (lambda m: m.sample(2.5), "n_samples=2.5"),
        (lambda m: m.sample("3"), "n_samples='3'"),
        (lambda m: m.sample(True), "n_samples=True must be an int"),
        (lambda m: m.sample(np.True_), "n_samples=.*True.* must be an int"),
        (lambda m: m.sample("a", y=1), "n_samples='a' must be an int"),
        (lambda m: m.sample(3, random_state="a"), "'a'"),
        (lambda m: m.sample(3, observation_noise="yes"), "observation_noise='yes'"),
        (lambda m: m.sample(3, prior="normal"), "prior='normal' must be 'model'"),
        (lambda m: m.log_likelihood(GREY, 0), "n_importance_samples=0"),
        (lambda m: m.log_likelihood(GREY, 1.5), "n_importance_samples=1.5"),
        (lambda m: m.log_likelihood(GREY, True), "n_importance_samples=True"),
        (lambda m: m.interpolate(GREY[0], GREY[1], 1), "n_steps=1"),
        (lambda m: m.interpolate(GREY[0], GREY[1], 2.5), "n_steps=2.5"),
        (lambda m: m.interpolate(GREY[0], GREY[:2]), r"\(4,\) and \(2, 4\)"),
        (lambda m: m.interpolate(GREY[None], GREY[None]), r"\(1, 40, 4\)|dim 3"),
        (lambda m: m.interpolate(GREY[0] * np.nan, GREY[1]), "NaN"),
        (lambda m: m.score(GREY, sample_weight=np.ones(3)), "sample_weight"),
        (lambda m: m.score(GREY, sample_weight=-np.ones(40)), "(?i)negative"),
        (lambda m: m.score(GREY, sample_weight=np.zeros(40)), "(?i)sample.weight"),
    ],
)
def test_bad_arguments_are_named(of_grey, call, message):
    with pytest.raises(ValueError, match=message):
        call(of_grey)


def test_latent_points_are_checked(of_grey):
    for Z, message in (
        (np.array([[np.nan, 0]]), "NaN"),
        (np.zeros(2), "1D array"),
        (sparse.csr_matrix(np.eye(2)), "(?i)sparse"),
        (np.array([["a", "b"]]), "string|'a'"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            of_grey.inverse_transform(Z)


def test_wrong_number_of_features(of_grey):
    before = snapshot(of_grey)
    for width in (1, 3, 5):
        X = np.zeros((6, width))
        for method in (
            of_grey.partial_fit,
            of_grey.transform,
            of_grey.reconstruct,
            of_grey.score,
            of_grey.score_samples,
            of_grey.log_likelihood,
            lambda X: of_grey.interpolate(X[0], X[1]),
        ):
            with pytest.raises(
                ValueError, match=f"{width} features, but .* 4 features"
            ):
                method(X)
        with pytest.raises(ValueError, match=rf"shape.* \(4,\) and \({width},\)"):
            of_grey.interpolate(GREY[0], X[1])
        with pytest.raises(ValueError, match=f"{width} features"):
            of_grey.fit(GREY, X_val=X)
        with pytest.raises(ValueError, match=f"Z has {width} columns"):
            of_grey.inverse_transform(X)
    assert_equal(before, snapshot(of_grey))


# ---------------------------------------------------------------------- signatures

Y_BY_NAME = {"sample", "interpolate", "log_likelihood"}
Y_SECOND = {
    *("fit", "partial_fit", "inverse_transform", "reconstruct"),
    *("score", "score_samples"),
}


def test_both_estimators_have_one_signature():
    for name in sorted(Y_BY_NAME | Y_SECOND):
        # Nothing is written twice for conditional models.
        method = getattr(VAEEstimator, name)
        assert getattr(ConditionalVAEEstimator, name) is method
        plain = inspect.signature(method)
        assert plain.parameters["y"].default is None, name
        is_named = plain.parameters["y"].kind is inspect.Parameter.KEYWORD_ONLY
        assert is_named == (name in Y_BY_NAME), name
        if name in Y_SECOND:
            assert list(plain.parameters)[2] == "y", name


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m.sample(2, y=1),
        lambda m: m.sample(2, y=[0, 1]),
        lambda m: m.inverse_transform(np.zeros((2, 2)), 1),
        lambda m: m.inverse_transform(np.zeros((2, 2)), y=[0, 1]),
        lambda m: m.reconstruct(GREY, np.arange(40)),
        lambda m: m.interpolate(GREY[0], GREY[1], y=1),
    ],
)
def test_labels_are_refused_where_the_model_has_none(of_grey, call):
    with pytest.raises(ValueError, match=r"y=.*not conditional.*ConditionalVAE") as e:
        call(of_grey)
    assert len(str(e.value)) < 160


def test_y_is_ignored_where_scikit_learn_hands_it_to_every_step(of_grey):
    y = np.arange(10)  # however long it is
    assert of_grey.score(GREY, y) == of_grey.score(GREY)
    for method in (
        of_grey.score_samples,
        lambda X, y=None: of_grey.log_likelihood(X, y=y),
    ):
        np.testing.assert_array_equal(method(GREY, y), method(GREY))
    np.testing.assert_array_equal(
        tiny().fit(GREY, y).transform(GREY), of_grey.transform(GREY)
    )


def test_classes_are_for_a_conditional_estimator():
    with pytest.raises(ValueError, match=r"classes=.*ConditionalVAEEstimator"):
        tiny().partial_fit(GREY, classes=[0, 1])

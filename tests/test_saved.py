"""Files that earlier versions have saved open, and answer as they did then.

``data/saved/README.md`` tells what the files are. Answers are compared within what
float32 arithmetic may differ by from machine to machine.
"""

import importlib.util
import json
import pickle
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.exceptions import NotFittedError

import skvae
from estimator_helpers import assert_equal, snapshot, tiny
from persistence_helpers import assert_refused, edit, learned, spec
from skvae.networks import MLP
from skvae.persistence import (
    CorruptedFileError,
    FileFormatError,
    ShapeMismatchError,
    UnsafeFileError,
    dump,
    parse,
)

FOLDER = Path(__file__).parent / "data" / "saved"
VERSIONS = ("v0.1", "v0.2")
# A 0.1 model of one-hot columns whose answers then were probabilities.
ONE_HOT = [
    *("categorical", "categorical_blocks", "categorical_int", "conv_categorical"),
    *("mixed_by_number", "mixed_by_index", "mixed_within_mixed"),
    *("scattered_ladder", "scattered_flow_mlp"),
]
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def _module(name):
    """A script beside the saved files."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


read = _module("make_version1").read
MODELS = [
    (version, name)
    for version in VERSIONS
    for name in json.loads((FOLDER / version / "answers.json").read_text())["models"]
]
FITTED = [(version, name) for version, name in MODELS if name != "unfitted"]
of_all = pytest.mark.parametrize(("version", "name"), MODELS)
of_fitted = pytest.mark.parametrize(("version", "name"), FITTED)


def content_of(version, name):
    return (FOLDER / version / f"{name}.safetensors").read_bytes()


@cache
def opened(version, name):
    """The estimator, what it answered, and what is known about it."""
    answers, facts = read(name, FOLDER / version)
    return skvae.load(FOLDER / version / f"{name}.safetensors"), answers, facts


def labelled(answers, key="y"):
    return {"y": answers[key]} if key in answers else {}


def as_array(answer):
    return answer.to_numpy() if isinstance(answer, pd.DataFrame) else answer


def most_probable(numbers, blocks):
    """The most probable category of each block of probabilities, one-hot."""
    numbers = numbers.copy()
    for block in map(list, blocks):
        numbers[:, block] = np.eye(len(block))[numbers[:, block].argmax(axis=1)]
    return numbers


def assert_rows(found, stored, estimator, version, name):
    """Rows as they were then, but for the probabilities of categories."""
    if version == "v0.1" and name in ONE_HOT:
        stored = most_probable(stored, estimator.fitted_.form.blocks)
    if isinstance(stored, np.ndarray):
        assert found.dtype == stored.dtype
        np.testing.assert_allclose(found, stored, **CLOSE)
    elif isinstance(stored, pd.DataFrame):
        pd.testing.assert_frame_equal(found, stored, rtol=1e-5, atol=1e-6)
    else:
        assert found.schema == stored.schema
        found, stored = (
            pd.DataFrame(frame.to_dict(as_series=False)) for frame in (found, stored)
        )
        pd.testing.assert_frame_equal(found, stored, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------- what is there


def test_all_files_are_tested():
    for version in VERSIONS:
        files = {path.stem for path in (FOLDER / version).glob("*.safetensors")}
        assert files == {name for known, name in MODELS if known == version}
    assert len(MODELS) > 90


@of_all
def test_class_parameters_and_attributes(version, name):
    estimator, answers, facts = opened(version, name)
    assert type(estimator).__name__ == facts["class"]
    default = type(estimator)()
    changed = {
        key: repr(value)
        for key, value in estimator.get_params(deep=False).items()
        if repr(value) != repr(default.get_params()[key])
    }
    assert changed == facts["parameters"]
    if name == "unfitted":
        with pytest.raises(NotFittedError):
            estimator.history_  # noqa: B018
        return
    assert estimator.n_features_in_ == facts["n_features_in"]
    if facts["feature_names_in"] is not None:
        assert estimator.feature_names_in_.tolist() == facts["feature_names_in"]
    assert estimator.n_iter_ == facts["n_iter"]
    assert estimator.best_epoch_ == facts["best_epoch"]
    if "classes" in answers:
        np.testing.assert_array_equal(estimator.classes_, answers["classes"])
        np.testing.assert_array_equal(estimator.class_count_, answers["class_count"])
    history = estimator.history_.drop(columns="seconds")
    stored = pd.DataFrame(facts["history"]).astype(history.dtypes)
    pd.testing.assert_frame_equal(history, stored)
    # The columns of a Mixed or a Categorical were one-hot.
    if version == "v0.2" or (
        "Mixed" not in facts["likelihood"] and name not in ONE_HOT
    ):
        assert repr(estimator.likelihood_) == facts["likelihood"]


@of_fitted
def test_answers(version, name):
    estimator, answers, _ = opened(version, name)
    X, given = answers["X"], labelled(answers)
    Z = as_array(estimator.transform(X))
    assert Z.dtype == np.float32
    np.testing.assert_allclose(Z, as_array(answers["transform"]), **CLOSE)

    stored = answers["inverse_transform"]
    if version == "v0.1" and name == "conditional_mixed":
        # There version 0.1 did not make a data frame of the numbers, but here it did.
        stored = answers["reconstruct"]
    rows = estimator.inverse_transform(as_array(answers["transform"]), **given)
    assert_rows(rows, stored, estimator, version, name)

    rows = estimator.sample(
        len(answers["sample"]),
        random_state=0,
        observation_noise=False,
        **labelled(answers, "sample_y"),
    )
    assert_rows(rows, answers["sample"], estimator, version, name)

    # Other noise than that of the version would move scores by tenths of a nat.
    for known in [given, {}] if given else [{}]:
        suffix = "_without_y" if given and not known else ""
        scores = estimator.score_samples(X, **known)
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores, answers[f"score_samples{suffix}"], **CLOSE)
        scores = estimator.log_likelihood(X, 50, **known)
        np.testing.assert_allclose(scores, answers[f"log_likelihood{suffix}"], **CLOSE)


# ---------------------------------------------------------------------- saved again


@of_all
def test_a_file_saved_again_answers_to_the_bit(version, name):
    estimator, answers, _ = opened(version, name)
    twin = parse(dump(estimator))
    if not answers:
        assert_equal(snapshot(twin), snapshot(estimator))
        return
    X, given = answers["X"], labelled(answers)
    for one in ("transform", "score_samples"):
        with_labels = {} if one == "transform" else given
        found, expected = (
            as_array(getattr(e, one)(X, **with_labels)) for e in (twin, estimator)
        )
        np.testing.assert_array_equal(found, expected)
    for noise in (False, True):
        drawn, expected = (
            e.sample(5, 3, observation_noise=noise) for e in (twin, estimator)
        )
        assert type(drawn) is type(expected)
        np.testing.assert_array_equal(np.asarray(drawn), np.asarray(expected))


@pytest.mark.parametrize("name", ["gaussian_shared", "mixed_pandas", "categorical"])
def test_a_model_of_version_1_goes_on_training(name):
    _, answers, _ = opened("v0.1", name)
    estimator = parse(content_of("v0.1", name))
    before = estimator.score(answers["X"])
    estimator.set_params(learning_rate=0.01).partial_fit(answers["X"])
    assert len(estimator.history_) == 3
    assert estimator.score(answers["X"]) > before


def test_a_mixed_model_of_one_hot_columns_trains_with_its_own_likelihood():
    _, answers, _ = opened("v0.1", "mixed_by_index")
    estimator = parse(content_of("v0.1", "mixed_by_index"))
    before = estimator.score(answers["X"])
    with pytest.raises(ValueError, match="must belong to one group of families"):
        estimator.partial_fit(answers["X"])
    estimator.set_params(likelihood=estimator.likelihood_, learning_rate=0.01)
    assert estimator.partial_fit(answers["X"]).score(answers["X"]) > before


def test_blocks_that_are_not_one_hot_count_as_their_largest_entry():
    estimator, answers, _ = opened("v0.1", "mixed_by_index")
    X, blocks = answers["X"], estimator.fitted_.form.blocks
    blurred = X.copy()
    for block in map(list, blocks):
        blurred[:, block] = 0.6 * X[:, block] + 0.1
    with pytest.warns(UserWarning, match="one-hot blocks"):
        Z = estimator.transform(blurred)
    np.testing.assert_array_equal(Z, estimator.transform(X))


def test_a_pickle_of_version_1_is_refused_with_advice():
    content = (FOLDER / "v0.1" / "estimator.pickle").read_bytes()
    with pytest.raises(ValueError, match=r"skvae 0\.1.*skvae\.save"):
        pickle.loads(content)


# ---------------------------------------------------------------------- refused


class Own(skvae.Gaussian):
    """A likelihood of the user's."""


class OwnNetwork(MLP):
    """A network of the user's that is no kind of those that are known."""


def change_likelihood(metadata, *pairs):
    families = {"tuple": [{"tuple": [one, {"tuple": c}]} for one, c in pairs]}
    learned(metadata)["likelihood_"] = spec("Mixed", families=families)


def by_number(metadata, *pairs):
    families = {"tuple": [{"tuple": list(pair)} for pair in pairs]}
    learned(metadata)["likelihood_"] = spec("Mixed", families=families)


def in_dict(metadata, *keys):
    node = learned(metadata)
    for key in keys:
        node = node[key]["dict"]
    return node


def shape(metadata, *sides):
    learned(metadata)["_image_shape"] = {"tuple": list(sides)}


BIG = 10**9
BROKEN = {
    "missing attribute": (
        *("gaussian_shared", CorruptedFileError, r"must hold \['units_'\]"),
        lambda m, a: learned(m).pop("units_"),
    ),
    "attribute of others": (
        *("gaussian_shared", CorruptedFileError, "must hold"),
        lambda m, a: learned(m).update(transform=3),
    ),
    "unknown class": (
        *("gaussian_shared", UnsafeFileError, "'os.system' is not known"),
        lambda m, a: learned(m).update(prior_=spec("os.system")),
    ),
    "no likelihood": (
        *("gaussian_shared", CorruptedFileError, "is no likelihood"),
        lambda m, a: learned(m).update(likelihood_=spec("MLP")),
    ),
    "no network": (
        *("gaussian_shared", CorruptedFileError, "is no network"),
        lambda m, a: learned(m).update(network_=spec("ELBO")),
    ),
    "units": (
        *("gaussian_shared", CorruptedFileError, "must be positive"),
        lambda m, a: a["units_.scale"].fill(0),
    ),
    "weight": (
        *("gaussian_shared", ShapeMismatchError, r"needs 'likelihood\.log_scale'"),
        lambda m, a: a.update(
            {"model_.likelihood_parameters.log_scale": np.zeros(9, np.float32)}
        ),
    ),
    "not finite": (
        *("gaussian_shared", CorruptedFileError, "must be finite"),
        lambda m, a: a["model_.network.encoder.0.bias"].fill(np.nan),
    ),
    "widths": (
        *("gaussian_shared", UnsafeFileError, "larger than the file"),
        lambda m, a: in_dict(m, "_architecture").update(hidden_dim={"tuple": [BIG]}),
    ),
    "images": (
        *("conv", CorruptedFileError, "columns; expected 36"),
        lambda m, a: shape(m, 1, BIG, BIG),
    ),
    "epochs": (
        *("gaussian_shared", CorruptedFileError, "best_epoch=7 must be"),
        lambda m, a: learned(m).update(best_epoch_=7),
    ),
    "codes": (
        *("gaussian_shared", CorruptedFileError, "codes and codes_condition"),
        lambda m, a: a.update(_codes=np.zeros((30, 3), np.float32)),
    ),
    "columns by number": (
        *("mixed_by_number", CorruptedFileError, "do not have each of 8"),
        lambda m, a: by_number(m, ("gaussian", BIG), ("poisson", 1)),
    ),
    "columns twice": (
        *("mixed_by_index", CorruptedFileError, "do not have each of 10"),
        lambda m, a: change_likelihood(m, ("gaussian", [*range(10), 0])),
    ),
    "columns without end": (
        *("mixed_by_index", CorruptedFileError, "do not have each of 10"),
        lambda m, a: change_likelihood(m, ("gaussian", [0] * 100_000)),
    ),
    "families of a data frame": (
        *("mixed_by_index", CorruptedFileError, "does not give columns"),
        lambda m, a: learned(m).update(likelihood_=spec("Mixed", families=None)),
    ),
    "categories": (
        *("categorical_int", CorruptedFileError, "do not have 9 columns"),
        lambda m, a: learned(m).update(
            likelihood_=spec("Categorical", n_categories=BIG)
        ),
    ),
    "components": (
        *("discretized_logistic_mixture_grey", UnsafeFileError, "larger than the file"),
        lambda m, a: learned(m).update(
            likelihood_=spec(
                "DiscretizedLogisticMixture", n_components=BIG, n_channels=1
            )
        ),
    ),
    "components within": (
        *("mixed_by_index", CorruptedFileError, "must have 3000000000 entries"),
        lambda m, a: change_likelihood(
            m,
            (spec("Gaussian", scale="feature"), [8, 2]),
            (spec("Categorical", n_categories={"tuple": [2, 3]}), [0, 1, 4, 7, 9]),
            (spec("DiscretizedLogisticMixture", n_components=10**8, n_channels=1), [5]),
            (spec("Beta", precision="feature"), [6, 3]),
        ),
    ),
    "group": (
        *("mixed_by_index", CorruptedFileError, "belongs to no family"),
        lambda m, a: in_dict(m, "model_").update(
            {
                "likelihood_parameters.group9_log_scale": in_dict(m, "model_").pop(
                    "likelihood_parameters.group0_log_scale"
                )
            }
        ),
    ),
    "flow": (
        *("prior_flow", CorruptedFileError, "does not fit the weights"),
        lambda m, a: learned(m).update(
            prior_=spec("FlowPrior", n_transforms=BIG, hidden_dim=5)
        ),
    ),
    "values of a table": (
        *("mixed_pandas", CorruptedFileError, "does not fit the likelihood"),
        lambda m, a: in_dict(m, "_table")["columns"]["tuple"][5]["dict"].update(
            values={"tuple": ["Bern", "Rome"]}
        ),
    ),
    "columns of a table": (
        *("mixed_pandas", CorruptedFileError, "zip"),
        lambda m, a: in_dict(m, "_table")["columns"]["tuple"].pop(),
    ),
    "library": (
        *("mixed_pandas", CorruptedFileError, "library 'os' must be one of"),
        lambda m, a: in_dict(m, "_table").update(library="os"),
    ),
    "network of one-hot columns": (
        *("mixed_by_index", CorruptedFileError, "if its network is ConvNet"),
        lambda m, a: learned(m).update(network_=spec("ConvNet", channels=[4])),
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_of_version_1_is_refused(case):
    name, error, message, change = BROKEN[case]
    content = content_of("v0.1", name)
    parse(content)  # whatever is imported late has been imported by now
    assert_refused(edit(content, change), error, message)


def test_classes_of_the_user_in_files_of_version_1():
    content = content_of("v0.1", "gaussian_shared")

    def theirs(metadata, arrays):
        learned(metadata)["likelihood_"] = spec("Own", min_scale=0.001, scale="shared")
        learned(metadata)["network_"] = spec("OwnNetwork")

    changed = edit(content, theirs)
    with pytest.raises(UnsafeFileError, match=r"is not known.*classes=\["):
        parse(changed)
    estimator, answers, _ = opened("v0.1", "gaussian_shared")
    twin = parse(changed, classes=[Own, OwnNetwork])
    assert type(twin.likelihood_) is Own
    np.testing.assert_array_equal(
        twin.score_samples(answers["X"]), estimator.score_samples(answers["X"])
    )


def test_a_family_of_the_user_within_a_mixed_of_version_1_is_refused():
    # How many outputs it had is written nowhere.
    changed = edit(
        content_of("v0.1", "mixed_by_index"),
        lambda m, a: change_likelihood(m, (spec("Own"), list(range(10)))),
    )
    with pytest.raises(FileFormatError, match="with Own cannot be read"):
        parse(changed, classes=[Own])


def test_version_1_is_no_longer_written():
    assert b'\\"version\\":2' in dump(tiny())[:200]

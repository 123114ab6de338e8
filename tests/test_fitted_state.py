"""A fitted VAE as plain values, and back."""

import copy
import pickle
from dataclasses import FrozenInstanceError

import numpy as np
import pandas as pd
import pytest

from skvae import ConditionalVAEEstimator, VAEEstimator
from skvae.fitted import FittedVAE
from skvae.history import Record, columns_of, records_of
from skvae.spec import Spec

RNG = np.random.default_rng(0)
X = RNG.normal(5, 3, size=(40, 6))
GREY = RNG.random((40, 64))
Y = RNG.integers(3, size=40)
TABLE = pd.DataFrame(
    {
        "height": X[:, 0],
        "town": pd.Categorical.from_codes(Y, ["Rome", "Oslo", "Bern"]),
        "smokes": X[:, 1] > 5,
        "born": pd.to_datetime("2000-01-01") + pd.to_timedelta(Y, unit="D"),
    }
)


def tiny(latent_dim=2, kind=VAEEstimator, **parameters):
    defaults = {"hidden_dim": 4, "epochs": 2, "batch_size": 20, "random_state": 0}
    return kind(latent_dim, **{**defaults, **parameters})


# One of each kind of thing that a state holds.
CASES = {
    "rows": (tiny(), X, None),
    "float32 rows with validation": (
        tiny(validation_fraction=0.3),
        X.astype(np.float32),
        None,
    ),
    "images": (tiny(network="conv"), GREY.reshape(40, 1, 8, 8), None),
    "table": (tiny(), TABLE, None),
    "labels": (tiny(kind=ConditionalVAEEstimator), X, Y),
    "levels": (tiny((3, 2), network="ladder", prior="vamp"), X, None),
    "flows": (tiny(network="flow_mlp", prior="flow", epochs=1), X, None),
}


@pytest.fixture(scope="module")
def values():
    return {
        name: copy.copy(vae).fit(X, y).fitted_ for name, (vae, X, y) in CASES.items()
    }


@pytest.fixture(scope="module")
def state(values):
    return values["labels"].state()


def rows_of(name):
    """Rows as a form's check gives them."""
    X = CASES[name][1]
    return X.reshape(len(X), -1) if X.ndim == 4 else X


def only_plain(value):
    if isinstance(value, dict):
        return all(type(k) is str and only_plain(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(only_plain(v) for v in value)
    return value is None or type(value) in (bool, int, float, str, np.ndarray)


@pytest.mark.parametrize("name", CASES)
class TestThereAndBack:
    @pytest.fixture
    def value(self, values, name):
        return values[name]

    def test_a_state_holds_plain_values_and_arrays(self, value, name):
        state, rows = value.state(), rows_of(name)
        assert only_plain(state)
        # Arrays of its own: writing to them changes no weight.
        before = value.encode(rows)
        for array in state["weights"].values():
            array[...] = 0
        np.testing.assert_array_equal(value.encode(rows), before)

    @pytest.mark.parametrize("way", ["state", "pickle", "deepcopy"])
    def test_the_twin_answers_the_same(self, value, name, way):
        X, y = rows_of(name), CASES[name][2]
        twin = {
            "state": lambda: FittedVAE.from_state(value.state()),
            "pickle": lambda: pickle.loads(pickle.dumps(value)),
            "deepcopy": lambda: copy.deepcopy(value),
        }[way]()
        np.testing.assert_array_equal(twin.encode(X), value.encode(X))
        np.testing.assert_array_equal(
            twin.score_samples(X, y), value.score_samples(X, y)
        )
        for prior in ("model", "mixture"):
            np.testing.assert_array_equal(
                twin.sample(5, 0, prior=prior), value.sample(5, 0, prior=prior)
            )
        assert twin.history == value.history
        assert repr(twin) == repr(value)
        assert repr(twin.choices) == repr(value.choices)
        for field in ("architecture", "form", "n_epochs", "best_epoch", "n_steps"):
            assert getattr(twin, field) == getattr(value, field), field
        for field in ("seed", "precision", "draws", "result"):
            assert getattr(twin, field) == getattr(value, field), field
        assert not twin.module.training

    def test_its_fields_cannot_be_changed(self, value, name):
        with pytest.raises(FrozenInstanceError):
            value.seed = 3


def test_specs_in_a_state_may_be_revived_already(values, state):
    choices = {name: one for name, one in values["labels"].choices.named().items()}
    assert all(isinstance(one, Spec) for one in choices.values())
    twin = FittedVAE.from_state({**state, "choices": choices})
    np.testing.assert_array_equal(twin.encode(X), values["labels"].encode(X))


# ------------------------------------------------------------------ bad states


def changed(state, path, value):
    """A copy of a state with another value at a path."""
    state = copy.deepcopy(state)
    *path, last = path
    part = state
    for key in path:
        part = part[key]
    part[last] = value
    return state


BAD = [
    (["architecture", "latent_dim"], (0,), "width 0 is not positive"),
    (["architecture", "latent_dim"], [2], "must be a tuple of widths"),
    (["architecture", "latent_dim"], (), "has no level"),
    (["architecture", "hidden_dim"], (2.0,), "width 2.0 is not positive"),
    (["architecture", "hidden_dim"], (True,), "width True is not positive"),
    (["architecture", "n_conditions"], "3", "must be an int"),
    (["architecture", "n_conditions"], 2, "labels do not fit"),
    (["architecture", "image_shape"], (1, -2, 3), "width -2 is not positive"),
    (["architecture"], {}, "must hold"),
    (["choices", "prior"], {"$kind": "os.system", "parameters": {}}, "not known"),
    (["choices", "prior"], {"$kind": "MLP", "parameters": {}}, "MLP is no prior"),
    (["choices", "prior"], "normal", "str is no prior"),
    (["choices"], {}, "must hold"),
    (["form", "kind"], "complex", "form 'complex' must be one of"),
    (["form", "names"], ["a"], "columns"),
    (["form", "dtype"], "object", "must be 'float32' or 'float64'"),
    (["units", "scale"], np.zeros(6), "positive"),
    (["units", "scale"], np.ones(5), "one entry"),
    (["labels", "counts"], np.zeros(3), "weight of each class"),
    (["labels"], {}, "labels do not fit"),
    (["result"], "fine", "result='fine' must be one of"),
    (["result"], ["complete"], "must be one of"),
    (["precision"], "float8", "precision='float8' must be"),
    (["draws"], 1, "draws=1 must be"),
    (["seed"], -1, "seed=-1 must be an int"),
    (["seed"], 1.0, "seed=1.0 must be an int"),
    (["n_epochs"], 3, "n_epochs=3 must be an int from 0 to 2"),
    (["best_epoch"], True, "best_epoch=True must be an int"),
    (["n_steps"], None, "n_steps=None must be an int"),
    (["codes"], np.zeros((5, 3), np.float32), "codes and codes_condition"),
    (["codes"], np.zeros((5, 2)), "codes and codes_condition"),
    (["codes"], np.full((40, 2), np.nan, np.float32), "codes and codes_condition"),
    (["codes"], None, "codes and codes_condition"),
    (["codes_condition"], None, "codes and codes_condition"),
    (["history"], 3, "must hold"),
    (["history", "loss"], np.zeros(1), "same length"),
    (["history", "loss"], [0.0, 1.0], "float64 array of one dimension"),
    (["history", "loss"], np.zeros(2, np.float32), "float64 array of one dimension"),
    (["history", "epoch"], np.array([1, -1.0]), "whole numbers of at least 0"),
    (["history", "epoch"], np.array([1, 0.5]), "whole numbers of at least 0"),
    (["history", "epoch"], np.array([1, np.nan]), "whole numbers of at least 0"),
    (["history", "active_units"], np.array([1, np.inf]), "whole numbers of at least 0"),
]


@pytest.mark.parametrize(
    ("path", "value", "match"), BAD, ids=[f"{'.'.join(p)}={v!r}" for p, v, _ in BAD]
)
def test_bad_states_are_refused(state, path, value, match):
    with pytest.raises(ValueError, match=match):
        FittedVAE.from_state(changed(state, path, value))


@pytest.mark.parametrize("bad", [None, [], {}, "state"])
def test_what_is_no_state_is_refused(state, bad):
    with pytest.raises(ValueError, match="a fitted VAE must hold"):
        FittedVAE.from_state(bad)
    for key in state:
        rest = {k: v for k, v in state.items() if k != key}
        with pytest.raises(ValueError, match="a fitted VAE must hold"):
            FittedVAE.from_state(rest)
    with pytest.raises(ValueError, match="a fitted VAE must hold"):
        FittedVAE.from_state({**state, "more": 1})


def test_weights_of_another_model_are_refused(state):
    for name, array in (("more", np.zeros(1)), ("likelihood.log_scale", np.zeros(7))):
        with pytest.raises((ValueError, RuntimeError), match=name):
            FittedVAE.from_state(
                changed(state, ["weights"], {**state["weights"], name: array})
            )


# ------------------------------------------------------------------ the history


def record(**values):
    numbers = {"loss": 1.5, "reconstruction": 1.25, "kl": 0.25, "learning_rate": 0.1}
    return Record(**{"epoch": 1, "active_units": 2, "seconds": 0.0} | numbers | values)


def test_records_come_back():
    records = (record(), record(epoch=2, validation_loss=0.1 + 0.2))
    columns = columns_of(records)
    assert all(column.dtype == np.float64 for column in columns.values())
    twins = records_of(columns)
    assert twins == records
    assert type(twins[0].epoch) is int
    assert twins[0].validation_loss is None
    assert records_of(columns_of(())) == ()


def test_the_validation_loss_is_watched_where_there_is_one():
    assert record().monitored == 1.5
    assert record(validation_loss=0.5).monitored == 0.5

"""Plain values and arrays: what pickles and files hold."""

import numpy as np
import pytest

from skvae.engine import Record
from skvae.likelihoods import Gaussian
from skvae.networks import MLP
from skvae.objectives import ELBO
from skvae.state import KIND, SPECS, UnknownClassError, flatten, revive
from skvae.units import Units


class Mine(MLP):
    pass


def record(**values):
    numbers = {"loss": 1.5, "reconstruction": 1.25, "kl": 0.25, "learning_rate": 0.1}
    return Record(**{"epoch": 1, "active_units": 2, "seconds": 0.0} | numbers | values)


def only_plain(value):
    if isinstance(value, dict):
        return all(type(k) is str and only_plain(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(only_plain(v) for v in value)
    return value is None or type(value) in (bool, int, float, str, np.ndarray)


def test_a_spec_is_a_name_and_parameters():
    flat = flatten((Gaussian(scale=0.5), [ELBO(beta=2)]))
    assert flat == (
        {KIND: "Gaussian", "parameters": {"scale": 0.5, "min_scale": 1e-3}},
        [{KIND: "ELBO", "parameters": {**ELBO().get_params(), "beta": 2}}],
    )
    assert repr(revive(flat)) == repr((Gaussian(scale=0.5), [ELBO(beta=2)]))


@pytest.mark.parametrize("name", SPECS)
def test_every_spec_comes_back(name):
    spec = SPECS[name]()
    flat = flatten(spec)
    assert only_plain(flat)
    twin = revive(flat)
    assert type(twin) is type(spec)
    assert repr(twin) == repr(spec)


def test_what_is_more_than_parameters_stays_as_it_is():
    mine, burdened = Mine(), MLP()
    burdened.note = "learned"
    assert flatten(mine) is mine
    assert flatten(burdened) is burdened
    flat = flatten(mine, {"Mine": Mine})
    assert flat == {KIND: "Mine", "parameters": MLP().get_params()}
    assert type(revive(flat, {"Mine": Mine})) is Mine
    with pytest.raises(UnknownClassError, match="'Mine' is not known"):
        revive(flat)


def test_units_dtype_and_records_come_back():
    units = Units(np.array([0.0, -3.5]), np.array([1.0, 1e-9]))
    records = [record(), record(epoch=2, validation_loss=0.1 + 0.2)]
    value = {"units": units, "dtype": np.dtype("float64"), "records": records, "no": []}
    flat = flatten(value)
    assert only_plain(flat)
    twin = revive(flat)
    assert twin["units"].location is units.location
    assert twin["units"].scale is units.scale
    assert twin["dtype"] == np.float64
    assert twin["records"] == records
    assert type(twin["records"][0].epoch) is int
    assert twin["no"] == []


@pytest.mark.parametrize(
    ("flat", "message"),
    [
        ({KIND: "Units", "location": np.zeros(2)}, "must hold"),
        ({KIND: "Units", "location": np.zeros(2), "scale": np.ones(3)}, "one entry"),
        ({KIND: "Units", "location": np.zeros(2), "scale": np.zeros(2)}, "positive"),
        (
            {KIND: "Units", "location": np.array([np.nan]), "scale": np.ones(1)},
            "finite",
        ),
        ({KIND: "Units", "location": [0.0], "scale": [1.0]}, "float64 array"),
        ({KIND: "dtype", "name": "object"}, "must be 'float32' or 'float64'"),
        ({KIND: "records", "columns": 3}, "dict of columns"),
        ({KIND: "records", "columns": {"loss": np.zeros(1)}}, "must hold"),
        ({KIND: "os.system", "parameters": {}}, "'os.system' is not known"),
        ({KIND: ["MLP"], "parameters": {}}, "is not known"),
        ({KIND: "MLP", "parameters": {"shell": "rm"}}, "takes the parameters"),
    ],
)
def test_what_is_not_ours_is_refused(flat, message):
    with pytest.raises(ValueError, match=message):
        revive([flat])


@pytest.mark.parametrize("bad", [-1.0, 0.5, np.nan, np.inf])
def test_an_epoch_is_a_whole_number(bad):
    flat = flatten([record()])
    flat["columns"]["epoch"] = np.array([bad])
    with pytest.raises(ValueError, match="epoch must be whole numbers"):
        revive(flat)

"""Specifications as plain values: what pickles and files hold of them."""

import pickle

import numpy as np
import pytest

from skvae import VAEEstimator
from skvae.likelihoods import BY_NAME, Categorical, Gaussian, Mixed
from skvae.networks import MLP, NETWORKS, EncoderDecoder
from skvae.objectives import ELBO, OBJECTIVES
from skvae.plain import KIND, SPECS, UnknownClassError, create, plain, revived
from skvae.priors import PRIORS


class Mine(MLP):
    """A network of the user's own."""


def only_plain(value):
    if isinstance(value, dict):
        return all(type(k) is str and only_plain(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(only_plain(v) for v in value)
    return value is None or type(value) in (bool, int, float, str, np.ndarray)


def test_a_spec_is_a_name_and_parameters():
    specs = (Gaussian(scale=0.5), [ELBO(beta=2)], {"a": Categorical((2, 3))})
    flat = plain(specs)
    assert flat == (
        {KIND: "Gaussian", "parameters": {"scale": 0.5, "min_scale": 1e-3}},
        [{KIND: "ELBO", "parameters": {**ELBO().get_params(), "beta": 2}}],
        {"a": {KIND: "Categorical", "parameters": {"n_categories": (2, 3)}}},
    )
    assert repr(revived(flat)) == repr(specs)


def test_every_spec_of_the_registries_is_known():
    classes = {
        spec
        for registry in (NETWORKS, BY_NAME, PRIORS, OBJECTIVES)
        for spec in registry.values()
    }
    assert set(SPECS.values()) == classes | {EncoderDecoder}
    assert all(spec.__name__ == name for name, spec in SPECS.items())


@pytest.mark.parametrize("name", sorted(set(SPECS) - {"EncoderDecoder"}))
def test_every_spec_comes_back(name):
    spec = SPECS[name]()
    flat = plain(spec)
    assert only_plain(flat)
    twin = revived(flat)
    assert type(twin) is type(spec)
    assert repr(twin) == repr(spec)
    # A copy: changing one leaves the other as it is.
    for key, value in twin.get_params().items():
        twin.set_params(**{key: None})
        assert repr(spec.get_params()[key]) == repr(value)


def test_specs_within_specs():
    mixed = Mixed(((Gaussian("row"), (0, 2)), (Mixed((("poisson", 2),)), (1, 3))))
    flat = plain(mixed)
    assert only_plain(flat)
    assert repr(revived(flat)) == repr(mixed)
    families = Mixed({"height": Gaussian(), "children": "count"})
    assert repr(revived(plain(families))) == repr(families)


@pytest.mark.parametrize("value", [None, 3, 2.5, "text", (), [], {}, np.float64(2)])
def test_other_values_stay_as_they_are(value):
    assert plain(value) == value
    assert type(plain(value)) is type(value)
    assert revived(plain(value)) == value


def test_a_class_of_the_users_own_stays_as_it_is():
    mine = Mine()
    assert plain(mine) is mine
    assert revived(mine) is mine
    flat = plain(mine, {"Mine": Mine})
    assert flat == {KIND: "Mine", "parameters": MLP().get_params()}
    assert type(revived(flat, {"Mine": Mine})) is Mine
    with pytest.raises(UnknownClassError, match="'Mine' is not known"):
        revived(flat)
    # Another class of a known name is not the known one.
    assert plain(mine, {"Mine": MLP}) is mine


def test_pickles_hold_plain_values_and_classes_of_the_users_own():
    X = np.random.default_rng(0).random((20, 3))
    vae = VAEEstimator(
        1, network=Mine(), objective=ELBO(beta=2), hidden_dim=3, epochs=1
    )
    twin = pickle.loads(pickle.dumps(vae))
    assert type(twin.network) is Mine
    assert repr(twin) == repr(vae)
    vae.set_params(random_state=0).fit(X)
    twin = pickle.loads(pickle.dumps(vae))
    assert type(twin.network_) is Mine
    np.testing.assert_array_equal(twin.transform(X), vae.transform(X))


def test_create_takes_known_parameters_only():
    assert repr(create(ELBO, {"beta": 2})) == "ELBO(beta=2)"
    assert create(VAEEstimator, {"latent_dim": 3}).latent_dim == 3
    # Nothing is validated yet.
    assert create(ELBO, {"beta": -1}).beta == -1


@pytest.mark.parametrize(
    ("flat", "message"),
    [
        ({KIND: "os.system", "parameters": {}}, "'os.system' is not known"),
        ({KIND: ["MLP"], "parameters": {}}, "is not known"),
        ({KIND: None, "parameters": {}}, "is not known"),
        ({KIND: "MLP"}, "MLP must hold its parameters"),
        ({KIND: "MLP", "parameters": {}, "more": 1}, "must hold its parameters"),
        ({KIND: "MLP", "parameters": {}, 3: 1}, "must hold its parameters"),
        ({KIND: "MLP", "parameters": {"shell": "rm"}}, "takes the parameters"),
        ({KIND: "MLP", "parameters": 3}, "takes the parameters .* got 3"),
        ({KIND: "MLP", "parameters": ["activation"]}, "takes the parameters"),
        ({KIND: "MLP", "parameters": {1: 2, "a": 3}}, "takes the parameters"),
    ],
)
def test_what_is_not_ours_is_refused(flat, message):
    with pytest.raises(ValueError, match=message):
        revived([flat])
    with pytest.raises(ValueError, match=message):
        revived({"deep": ({"er": flat},)})


def test_unknown_classes_and_parameters_have_an_error_of_their_own():
    for flat in (
        {KIND: "Mine", "parameters": {}},
        {KIND: "MLP", "parameters": {"depth": 3}},
    ):
        with pytest.raises(UnknownClassError):
            revived(flat)

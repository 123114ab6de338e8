"""FittedVAE: a value whose answers are the formulas, and which no method changes."""

import inspect
from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import norm
from sklearn.mixture import GaussianMixture

from estimator_helpers import assert_equal, tiny, tiny_conditional
from skvae import ConvNet, fitted
from skvae.fitted import FittedVAE
from skvae.noise import hash_rows, row_noise

RNG = np.random.default_rng(0)
ROWS = RNG.normal(5, 3, size=(23, 6))
GREY = RNG.random((23, 16))
Y = np.arange(23) % 3
TABLE = pd.DataFrame({"size": ROWS[:, 0], "town": np.array(list("abc"))[Y]})

CASES = {
    "gaussian": (tiny(), ROWS),
    "bernoulli": (tiny(), GREY),
    "conditional": (tiny_conditional(), ROWS),
    "ladder": (tiny(network="ladder", latent_dim=(2, 1)), ROWS),
    "vamp": (tiny(prior="vamp", validation_fraction=0.3), ROWS),
    "student": (tiny(likelihood="student_t"), ROWS),
    "conv": (tiny(network=ConvNet((4,))), GREY),
    "table": (tiny(), TABLE),
}


@pytest.fixture(scope="module")
def values():
    """Values that no test changes, by their names."""
    return {
        name: model.set_params(epochs=1).fit(X, Y).fitted_
        for name, (model, X) in CASES.items()
    }


@pytest.fixture(scope="module")
def value(values):
    return values["gaussian"]


# ------------------------------------------------------------------ nothing changes it


def calls(value, X, y):
    """A call of every public method, by name."""
    Z = value.encode(X)
    condition = value.labels.encode(y, len(X))
    given = y if value.labels.n_conditions else None
    generator = torch.Generator().manual_seed(0)
    mixture = GaussianMixture(2, random_state=0)
    parts = {
        "block_rows": lambda: value.block_rows(3),
        "encode": lambda: value.encode(X),
        "decode": lambda: [
            value.decode(Z, condition),
            value.decode(Z, condition, generator),
        ],
        "reconstruct": lambda: value.reconstruct(X, given),
        "draw_codes": lambda: value.draw_codes(X),
        "with_codes": lambda: value.with_codes(X, np.arange(len(X)), condition),
        "sample": lambda: [
            value.sample(3, 0),
            value.sample(3, 0, observation_noise=True),
            value.sample(3, 0, prior="mixture"),
            value.sample(3, 0, prior=mixture),
        ],
        "elbo_parts": lambda: value.elbo_parts(X, y),
        "score_samples": lambda: [value.score_samples(X, y), value.score_samples(X)],
        "log_likelihood": lambda: value.log_likelihood(X, 3, y),
        "posterior": lambda: value.posterior(X, 3, y),
        "posterior_densities": lambda: value.posterior_densities(X),
        "state": value.state,
        "from_state": lambda: FittedVAE.from_state(value.state()),
    }
    if value.choices.network.posterior != "gaussian":
        del parts["posterior_densities"]
    return parts


def test_every_public_method_is_called_here(value):
    methods = {
        name
        for name, _ in inspect.getmembers(FittedVAE, inspect.isroutine)
        if not name.startswith("_")
    }
    assert methods == set(calls(value, ROWS, Y))


@pytest.mark.parametrize("name", CASES)
def test_no_method_changes_a_value(values, name):
    value, X = values[name], CASES[name][1]
    before = value.state()
    content = {one.name: getattr(value, one.name) for one in fields(value)}
    parameters = dict(value.module.named_parameters())
    flags = {k: (p.requires_grad, p.grad) for k, p in parameters.items()}
    for method, call in calls(value, X, Y).items():
        call()
        assert_equal(before, value.state(), method)
        for field, one in content.items():
            assert getattr(value, field) is one, (method, field)
        for key, parameter in value.module.named_parameters():
            assert parameter is parameters[key], (method, key)
            assert (parameter.requires_grad, parameter.grad) == flags[key], method
        assert not value.module.training, method


def test_a_value_is_frozen(value):
    for one in fields(value):
        with pytest.raises(FrozenInstanceError):
            setattr(value, one.name, getattr(value, one.name))
    with pytest.raises(FrozenInstanceError):
        value.anything = 1


def test_the_repr_says_what_it_is(value):
    text = repr(value)
    assert text == "<FittedVAE: MLP(), Gaussian(), latent_dim=2, 1 epochs, complete>"


# ------------------------------------------------------------------ blocks of rows


@pytest.fixture
def everything(value):
    def run():
        Z = value.encode(ROWS)
        generator = torch.Generator().manual_seed(0)
        return {
            "encode": Z,
            "decode": value.decode(Z),
            "draw": value.decode(Z, generator=generator),
            "reconstruction": value.elbo_parts(ROWS)[0],
            "kl": value.elbo_parts(ROWS)[1],
            "log_likelihood": value.log_likelihood(ROWS, 130),
            "posterior": value.posterior(ROWS, 9)[1],
            "aggregate": value.posterior_densities(ROWS)[1],
        }

    return run


def test_blocks_are_a_matter_of_memory_alone(everything, monkeypatch):
    whole = everything()
    monkeypatch.setattr(fitted, "BLOCK", 1)
    monkeypatch.setattr(fitted, "IMPORTANCE_BLOCK", 7)
    blocked = everything()
    del whole["draw"]  # torch draws few numbers in another way than many
    for name in whole:
        np.testing.assert_allclose(blocked[name], whole[name], rtol=1e-4, err_msg=name)


def test_block_fits_the_widest_layer(value):
    assert value.block_rows() == fitted.BLOCK // 8
    assert value.block_rows(draws=10) == fitted.BLOCK // 80
    assert value.block_rows(draws=10**9) == 1


def test_block_fits_the_widest_convolution(values):
    value = values["conv"]
    # Four channels of 2 x 2 pixels, or four times one before the shuffle, of 2 x 2.
    assert value.module.network.n_widest == 16
    assert value.block_rows() == fitted.BLOCK // 16


# ------------------------------------------------------------------ the formulas


def test_outputs_are_in_the_users_units_and_dtype(everything):
    outputs = everything()
    assert outputs["decode"].dtype == outputs["draw"].dtype == np.float64
    assert outputs["encode"].dtype == outputs["kl"].dtype == np.float32
    assert abs(outputs["decode"].mean() - 5) < 2
    # Draws have the spread that the scale (about 1 in the model's units) says.
    spread = (outputs["draw"] - outputs["decode"]).std()
    assert spread == pytest.approx(ROWS.std(), rel=0.25)


def terms_of(value, n_draws, *, analytic_kl):
    x = value.units.standardize(ROWS)
    noise = torch.tensor(row_noise(hash_rows(x), n_draws, 2))
    with torch.no_grad():
        return value.module.terms(torch.tensor(x), noise, analytic_kl=analytic_kl)


def test_elbo_parts_are_the_mean_over_the_draws_less_the_units(value):
    terms = terms_of(value, fitted.ELBO_DRAWS, analytic_kl=True)
    reconstruction, kl = value.elbo_parts(ROWS)
    expected = -terms.log_likelihood.mean(0) + value.units.log_scale
    np.testing.assert_allclose(reconstruction, expected, rtol=1e-5)
    np.testing.assert_allclose(kl, terms.kl.sum(-1), rtol=1e-5)
    np.testing.assert_allclose(value.score_samples(ROWS), -(reconstruction + kl))


def test_log_likelihood_is_the_log_mean_weight(value):
    weights = terms_of(value, 130, analytic_kl=False).log_weights
    expected = weights.double().logsumexp(0) - np.log(130) - value.units.log_scale
    np.testing.assert_allclose(value.log_likelihood(ROWS, 130), expected, rtol=1e-5)


def test_posterior_weights_average_to_the_likelihood(value):
    z, log_weights = value.posterior(ROWS, 50)
    assert z.shape == (23, 50, 2)
    assert log_weights.shape == (23, 50)
    np.testing.assert_allclose(
        logsumexp(log_weights, axis=1) - np.log(50),
        value.log_likelihood(ROWS, 50),
        rtol=1e-5,
    )
    # The draws are those of q(z|x).
    mean = value.encode(ROWS)
    np.testing.assert_allclose(z.mean(1), mean, atol=0.8)
    np.testing.assert_allclose(z[:, :1].swapaxes(0, 1)[0], value.draw_codes(ROWS))


def test_posterior_densities_are_those_of_the_draws(value):
    log_posterior, log_aggregate, log_prior = value.posterior_densities(ROWS)
    x = torch.tensor(value.units.standardize(ROWS))
    noise = row_noise(hash_rows(x.numpy()), fitted.ELBO_DRAWS, 2)
    with torch.no_grad():
        posterior = value.module.infer(x, torch.tensor(noise))
    mean, log_variance = (part.double().numpy() for part in posterior.gaussian())
    z = posterior.z.double().numpy().swapaxes(0, 1)
    deviation = np.exp(log_variance / 2)
    expected = norm(mean[:, None], deviation[:, None]).logpdf(z).sum(-1)
    np.testing.assert_allclose(log_posterior, expected, rtol=1e-5)
    each = norm(mean, deviation).logpdf(z[:, :, None]).sum(-1)
    np.testing.assert_allclose(
        log_aggregate, logsumexp(each, axis=-1) - np.log(23), rtol=1e-5
    )
    np.testing.assert_allclose(log_prior, norm.logpdf(z).sum(-1), rtol=1e-5)


def test_the_aggregate_of_narrow_posteriors_keeps_its_digits(value):
    """A variance of exp(-15), far from 0: squares of a million to subtract."""
    narrow = replace(value, module=FittedVAE.from_state(value.state()).module)
    with torch.no_grad():
        last = narrow.module.network.encoder[-1]
        last.weight[2:] = 0
        last.bias[2:] = -15
        last.bias[:2] += 100
    log_posterior, log_aggregate, _ = narrow.posterior_densities(ROWS)
    # No other row's posterior reaches so far: its own, of 23.
    np.testing.assert_allclose(log_aggregate, log_posterior - np.log(23), rtol=1e-4)


def test_conditions_are_labels_one_by_one(values):
    value = values["conditional"]
    by_class = [value.score_samples(ROWS, np.full(23, c)) for c in range(3)]
    shares = np.log(np.bincount(Y) / 23)
    np.testing.assert_allclose(
        value.score_samples(ROWS),
        logsumexp(by_class + shares[:, None], axis=0),
        rtol=1e-5,
    )
    with pytest.raises(ValueError, match="requires y"):
        value.elbo_parts(ROWS)


# ------------------------------------------------------------------ kept codes


def test_codes_are_draws_of_rows_chosen_by_their_weight(value):
    weights = np.zeros(23)
    weights[[4, 7]] = 1.0, 3.0
    some = value.with_codes(ROWS, weights, None)
    assert some is not value
    draws = value.draw_codes(ROWS)
    is_4, is_7 = ((some.codes == draws[i]).all(1) for i in (4, 7))
    assert (is_4 ^ is_7).all()
    assert is_7.sum() > is_4.sum()
    np.testing.assert_array_equal(value.with_codes(ROWS, None, None).codes, draws)


def test_at_most_two_thousand_codes_are_kept(value):
    many = np.tile(ROWS, (100, 1))
    assert len(value.with_codes(many, None, None).codes) == fitted.MAX_CODES
    weighted = value.with_codes(many, np.ones(len(many)), np.eye(2300)[:, :3])
    assert len(weighted.codes) == len(weighted.codes_condition) == fitted.MAX_CODES


def test_codes_of_a_density_of_the_users(value):
    mixture = GaussianMixture(1, random_state=0)
    drawn = value.sample(2000, 0, prior=mixture, observation_noise=False)
    assert not hasattr(mixture, "means_")  # a clone was fitted
    assert drawn.shape == (2000, 6)
    with pytest.raises(ValueError, match="prior='x' must be 'model', 'mixture' or"):
        value.sample(3, 0, prior="x")

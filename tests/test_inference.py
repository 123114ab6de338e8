import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import norm

from skvae import inference
from skvae.inference import FittedModel
from skvae.likelihoods import Gaussian
from skvae.networks import ConvNet
from skvae.noise import hash_rows, row_noise
from skvae.units import Units
from test_model import make

ROWS = np.random.default_rng(0).normal(5, 3, size=(23, 6))


@pytest.fixture
def fitted():
    return FittedModel(make(Gaussian()), Units.fit(ROWS), ROWS.dtype)


@pytest.fixture
def everything(fitted):
    def run():
        Z = fitted.encode(ROWS)
        generator = torch.Generator().manual_seed(0)
        return {
            "encode": Z,
            "decode": fitted.decode(Z),
            "draw": fitted.decode(Z, generator),
            "reconstruction": fitted.elbo_parts(ROWS)[0],
            "kl": fitted.elbo_parts(ROWS)[1],
            "log_likelihood": fitted.log_likelihood(ROWS, 130),
        }

    return run


def test_blocks_are_a_matter_of_memory_alone(everything, monkeypatch):
    whole = everything()
    monkeypatch.setattr(inference, "BLOCK", 1)
    monkeypatch.setattr(inference, "IMPORTANCE_BLOCK", 7)
    blocked = everything()
    for name in ("encode", "decode", "reconstruction", "kl", "log_likelihood"):
        np.testing.assert_allclose(blocked[name], whole[name], rtol=1e-4, err_msg=name)


def test_block_fits_the_widest_layer(fitted):
    assert fitted.block_rows() == inference.BLOCK // 6
    assert fitted.block_rows(draws=10) == inference.BLOCK // 60
    assert fitted.block_rows(draws=10**9) == 1


def test_block_fits_the_widest_convolution():
    model = make(network=ConvNet((4,), image_shape=(2, 3)), hidden_dim=())
    fitted = FittedModel(model, Units.identity(6), ROWS.dtype)
    # Four channels of 1 x 2 pixels, or one of 2 x 4 before it is cropped; the dense
    # layers have 8 at most.
    assert fitted.block_rows() == inference.BLOCK // model.network.n_widest
    assert model.network.n_widest == 8
    model.network.n_widest = 1000
    assert fitted.block_rows() == inference.BLOCK // 1000


def test_outputs_are_in_the_users_units_and_dtype(everything):
    outputs = everything()
    assert outputs["decode"].dtype == outputs["draw"].dtype == np.float64
    assert outputs["encode"].dtype == outputs["kl"].dtype == np.float32
    assert abs(outputs["decode"].mean() - 5) < 2
    # Draws have the spread that the scale (1 in the model's units) says.
    spread = (outputs["draw"] - outputs["decode"]).std()
    assert spread == pytest.approx(ROWS.std(), rel=0.25)


def test_elbo_parts_are_the_mean_over_the_draws_less_the_units(fitted):
    x = fitted.units.standardize(ROWS)
    noise = torch.tensor(row_noise(hash_rows(x), inference.ELBO_DRAWS, 2))
    with torch.no_grad():
        terms = fitted.model.terms(torch.tensor(x), noise, analytic_kl=True)
    reconstruction, kl = fitted.elbo_parts(ROWS)
    expected = -terms.log_likelihood.mean(0) + fitted.units.log_scale
    np.testing.assert_allclose(reconstruction, expected, rtol=1e-5)
    np.testing.assert_allclose(kl, terms.kl.sum(-1), rtol=1e-5)


def test_log_likelihood_is_the_log_mean_weight(fitted):
    x = fitted.units.standardize(ROWS)
    noise = torch.tensor(row_noise(hash_rows(x), 130, 2))
    with torch.no_grad():
        weights = fitted.model.terms(
            torch.tensor(x), noise, analytic_kl=False
        ).log_weights
    expected = weights.double().logsumexp(0) - np.log(130) - fitted.units.log_scale
    np.testing.assert_allclose(fitted.log_likelihood(ROWS, 130), expected, rtol=1e-5)


def test_log_aggregate_is_the_log_mean_of_the_densities(fitted, monkeypatch):
    rng = np.random.default_rng(0)
    mean = rng.normal(scale=3, size=(40, 2)).astype(np.float32)
    log_variance = rng.uniform(-15, 15, size=(40, 2)).astype(np.float32)
    z = np.concatenate([mean[:20], rng.normal(scale=3, size=(20, 2))])
    density = norm(mean.astype(float), np.exp(log_variance.astype(float) / 2))
    expected = logsumexp(density.logpdf(z[:, None]).sum(-1), axis=1) - np.log(40)
    whole = fitted.log_aggregate(z, mean, log_variance)
    np.testing.assert_allclose(whole, expected, rtol=1e-7)
    monkeypatch.setattr(inference, "BLOCK", 130)
    np.testing.assert_allclose(fitted.log_aggregate(z, mean, log_variance), whole)


def test_posterior_and_its_draws(fitted):
    mean, log_variance, z, log_prior = fitted.draw_posterior(ROWS)
    assert np.array_equal(mean, fitted.encode(ROWS))
    noise = row_noise(
        hash_rows(fitted.units.standardize(ROWS)), inference.ELBO_DRAWS, 2
    )
    expected = mean + np.exp(log_variance / 2) * noise
    np.testing.assert_allclose(z, expected.swapaxes(0, 1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(log_prior, norm.logpdf(z).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(z[:, 0], fitted.draw_codes(ROWS), rtol=1e-5)

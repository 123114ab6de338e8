"""Where the answer is known: the linear Gaussian VAE is probabilistic PCA.

Tipping and Bishop (1999); Lucas et al. (2019), "Don't Blame the ELBO!": at the optimum
the ELBO of a linear VAE with one learned scale equals the log-likelihood of PCA.
"""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from scipy.stats import multivariate_normal
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from skvae import VAEEstimator

LOADERS = {
    "diabetes": load_diabetes,
    "wine": load_wine,
    "breast_cancer": load_breast_cancer,
}
LATENT_DIM = 2


def linear_vae(n_rows, **options):
    # So many steps, not so many epochs: small tables have few steps in an epoch.
    return VAEEstimator(
        latent_dim=LATENT_DIM,
        hidden_dim=(),
        likelihood="gaussian",
        epochs=max(1, round(1500 * 100 / n_rows)),
        learning_rate=1e-2,
        learning_rate_schedule="cosine",
        random_state=0,
        **options,
    )


SETS = ["wine", *(pytest.param(n, marks=pytest.mark.slow) for n in list(LOADERS)[::2])]


@pytest.fixture(scope="module", params=SETS)
def fitted(request):
    raw = LOADERS[request.param]().data
    X = StandardScaler().fit_transform(raw)
    return linear_vae(len(X)).fit(X), PCA(LATENT_DIM).fit(X), X, raw


def test_elbo_reaches_the_exact_likelihood(fitted):
    vae, pca, X, _ = fitted
    exact = pca.score(X)
    assert vae.score(X) == pytest.approx(exact, rel=0.005)
    # The score of a row is a mean over four draws, its error about a nat.
    assert vae.score(X) <= exact + 3 / np.sqrt(len(X))


def test_latent_plane_is_that_of_pca(fitted):
    vae, pca, _, _ = fitted
    origin = vae.inverse_transform(np.zeros((1, LATENT_DIM)))
    plane = vae.inverse_transform(np.eye(LATENT_DIM)) - origin
    angles = np.rad2deg(subspace_angles(plane.T, pca.components_.T))
    assert angles.max() < 5


def test_log_likelihood_rises_towards_the_exact_value_and_never_passes_it(fitted):
    vae, _, X, _ = fitted
    # An encoder with variances e times too wide, so that there is something to gain.
    spoilt = copy.deepcopy(vae)
    with torch.no_grad():
        spoilt.model_.network.encoder[-1].bias[LATENT_DIM:] += 1.0
    # The exact likelihood of the fitted decoder, N(b, W W' + s^2 I), in X's units.
    decoder, units = vae.model_.network.decoder[0], vae.units_
    weight = decoder.weight.detach().double().numpy()
    log_scale = vae.model_.likelihood.log_scale.item()
    variance = np.exp(2 * log_scale) + vae.likelihood_.min_scale**2
    density = multivariate_normal(
        decoder.bias.detach().double().numpy(),
        weight @ weight.T + variance * np.eye(len(weight)),
    )
    exact = density.logpdf((X - units.location) / units.scale) - units.log_scale

    estimates = [
        spoilt.log_likelihood(X, n_importance_samples).astype(np.float64)
        for n_importance_samples in (1, 10, 100, 1000)
    ]
    assert estimates[0].mean() < exact.mean() - 0.05
    for estimate in estimates:
        gap = estimate - exact
        assert gap.mean() < 4 * gap.std() / np.sqrt(len(X))
    for smaller, larger in pairwise(estimates):
        gap = larger - smaller
        assert gap.mean() > -4 * gap.std() / np.sqrt(len(X))
    assert estimates[-1].mean() == pytest.approx(exact.mean(), rel=2e-3)


@pytest.mark.parametrize(
    "name", ["wine", pytest.param("breast_cancer", marks=pytest.mark.slow)]
)
def test_raw_table_reaches_the_standardised_answer_in_its_own_units(name):
    raw = LOADERS[name]().data
    scaler = StandardScaler().fit(raw)
    exact = PCA(LATENT_DIM).fit(scaler.transform(raw)).score(scaler.transform(raw))
    exact -= np.log(scaler.scale_).sum()
    vae = linear_vae(len(raw)).fit(raw)
    assert vae.score(raw) == pytest.approx(exact, rel=0.015)


def test_elbo_is_one_importance_sample_in_expectation(fitted):
    vae, _, X, _ = fitted
    one = vae.log_likelihood(X, 1).astype(np.float64)
    gap = one - vae.score_samples(X)
    assert abs(gap.mean()) < 5 * gap.std() / np.sqrt(len(X))

"""The estimator where its choices are not the defaults: images, levels, samples."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity
from torch import nn

from skvae import (
    ELBO,
    IWAE,
    MLP,
    ConvNet,
    EncoderDecoder,
    PosteriorCollapseWarning,
    VAEEstimator,
)


def tiny(latent_dim=2, **parameters):
    defaults = {"hidden_dim": 8, "epochs": 2, "batch_size": 50, "random_state": 0}
    return VAEEstimator(latent_dim, **{**defaults, **parameters})


@pytest.fixture
def X(digits):
    return digits[:120]


# ------------------------------------------------------------------ collapse


@pytest.fixture
def collapsing():
    return {
        "objective": ELBO(beta=1000),
        "hidden_dim": (),
        "epochs": 22,  # of 24 steps
        "batch_size": 5,
        "learning_rate": 0.01,
    }


def test_a_collapsed_posterior_warns_with_advice(X, collapsing):
    with pytest.warns(PosteriorCollapseWarning, match="0 of 4 latent") as seen:
        model = tiny(4, **collapsing).fit(X)
    assert "ELBO(warmup=0.5)" in str(seen[0].message)
    assert seen[0].filename == __file__
    assert model.history_.active_units.iloc[model.best_epoch_ - 1] <= 1


@pytest.mark.parametrize(
    "change",
    [
        {"latent_dim": 3},  # one active of three is no collapse
        {"epochs": 20},  # too early to tell
        {"objective": ELBO(), "likelihood": "gaussian"},
    ],
    ids=str,
)
def test_other_fits_do_not_warn_of_collapse(X, collapsing, change):
    parameters = {"latent_dim": 4, **collapsing, **change}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny(**parameters).fit(X)


# ------------------------------------------------------------------ images


@pytest.fixture(params=[1, 3])
def images(X, request):
    return np.tile(X.reshape(-1, 1, 8, 8), (1, request.param, 1, 1))


@pytest.mark.parametrize("network", ["mlp", ConvNet((4,))], ids=str)
def test_images_are_rows_of_their_pixels(images, network):
    rows = images.reshape(len(images), -1)
    model = tiny(network=network).fit(images, X_val=images[:20])
    assert model.n_features_in_ == rows.shape[1]
    for method in ("transform", "score_samples", "log_likelihood", "reconstruct"):
        got = getattr(model, method)(images)
        np.testing.assert_array_equal(got, getattr(model, method)(rows))
    assert model.score(images) == model.score(rows)
    assert model.sample(3).shape == (3, rows.shape[1])
    twin = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(twin.transform(images), model.transform(images))
    same = tiny(network=network).fit(images).partial_fit(images)
    same.set_params(warm_start=True).fit(images)


def test_images_tell_the_network_their_shape():
    images = np.random.default_rng(0).random((30, 1, 4, 16))
    model = tiny(network=ConvNet((2,))).fit(images)
    assert model.model_.network.encoder[0].unflattened_size == (1, 4, 16)
    # As rows they would be squares.
    rows = tiny(network=ConvNet((2,))).fit(images.reshape(30, -1))
    assert rows.model_.network.encoder[0].unflattened_size == (1, 8, 8)


def test_a_torch_tensor_of_images_is_taken():
    images = torch.rand(
        (30, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float32
    )
    assert tiny().fit_transform(images).shape == (30, 2)


def test_channels_that_come_last_are_refused(X):
    with pytest.raises(ValueError, match=r"8 channels; .*np\.moveaxis\(X, -1, 1\)"):
        tiny().fit(X.reshape(-1, 8, 8, 1))


def test_images_of_another_shape_are_refused(images):
    model = tiny().fit(images)
    channels = images.shape[1]
    turned = images.reshape(len(images), channels, 4, 16)
    message = rf"shape \({channels}, 4, 16\).*fitted on .*shape \({channels}, 8, 8\)"
    for call in (model.transform, model.score, model.partial_fit):
        with pytest.raises(ValueError, match=message):
            call(turned)
    with pytest.raises(ValueError, match=message):
        model.fit(images, X_val=turned)
    on_rows = tiny().fit(images.reshape(len(images), -1))
    with pytest.raises(ValueError, match=r"X\.reshape\(len\(X\), -1\)"):
        on_rows.transform(images)


# ------------------------------------------------------------------ levels of z


def test_levels_stand_side_by_side(X):
    model = tiny((3, 2), network="ladder").fit(X)
    Z = model.transform(X)
    assert Z.shape == (120, 5)
    assert len(model.get_feature_names_out()) == 5
    assert model.inverse_transform(Z).shape == X.shape
    with pytest.raises(ValueError, match="Z has 3 columns, but latent_dim=5"):
        model.inverse_transform(Z[:, :3])


@pytest.mark.parametrize("latent_dim", [2, (2,), [2], (np.int64(2),)], ids=repr)
def test_one_level_may_be_written_in_any_way(X, latent_dim):
    Z = tiny(latent_dim).fit_transform(X)
    np.testing.assert_array_equal(Z, tiny(2).fit_transform(X))


@pytest.mark.parametrize(
    ("latent_dim", "network", "message"),
    [
        ((), "mlp", r"latent_dim=\(\) has no level"),
        ((3, 2), "mlp", r"latent_dim=\(3, 2\) has 2 levels, but MLP.*network='ladder'"),
        ((3, 0), "ladder", r"latent_dim=\(3, 0\) must be .*; 0 is not"),
        ((3, 1.5), "ladder", r"1\.5 is not"),
        (("3",), "ladder", r"'3' is not"),
        (0, "mlp", "'latent_dim' parameter of VAEEstimator"),
    ],
)
def test_impossible_levels_are_refused(X, latent_dim, network, message):
    model = tiny(latent_dim, network=network)
    with pytest.raises(ValueError, match=message):
        model.fit(X)
    assert not hasattr(model, "model_")


# ------------------------------------------------------------------ networks


def pair(n_in=64, n_latent=2, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        encoder = nn.Sequential(
            nn.Linear(n_in, 8), nn.GELU(), nn.Linear(8, 2 * n_latent)
        )
        return encoder, nn.Linear(n_latent, n_in)


def test_a_pair_of_modules_is_a_network(X):
    encoder, decoder = pair()
    before = encoder[0].weight.clone()
    model = tiny(network=(encoder, decoder), learning_rate=0.01).fit(X)
    other = tiny(network=EncoderDecoder(encoder, decoder), learning_rate=0.01).fit(X)
    np.testing.assert_array_equal(model.transform(X), other.transform(X))
    # The modules that were given are as they were; what was learned is a copy.
    assert torch.equal(encoder[0].weight, before)
    assert not torch.equal(model.model_.network.encoder[0].weight, before)
    assert repr(clone(model)) == repr(model)
    np.testing.assert_array_equal(clone(model).fit(X).transform(X), model.transform(X))
    twin = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(twin.transform(X), model.transform(X))


def test_frozen_modules_stay_frozen(X):
    encoder, decoder = pair()
    encoder.requires_grad_(False)
    model = tiny(network=(encoder, decoder), learning_rate=0.1).fit(X)
    learned = model.model_.network
    assert torch.equal(learned.encoder[0].weight, encoder[0].weight)
    assert not torch.equal(learned.decoder.weight, decoder.weight)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (pair()[:1], r"must be a pair \(encoder, decoder\).* has 1 items"),
        ((1, 2), "'..coder' parameter of EncoderDecoder"),
        (pair(n_in=63), r"encoder does not take an array of shape \(n, 64\)"),
        (pair(n_latent=3), r"encoder turns .* into \(2, 6\); expected \(2, 4\)"),
        (ConvNet(image_shape=(8, 9)), r"\(1, 8, 9\) does not describe rows of 64"),
    ],
)
def test_networks_that_do_not_fit_are_refused(X, network, message):
    model = tiny(network=network)
    with pytest.raises(ValueError, match=message):
        model.fit(X)
    assert not hasattr(model, "model_")


# ------------------------------------------------------------------ samples


@pytest.fixture(scope="module")
def learned():
    """Codes in two clusters far from where the prior is."""
    rng = np.random.default_rng(0)
    centres = np.where(rng.random((300, 1)) < 0.5, 4.0, -4.0)
    X = centres + 0.1 * rng.normal(size=(300, 5))
    return tiny(epochs=60, learning_rate=0.01, objective=ELBO(beta=0.05)).fit(X), X


@pytest.mark.parametrize(
    "prior",
    [
        "mixture",
        GaussianMixture(3),
        GaussianMixture(2, random_state=7),
        KernelDensity(),
    ],
    ids=str,
)
def test_samples_from_a_density_of_the_codes(learned, prior):
    model, _ = learned
    before = repr(prior)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        rows = model.sample(400, random_state=0, prior=prior)
        again = model.sample(400, random_state=0, prior=prior)
        other = model.sample(400, random_state=1, prior=prior)
    assert rows.shape == (400, 5)
    np.testing.assert_array_equal(again, rows)
    assert not np.array_equal(other, rows)
    # The object that was given is only a pattern.
    assert repr(prior) == before
    assert isinstance(prior, str) or not hasattr(prior, "n_features_in_")


def test_a_mixture_follows_the_codes_where_the_prior_does_not(learned):
    model, _ = learned
    between = {
        prior: np.mean(
            np.abs(
                model.sample(
                    1000, random_state=0, observation_noise=False, prior=prior
                ).mean(1)
            )
            < 3
        )
        for prior in ("model", GaussianMixture(2))
    }
    of_model, of_mixture = between.values()
    assert of_mixture < 0.02
    assert of_model > 0.05
    # Rows come in no order of the components.
    signs = np.sign(model.sample(200, random_state=0, prior=GaussianMixture(2)).mean(1))
    assert 40 < (np.diff(signs) != 0).sum() < 160


@pytest.mark.parametrize("prior", ["nonsense", None, 3, StopIteration])
def test_nonsense_is_no_prior(learned, prior):
    with pytest.raises(ValueError, match=r"prior=.* must be 'model', 'mixture' or"):
        learned[0].sample(3, prior=prior)


# ------------------------------------------------------------------ searches


def test_a_grid_of_choices(X):
    grid = {
        "objective": ["elbo", IWAE(k=2), ELBO(beta=4)],
        "network": ["mlp", ConvNet(channels=(4,))],
    }
    search = GridSearchCV(tiny(epochs=1), grid, cv=2).fit(X)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert len(set(search.cv_results_["mean_test_score"])) == 6
    assert isinstance(search.best_estimator_, VAEEstimator)


def test_a_grid_of_the_parameters_of_choices(X):
    grid = {"objective__beta": [0.5, 2.0], "network__layer_norm": [False, True]}
    model = tiny(epochs=1, objective=ELBO(), network=MLP())
    search = GridSearchCV(model, grid, cv=2).fit(X)
    assert len(set(search.cv_results_["mean_test_score"])) == 4
    assert search.best_estimator_.objective_.beta in (0.5, 2.0)
    assert model.objective.beta == 1

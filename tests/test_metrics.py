import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtri
from scipy.stats import entropy
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

import skvae.fitted
from skvae import ConditionalVAEEstimator, FlowMLP, VAEEstimator
from skvae.fitted import ELBO_DRAWS, FittedVAE
from skvae.metrics import (
    active_units,
    aggregate_posterior_kl,
    elbo_parts,
    knn_accuracy,
    log_likelihood,
    mutual_information,
    mutual_information_gap,
    reconstruction_error,
    separated_attribute_predictability,
)
from skvae.metrics import disentanglement_completeness_informativeness as dci


def tiny(**options):
    return VAEEstimator(
        **{"latent_dim": 3, "hidden_dim": 16, "epochs": 2, "random_state": 0, **options}
    )


@pytest.fixture(scope="module")
def images(_digits):
    """200 digits, from 0 to 16."""
    X = _digits[:200] * 16
    X.flags.writeable = False
    return X


@pytest.fixture(scope="module")
def pipeline(images):
    vae = tiny(epochs=10, learning_rate=1e-2)
    return make_pipeline(MinMaxScaler(), vae).fit(images)


@pytest.fixture(scope="module")
def scaled(pipeline, images):
    return pipeline[0].transform(images)


def by_hand(slope, log_variance, X, offset=0.0):
    """A VAE with q(z|x) = N(slope * x + offset, exp(log_variance) I)."""
    vae = VAEEstimator(
        X.shape[1],
        hidden_dim=(),
        likelihood="gaussian",
        standardize=False,
        epochs=1,
        batch_size=len(X),
        random_state=0,
    ).fit(X)
    n = X.shape[1]
    with torch.no_grad():
        encoder = vae.model_.network.encoder[-1]
        encoder.weight.zero_()
        encoder.weight[:n] = torch.diag(torch.full((n,), float(slope)))
        encoder.bias[:n] = offset
        encoder.bias[n:] = log_variance
    return vae


# --------------------------------------------------------------- the bound and errors


def test_elbo_parts_add_up_to_the_score_alone_and_in_a_pipeline(
    pipeline, images, scaled
):
    parts = elbo_parts(pipeline, images)
    assert set(parts) == {"reconstruction", "kl", "total"}
    assert np.array_equal(-parts["total"], pipeline.score_samples(images))
    assert (parts["kl"] > 0).all()
    assert np.array_equal(elbo_parts(pipeline[-1], scaled)["kl"], parts["kl"])


def test_log_likelihood_is_the_estimators_alone_and_in_a_pipeline(
    pipeline, images, scaled
):
    expected = pipeline[-1].log_likelihood(scaled, 7)
    assert np.array_equal(log_likelihood(pipeline, images, 7), expected)
    assert np.array_equal(log_likelihood(pipeline[-1], scaled, 7), expected)
    with pytest.raises(ValueError, match="n_importance_samples=0"):
        log_likelihood(pipeline, images, 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_reconstruction_error_is_the_distance_from_the_reconstruction(
    pipeline, images, dtype
):
    X = images.astype(dtype)
    scaled = pipeline[0].transform(X).clip(0, 1)
    pipeline = make_pipeline(*(step for _, step in pipeline.steps))
    gap = scaled - pipeline[-1].reconstruct(scaled).astype(np.float64)
    squared = reconstruction_error(pipeline, X)
    absolute = reconstruction_error(pipeline[-1], scaled, metric="absolute")
    assert squared.dtype == absolute.dtype == np.float64
    np.testing.assert_allclose(squared, (gap**2).sum(1), rtol=1e-6)
    np.testing.assert_allclose(absolute, np.abs(gap).sum(1), rtol=1e-6)
    with pytest.raises(ValueError, match=r"metric='cosine'.*'squared', 'absolute'"):
        reconstruction_error(pipeline, X, metric="cosine")


def test_reconstruction_error_is_in_the_users_units():
    X = np.random.default_rng(0).normal(1e6, 100, size=(100, 2))
    error = reconstruction_error(tiny(latent_dim=1).fit(X), X)
    assert 100 < np.sqrt(error.mean()) < 200


def test_reconstruction_error_takes_the_nearest_values_with_one_warning(
    pipeline, scaled, monkeypatch
):
    outside = scaled.copy()
    outside[[0, 150], 20] = [3.0, -1.0]
    monkeypatch.setattr(skvae.fitted, "BLOCK", 64 * 50)  # 50 rows at a time
    with pytest.warns(UserWarning, match=r"outside the support \[0, 1\]") as caught:
        error = reconstruction_error(pipeline[-1], outside)
    assert [warning.filename for warning in caught] == [__file__]
    nearest = reconstruction_error(pipeline[-1], outside.clip(0, 1))
    np.testing.assert_allclose(error, nearest, rtol=1e-6)
    assert error[0] != reconstruction_error(pipeline[-1], scaled)[0]


def test_reconstruction_error_holds_one_block_at_a_time(
    pipeline, scaled, monkeypatch, tmp_path
):
    whole = reconstruction_error(pipeline[-1], scaled)
    decode, sizes = FittedVAE.decode, []

    def recorded(self, Z, *arguments):
        sizes.append(len(Z))
        return decode(self, Z, *arguments)

    monkeypatch.setattr(FittedVAE, "decode", recorded)
    monkeypatch.setattr(skvae.fitted, "BLOCK", 64 * 30)
    on_disk = np.memmap(tmp_path / "X", scaled.dtype, "w+", shape=scaled.shape)
    on_disk[:] = scaled
    for X in (scaled, on_disk):
        sizes.clear()
        np.testing.assert_allclose(
            reconstruction_error(pipeline[-1], X), whole, rtol=1e-6
        )
        assert sizes == [30] * 6 + [20]


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    n = 60
    days = rng.integers(0, 100, n).astype("timedelta64[D]")
    return pd.DataFrame(
        {
            "length": rng.normal(10, 3, n),
            "count": rng.integers(0, 9, n),
            "colour": pd.Categorical(rng.choice(["blue", "red", "grey"], n)),
            "old": rng.random(n) < 0.5,
            "date": np.datetime64("2020-01-01", "us") + days,
        }
    )


def test_reconstruction_error_of_a_table_counts_categories_as_0_or_1(table):
    vae = tiny(epochs=20).fit(table)
    decoded = vae.reconstruct(table)
    wrong = {
        name: (decoded[name] != table[name]).to_numpy() for name in ("colour", "old")
    }
    assert all(0 < w.mean() < 1 for w in wrong.values())
    number = (decoded["length"] - table["length"]).to_numpy()
    count = (decoded["count"] - table["count"]).to_numpy()
    assert np.array_equal(count, np.round(count))
    days = (decoded["date"] - table["date"]).dt.total_seconds().to_numpy() / 86400
    categories = wrong["colour"].astype(float) + wrong["old"]
    squared = number**2 + count**2 + days**2 + categories
    np.testing.assert_allclose(reconstruction_error(vae, table), squared, rtol=1e-6)
    absolute = np.abs(number) + np.abs(count) + np.abs(days) + categories
    np.testing.assert_allclose(
        reconstruction_error(vae, table, "absolute"), absolute, rtol=1e-6
    )
    assert elbo_parts(vae, table)["total"].shape == (60,)
    assert mutual_information(vae, table) > 0


def test_labels_reach_the_decoder(images):
    X, y = images / 16, np.arange(200) % 2
    vae = ConditionalVAEEstimator(3, hidden_dim=16, epochs=2, random_state=0).fit(X, y)
    assert np.array_equal(-elbo_parts(vae, X, y)["total"], vae.score_samples(X, y))
    assert np.array_equal(log_likelihood(vae, X, 5, y), vae.log_likelihood(X, 5, y=y))
    expected = ((X - vae.reconstruct(X, y)) ** 2).sum(1)
    np.testing.assert_allclose(reconstruction_error(vae, X, y=y), expected, rtol=1e-5)
    for metric in (elbo_parts, reconstruction_error):
        with pytest.raises(ValueError, match="y is None"):
            metric(vae, X)
    for metric in (elbo_parts, log_likelihood, reconstruction_error):
        one, other = metric(vae, X, y=y), metric(vae, X, y=1 - y)
        if isinstance(one, dict):
            one, other = one["reconstruction"], other["reconstruction"]
        assert (one != other).all()
    # Without labels, the mean of the densities: the classes are equally frequent.
    both = [log_likelihood(vae, X, 5, label) for label in (y, 1 - y)]
    expected = np.logaddexp(*both) - math.log(2)
    np.testing.assert_allclose(log_likelihood(vae, X, 5), expected, rtol=1e-5)
    # The encoder needs none.
    assert mutual_information(vae, X) > 0
    assert active_units(vae, X).shape == (3,)


@pytest.mark.parametrize(
    "metric",
    [
        elbo_parts,
        log_likelihood,
        reconstruction_error,
        active_units,
        mutual_information,
        aggregate_posterior_kl,
    ],
)
def test_an_estimator_must_be_fitted_and_know_the_features(metric, pipeline, scaled):
    with pytest.raises(NotFittedError, match="VAEEstimator instance is not fitted"):
        metric(VAEEstimator(), scaled)
    with pytest.raises(ValueError, match="X has 63 features, but VAEEstimator"):
        metric(pipeline[-1], scaled[:, 1:])


# --------------------------------------------------------------- what the code holds


def test_active_units_by_hand():
    X = np.array([[-1.0, -1.0], [1.0, 1.0]])  # variance 1 in each column
    vae = by_hand(1.0, 0.0, X)
    with torch.no_grad():
        vae.model_.network.encoder[-1].weight[1, 1] = 0.09
    assert active_units(vae, X).tolist() == [True, False]
    assert active_units(vae, X, threshold=0.008).tolist() == [True, True]
    assert active_units(vae, X, threshold=1.1).tolist() == [False, False]
    pipeline = make_pipeline(MinMaxScaler((-1, 1)), vae)
    pipeline[0].fit(X * 100)
    assert active_units(pipeline, X * 100).tolist() == [True, False]
    # Whatever container transform gives.
    vae.set_output(transform="pandas")
    assert active_units(vae, X).tolist() == [True, False]


@pytest.mark.parametrize(("slope", "deviation"), [(1.0, 1.0), (0.6, 0.8), (2.0, 0.5)])
def test_information_and_divergence_of_gaussian_codes(slope, deviation):
    # x on the quantiles of N(0, 1), so that q(z) is N(0, slope^2 + deviation^2).
    X = ndtri((np.arange(600) + 0.5) / 600)[:, None]
    vae = by_hand(slope, 2 * math.log(deviation), X)
    variance = slope**2 + deviation**2
    information = 0.5 * math.log(variance / deviation**2)
    divergence = 0.5 * (variance - 1 - math.log(variance))
    assert mutual_information(vae, X) == pytest.approx(information, abs=0.02)
    assert aggregate_posterior_kl(vae, X) == pytest.approx(divergence, abs=0.02)


def test_collapsed_encoder_holds_nothing():
    X = np.random.default_rng(0).normal(size=(100, 2))
    vae = by_hand(0.0, 0.0, X)
    assert mutual_information(vae, X) == pytest.approx(0, abs=1e-6)
    assert aggregate_posterior_kl(vae, X) == pytest.approx(0, abs=1e-6)
    # Antithetic draws: the linear term of the divergence has no error.
    away = by_hand(0.0, 0.0, X, offset=1.0)
    assert mutual_information(away, X) == pytest.approx(0, abs=1e-6)
    assert aggregate_posterior_kl(away, X) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("log_variance", [-4.0, -15.0])
def test_codes_that_do_not_overlap_know_their_row(log_variance):
    X = np.arange(200.0).reshape(100, 2)
    vae = by_hand(2.0, log_variance, X)
    assert mutual_information(vae, X) == pytest.approx(math.log(100), abs=1e-5)
    assert mutual_information(vae, X[:10]) == pytest.approx(math.log(10), abs=1e-5)


@pytest.mark.parametrize("prior", ["normal", "mixture", "vamp"])
def test_information_and_divergence_add_up_to_the_kl_of_the_same_draws(
    images, pipeline, scaled, prior
):
    vae = pipeline[-1]
    if prior != "normal":
        vae = tiny(prior=prior, epochs=5, learning_rate=1e-2).fit(scaled)
    total = mutual_information(vae, scaled) + aggregate_posterior_kl(vae, scaled)
    # log weight = log p(x|z) + log p(z) - log q(z|x), of the same draws of z.
    _, log_weights = vae.fitted_.posterior(vae.fitted_.form.check(vae, scaled), 4)
    parts = elbo_parts(vae, scaled)
    kl = -parts["reconstruction"].astype(np.float64) - log_weights.mean(axis=1)
    assert total == pytest.approx(kl.mean(), abs=1e-5)
    # So it does with the closed form, up to the noise of the draws.
    error = (kl - parts["kl"]).std() / math.sqrt(len(kl))
    assert abs(total - parts["kl"].mean()) < 5 * error + 1e-6


@pytest.mark.parametrize("metric", [mutual_information, aggregate_posterior_kl])
def test_the_order_of_rows_and_the_size_of_blocks_do_not_matter(
    pipeline, images, scaled, metric, monkeypatch
):
    whole = metric(pipeline, images)
    assert type(whole) is float
    assert metric(pipeline, images) == whole
    assert metric(pipeline, images[::-1]) == pytest.approx(whole, abs=1e-6)
    assert metric(pipeline[-1], scaled) == whole

    sizes = []
    log_mixture = skvae.fitted.log_mixture

    def recorded(z, **parameters):
        sizes.append(len(z))
        return log_mixture(z, **parameters)

    monkeypatch.setattr(skvae.fitted, "log_mixture", recorded)
    monkeypatch.setattr(skvae.fitted, "BLOCK", 10_000)
    assert metric(pipeline, images) == pytest.approx(whole, abs=1e-6)
    assert max(sizes) * len(images) <= 10_000
    assert sum(sizes) == ELBO_DRAWS * len(images)


@pytest.mark.parametrize(
    "options",
    [{"network": "ladder", "latent_dim": (3, 2)}, {"network": FlowMLP()}],
    ids=["ladder", "flow"],
)
def test_posteriors_without_a_closed_form_are_refused(scaled, options):
    if not isinstance(options["network"], str):
        pytest.importorskip("zuko")
    vae = tiny(epochs=1, **options).fit(scaled[:100])
    for metric in (mutual_information, aggregate_posterior_kl):
        with pytest.raises(ValueError, match=r"diagonal Gaussian.*'mlp' or 'conv'"):
            metric(vae, scaled[:100])


# --------------------------------------------------------------- codes and factors

# 8 rows, two independent binary factors; HALF agrees with the first in 6 rows of 8.
FIRST = np.array([0, 0, 0, 0, 1, 1, 1, 1])
SECOND = np.array([0, 1, 0, 1, 0, 1, 0, 1])
HALF = np.array([0, 0, 0, 1, 0, 1, 1, 1])
FACTORS = np.stack([FIRST, SECOND], axis=1)


@pytest.fixture(scope="module")
def continuous():
    return np.random.default_rng(0).uniform(size=(1000, 2))


@pytest.fixture(scope="module")
def discrete():
    return np.random.default_rng(0).integers(4, size=(600, 2))


def turned(factors):
    """Each code the sum or the difference of two factors."""
    return factors @ np.array([[1.0, 1.0], [1.0, -1.0]])


def test_mutual_information_gap_by_hand():
    assert mutual_information_gap(FACTORS, FACTORS) == pytest.approx(1)
    # I(HALF; FIRST) = log 2 - H(1/4); the gap is what is left of one bit.
    codes = np.stack([FIRST * 0.3, HALF], axis=1)
    gap = entropy([0.25, 0.75], base=2)
    first = FIRST[:, None]
    assert mutual_information_gap(codes, first) == pytest.approx(gap)
    assert mutual_information_gap(codes[:, ::-1], first) == pytest.approx(gap)
    # One code is compared with nothing; two equal ones have no gap.
    assert mutual_information_gap(HALF[:, None], first) == pytest.approx(1 - gap)
    assert mutual_information_gap(codes[:, [0, 0]], first) == 0
    # The factors count alike: a gap of 1 and one of 0.
    third = np.stack([FIRST, SECOND, SECOND], axis=1)
    assert mutual_information_gap(third, FACTORS) == pytest.approx(0.5)


def test_mutual_information_gap_has_the_bins_it_is_given():
    factor = np.arange(8)[:, None]
    codes = np.arange(8.0)[:, None]
    assert mutual_information_gap(codes, factor) == pytest.approx(1)
    # Two bins tell one bit of three.
    assert mutual_information_gap(codes, factor, n_bins=2) == pytest.approx(1 / 3)
    for bad in (1, 2.5, "auto"):
        with pytest.raises(ValueError, match="n_bins="):
            mutual_information_gap(codes, factor, n_bins=bad)


def test_separated_attribute_predictability_by_hand():
    first = FIRST[:, None]
    # A threshold on HALF is right in 6 of 8 rows, one on SECOND in 4 of 8.
    codes = np.stack([FIRST, HALF], axis=1)
    assert separated_attribute_predictability(codes, first) == pytest.approx(0.25)
    assert separated_attribute_predictability(FACTORS, FACTORS) == pytest.approx(0.5)
    # A constant code is worth nothing, not what chance gives.
    constant = np.stack([FIRST, np.full(8, 3)], axis=1)
    assert separated_attribute_predictability(constant, first) == pytest.approx(1)
    # The accuracy is balanced: 3 rows of one class weigh as much as 1 of another.
    rare = np.array([0, 0, 0, 1])[:, None]
    code = np.array([0, 0, 1, 1])[:, None]
    expected = (2 / 3 + 1) / 2
    assert separated_attribute_predictability(code, rare) == pytest.approx(expected)
    # Three classes take two thresholds.
    classes = np.array([0, 1, 2, 0, 1, 2])[:, None]
    assert separated_attribute_predictability(classes, classes) == pytest.approx(1)


def test_separated_attribute_predictability_of_continuous_factors_by_hand():
    factor = np.array([[-1.5], [-0.5], [0.5], [1.5]])
    codes = np.stack([-2 * factor[:, 0], [-1, 1, -1, 1], [0, 0, 0, 0]], axis=1)
    # Correlation of the second: 2 / sqrt(5 * 4).
    expected = 1 - 4 / 20
    assert separated_attribute_predictability(codes, factor) == pytest.approx(expected)


def test_dci_by_hand():
    v = np.array([[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)] * 50)
    # The first code holds two factors, the second the third.
    codes = np.stack([2 * v[:, 0] + v[:, 1], v[:, 2]], axis=1)
    scores = dci(codes, v, n_estimators=30)
    disentanglement = 2 / 3 * (1 - math.log(2) / math.log(3)) + 1 / 3
    assert scores["disentanglement"] == pytest.approx(disentanglement, abs=1e-3)
    assert scores["completeness"] == pytest.approx(1, abs=1e-3)
    assert scores["informativeness"] == 1
    # Two codes with one factor between them: neither is complete.
    scores = dci(v[:, [0, 0]], v[:, :1], n_estimators=30)
    assert scores["completeness"] < 0.1
    assert scores["disentanglement"] == pytest.approx(1)
    # A constant code changes nothing.
    constant = np.concatenate([v, np.zeros((len(v), 1))], axis=1)
    few = {"n_estimators": 30}
    assert dci(constant, v, **few) == pytest.approx(dci(v, v, **few))


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
def test_disentangled_codes_score_high_and_mixed_ones_low(kind, request):
    factors = request.getfixturevalue(kind)
    good, mixed = 5 - 3 * factors[:, ::-1], turned(factors)
    most = 1.0 if kind == "continuous" else 0.75
    assert mutual_information_gap(good, factors) > 0.9
    assert mutual_information_gap(mixed, factors) < 0.15
    assert separated_attribute_predictability(good, factors) > 0.9 * most
    assert separated_attribute_predictability(mixed, factors) < 0.15
    high, low = (dci(codes, factors, n_estimators=30) for codes in (good, mixed))
    for name in ("disentanglement", "completeness"):
        assert high[name] > 0.95
        assert low[name] < 0.2
    # Mixed codes hold as much: that is not what the other scores measure.
    assert high["informativeness"] > 0.95
    assert low["informativeness"] > 0.9


def test_codes_that_know_nothing_score_0(continuous, discrete):
    codes = np.random.default_rng(1).normal(size=(1000, 3))
    for factors in (continuous, discrete):
        noise = codes[: len(factors)]
        assert mutual_information_gap(noise, factors) < 0.05
        assert separated_attribute_predictability(noise, factors) < 0.05
        scores = dci(noise, factors, n_estimators=30)
        assert scores["disentanglement"] < 0.05
        assert scores["completeness"] < 0.05
        assert scores["informativeness"] < 0.35


def test_dci_is_determined_by_its_random_state(discrete):
    factors = discrete[:150]
    noisy = factors + np.random.default_rng(0).normal(size=factors.shape)
    run = {
        n: dci(noisy, factors, n_estimators=30, random_state=random_state)
        for n, random_state in enumerate([0, 0, 1, None, None])
    }
    assert run[0] == run[1] != run[2]
    assert run[3] != run[4]


FUNCTIONS = [mutual_information_gap, separated_attribute_predictability, dci]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_unusable_codes_and_factors_are_refused(function):
    with pytest.raises(ValueError, match=r"column 1 of factors is constant at 2\b"):
        function(FACTORS, np.stack([FIRST, np.full(8, 2)], axis=1))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        function(FACTORS[:5], FACTORS)
    with pytest.raises(ValueError, match="codes contains NaN"):
        function(np.full((8, 2), np.nan), FACTORS)
    with pytest.raises(ValueError, match="Expected 2D array"):
        function(FACTORS, FIRST)


@settings(max_examples=10)  # each grows some dozens of trees
@given(data=st.data())
def test_gaps_lie_between_0_and_1_and_know_no_order_and_no_unit(data):
    n = data.draw(st.integers(2, 12), label="rows")
    columns = st.lists(st.integers(-3, 3), min_size=n, max_size=n)
    wide = st.integers(1, 3).flatmap(
        lambda k: st.lists(columns, min_size=k, max_size=k)
    )
    codes = np.transpose(data.draw(wide, label="codes")).astype(float)
    factors = np.transpose(data.draw(wide, label="factors")) % 2
    factors[0], factors[-1] = 0, 1  # no factor is constant
    order = data.draw(st.permutations(range(codes.shape[1])), label="order")
    for gap in (mutual_information_gap, separated_attribute_predictability):
        value = gap(codes, factors)
        assert 0 <= value <= 1 + 1e-9
        assert gap(4 * codes[:, order] + 8, factors[:, ::-1]) == pytest.approx(value)
        assert gap(codes, 1 - factors) == pytest.approx(value)


# --------------------------------------------------------------- neighbours


def test_knn_accuracy_by_hand():
    Z = np.array([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2]])
    y = np.array(["a", "a", "b", "b", "b", "a"])
    Z_test, y_test = np.array([[0.19], [5.04], [5.3], [0.0]]), ["b", "b", "a", "b"]
    assert knn_accuracy(Z, y, Z_test, y_test, n_neighbors=1) == 0.75
    assert knn_accuracy(Z, y, Z_test, y_test, n_neighbors=3) == 0.25


def test_knn_accuracy_of_five_neighbours_by_default(digits):
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=300)
    Z = y[:, None] + rng.normal(size=(300, 2))
    split = (Z[:200], y[:200], Z[200:], y[200:])
    accuracies = {k: knn_accuracy(*split, n_neighbors=k) for k in (1, 5, 50)}
    assert knn_accuracy(*split) == accuracies[5]
    assert len(set(accuracies.values())) == 3

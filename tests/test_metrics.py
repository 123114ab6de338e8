import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtri
from scipy.stats import entropy
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from skvae import FlowMLP, VAEEstimator, inference
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
from skvae.priors import VampPrior


def tiny(**options):
    return VAEEstimator(
        **{"latent_dim": 3, "hidden_dim": 16, "epochs": 2, "random_state": 0, **options}
    )


class Told(VAEEstimator):
    """A decoder that is told the label, 0 or 1."""

    def _check_condition(self, y, X, *, reset):
        if y is None:
            raise ValueError("y is None")
        return np.eye(2, dtype=np.float32)[y]

    def fit(self, X, y):
        self._fit(X, y, None, None, None)
        return self


def by_hand(slope, log_variance, X, offset=0.0):
    """A VAE with q(z|x) = N(slope * x + offset, exp(log_variance) I)."""
    vae = VAEEstimator(
        X.shape[1],
        hidden_dim=(),
        likelihood="gaussian",
        standardize=False,
        epochs=1,
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


def test_elbo_parts_add_up_to_the_score_alone_and_in_a_pipeline(digits):
    X = digits * 16
    pipeline = make_pipeline(MinMaxScaler(), tiny()).fit(X)
    parts = elbo_parts(pipeline, X)
    assert set(parts) == {"reconstruction", "kl", "total"}
    assert np.array_equal(-parts["total"], pipeline.score_samples(X))
    assert (parts["kl"] > 0).all()
    scaled = pipeline[0].transform(X)
    assert np.array_equal(elbo_parts(pipeline[-1], scaled)["kl"], parts["kl"])


def test_log_likelihood_is_the_estimators_alone_and_in_a_pipeline(digits):
    X = digits[:200] * 16
    pipeline = make_pipeline(MinMaxScaler(), tiny()).fit(X)
    scaled = pipeline[0].transform(X)
    expected = pipeline[-1].log_likelihood(scaled, 7)
    assert np.array_equal(log_likelihood(pipeline, X, 7), expected)
    assert np.array_equal(log_likelihood(pipeline[-1], scaled, 7), expected)
    with pytest.raises(ValueError, match="n_importance_samples=0"):
        log_likelihood(pipeline, X, 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_reconstruction_error_is_the_distance_from_the_reconstruction(digits, dtype):
    X = (digits[:200] * 16).astype(dtype)
    pipeline = make_pipeline(MinMaxScaler(clip=True), tiny()).fit(X)
    scaled = pipeline[0].transform(X)
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


def test_labels_reach_the_decoder(digits):
    X, y = digits[:200], np.arange(200) % 2
    vae = Told(3, hidden_dim=16, epochs=2, random_state=0).fit(X, y)
    assert np.array_equal(-elbo_parts(vae, X, y)["total"], vae._score_samples(X, y))
    assert np.array_equal(log_likelihood(vae, X, 5, y), vae._log_likelihood(X, y, 5))
    expected = ((X - vae._reconstruct(X, y)) ** 2).sum(1)
    np.testing.assert_allclose(reconstruction_error(vae, X, y=y), expected, rtol=1e-5)
    for metric in (elbo_parts, log_likelihood, reconstruction_error):
        with pytest.raises(ValueError, match="y is None"):
            metric(vae, X)
        one, other = metric(vae, X, y=y), metric(vae, X, y=1 - y)
        if isinstance(one, dict):
            one, other = one["reconstruction"], other["reconstruction"]
        assert (one != other).all()
    # The encoder needs none.
    assert mutual_information(vae, X) > 0
    assert active_units(vae, X).shape == (3,)


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


@pytest.mark.parametrize(("slope", "deviation"), [(1.0, 1.0), (0.6, 0.8), (2.0, 0.5)])
def test_information_and_divergence_of_gaussian_codes(slope, deviation):
    # x on the quantiles of N(0, 1), so that q(z) is N(0, slope^2 + deviation^2).
    X = ndtri((np.arange(1500) + 0.5) / 1500)[:, None]
    vae = by_hand(slope, 2 * math.log(deviation), X)
    variance = slope**2 + deviation**2
    information = 0.5 * math.log(variance / deviation**2)
    divergence = 0.5 * (variance - 1 - math.log(variance))
    assert mutual_information(vae, X) == pytest.approx(information, abs=0.01)
    assert aggregate_posterior_kl(vae, X) == pytest.approx(divergence, abs=0.01)


def test_collapsed_encoder_holds_nothing():
    X = np.random.default_rng(0).normal(size=(500, 2))
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
def test_information_and_divergence_add_up_to_the_kl_of_the_same_draws(digits, prior):
    vae = tiny(prior=prior, epochs=5, learning_rate=1e-2).fit(digits)
    X = digits[:300]
    total = mutual_information(vae, X) + aggregate_posterior_kl(vae, X)
    (block,) = vae._fitted._blocks_with_hashes(X, 1, None)
    x, hashes, _ = block
    noise = inference.row_noise(hashes, inference.ELBO_DRAWS, vae.model_.n_noise)
    with torch.no_grad():
        terms = vae.model_.terms(x, torch.tensor(noise), analytic_kl=False)
    kl = terms.log_posterior - terms.log_prior
    assert total == pytest.approx(kl.double().mean().item(), abs=1e-5)
    # So it does with the closed form, up to the noise of the draws.
    error = kl.mean(0).std().item() / math.sqrt(len(X))
    assert abs(total - elbo_parts(vae, X)["kl"].mean()) < 5 * error


@pytest.mark.parametrize("metric", [mutual_information, aggregate_posterior_kl])
def test_rows_are_a_set_and_blocks_a_matter_of_memory(digits, metric, monkeypatch):
    X = digits[:150] * 16
    pipeline = make_pipeline(MinMaxScaler(), tiny(epochs=10)).fit(X)
    whole = metric(pipeline, X)
    assert type(whole) is float
    assert metric(pipeline, X) == whole
    assert metric(pipeline, X[::-1]) == pytest.approx(whole, abs=1e-6)
    assert metric(pipeline[-1], pipeline[0].transform(X)) == whole

    sizes = []
    log_prob = VampPrior.log_prob

    def recorded(self, z, **parameters):
        sizes.append(len(z))
        return log_prob(self, z, **parameters)

    monkeypatch.setattr(VampPrior, "log_prob", recorded)
    monkeypatch.setattr(inference, "BLOCK", 1000)
    assert metric(pipeline, X) == pytest.approx(whole, abs=1e-6)
    assert max(sizes) * len(X) <= 1000
    assert sum(sizes) == inference.ELBO_DRAWS * len(X)


@pytest.mark.parametrize("metric", [mutual_information, aggregate_posterior_kl])
@pytest.mark.parametrize(
    "options",
    [{"network": "ladder", "latent_dim": (3, 2)}, {"network": FlowMLP()}],
    ids=["ladder", "flow"],
)
def test_posteriors_without_a_closed_form_are_refused(digits, metric, options):
    if not isinstance(options["network"], str):
        pytest.importorskip("zuko")
    vae = tiny(epochs=1, **options).fit(digits[:100])
    with pytest.raises(ValueError, match=r"diagonal Gaussian.*'mlp' or 'conv'"):
        metric(vae, digits[:100])


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
    scores = dci(codes, v)
    disentanglement = 2 / 3 * (1 - math.log(2) / math.log(3)) + 1 / 3
    assert scores["disentanglement"] == pytest.approx(disentanglement, abs=1e-3)
    assert scores["completeness"] == pytest.approx(1, abs=1e-3)
    assert scores["informativeness"] == 1
    # Two codes with one factor between them: neither is complete.
    scores = dci(v[:, [0, 0]], v[:, :1])
    assert scores["completeness"] < 0.1
    assert scores["disentanglement"] == pytest.approx(1)
    # A constant code changes nothing.
    constant = np.concatenate([v, np.zeros((len(v), 1))], axis=1)
    assert dci(constant, v) == pytest.approx(dci(v, v))


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
    noisy = discrete + np.random.default_rng(0).normal(size=discrete.shape)
    run = {
        n: dci(noisy, discrete, n_estimators=60, random_state=random_state)
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


@given(data=st.data())
def test_gaps_lie_between_0_and_1_and_know_no_order_and_no_unit(data):
    n = data.draw(st.integers(2, 30), label="rows")
    columns = st.lists(st.integers(-3, 3), min_size=n, max_size=n)
    wide = st.integers(1, 4).flatmap(
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

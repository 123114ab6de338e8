from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import integrate, stats
from sklearn.base import clone

from skvae import VAEEstimator
from skvae.likelihoods import (
    LIKELIHOODS,
    Bernoulli,
    Beta,
    Categorical,
    ContinuousBernoulli,
    DiscretizedLogisticMixture,
    Gaussian,
    Likelihood,
    Mixed,
    NegativeBinomial,
    Poisson,
    StudentT,
    guess,
)
from skvae.spec import resolve

N_FEATURES = 6
COLUMNS = [[d] for d in range(N_FEATURES)]


class Case(NamedTuple):
    """A family, the columns that are independent, and the family of those alone."""

    likelihood: Likelihood
    pieces: list[list[int]] = COLUMNS
    alone: Likelihood | None = None


CASES = [
    Case(Bernoulli()),
    Case(ContinuousBernoulli()),
    Case(Gaussian()),
    Case(Gaussian(scale="feature")),
    Case(Gaussian(scale="row")),
    Case(Gaussian(scale=0.7)),
    Case(StudentT()),
    Case(StudentT(degrees_of_freedom="learned", scale="feature")),
    Case(StudentT(scale="row")),
    Case(StudentT(degrees_of_freedom=10, scale=0.7)),
    Case(Beta()),
    Case(Beta(precision="feature")),
    Case(Beta(precision="shared")),
    Case(Poisson()),
    Case(NegativeBinomial()),
    Case(NegativeBinomial(dispersion="shared")),
    Case(NegativeBinomial(dispersion="row")),
    Case(Categorical(), [[0, 1, 2, 3, 4, 5]]),
    Case(Categorical(3), [[0, 1, 2], [3, 4, 5]]),
    Case(Categorical((2, 4)), [[0, 1], [2, 3, 4, 5]], Categorical()),
    Case(DiscretizedLogisticMixture(), [[0, 2, 4], [1, 3, 5]]),
    Case(DiscretizedLogisticMixture(n_components=2, n_channels=1)),
    Case(
        DiscretizedLogisticMixture(n_components=3, n_channels=2),
        [[0, 3], [1, 4], [2, 5]],
    ),
    Case(
        Mixed(
            (("gaussian", [5, 4]), (NegativeBinomial("row"), [1, 3]), ("beta", [0, 2]))
        ),
    ),
    Case(Mixed((("student_t", 2), (Categorical(), 3), ("poisson", 1)))),
]
MIXED = [case.likelihood for case in CASES if isinstance(case.likelihood, Mixed)]
PLAIN = [case for case in CASES if case.likelihood not in MIXED]
FAMILIES = [case.likelihood for case in CASES]


def name(value):
    return repr(getattr(value, "likelihood", value))


def arguments(likelihood, n_features=N_FEATURES):
    generator = torch.Generator().manual_seed(1)
    learned = {
        name: value + torch.randn(value.shape, generator=generator).mul(0.3)
        for name, value in likelihood.parameters(n_features).items()
    }
    return {**learned, **likelihood.constants(torch.ones(n_features))}


def rows(likelihood, n_rows=5, n_features=N_FEATURES):
    """Rows in the support, neither all alike nor all at its edge."""
    generator = torch.Generator().manual_seed(2)
    factor = torch.rand(n_rows, 1, generator=generator)
    uniform = 0.7 * factor + 0.3 * torch.rand(n_rows, n_features, generator=generator)
    if not likelihood.real_valued:
        counts = isinstance(likelihood, Poisson | NegativeBinomial)
        values = 10 * uniform if counts else uniform
    else:
        values = 4 * uniform - 2
    return torch.from_numpy(likelihood.nearest_in_support(values.numpy()))


def raw(shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("likelihood", FAMILIES, ids=repr)
class TestContract:
    """What every likelihood keeps to."""

    def test_shapes_and_gradients(self, likelihood):
        x, fixed = rows(likelihood), arguments(likelihood)
        learned = {name: v.requires_grad_() for name, v in fixed.items()}
        outputs = raw((2, 5, N_FEATURES, likelihood.n_outputs)).requires_grad_()
        log_prob = likelihood.log_prob(x, outputs, **learned)
        assert log_prob.shape == (2, 5)
        log_prob.sum().backward()
        for tensor in [*outputs.grad.unbind(-1), *(v.grad for v in learned.values())]:
            assert torch.isfinite(tensor).all()
            assert (tensor != 0).any()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("size", [1e4, 100, 20])
    @pytest.mark.parametrize("signs", ["+", "-", "+-", "-+", "random"])
    def test_extreme_outputs(self, likelihood, signs, size, dtype):
        x, fixed = rows(likelihood), arguments(likelihood)
        shape = (5, N_FEATURES, likelihood.n_outputs)
        pattern = {"+": [1], "-": [-1], "+-": [1, -1], "-+": [-1, 1]}
        if signs == "random":
            sign = torch.sign(raw(shape))
        else:
            period = torch.tensor(pattern[signs], dtype=torch.float32)
            sign = period[torch.arange(shape[-1]) % len(period)].expand(shape)
        outputs = (size * sign).to(dtype).requires_grad_()
        learned = {name: v.requires_grad_() for name, v in fixed.items()}
        log_prob = likelihood.log_prob(x, outputs, **learned)
        assert log_prob.dtype == torch.float32
        assert torch.isfinite(log_prob).all()
        log_prob.sum().backward()
        for tensor in [outputs, *learned.values()]:
            assert torch.isfinite(tensor.grad).all()
        with torch.no_grad():
            # As Model does, which hands float32 to both.
            outputs = outputs.float()
            assert torch.isfinite(likelihood.mean(outputs, **fixed)).all()
            generator = torch.Generator().manual_seed(0)
            draws = likelihood.draw(outputs, generator, **fixed)
        assert likelihood.in_support(draws.numpy()).all()

    @pytest.mark.parametrize(
        "weights",
        [None, torch.tensor([0.1, 2.0, -1.0, 0.0, 1.0])],
        ids=["", "weighted"],
    )
    def test_gradient_is_that_of_autograd(self, likelihood, weights):
        x, fixed = rows(likelihood), arguments(likelihood)
        names = likelihood.parameters(N_FEATURES)
        for name in names:
            fixed[name].requires_grad_()
        outputs = raw((5, N_FEATURES, likelihood.n_outputs))
        terms, slope, learned = likelihood.reconstruction_and_gradient(
            x, outputs, weights, **fixed
        )
        outputs.requires_grad_()
        expected = -likelihood.log_prob(x, outputs, **fixed)
        (expected.sum() if weights is None else expected @ weights).backward()
        torch.testing.assert_close(terms, expected.detach())
        torch.testing.assert_close(slope, outputs.grad)
        assert set(learned) == set(names)
        for name in names:
            torch.testing.assert_close(learned[name], fixed[name].grad)

    def test_bfloat16_outputs_cost_no_digits(self, likelihood):
        x, fixed = rows(likelihood), arguments(likelihood)
        outputs = raw((5, N_FEATURES, likelihood.n_outputs)).bfloat16()
        log_prob = likelihood.log_prob(x, outputs, **fixed)
        # Where x is rounded too, so may be what is made of it.
        rounded = 1e-2 if likelihood.tolerates_rounding else 1e-5
        expected = likelihood.log_prob(x, outputs.float(), **fixed)
        torch.testing.assert_close(log_prob, expected, rtol=rounded, atol=rounded)

    def test_draws_have_the_mean_and_stay_in_the_support(self, likelihood):
        fixed = arguments(likelihood)
        outputs = raw((1, N_FEATURES, likelihood.n_outputs)).expand(100_000, -1, -1)
        draws = likelihood.draw(outputs, torch.Generator().manual_seed(0), **fixed)
        assert draws.dtype == torch.float32
        assert likelihood.in_support(draws.numpy()).all()
        error = draws.double().std(0) / len(draws) ** 0.5
        if isinstance(likelihood, DiscretizedLogisticMixture):
            error += 0.5 / 255 / 5  # the mean before rounding
        mean = likelihood.mean(outputs[0], **fixed).double()
        assert ((draws.double().mean(0) - mean).abs() < 5 * error).all()

    def test_draws_are_the_generators_alone(self, likelihood):
        fixed = arguments(likelihood)
        outputs = raw((4, N_FEATURES, likelihood.n_outputs))
        first, again, other = (
            likelihood.draw(outputs, torch.Generator().manual_seed(seed), **fixed)
            for seed in (0, 0, 1)
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_output_bias_starts_near_the_mean(self, likelihood):
        mean = torch.tensor([0.2, 0.3, 0.5, 0.1, 0.6, 0.3])
        bias = likelihood.output_bias(mean)
        assert bias.shape == (N_FEATURES, likelihood.n_outputs)
        started = likelihood.mean(bias, **arguments(likelihood))
        if isinstance(likelihood, ContinuousBernoulli):
            return
        if isinstance(likelihood, Categorical):
            sizes = [len(p) for p in next(c for c in CASES if c[0] is likelihood)[1]]
            mean = torch.cat([m / m.sum() for m in mean.split(sizes)])
        elif isinstance(likelihood, Mixed) and "Categorical" in repr(likelihood):
            mean[2:5] /= mean[2:5].sum()
        cut_off = isinstance(likelihood, DiscretizedLogisticMixture)
        torch.testing.assert_close(
            started, mean, rtol=1e-5, atol=0.08 if cut_off else 1e-5
        )

    @given(data=st.data())
    def test_nearest_in_support(self, likelihood, data):
        dtype = data.draw(st.sampled_from([np.float32, np.float64]))
        values = st.floats(-1e5, 1e5, width=32) | st.floats(-1, 2, width=32)
        X = data.draw(arrays(dtype, (3, N_FEATURES), elements=values))
        before = X.copy()
        nearest = likelihood.nearest_in_support(X)
        assert nearest.dtype == dtype
        assert likelihood.in_support(nearest).all()
        np.testing.assert_array_equal(likelihood.nearest_in_support(nearest), nearest)
        np.testing.assert_array_equal(X, before)
        inside = likelihood.in_support(X)
        np.testing.assert_allclose(nearest[inside], X[inside], rtol=1e-6, atol=2e-6)
        likelihood.check_support(nearest)

    def test_network_input_keeps_shape_and_order(self, likelihood):
        x = rows(likelihood)
        shown = likelihood.network_input(x)
        counts = isinstance(likelihood, Poisson | NegativeBinomial)
        if likelihood not in MIXED:
            torch.testing.assert_close(shown, torch.log1p(x) if counts else x)
        assert shown.shape == x.shape

    def test_standardized(self, likelihood):
        flags = likelihood.standardized(N_FEATURES)
        assert flags.shape == (N_FEATURES,)
        assert flags.any() == likelihood.real_valued

    def test_a_copy_is_the_same(self, likelihood):
        assert repr(clone(likelihood)) == repr(likelihood)
        resolved = resolve(likelihood, LIKELIHOODS, "likelihood", Likelihood)
        assert repr(resolved) == repr(likelihood)

    def test_estimator(self, likelihood):
        x = rows(likelihood, n_rows=40).double().numpy()
        X = likelihood.nearest_in_support(x)
        vae = VAEEstimator(
            latent_dim=2,
            hidden_dim=8,
            epochs=2,
            batch_size=10,
            learning_rate=1e-2,
            likelihood=likelihood,
            standardize=False if likelihood in MIXED else "auto",
            random_state=0,
        ).fit(X)
        assert vae.transform(X).shape == (40, 2)
        assert np.isfinite(vae.score_samples(X)).all()
        losses = [record.loss for record in vae._records]
        assert losses[1] < losses[0]
        sample = vae.sample(50, random_state=0, observation_noise=True)
        assert sample.shape == (50, N_FEATURES)
        assert likelihood.in_support(sample).all()
        assert np.isfinite(vae.reconstruct(X)).all()
        assert np.isfinite(vae.log_likelihood(X[:5], 10)).all()


@pytest.mark.parametrize("case", PLAIN, ids=name)
def test_sums_over_independent_columns(case):
    likelihood = case.likelihood
    alone = case.alone or likelihood
    x, fixed = rows(likelihood), arguments(likelihood)
    outputs = raw((5, N_FEATURES, likelihood.n_outputs))
    total = likelihood.log_prob(x, outputs, **fixed)
    pieces = sum(
        alone.log_prob(
            x[:, piece],
            outputs[:, piece],
            **{k: v if len(v) == 1 else v[piece] for k, v in fixed.items()},
        )
        for piece in case.pieces
    )
    torch.testing.assert_close(total, pieces)


def test_check_support_names_the_first_entry_outside():
    X = np.array([[0.0, 1.0], [0.5, 1.03], [-1.0, 0.0]])
    with pytest.raises(
        ValueError, match=r"X_val has the value 1.03 in row 1, column 1, .*\[0, 1\]"
    ):
        Bernoulli().check_support(X, "X_val")
    with pytest.raises(ValueError, match="column 'b', outside"):
        Bernoulli().check_support(X, columns=["a", "b"])
    Gaussian().check_support(X)


def test_every_registered_family_is_under_contract():
    assert {*LIKELIHOODS.values(), Mixed} == {type(f) for f in FAMILIES}


def test_bernoulli_is_scipys():
    logits = raw((4, 6, 1))
    x = (torch.rand(4, 6, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    p = torch.sigmoid(logits.squeeze(-1)).double().numpy()
    expected = stats.bernoulli.logpmf(x.numpy(), p).sum(-1)
    np.testing.assert_allclose(Bernoulli().log_prob(x, logits), expected, rtol=1e-5)


def test_bernoulli_of_all_outcomes_sums_to_one():
    outcomes = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4)
    log_prob = Bernoulli().log_prob(outcomes, raw((1, 4, 1)).expand(16, 4, 1))
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-6)


def test_bernoulli_gradient_is_exact():
    x = torch.rand(3, 4, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    logits = raw((2, 3, 4, 1)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda r: Bernoulli().log_prob(x, r), logits)


def test_bernoulli_survives_extreme_logits():
    x = torch.tensor([[0.0, 1.0]])
    certain = torch.tensor([[[-200.0], [200.0]]])
    assert Bernoulli().log_prob(x, certain).item() == 0
    assert Bernoulli().log_prob(x, -certain).item() == -400


LOGITS = [-60.0, -3.0, -0.11, -0.09, -1e-4, 0.0, 1e-4, 0.09, 0.11, 3.0, 60.0]


@pytest.mark.parametrize("logit", LOGITS)
def test_continuous_bernoulli_integrates_to_one(logit):
    def density(x):
        outputs = torch.full((1, 1, 1), logit, dtype=torch.double)
        x = torch.tensor([[x]], dtype=torch.double)
        return ContinuousBernoulli().log_prob(x, outputs).exp().item()

    total, _ = integrate.quad(density, 0, 1, points=[0.02, 0.98])
    assert total == pytest.approx(1, abs=1e-6)
    mean, _ = integrate.quad(lambda x: x * density(x), 0, 1, points=[0.02, 0.98])
    outputs = torch.full((1, 1, 1), logit, dtype=torch.double)
    assert ContinuousBernoulli().mean(outputs).item() == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize("logit", [-20.0, -1.0, 0.0, 1e-7, 2.0, 20.0])
def test_continuous_bernoulli_draws_follow_the_density(logit):
    outputs = torch.full((20_000, 1, 1), logit)
    draws = ContinuousBernoulli().draw(outputs, torch.Generator().manual_seed(0))
    reference = torch.distributions.ContinuousBernoulli(
        logits=torch.tensor(logit, dtype=torch.double)
    )
    result = stats.kstest(
        draws.double().numpy().ravel(), lambda x: reference.cdf(torch.tensor(x)).numpy()
    )
    assert result.pvalue > 1e-3


def test_continuous_bernoulli_gradient_is_exact():
    x = torch.rand(2, 5, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    logits = torch.tensor([-4.0, -0.05, 0.0, 0.05, 4.0], dtype=torch.double)
    logits = logits.expand(2, 5).unsqueeze(-1).clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda r: ContinuousBernoulli().log_prob(x, r), logits
    )


def test_gaussian_is_scipys():
    x, mean = rows(Gaussian(), 5, 3), raw((5, 3, 1))
    log_scale = torch.tensor([-1.0, 0.0, 0.5])
    expected = stats.norm.logpdf(
        x.numpy(), mean.squeeze(-1).numpy(), np.exp(log_scale.numpy())
    ).sum(-1)
    ours = Gaussian(scale="feature").log_prob(x, mean, log_scale=log_scale)
    np.testing.assert_allclose(ours, expected, rtol=1e-4)


def test_gaussian_fixed_scale_is_in_the_users_units():
    unit = torch.tensor([2.0, 10.0])
    fixed = Gaussian(scale=0.5).constants(unit)
    x = torch.zeros(1, 2)
    # Inside the model the scale is 0.5 / unit; the units' log enters elsewhere.
    expected = stats.norm.logpdf(0, 0, 0.5 / unit.numpy()).sum()
    ours = Gaussian(scale=0.5).log_prob(x, torch.zeros(1, 2, 1), **fixed)
    assert ours.item() == pytest.approx(expected, rel=1e-5)


def test_gaussian_scale_has_a_floor():
    gaussian = Gaussian(min_scale=0.1)
    x, mean = torch.zeros(1, 1), torch.zeros(1, 1, 1)
    collapsed = gaussian.log_prob(x, mean, log_scale=torch.tensor([-50.0])).item()
    assert collapsed == pytest.approx(stats.norm.logpdf(0, 0, 0.1), rel=1e-5)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0, 1], Bernoulli), ([0, 0.5], Bernoulli), ([0, 1.01], Gaussian)],
)
def test_guess(values, expected):
    assert type(guess(np.array([values]))) is expected

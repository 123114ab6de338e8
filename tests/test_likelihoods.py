import itertools
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
            (
                ("gaussian", [5, 4]),
                (NegativeBinomial("row"), [1, 3]),
                (Beta("feature"), [0, 2]),
            )
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
            random_state=0,
        ).fit(X)
        assert vae.transform(X).shape == (40, 2)
        assert np.isfinite(vae.score_samples(X)).all()
        losses = [record.loss for record in vae._records]
        assert losses[1] < losses[0] + 0.1  # where it starts at the mean, that is all
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


# ---------------------------------------------------------------------- ground truth


def doubles(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.double)


def assert_log_prob(likelihood, x, outputs, expected, rtol=1e-9, **parameters):
    """log p(x|z), in float64, is that of a reference, one per row."""
    ours = likelihood.log_prob(torch.as_tensor(x), outputs, **parameters)
    expected = np.asarray(expected)
    expected = expected.sum(-1) if expected.ndim > 1 else expected
    np.testing.assert_allclose(ours.numpy(), expected, rtol=rtol)


def test_gaussian_with_a_scale_of_each_row_is_scipys():
    x, outputs = doubles(7, 4, seed=1), doubles(7, 4, 2)
    mean, log_scale = outputs.numpy().transpose(2, 0, 1)
    scale = np.sqrt(np.exp(2 * log_scale) + 0.1**2)
    gaussian = Gaussian(scale="row", min_scale=0.1)
    assert_log_prob(gaussian, x, outputs, stats.norm.logpdf(x.numpy(), mean, scale))


@pytest.mark.parametrize("df", [0.01, 0.5, 1.0, 3.7, 50.0, 1e6])
def test_student_t_is_scipys(df):
    x, outputs = 10 * doubles(7, 4, seed=1), doubles(7, 4, 1)
    log_scale = doubles(4, seed=2)
    expected = stats.t.logpdf(
        x.numpy(), df, outputs[..., 0].numpy(), np.exp(log_scale.numpy())
    )
    parameters = {
        "log_scale": log_scale,
        "log_degrees_of_freedom": torch.tensor([df], dtype=torch.double).log(),
    }
    student = StudentT(scale="feature", min_scale=1e-12)
    assert_log_prob(student, x, outputs, expected, rtol=1e-7, **parameters)


def test_student_t_fixes_its_parameters():
    fixed = StudentT(2.5, scale=3.0).constants(torch.tensor([1.0, 2.0]))
    x, outputs = torch.tensor([[0.5, -4.0]]), torch.zeros(1, 2, 1)
    expected = stats.t.logpdf(x.numpy(), 2.5, 0, [3, 1.5]).sum()
    ours = StudentT(2.5, scale=3.0).log_prob(x, outputs, **fixed)
    assert ours.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("learned", [-200.0, 200.0])
def test_student_t_bounds_its_degrees_of_freedom(learned):
    x, parameter = torch.ones(1, 1), torch.tensor([learned], requires_grad=True)
    student = StudentT("learned", scale=1.0)
    parameters = {"log_degrees_of_freedom": parameter, "log_scale": torch.zeros(1)}
    log_prob = student.log_prob(x, torch.zeros(1, 1, 1), **parameters)
    log_prob.sum().backward()
    assert torch.isfinite(log_prob).all()
    assert torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize("df", [0.5, 1.0, 4.0, 1e5])
def test_student_t_draws_follow_the_density(df):
    student = StudentT(df, scale=2.0)
    fixed = student.constants(torch.ones(1))
    outputs = torch.full((20_000, 1, 1), 0.5)
    draws = student.draw(outputs, torch.Generator().manual_seed(0), **fixed)
    result = stats.kstest(draws.double().numpy().ravel(), stats.t(df, 0.5, 2).cdf)
    assert result.pvalue > 1e-3


@pytest.mark.parametrize("log_precision", [-3.0, 0.0, 2.0, 12.0])
@pytest.mark.parametrize("logit", [-9.0, 0.0, 2.0])
def test_beta_is_scipys(logit, log_precision):
    outputs = torch.tensor([logit, log_precision], dtype=torch.double).expand(9, 1, 2)
    mean, precision = 1 / (1 + np.exp(-logit)), np.exp(log_precision)
    reference = stats.beta(mean * precision, (1 - mean) * precision)
    x = np.concatenate([reference.ppf([0.01, 0.5, 0.99]), np.linspace(0.01, 0.99, 6)])
    x = np.clip(x, 1e-12, 1 - 1e-7)[:, None]
    assert_log_prob(Beta(), x, outputs, reference.logpdf(x), rtol=1e-7)
    assert Beta().mean(outputs)[0].item() == pytest.approx(mean)


def test_beta_of_what_float32_takes_for_an_end():
    X = np.array([[1e-60, 1 - 1e-12]])
    assert Beta().in_support(X).all()
    x = torch.tensor(X, dtype=torch.float32)
    assert torch.isfinite(Beta().log_prob(x, torch.zeros(1, 2, 2))).all()


@pytest.mark.parametrize(("a", "b"), [(0.02, 0.05), (0.5, 3.0), (30.0, 70.0)])
def test_beta_draws_follow_the_density(a, b):
    outputs = torch.tensor([np.log(a / b), np.log(a + b)], dtype=torch.float32)
    draws = Beta().draw(outputs.expand(20_000, 1, 2), torch.Generator().manual_seed(0))
    # What is nearer to 1 than float32 can say lies at the end of the interval.
    grid = np.linspace(0.001, 0.999, 500)
    share = np.searchsorted(np.sort(draws.double().numpy().ravel()), grid) / len(draws)
    assert np.abs(share - stats.beta(a, b).cdf(grid)).max() < 1.95 / len(draws) ** 0.5


@pytest.mark.parametrize("rate", [1e-3, 0.7, 20.0, 1e3, 1e6, 1e9])
def test_poisson_is_scipys(rate):
    x = np.array([0, 1, 2, 3, 7, 8, 9, 500, rate // 1, rate // 1 + rate**0.5 // 1])
    x = x[:, None]
    outputs = torch.full((len(x), 1, 1), np.log(rate), dtype=torch.double)
    assert_log_prob(Poisson(), x, outputs, stats.poisson.logpmf(x, rate), rtol=1e-6)


@pytest.mark.parametrize("r", [1e-3, 0.3, 1.0, 40.0, 1e6])
@pytest.mark.parametrize("mean", [1e-3, 0.7, 20.0, 1e4])
def test_negative_binomial_is_scipys(mean, r):
    x = np.array([0.0, 1, 2, 3, 7, 8, 9, 500, 20_000])[:, None]
    outputs = torch.full((len(x), 1, 1), np.log(mean), dtype=torch.double)
    log_r = torch.tensor([r], dtype=torch.double).log()
    expected = stats.nbinom.logpmf(x, r, r / (r + mean))
    both = torch.cat([outputs, log_r.expand_as(outputs)], -1)
    assert_log_prob(NegativeBinomial("row"), x, both, expected, rtol=1e-6)
    assert_log_prob(
        NegativeBinomial(),
        x,
        outputs,
        expected,
        rtol=1e-6,
        log_inverse_dispersion=log_r,
    )


@pytest.mark.parametrize("log_r", [-2.0, 3.0, 15.0])
@pytest.mark.parametrize("mean", [1e5, 1e6])
def test_counts_keep_their_digits_in_float32(mean, log_r):
    """lgamma(1e6) in float32 is wrong by 1 nat."""
    x = torch.tensor([[mean], [mean + mean**0.5 // 1], [mean // 2]])
    outputs = torch.full((3, 1, 1), np.log(mean), dtype=torch.float32)
    raised = {"log_inverse_dispersion": torch.tensor([log_r])}
    for likelihood, parameters in [(Poisson(), {}), (NegativeBinomial(), raised)]:
        ours = likelihood.log_prob(x, outputs, **parameters)
        exact = {k: v.double() for k, v in parameters.items()}
        # What the outputs themselves are worth in float32 is no error of ours.
        rate = likelihood.mean(outputs).double().log().unsqueeze(-1)
        expected = likelihood.log_prob(x.double(), rate, **exact)
        torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=2e-3)


def test_without_overdispersion_it_is_a_poisson():
    x, outputs = torch.arange(9, dtype=torch.double)[:, None], doubles(9, 1, 1)
    log_r = torch.tensor([15.0], dtype=torch.double)
    torch.testing.assert_close(
        NegativeBinomial().log_prob(x, outputs, log_inverse_dispersion=log_r),
        Poisson().log_prob(x, outputs),
        rtol=1e-4,
        atol=1e-4,
    )


def assert_sums_to_one(likelihood, outcomes, outputs, tolerance=1e-5, **parameters):
    """Masses sum to 1, and the mean is theirs: outcomes (M, D), outputs (D, n)."""
    outputs = outputs.double()
    expanded = outputs.expand(len(outcomes), *outputs.shape)
    masses = likelihood.log_prob(outcomes, expanded, **parameters).exp()
    assert masses.sum().item() == pytest.approx(1, abs=1e-6)
    mean = likelihood.mean(outputs, **parameters)
    torch.testing.assert_close(masses @ outcomes, mean, rtol=1e-5, atol=tolerance)


@pytest.mark.parametrize("log_rate", [-5.0, 0.0, 6.0])
def test_poisson_sums_to_one(log_rate):
    outcomes = torch.arange(1000, dtype=torch.double)[:, None]
    assert_sums_to_one(Poisson(), outcomes, torch.tensor([[log_rate]]))


@pytest.mark.parametrize("log_r", [-2.0, 0.0, 5.0, 14.0])
@pytest.mark.parametrize("log_mean", [-5.0, 0.0, 4.0])
def test_negative_binomial_sums_to_one(log_mean, log_r):
    outcomes = torch.arange(20_000, dtype=torch.double)[:, None]
    outputs = torch.tensor([[log_mean, log_r]])
    assert_sums_to_one(NegativeBinomial("row"), outcomes, outputs)


def test_negative_binomial_draws_have_the_variance():
    outputs = torch.tensor([np.log(3.0), np.log(0.5)], dtype=torch.float32)
    draws = NegativeBinomial("row").draw(
        outputs.expand(200_000, 1, 2), torch.Generator().manual_seed(0)
    )
    assert draws.var().item() == pytest.approx(3 + 3**2 / 0.5, rel=0.03)


def test_categories_sum_to_one():
    blocks = itertools.product(torch.eye(2).double(), torch.eye(4).double())
    outcomes = torch.stack([torch.cat(pair) for pair in blocks])
    assert_sums_to_one(Categorical((2, 4)), outcomes, 3 * doubles(6, 1))


def test_categorical_is_torchs():
    outputs = doubles(5, 6, 1)
    x = rows(Categorical(3)).double()
    reference = torch.distributions.OneHotCategorical(logits=outputs.view(5, 2, 3))
    expected = reference.log_prob(x.view(5, 2, 3))
    assert_log_prob(Categorical(3), x, outputs, expected.numpy())
    torch.testing.assert_close(
        Categorical(3).mean(outputs), reference.probs.flatten(-2)
    )


def test_categorical_marks_the_whole_block():
    X = np.array([[1, 0, 0, 1, 0, 0], [1, 0, 0.5, 0.5, 0, 0], [1, 1, 0, 0, 0, 0]])
    inside = [[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]
    likelihood = Categorical((2, 4))
    np.testing.assert_array_equal(likelihood.in_support(X), np.array(inside, bool))
    np.testing.assert_array_equal(
        likelihood.nearest_in_support(X),
        [[1, 0, 0, 1, 0, 0], [1, 0, 1, 0, 0, 0], [1, 0, 1, 0, 0, 0]],
    )
    with pytest.raises(ValueError, match=r"0.5 in row 1, column 2, .* one-hot blocks"):
        likelihood.check_support(X)


@pytest.mark.parametrize(
    ("n_categories", "match"),
    [
        ((2, 3), "blocks of 5 columns in all, but X has 6"),
        (4, "blocks of 4 columns"),
        ((6, 0), "0 is not"),
        (("a",), "'a' is not"),
    ],
)
def test_categorical_refuses_blocks_that_do_not_fit(n_categories, match):
    with pytest.raises(ValueError, match=match):
        Categorical(n_categories).check_support(np.eye(6))


LEVELS = torch.arange(256, dtype=torch.double)[:, None] / 255


@pytest.mark.parametrize("log_scale", [-20.0, -8.0, -6.0, -3.0, 0.0, 5.0, 20.0])
@pytest.mark.parametrize("mean", [-3.0, 0.0, 0.3, 0.5019, 1.0, 8.0])
def test_levels_sum_to_one(mean, log_scale):
    outputs = torch.tensor([[0.3, -1.0, mean, 0.6, log_scale, -2.0]])
    likelihood = DiscretizedLogisticMixture(2, 1)
    assert_sums_to_one(likelihood, LEVELS, outputs, tolerance=0.5 / 255)
    float32 = likelihood.log_prob(LEVELS.float(), outputs.expand(256, 1, 6))
    exact = likelihood.log_prob(LEVELS, outputs.double().expand(256, 1, 6))
    torch.testing.assert_close(float32.double(), exact, rtol=1e-3, atol=1e-3)


def test_levels_are_a_mixture_of_scipys_logistic():
    outputs = 0.5 * doubles(256, 4, 9)
    x = LEVELS.repeat(1, 4)  # two channels of two pixels, channels first
    logits, means, log_scales = np.split(outputs.numpy(), 3, axis=-1)
    cdf, level = stats.logistic(means, np.exp(log_scales)).cdf, x.numpy()[..., None]
    upper = np.where(level == 1, 1, cdf(level + 0.5 / 255))
    lower = np.where(level == 0, 0, cdf(level - 0.5 / 255))
    mass = (upper - lower).reshape(256, 2, 2, 3).prod(1)
    weights = np.exp(logits.reshape(256, 2, 2, 3).sum(1))
    weights /= weights.sum(-1, keepdims=True)
    likelihood = DiscretizedLogisticMixture(n_components=3, n_channels=2)
    assert_log_prob(likelihood, x, outputs, np.log((weights * mass).sum(-1)))


def test_levels_of_a_channel_sum_to_those_of_the_others():
    outputs = doubles(2, 6)
    pairs = torch.cartesian_prod(LEVELS[:, 0], LEVELS[:, 0])
    masses = DiscretizedLogisticMixture(2, 2).log_prob(
        pairs, outputs.expand(len(pairs), 2, 6)
    )
    assert masses.exp().sum().item() == pytest.approx(1, abs=1e-9)
    # Without the second channel its logits still choose the component.
    alone = outputs[:1].clone()
    alone[:, :2] += outputs[1, :2]
    torch.testing.assert_close(
        masses.view(256, 256).logsumexp(1),
        DiscretizedLogisticMixture(2, 1).log_prob(LEVELS, alone.expand(256, 1, 6)),
    )


def test_mean_of_the_cut_off_logistic():
    outputs = torch.tensor([[[0.0, 0.2, -1.5]]], dtype=torch.double)
    ours = DiscretizedLogisticMixture(1, 1).mean(outputs).item()
    logistic = stats.logistic(0.2, np.exp(-1.5))
    within, _ = integrate.quad(logistic.sf, 0, 1)
    assert ours == pytest.approx(within, abs=1e-8)


def test_channels_share_the_component():
    # Component 0 is black, component 1 white: no pixel is of two colours.
    outputs = torch.tensor([0.0, 0.0, -0.5, 1.5, -5.0, -5.0]).expand(1000, 6, 6)
    draws = DiscretizedLogisticMixture(2, 3).draw(
        outputs, torch.Generator().manual_seed(0)
    )
    pixels = draws.view(1000, 3, 2)
    assert (pixels == pixels[:, :1]).all()
    assert 0.45 < draws.mean() < 0.55
    assert not torch.equal(pixels[..., 0], pixels[..., 1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_levels_of_any_precision_are_in_the_support(dtype):
    likelihood = DiscretizedLogisticMixture(n_channels=1)
    levels = np.arange(256).astype(dtype)[None] / 255
    assert levels.dtype == dtype
    assert likelihood.in_support(levels).all()
    assert not likelihood.in_support(levels + 0.01 / 255).any()
    assert not likelihood.in_support(np.array([[256 / 255, -1 / 255]])).any()
    with pytest.raises(ValueError, match="n_channels=3"):
        DiscretizedLogisticMixture().check_support(levels)


def assert_integrates_to_one(likelihood, outputs, points, **parameters):
    """Over the intervals between points; the mean is that of the density too."""

    def density(x):
        x = torch.tensor([[x]], dtype=torch.double)
        return likelihood.log_prob(x, outputs, **parameters).exp().item()

    def integral(function):
        return sum(
            integrate.quad(function, a, b, limit=200)[0]
            for a, b in itertools.pairwise(points)
        )

    assert integral(density) == pytest.approx(1, abs=1e-5)
    mean = likelihood.mean(outputs, **parameters).item()
    spread = points[-2] - points[1]
    found = integral(lambda x: (x - mean) * density(x))
    assert found == pytest.approx(0, abs=1e-4 * spread)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_gaussian_of_each_row_integrates_to_one(scale):
    outputs = torch.tensor([[[0.3, np.log(scale)]]], dtype=torch.double)
    points = [0.3 + k * scale for k in (-9, -3, 0, 3, 9)]
    assert_integrates_to_one(Gaussian("row", min_scale=1e-9), outputs, points)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("df", [2.0, 4.0, 1000.0])
def test_student_t_integrates_to_one(df, scale):
    likelihood = StudentT(df, scale=scale)
    fixed = likelihood.constants(torch.ones(1, dtype=torch.double))
    outputs = torch.full((1, 1, 1), 0.3, dtype=torch.double)
    steps = (-1e6, -1e4, -300, -30, -9, -3, 0, 3, 9, 30, 300, 1e4, 1e6)
    points = [0.3 + k * scale for k in steps]
    assert_integrates_to_one(likelihood, outputs, points, **fixed)


@pytest.mark.parametrize("log_precision", [1.0, 4.0, 10.0])
@pytest.mark.parametrize("logit", [-2.0, 0.0, 1.0])
def test_beta_integrates_to_one(logit, log_precision):
    outputs = torch.tensor([[[logit, log_precision]]], dtype=torch.double)
    mean, width = 1 / (1 + np.exp(-logit)), np.exp(-log_precision / 2)
    around = [mean + k * width for k in (-3, -1, 0, 1, 3)]
    within = [x for x in around if 0.01 < x < 0.99]
    points = [0, 1e-9, 1e-3, *within, 0.999, 1 - 1e-7, 1]
    assert_integrates_to_one(Beta(), outputs, points)


@pytest.mark.parametrize("case", CASES, ids=name)
def test_gradient_is_that_of_finite_differences(case):
    likelihood = case.likelihood
    x = rows(likelihood, 2).double()
    outputs = doubles(2, N_FEATURES, likelihood.n_outputs).requires_grad_()
    fixed = {k: v.double().requires_grad_() for k, v in arguments(likelihood).items()}

    def log_prob(outputs, *values):
        named = dict(zip(fixed, values, strict=True))
        return likelihood.log_prob(x, outputs, **named)

    assert torch.autograd.gradcheck(log_prob, (outputs, *fixed.values()))


# ---------------------------------------------------------------------- mixed columns


def test_mixed_is_its_families_each_on_its_columns():
    gaussian, negative, beta = Gaussian("feature"), NegativeBinomial("row"), Beta()
    mixed = Mixed(((gaussian, [0, 3]), (negative, [5, 1]), (beta, [2, 4])))
    log_scale = torch.tensor([0.2, -0.3])
    assert set(mixed.parameters(6)) == {"group0_log_scale"}
    assert mixed.constants(torch.ones(6)) == {}
    x = torch.tensor([[-1.0, 4.0, 0.3, 2.0, 0.9, 7.0]])
    outputs = raw((1, 6, 2))
    expected = (
        gaussian.log_prob(x[:, [0, 3]], outputs[:, [0, 3], :1], log_scale=log_scale)
        + negative.log_prob(x[:, [1, 5]], outputs[:, [1, 5]])
        + beta.log_prob(x[:, [2, 4]], outputs[:, [2, 4]])
    )
    ours = mixed.log_prob(x, outputs, group0_log_scale=log_scale)
    torch.testing.assert_close(ours, expected)
    mean = mixed.mean(outputs, group0_log_scale=log_scale)
    torch.testing.assert_close(mean[:, [0, 3]], outputs[:, [0, 3], 0])
    torch.testing.assert_close(mean[:, [1, 5]], outputs[:, [1, 5], 0].exp())
    torch.testing.assert_close(mean[:, [2, 4]], outputs[:, [2, 4], 0].sigmoid())
    shown = x.clone()
    shown[:, [1, 5]] = torch.log1p(x[:, [1, 5]])
    torch.testing.assert_close(mixed.network_input(x), shown)
    np.testing.assert_array_equal(mixed.standardized(6), [1, 0, 0, 1, 0, 0])


def test_mixed_constants_are_in_the_units_of_their_columns():
    mixed = Mixed((("poisson", [1]), (Gaussian(scale=2.0), [2, 0])))
    fixed = mixed.constants(torch.tensor([4.0, 1.0, 0.5]))
    expected = {"group1_log_scale": torch.tensor([0.5, 4.0]).log()}
    torch.testing.assert_close(fixed, expected)


def test_mixed_names_the_column_outside():
    mixed = Mixed((("gaussian", [1]), ("poisson", [2, 0])))
    X = np.array([[1.0, 0.5, 3.0], [1.5, 0.5, 3.0]])
    with pytest.raises(ValueError, match=r"1\.5 in row 1, column 0, .*Poisson\(\)"):
        mixed.check_support(X)
    with pytest.raises(ValueError, match="column 'a', outside"):
        mixed.check_support(X, columns=["a", "b", "c"])
    np.testing.assert_array_equal(
        mixed.in_support(X), [[True, True, True], [False, True, True]]
    )


@pytest.mark.parametrize(
    ("families", "match"),
    [
        ((), "at least one"),
        (("gaussian", 2), "must hold pairs"),
        ((("gaus", 2),), "'gaus'; expected one of"),
        ((("gaussian", 2), ("poisson", [2])), "some columns by number and some by"),
        ((("gaussian", 0),), "0 columns; give at least 1"),
        ((("gaussian", [0.5]),), "expected a number of columns"),
        ((("gaussian", ()),), "expected a number of columns"),
        ((("gaussian", True),), "expected a number of columns"),
        ((("gaussian", None),), "expected a number of columns"),
        (((Gaussian(scale=-1.0), 3),), "'scale' parameter"),
        ("gaussian", "'families' parameter"),
    ],
    ids=str,
)
def test_mixed_refuses_families_that_are_none(families, match):
    with pytest.raises(ValueError, match=match):
        resolve(Mixed(families), LIKELIHOODS, "likelihood", Likelihood)


@pytest.mark.parametrize(
    ("families", "match"),
    [
        ((("gaussian", 2),), r"without a group: \[2\]"),
        ((("gaussian", 4),), r"not columns of X: \[3\]"),
        ((("gaussian", [0, 1, 2]), ("beta", [1])), r"in several: \[1\]"),
        ((("gaussian", 1), (Categorical(3), 2)), "blocks of 0 columns"),
    ],
    ids=str,
)
def test_mixed_refuses_columns_that_do_not_fit(families, match):
    with pytest.raises(ValueError, match=match):
        Mixed(families).check_support(np.ones((2, 3)))


# ---------------------------------------------------------------------- in training


@pytest.mark.parametrize("name", sorted(LIKELIHOODS))
def test_by_name(name):
    likelihood = LIKELIHOODS[name]()
    coarse = {"bernoulli", "categorical", "continuous_bernoulli"}
    assert likelihood.tolerates_rounding == (name in coarse)
    X = rows(likelihood, n_rows=12).numpy()
    vae = VAEEstimator(
        latent_dim=1, hidden_dim=4, epochs=1, likelihood=name, random_state=0
    ).fit(X)
    assert repr(vae.likelihood_) == repr(likelihood)

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from skvae.likelihoods import (
    LIKELIHOODS,
    Bernoulli,
    ContinuousBernoulli,
    Gaussian,
    guess,
)

FAMILIES = [
    Bernoulli(),
    ContinuousBernoulli(),
    Gaussian(),
    Gaussian(scale="feature"),
    Gaussian(scale=0.7),
]


def arguments(likelihood, n_features=3):
    generator = torch.Generator().manual_seed(1)
    learned = {
        name: torch.randn(value.shape, generator=generator).mul(0.3)
        for name, value in likelihood.parameters(n_features).items()
    }
    return {**learned, **likelihood.constants(torch.ones(n_features))}


def rows(likelihood, shape=(5, 3)):
    uniform = torch.rand(shape, generator=torch.Generator().manual_seed(2))
    return uniform if likelihood.support == "[0, 1]" else 4 * uniform - 2


def raw(shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("likelihood", FAMILIES, ids=repr)
class TestContract:
    """What every likelihood keeps to."""

    def test_shapes_and_gradients(self, likelihood):
        x, fixed = rows(likelihood), arguments(likelihood)
        learned = {name: v.requires_grad_() for name, v in fixed.items()}
        outputs = raw((2, 5, 3, likelihood.n_outputs)).requires_grad_()
        log_prob = likelihood.log_prob(x, outputs, **learned)
        assert log_prob.shape == (2, 5)
        log_prob.sum().backward()
        for tensor in [outputs, *learned.values()]:
            assert torch.isfinite(tensor.grad).all()
            assert (tensor.grad != 0).any()

    @pytest.mark.parametrize(
        "weights",
        [None, torch.tensor([0.1, 2.0, -1.0, 0.0, 1.0])],
        ids=["", "weighted"],
    )
    def test_gradient_is_that_of_autograd(self, likelihood, weights):
        x, fixed = rows(likelihood), arguments(likelihood)
        names = likelihood.parameters(3)
        for name in names:
            fixed[name].requires_grad_()
        outputs = raw((5, 3, likelihood.n_outputs))
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

    def test_sums_over_features(self, likelihood):
        x, fixed = rows(likelihood), arguments(likelihood)
        outputs = raw((5, 3, likelihood.n_outputs))
        total = likelihood.log_prob(x, outputs, **fixed)
        single = sum(
            likelihood.log_prob(
                x[:, [d]],
                outputs[:, [d]],
                **{k: v if len(v) == 1 else v[[d]] for k, v in fixed.items()},
            )
            for d in range(3)
        )
        torch.testing.assert_close(total, single)

    def test_draws_have_the_mean_and_stay_in_the_support(self, likelihood):
        fixed = arguments(likelihood)
        outputs = raw((1, 3, likelihood.n_outputs)).expand(200_000, 3, -1)
        draws = likelihood.draw(outputs, torch.Generator().manual_seed(0), **fixed)
        assert likelihood.in_support(draws.numpy()).all()
        error = draws.double().std(0) / len(draws) ** 0.5
        mean = likelihood.mean(outputs[0], **fixed).double()
        assert ((draws.double().mean(0) - mean).abs() < 5 * error).all()

    def test_output_bias_starts_near_the_mean(self, likelihood):
        mean = torch.tensor([0.2, 0.5, 0.9])
        bias = likelihood.output_bias(mean)
        assert bias.shape == (3, likelihood.n_outputs)
        started = likelihood.mean(bias, **arguments(likelihood))
        if not isinstance(likelihood, ContinuousBernoulli):
            torch.testing.assert_close(started, mean)

    def test_nearest_in_support(self, likelihood):
        X = np.array([[-0.5, 0.3, 1.03]])
        assert likelihood.in_support(likelihood.nearest_in_support(X)).all()


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
    assert set(LIKELIHOODS.values()) == {type(f) for f in FAMILIES}


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
    x, mean = rows(Gaussian(), (5, 3)), raw((5, 3, 1))
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

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import logsumexp

from skvae.discrepancy import maximum_mean_discrepancy
from skvae.networks import GaussianPosterior, log_normal
from skvae.objectives import (
    ELBO,
    IWAE,
    MIWAE,
    OBJECTIVES,
    WAE,
    BetaTC,
    InfoVAE,
    Terms,
)
from skvae.spec import resolve


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def hand_made(**changes):
    """Two draws of two rows, by hand."""
    values = {
        "log_likelihood": torch.tensor([[-3.0, -10.0], [-5.0, -20.0]]),
        "mean": torch.zeros(2, 1),
        "kl": torch.tensor([[2.0], [0.5]]),
    }
    return Terms(**{**values, **changes})


def drawn(n_draws, n=6, width=3, seed=0, **changes):
    """Terms that a Gaussian posterior and a standard normal prior would give."""
    mean, log_variance = random(2, n, width, seed=seed)
    posterior = GaussianPosterior.draw(
        mean, log_variance, random(n_draws, n, width, seed=seed + 1)
    )
    values = {
        "log_likelihood": random(n_draws, n, seed=seed + 2) - 5,
        "mean": mean,
        "log_prior": log_normal(posterior.z, torch.zeros(()), torch.zeros(())).sum(-1),
        "log_posterior": posterior.log_prob(),
        "z": posterior.z,
        "log_variance": log_variance,
        "prior_draws": random(n, width, seed=seed + 3),
        "n_rows": 40,
    }
    return Terms(**{**values, **changes})


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
class TestContract:
    """What every objective keeps to."""

    def test_one_loss_a_row_which_falls_with_the_likelihood(self, name):
        objective = OBJECTIVES[name]()
        terms = drawn(objective.n_draws)
        terms.log_likelihood.requires_grad_()
        terms.z.requires_grad_()
        loss = objective.loss(terms)
        assert loss.shape == (6,)
        loss.sum().backward()
        assert (terms.log_likelihood.grad.sum(0) < 0).all()

    def test_it_declares_what_it_takes(self, name):
        """Nothing that the model does not work out for it is needed."""
        objective = OBJECTIVES[name]()
        terms = drawn(objective.n_draws)
        if objective.analytic_kl:
            terms.kl = torch.rand(6, 3, generator=torch.Generator().manual_seed(0))
            terms.log_prior = terms.log_posterior = None
        if not objective.needs_prior_draws:
            terms.prior_draws = None
        if not objective.needs_gaussian_posterior:
            terms.log_variance = None
        assert torch.isfinite(objective.loss(terms)).all()

    def test_kl_weight_tells_the_whole_loss_or_nothing(self, name):
        objective = OBJECTIVES[name]()
        terms = drawn(objective.n_draws, progress=0.4)
        weight = objective.kl_weight(0.4)
        if weight is None:
            assert name != "elbo"
            return
        expected = terms.reconstruction + weight * terms.divergence
        torch.testing.assert_close(objective.loss(terms), expected)

    def test_the_loss_follows_progress_only_where_it_says_so(self, name):
        objective = OBJECTIVES[name]()
        losses = [
            objective.loss(drawn(objective.n_draws, progress=p)) for p in (0.1, 0.9)
        ]
        assert objective.follows_progress or torch.equal(*losses)
        assert objective.hidden_fraction == 0

    def test_equal_weights_are_no_weights(self, name):
        objective = OBJECTIVES[name]()
        terms = drawn(objective.n_draws)
        expected = objective.loss(terms)
        terms.weights = torch.ones(6)
        torch.testing.assert_close(objective.loss(terms), expected)


# ------------------------------------------------------------------ the ELBO


def test_elbo_is_reconstruction_plus_beta_kl():
    terms = hand_made()
    assert terms.reconstruction.tolist() == [4.0, 15.0]
    assert ELBO().loss(terms).tolist() == [6.0, 15.5]
    assert ELBO(beta=4).loss(terms).tolist() == [12.0, 17.0]
    assert ELBO(beta=0).loss(terms).tolist() == [4.0, 15.0]


def test_divergence_from_the_draws_where_there_is_no_closed_form():
    terms = hand_made(
        kl=None,
        log_prior=torch.tensor([[-1.0, -2.0], [-3.0, -4.0]]),
        log_posterior=torch.tensor([[0.0, 0.0], [1.0, -1.0]]),
    )
    assert terms.divergence.tolist() == [2.5, 2.5]
    assert ELBO().loss(terms).tolist() == [6.5, 17.5]


TWO_DIMENSIONS = {
    "log_likelihood": torch.tensor([[-3.0, -10.0]]),
    "mean": torch.zeros(2, 2),
    "kl": torch.tensor([[0.2, 3.0], [0.4, 1.0]]),  # means 0.3 and 2, or 0.25 and 2.5
}


def test_free_bits_by_hand():
    terms = Terms(**TWO_DIMENSIONS)
    assert ELBO(free_bits=0.5).loss(terms).tolist() == pytest.approx([5.5, 12.5])
    assert ELBO(free_bits=3).loss(terms).tolist() == pytest.approx([9.0, 16.0])
    loss = ELBO(free_bits=0.1, beta=2).loss(terms)  # 0.3 is above: no allowance left
    assert loss.tolist() == pytest.approx([3 + 4.6, 10 + 4.6])
    terms.weights = torch.tensor([1.5, 0.5])
    assert ELBO(free_bits=0.3).loss(terms).tolist() == pytest.approx([5.8, 12.8])


def test_free_bits_without_a_closed_form_are_one_allowance():
    terms = hand_made(
        kl=None,
        mean=torch.zeros(2, 4),
        log_prior=torch.zeros(2, 2),
        log_posterior=torch.tensor([[1.0, 2.0], [1.0, 4.0]]),  # KL 1 and 3, mean 2
    )
    assert ELBO(free_bits=0.4).loss(terms).tolist() == pytest.approx([6.0, 17.0])
    assert ELBO(free_bits=1).loss(terms).tolist() == pytest.approx([8.0, 19.0])


def test_free_bits_cost_no_gradient():
    kl = torch.tensor([[0.1, 3.0]]).requires_grad_()
    terms = Terms(torch.zeros(1, 1), torch.zeros(1, 2), kl)
    ELBO(free_bits=0.5).loss(terms).sum().backward()
    assert kl.grad.tolist() == [[0.0, 1.0]]


def test_capacity_by_hand():
    terms = Terms(**TWO_DIMENSIONS)  # KL 3.2 and 1.4, mean 2.3
    assert ELBO(capacity=2).loss(terms).tolist() == pytest.approx([3.3, 10.3])
    assert ELBO(capacity=3, beta=10).loss(terms).tolist() == pytest.approx([10.0, 17.0])
    terms.progress = 0.25
    loss = ELBO(capacity=2, warmup=0.5).loss(terms)  # the target is 1 by now
    assert loss.tolist() == pytest.approx([4.3, 11.3])


@pytest.mark.parametrize(
    ("objective", "weights"),
    [
        (ELBO(beta=3), [3, 3, 3, 3, 3, 3]),
        (ELBO(beta=2, warmup=0.5), [0, 0.4, 1, 2, 2, 2]),
        (ELBO(warmup=0.8), [0, 0.125, 0.3125, 0.625, 0.75, 1]),
        # Cycles of 0.25: up within 0.125, then at the top.
        (ELBO(warmup=0.5, n_cycles=2), [0, 0.8, 0, 1, 1, 1]),
    ],
)
def test_warm_up_by_hand(objective, weights):
    terms = hand_made()
    progress = [0, 0.1, 0.25, 0.5, 0.6, 1]
    for terms.progress, weight in zip(progress, weights, strict=True):
        assert objective.kl_weight(terms.progress) == pytest.approx(weight)
        expected = [4 + 2 * weight, 15 + 0.5 * weight]
        assert objective.loss(terms).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("objective", "weight", "follows"),
    [
        (ELBO(), 1.0, False),
        (ELBO(beta=3), 3.0, False),
        (ELBO(beta=2, warmup=0.5), 1.0, True),
        (ELBO(free_bits=0.1), None, False),
        (ELBO(free_bits=0.1, warmup=0.5), None, True),
        (ELBO(capacity=2.0), None, False),
        (ELBO(capacity=0.0), None, False),
        (IWAE(), None, False),
        (WAE(), None, False),
    ],
    ids=repr,
)
def test_what_an_objective_declares(objective, weight, follows):
    assert objective.kl_weight(0.25) == weight
    assert objective.follows_progress is follows


def test_free_bits_of_zero_and_no_capacity_are_the_plain_bound():
    terms = hand_made()
    plain = ELBO(beta=2).loss(terms)
    torch.testing.assert_close(ELBO(beta=2, free_bits=0.0).loss(terms), plain)
    # Of a capacity of 0 every nat is one too many, on average over the batch.
    loss = ELBO(beta=2, capacity=0.0).loss(terms)
    torch.testing.assert_close(loss.mean(), plain.mean())


@pytest.mark.parametrize("n_cycles", [1, 3])
@pytest.mark.parametrize("warmup", [0.0, 0.3, 0.999])
def test_warm_up_always_ends_and_stays_within_its_bounds(warmup, n_cycles):
    objective = ELBO(warmup=warmup, n_cycles=n_cycles)
    ramp = np.array([objective.ramp(p) for p in np.linspace(0, 1, 1001)])
    assert ramp.min() >= 0
    assert ramp.max() == 1
    assert (ramp[np.linspace(0, 1, 1001) >= warmup] == 1).all()
    assert objective.ramp(1.0) == 1
    # It comes down once at the start of each cycle but the first.
    assert (np.diff(ramp) < 0).sum() == (n_cycles - 1 if warmup else 0)


def test_a_warm_up_of_everything_is_refused():
    with pytest.raises(ValueError, match="'warmup' parameter of ELBO"):
        resolve(ELBO(warmup=1.0), OBJECTIVES, "objective", ELBO)


# ------------------------------------------------------------------ importance weights


@pytest.mark.parametrize("gradient", ["standard", "doubly_reparameterized"])
def test_one_sample_is_the_elbo(gradient):
    terms = drawn(1)
    torch.testing.assert_close(IWAE(1, gradient).loss(terms), ELBO().loss(terms))
    terms = drawn(5)
    torch.testing.assert_close(MIWAE(5, 1, gradient).loss(terms), ELBO().loss(terms))


@pytest.mark.parametrize("gradient", ["standard", "doubly_reparameterized"])
@pytest.mark.parametrize(("m", "k"), [(1, 6), (2, 3), (3, 2)])
def test_bounds_are_scipys(m, k, gradient):
    terms = drawn(6)
    terms.z.requires_grad_()
    terms.log_likelihood.requires_grad_()
    weights = terms.log_weights.detach().numpy().reshape(m, k, 6)
    expected = -(logsumexp(weights, axis=1) - np.log(k)).mean(0)
    loss = MIWAE(m, k, gradient).loss(terms)
    np.testing.assert_allclose(loss.detach(), expected, rtol=1e-5)
    if m == 1:
        assert torch.equal(IWAE(k, gradient).loss(terms), loss)


@pytest.mark.parametrize("number", [np.uint8, np.int64])
def test_numbers_of_draws_may_be_numpys(number):
    """Finding 24: 20 x 20 is no uint8."""
    objective = MIWAE(number(20), number(20))
    assert objective.n_draws == 400
    terms = drawn(400)
    torch.testing.assert_close(objective.loss(terms), MIWAE(20, 20).loss(terms))
    terms = drawn(6)
    torch.testing.assert_close(IWAE(number(6)).loss(terms), IWAE(6).loss(terms))


def test_the_bound_rises_with_k_towards_the_likelihood():
    # Log-normal weights of mean 1: log p(x) = 0, and the ELBO is -s^2 / 2.
    n, s = 20_000, 1.5
    log_weights = s * random(64, n) - s * s / 2
    zero = torch.zeros(64, n)
    losses = []
    for k in (1, 4, 16, 64):
        terms = Terms(
            log_weights[:k], zero[0], log_prior=zero[:k], log_posterior=zero[:k]
        )
        losses.append(IWAE(k).loss(terms))
    means = [loss.mean().item() for loss in losses]
    assert means[0] == pytest.approx(s * s / 2, abs=5 * s / n**0.5)
    assert means == sorted(means, reverse=True)
    assert means[-1] > -5 * losses[-1].std().item() / n**0.5
    assert means[-1] < 0.1


def test_the_best_sample_has_the_greatest_share():
    log_likelihood = torch.tensor([[-1.0], [-2.0], [-9.0]]).requires_grad_()
    zero = torch.zeros(3, 1)
    terms = Terms(log_likelihood, zero, log_prior=zero, log_posterior=zero)
    IWAE(3).loss(terms).sum().backward()
    torch.testing.assert_close(-log_likelihood.grad, log_likelihood.detach().softmax(0))


X = 1.3  # one observation of x = w z + noise, z standard normal


def linear_gradients(k, gradient, n=20_000):
    """Gradients of n equal rows by mean and log-variance of q and by w, and the loss.

    Every row has parameters of its own: n independent estimates.
    """
    mean = torch.full((n, 1), 0.2).requires_grad_()
    log_variance = torch.full((n, 1), -0.5).requires_grad_()
    w = torch.full((n,), 0.8).requires_grad_()
    objective = IWAE(k, gradient)
    posterior = GaussianPosterior.draw(mean, log_variance, random(k, n, 1))
    z, zero = posterior.z, torch.zeros(())
    terms = Terms(
        log_likelihood=log_normal(torch.tensor(X), w * z.squeeze(-1), zero),
        mean=mean,
        log_prior=log_normal(z, zero, zero).sum(-1),
        log_posterior=posterior.log_prob(path_derivative=objective.path_derivative),
        z=z,
    )
    loss = objective.loss(terms)
    loss.sum().backward()
    encoder = torch.cat([mean.grad, log_variance.grad], dim=1)
    return encoder, w.grad, loss.detach()


@pytest.mark.parametrize("k", [1, 2, 16])
def test_doubly_reparameterized_gradients_are_unbiased(k):
    standard, w_standard, loss = linear_gradients(k, "standard")
    doubly, w_doubly, same_loss = linear_gradients(k, "doubly_reparameterized")
    torch.testing.assert_close(same_loss, loss)  # the loss is the bound itself
    torch.testing.assert_close(w_doubly, w_standard)  # the decoder has its own
    gap = doubly - standard
    assert (gap.mean(0).abs() < 5 * gap.std(0) / len(gap) ** 0.5).all()
    assert gap.abs().max() > 1e-2
    if k > 1:
        assert (doubly.var(0) < standard.var(0)).all()


def test_doubly_reparameterized_with_one_sample_is_the_path_derivative():
    doubly, _, _ = linear_gradients(1, "doubly_reparameterized", n=50)
    noise, mean, scale = random(1, 50, 1)[0], 0.2, math.exp(-0.25)
    z = mean + scale * noise
    # d/dz of log q - log p(x|z) - log p(z), times dz by the parameters.
    slope = -noise / scale - 0.8 * (X - 0.8 * z) + z
    expected = torch.cat([slope, slope * 0.5 * scale * noise], dim=1)
    torch.testing.assert_close(doubly, expected)


def test_at_the_exact_posterior_the_path_derivative_is_without_noise():
    n, w = 50, 0.8
    variance = 1 / (1 + w * w)
    mean = torch.full((n, 1), variance * w * X).requires_grad_()
    log_variance = torch.full((n, 1), math.log(variance)).requires_grad_()
    posterior = GaussianPosterior.draw(mean, log_variance, random(4, n, 1))
    z, zero = posterior.z, torch.zeros(())
    terms = Terms(
        log_likelihood=log_normal(torch.tensor(X), w * z.squeeze(-1), zero),
        mean=mean,
        log_prior=log_normal(z, zero, zero).sum(-1),
        log_posterior=posterior.log_prob(path_derivative=True),
        z=z,
    )
    loss = IWAE(4, "doubly_reparameterized").loss(terms)
    evidence = stats.norm(0, math.sqrt(1 + w * w)).logpdf(X)
    torch.testing.assert_close(loss.detach(), torch.full((n,), -evidence).float())
    loss.sum().backward()
    assert mean.grad.abs().max() < 1e-5
    assert log_variance.grad.abs().max() < 1e-5


# ------------------------------------------------------------------ MMD


def test_infovae_lies_between_the_elbo_and_wae():
    terms = drawn(1)
    torch.testing.assert_close(InfoVAE(0, 1).loss(terms), ELBO().loss(terms))
    torch.testing.assert_close(InfoVAE(1, 7).loss(terms), WAE(7).loss(terms))
    penalty = maximum_mean_discrepancy(terms.z[0], terms.prior_draws, "rbf")
    expected = terms.reconstruction + 0.7 * terms.divergence + 4.3 * penalty
    torch.testing.assert_close(InfoVAE(0.3, 5, "rbf").loss(terms), expected)
    torch.testing.assert_close(WAE(0).loss(terms), terms.reconstruction)


# ------------------------------------------------------------------ total correlation


@pytest.mark.parametrize("weighted", [False, True])
def test_beta_tc_with_weights_of_one_is_the_elbo(weighted):
    weights = torch.tensor([0.5, 1.5, 1, 1, 0.2, 1.8]) if weighted else None
    terms = drawn(1, weights=weights)
    torch.testing.assert_close(BetaTC(beta=1).loss(terms), ELBO().loss(terms))


@pytest.mark.parametrize("weighted", [False, True])
def test_beta_tc_parts_by_brute_force(weighted):
    n, width, n_rows = 4, 2, 40
    terms = drawn(1, n, width)
    weights = np.array([0.5, 1.5, 1.8, 0.2]) if weighted else np.ones(n)
    terms.weights = torch.tensor(weights).float() if weighted else None
    z = terms.z[0].double().numpy()
    scale = np.exp(terms.log_variance.double().numpy() / 2)
    mean = terms.mean.double().numpy()
    expected = np.empty((3, n))
    for i in range(n):
        # q(z_i | x_j) and its dimensions, for all rows j of the batch.
        densities = stats.norm(mean, scale).pdf(z[i])
        aggregate = (weights * densities.prod(1)).sum() / (n * n_rows)
        marginals = (weights[:, None] * densities).sum(0) / (n * n_rows)
        log_q = stats.norm(mean[i], scale[i]).logpdf(z[i]).sum()
        log_p = stats.norm().logpdf(z[i]).sum()
        expected[:, i] = (
            log_q - np.log(aggregate),
            np.log(aggregate) - np.log(marginals).sum(),
            np.log(marginals).sum() - log_p,
        )
    parts = BetaTC().parts(terms)
    np.testing.assert_allclose(torch.stack(parts), expected, rtol=1e-4, atol=1e-4)
    loss = BetaTC(alpha=2, beta=3, gamma=0.5).loss(terms)
    total = terms.reconstruction.numpy() + [2, 3, 0.5] @ expected
    np.testing.assert_allclose(loss, total, rtol=1e-4)

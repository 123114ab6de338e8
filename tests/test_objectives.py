import pytest
import torch

from skvae.objectives import ELBO, OBJECTIVES, Terms


def hand_made(**changes):
    """Two draws of two rows, by hand."""
    values = {
        "log_likelihood": torch.tensor([[-3.0, -10.0], [-5.0, -20.0]]),
        "mean": torch.zeros(2, 1),
        "kl": torch.tensor([[2.0], [0.5]]),
    }
    return Terms(**{**values, **changes})


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


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_objective_gives_one_loss_a_row(name):
    objective = OBJECTIVES[name]()
    generator = torch.Generator().manual_seed(0)
    n_draws = objective.n_draws
    log_likelihood = torch.randn(n_draws, 5, generator=generator).requires_grad_()
    terms = Terms(
        log_likelihood=log_likelihood,
        mean=torch.zeros(5, 2),
        kl=torch.rand(5, 2, generator=generator) if objective.analytic_kl else None,
        log_prior=torch.randn(n_draws, 5, generator=generator),
        log_posterior=torch.randn(n_draws, 5, generator=generator),
        z=torch.randn(n_draws, 5, 2, generator=generator),
        log_variance=torch.zeros(5, 2),
        prior_draws=torch.randn(5, 2, generator=generator),
    )
    loss = objective.loss(terms)
    assert loss.shape == (5,)
    loss.sum().backward()
    # A likelier row costs less.
    assert (log_likelihood.grad.sum(0) < 0).all()

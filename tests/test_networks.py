import pytest
import torch
from torch.distributions import Normal

from skvae.networks import MAX_LOG_VARIANCE, MLP, NETWORKS, GaussianPosterior


def random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def build(network, *, n_features=6, latent_dim=2, hidden_dim=(5,), n_outputs=1, seed=0):
    return network.build(
        n_features=n_features,
        latent_dim=latent_dim,
        hidden_dim=hidden_dim,
        n_outputs=n_outputs,
        output_bias=torch.arange(n_features * n_outputs).view(n_features, n_outputs),
        generator=torch.Generator().manual_seed(seed),
    )


@pytest.mark.parametrize("n_outputs", [1, 3])
@pytest.mark.parametrize("hidden_dim", [(), (16,), (16, 12)], ids=str)
@pytest.mark.parametrize("name", sorted(NETWORKS))
class TestContract:
    """What every network keeps to."""

    def test_shapes(self, name, hidden_dim, n_outputs):
        module = build(NETWORKS[name](), hidden_dim=hidden_dim, n_outputs=n_outputs)
        posterior = module.infer(random(4, 6), random(3, 4, module.n_noise))
        assert posterior.z.shape == (3, 4, 2)
        assert posterior.mean.shape == posterior.log_variance.shape == (4, 2)
        assert posterior.log_prob().shape == (3, 4)
        assert module.decode(posterior.z).shape == (3, 4, 6, n_outputs)
        assert module.decode(posterior.z[0]).shape == (4, 6, n_outputs)

    def test_every_parameter_gets_a_gradient(self, name, hidden_dim, n_outputs):
        module = build(NETWORKS[name](), hidden_dim=hidden_dim, n_outputs=n_outputs)
        posterior = module.infer(random(9, 6), random(1, 9, module.n_noise))
        module.decode(posterior.z).square().sum().backward()
        for parameter in module.parameters():
            assert (parameter.grad != 0).any()

    def test_weights_come_from_the_generator(self, name, hidden_dim, n_outputs):
        one, same, other = (
            torch.cat(
                [
                    p.flatten()
                    for p in build(
                        NETWORKS[name](),
                        hidden_dim=hidden_dim,
                        n_outputs=n_outputs,
                        seed=seed,
                    ).parameters()
                ]
            )
            for seed in (0, 0, 1)
        )
        assert torch.equal(one, same)
        assert not torch.equal(one, other)

    def test_output_starts_at_its_bias(self, name, hidden_dim, n_outputs):
        module = build(NETWORKS[name](), hidden_dim=hidden_dim, n_outputs=n_outputs)
        before = module.decode(torch.zeros(1, 2))
        expected = torch.arange(6.0 * n_outputs).view(6, n_outputs)
        # What the hidden layers add at the start is small beside the bias.
        assert (before[0] - expected).abs().max() < 2


def test_mlp_has_the_layers_it_is_asked_for():
    module = build(MLP(), n_features=784, latent_dim=20, hidden_dim=(400, 100))
    shapes = [tuple(p.shape) for p in module.parameters() if p.ndim == 2]
    assert shapes == [
        (400, 784), (100, 400), (40, 100), (100, 20), (400, 100), (784, 400),
    ]  # fmt: skip
    assert len(list(build(MLP(), hidden_dim=()).encoder)) == 1


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_mlp_activation(activation):
    module = build(MLP(activation=activation))
    x = random(3, 6)
    hidden = getattr(torch, activation)(module.encoder[0](x))
    torch.testing.assert_close(module.encoder(x), module.encoder[2](hidden))


def test_posterior_log_prob_is_torchs():
    generator = torch.Generator().manual_seed(0)
    mean, log_variance, noise = torch.randn(3, 8, 4, 2, generator=generator)
    posterior = GaussianPosterior.draw(mean[0], log_variance[0], noise)
    q = Normal(mean[0], (0.5 * log_variance[0]).exp())
    torch.testing.assert_close(posterior.log_prob(), q.log_prob(posterior.z).sum(-1))


def test_posterior_variance_is_bounded():
    wild = torch.tensor([[1e6, -1e6]])
    posterior = GaussianPosterior.draw(torch.zeros(1, 2), wild, torch.ones(1, 1, 2))
    assert posterior.log_variance.tolist() == [[MAX_LOG_VARIANCE, -MAX_LOG_VARIANCE]]
    assert torch.isfinite(posterior.z).all()

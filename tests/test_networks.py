from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from skvae import VAEEstimator
from skvae.networks import (
    ACTIVATIONS,
    MAX_LOG_VARIANCE,
    MLP,
    NETWORKS,
    ConvNet,
    EncoderDecoder,
    FlowMLP,
    GaussianPosterior,
    LadderNet,
    Network,
    NetworkInputs,
    beside,
    log_normal,
    refuse_random_layers,
)
from skvae.priors import PriorInputs, StandardNormal

# (spec, widths of the levels of z) that stand for every network there is.
CASES = {
    "mlp": (MLP(), (2,)),
    "mlp with all": (MLP("gelu", layer_norm=True, dropout=0.3), (2,)),
    "conv": (ConvNet(channels=(4,)), (2,)),
    "conv deep": (ConvNet(channels=[8, 3], n_residual=2), (2,)),
    "ladder": (LadderNet(), (2,)),
    "ladder of three": (LadderNet("tanh"), (3, 2, 1)),
    "flow_mlp": (FlowMLP(n_transforms=1, flow_dim=8), (2,)),
}
assert {type(spec) for spec, _ in CASES.values()} == set(NETWORKS.values())
# Hidden widths, and raw outputs of each of the 16 features.
SIZES = [((), 3), ((16,), 1), ((16, 12), 2)]


def random(*shape, seed=3):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def build(
    network,
    *,
    n_features=16,
    latent_dim=(2,),
    hidden_dim=(5,),
    n_outputs=1,
    n_raw=None,
    n_conditions=0,
    image_shape=None,
    seed=0,
):
    """A module of features with so many raw outputs each, whose bias counts them."""
    n_raw = n_features * n_outputs if n_raw is None else n_raw
    return network.build(
        NetworkInputs(
            n_inputs=n_features,
            latent_dim=latent_dim,
            hidden_dim=hidden_dim,
            n_raw=n_raw,
            output_bias=torch.arange(float(n_raw)),
            n_conditions=n_conditions,
            image_shape=image_shape,
            generator=torch.Generator().manual_seed(seed),
        )
    )


def prior_kl(mean, log_variance):
    """KL from the standard normal, by dimension."""
    unknown = torch.zeros(1)
    inputs = PriorInputs(mean.shape[-1], unknown, unknown, torch.Generator())
    return StandardNormal().build(inputs).kl(mean, log_variance)


def log_standard_normal(z):
    return Normal(0.0, 1.0).log_prob(z).sum(-1)


def flat(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def modules(*shapes, seed=0):
    """Linear modules of plain torch, which draw from its global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return [nn.Linear(*shape) for shape in shapes]


@pytest.mark.parametrize(("hidden_dim", "n_outputs"), SIZES, ids=str)
@pytest.mark.parametrize("case", CASES)
class TestContract:
    """What every network keeps to."""

    def make(self, case, hidden_dim, n_outputs, **options):
        network, latent_dim = CASES[case]
        return build(
            network,
            latent_dim=latent_dim,
            hidden_dim=hidden_dim,
            n_outputs=n_outputs,
            **options,
        ), sum(latent_dim)

    def test_shapes(self, case, hidden_dim, n_outputs):
        module, width = self.make(case, hidden_dim, n_outputs, n_conditions=2)
        posterior = module.infer(random(4, 16), random(3, 4, module.n_noise))
        assert posterior.z.shape == (3, 4, width)
        assert posterior.mean.shape == (4, width)
        assert posterior.log_prob().shape == (3, 4)
        kl = posterior.kl(prior_kl)
        assert kl is None or kl.shape == (4, width)
        condition = torch.ones(3, 4, 2)
        raw = module.decode(posterior.z, condition)
        assert raw.shape == (3, 4, 16 * n_outputs)
        alone = module.decode(posterior.z[1], condition[1])
        torch.testing.assert_close(alone, raw[1])
        assert (module.decode(posterior.z, 0 * condition) != raw).any()
        assert CASES[case][0].posterior == (
            "gaussian"
            if posterior.gaussian() is not None
            else "flow"
            if kl is None
            else "hierarchical"
        )

    def test_the_gaussian_is_the_one_that_was_drawn_from(
        self, case, hidden_dim, n_outputs
    ):
        module, _ = self.make(case, hidden_dim, n_outputs)
        x, noise = random(4, 16), random(3, 4, module.n_noise)
        posterior = module.infer(x, noise)
        if (gaussian := posterior.gaussian()) is None:
            assert CASES[case][0].posterior != "gaussian"
            return
        mean, log_variance = gaussian
        z = mean + torch.exp(0.5 * log_variance) * noise
        torch.testing.assert_close(posterior.z, z)
        assert posterior.prior_gaussian()[0] is mean

    def test_every_parameter_gets_a_gradient(self, case, hidden_dim, n_outputs):
        module, _ = self.make(case, hidden_dim, n_outputs)
        posterior = module.infer(random(9, 16), random(1, 9, module.n_noise))
        module.decode(posterior.z).square().sum().backward()
        for name, parameter in module.named_parameters():
            assert (parameter.grad != 0).any(), name

    def test_weights_come_from_the_generator(self, case, hidden_dim, n_outputs):
        one, same, other = (
            flat(self.make(case, hidden_dim, n_outputs, seed=seed)[0])
            for seed in (0, 0, 1)
        )
        assert torch.equal(one, same)
        assert not torch.equal(one, other)

    def test_output_starts_at_its_bias(self, case, hidden_dim, n_outputs):
        module, width = self.make(case, hidden_dim, n_outputs)
        before = module.decode(torch.zeros(1, width))
        expected = torch.arange(16.0 * n_outputs)
        # What the hidden layers add at the start is small beside the bias.
        assert (before[0] - expected).abs().max() < 2

    def test_a_row_is_the_same_in_any_company(self, case, hidden_dim, n_outputs):
        module, _ = self.make(case, hidden_dim, n_outputs)
        x, noise = random(5, 16), random(2, 5, module.n_noise)
        together, alone = module.infer(x, noise), module.infer(x[3:4], noise[:, 3:4])
        torch.testing.assert_close(together.z[:, 3:4], alone.z)
        torch.testing.assert_close(together.log_prob()[:, 3:4], alone.log_prob())
        torch.testing.assert_close(
            module.decode(together.z)[:, 3:4], module.decode(alone.z)
        )

    def test_the_mean_is_the_draw_of_zero_noise(self, case, hidden_dim, n_outputs):
        module, _ = self.make(case, hidden_dim, n_outputs)
        posterior = module.infer(random(4, 16), torch.zeros(1, 4, module.n_noise))
        torch.testing.assert_close(posterior.z[0], posterior.mean)


@pytest.mark.parametrize("network", [MLP(), ConvNet(), FlowMLP()], ids=str)
def test_networks_of_one_level_refuse_more(network):
    kind = type(network).__name__
    with pytest.raises(
        ValueError, match=rf"latent_dim=\(3, 2\) has 2 levels, but {kind}"
    ):
        build(network, latent_dim=(3, 2))


# ------------------------------------------------------------------ posteriors


def test_posterior_log_prob_is_torchs():
    mean, log_variance, noise = random(3, 8, 4, 2)
    posterior = GaussianPosterior.draw(mean[0], log_variance[0], noise)
    q = Normal(mean[0], (0.5 * log_variance[0]).exp())
    expected = q.log_prob(posterior.z).sum(-1)
    torch.testing.assert_close(posterior.log_prob(), expected)
    torch.testing.assert_close(posterior.log_prob(path_derivative=True), expected)
    torch.testing.assert_close(
        log_normal(posterior.z, mean[0], log_variance[0]), q.log_prob(posterior.z)
    )


def test_path_derivative_lets_gradients_through_z_alone():
    mean, log_variance = (part.requires_grad_() for part in random(2, 4, 2))
    posterior = GaussianPosterior.draw(mean, log_variance, random(3, 4, 2))
    posterior.z.retain_grad()
    posterior.log_prob(path_derivative=True).sum().backward()
    # d log q / dz = -noise / deviation, and dz / dmean = 1.
    slope = -posterior.noise * torch.exp(-0.5 * log_variance)
    torch.testing.assert_close(posterior.z.grad, slope)
    torch.testing.assert_close(mean.grad, slope.sum(0))
    # All of it together does not depend on the mean at all.
    mean.grad = None
    posterior = GaussianPosterior.draw(mean, log_variance, random(3, 4, 2))
    (total,) = torch.autograd.grad(
        posterior.log_prob().sum(), mean, allow_unused=True, materialize_grads=True
    )
    assert not total.any()


def test_posterior_variance_is_bounded():
    wild = torch.tensor([[1e6, -1e6]])
    posterior = GaussianPosterior.draw(torch.zeros(1, 2), wild, torch.ones(1, 1, 2))
    assert posterior.log_variance.tolist() == [[MAX_LOG_VARIANCE, -MAX_LOG_VARIANCE]]
    assert torch.isfinite(posterior.z).all()


# ------------------------------------------------------------------ fully connected


def test_mlp_has_the_layers_it_is_asked_for():
    module = build(MLP(), n_features=784, latent_dim=(20,), hidden_dim=(400, 100))
    shapes = [tuple(p.shape) for p in module.parameters() if p.ndim == 2]
    assert shapes == [
        (400, 784), (100, 400), (40, 100), (100, 20), (400, 100), (784, 400),
    ]  # fmt: skip
    assert len(list(build(MLP(), hidden_dim=()).encoder)) == 1


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_mlp_activation(activation):
    module = build(MLP(activation=activation))
    x = random(3, 16)
    function = getattr(torch.nn.functional, activation)
    torch.testing.assert_close(
        module.encoder(x), module.encoder[2](function(module.encoder[0](x)))
    )


def test_layer_norm_stands_before_each_activation():
    module = build(MLP(layer_norm=True), hidden_dim=(5, 4))
    kinds = [nn.Linear, nn.LayerNorm, nn.ReLU] * 2 + [nn.Linear]
    assert [type(layer) for layer in module.encoder] == kinds
    assert [type(layer) for layer in module.decoder] == kinds
    normal = module.encoder[1](module.encoder[0](random(7, 16)))
    torch.testing.assert_close(normal.mean(1), torch.zeros(7), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        normal.var(1, correction=0), torch.ones(7), atol=1e-2, rtol=0
    )


def test_dropout_leaves_out_its_share_and_keeps_the_scale():
    module = build(MLP("softplus", dropout=0.3), hidden_dim=(400, 300))
    assert module.n_noise == 2
    assert module.n_dropout_noise == 2 * 700
    x, noise, hidden = random(50, 16), torch.zeros(1, 50, 2), []
    module.encoder[-1].register_forward_hook(
        lambda _, inputs, __: hidden.append(inputs[0])
    )
    dropout_noise = random(1, 50, module.n_dropout_noise)
    dropped = module.infer(x, noise, dropout_noise=dropout_noise).mean
    share = (hidden[0] == 0).float().mean().item()
    assert share == pytest.approx(0.3, abs=5 * np.sqrt(0.3 * 0.7 / (50 * 300)))
    whole = module.infer(x, noise).mean
    assert not (hidden[1] == 0).any()
    # In expectation nothing changes: the mean over many masks is near the whole.
    repeated = module.infer(
        x[:1].expand(4000, -1),
        torch.zeros(1, 4000, 2),
        dropout_noise=random(1, 4000, module.n_dropout_noise, seed=8),
    ).mean
    error = repeated.std(0) / 4000**0.5
    # softplus bends a little, hence the second term.
    assert ((repeated.mean(0) - whole[0]).abs() < 5 * error + 0.02).all()
    assert not torch.equal(dropped, whole)


def test_dropout_of_the_decoder_has_noise_of_its_own():
    module = build(MLP(dropout=0.5), hidden_dim=(40,))
    z, noise = random(2, 6, 2), random(2, 6, 80)
    same_encoder = torch.cat([noise[..., :40], -noise[..., 40:]], dim=-1)
    one = module.decode(z, dropout_noise=noise)
    assert not torch.equal(one, module.decode(z, dropout_noise=same_encoder))
    other = torch.cat([-noise[..., :40], noise[..., 40:]], dim=-1)
    assert torch.equal(one, module.decode(z, dropout_noise=other))


# ------------------------------------------------------------------ the user's own


def test_encoder_decoder_is_the_pair():
    encoder, decoder = modules((16, 4), (3, 32))
    module = build(EncoderDecoder(encoder, decoder), n_outputs=2, n_conditions=1)
    x = random(5, 16)
    posterior = module.infer(x, torch.zeros(1, 5, 2))
    torch.testing.assert_close(posterior.mean, encoder(x)[:, :2])
    torch.testing.assert_close(posterior.log_variance, encoder(x)[:, 2:])
    z = random(4, 5, 3)
    raw = module.decode(z[..., :2], z[..., 2:])
    torch.testing.assert_close(raw, decoder(z))


def test_encoder_decoder_is_copied_at_every_build():
    encoder, decoder = modules((16, 4), (2, 16))
    network = EncoderDecoder(encoder, decoder)
    one, two = build(network), build(network)
    before = flat(two)
    with torch.no_grad():
        one.encoder.weight.zero_()
    assert torch.equal(flat(two), before)
    assert encoder.weight.any()


def drawing(make):
    """A function that makes modules of plain torch, out of the way of other tests."""

    def aside(**options):
        with torch.random.fork_rng(devices=[]):
            return make(**options)

    return aside


recurrent = drawing(partial(nn.GRU, 4, 4, num_layers=2))
attention = drawing(partial(nn.MultiheadAttention, 4, 2))

RANDOM = [
    nn.Dropout(0.9),
    nn.Dropout2d(),
    nn.AlphaDropout(),
    nn.BatchNorm1d(4),
    nn.SyncBatchNorm(4),
    nn.InstanceNorm1d(4, track_running_stats=True),
    recurrent(dropout=0.2),
    attention(dropout=0.2),
]


@pytest.mark.parametrize("layer", RANDOM, ids=repr)
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_layers_that_could_not_act_are_refused(part, layer):
    """Finding 12: they were switched off without a word."""
    pair = dict(zip(("encoder", "decoder"), modules((16, 4), (2, 16)), strict=True))
    pair[part] = nn.Sequential(pair[part], nn.Sequential(nn.Identity(), layer))
    with pytest.raises(
        ValueError,
        match=rf"(?s)the {part} has the layer {type(layer).__name__}\(.*use ",
    ):
        build(EncoderDecoder(**pair))


def test_layers_that_look_at_one_row_are_taken():
    encoder, decoder = modules((16, 4), (2, 16))
    fine = nn.Sequential(nn.LayerNorm(16), nn.GroupNorm(2, 16), nn.Dropout(0.0))
    for layer in (nn.InstanceNorm1d(4), recurrent(), attention()):
        refuse_random_layers("encoder", nn.Sequential(layer))
    module = build(EncoderDecoder(nn.Sequential(fine, encoder), decoder))
    assert module.infer(random(5, 16), torch.zeros(1, 5, 2)).mean.shape == (5, 2)


def test_the_refusal_reaches_the_user_and_leaves_no_trace():
    encoder, decoder = modules((16, 4), (2, 16))
    vae = VAEEstimator(
        2, network=(nn.Sequential(encoder, nn.Dropout(0.5)), decoder), epochs=1
    )
    with pytest.raises(ValueError, match=r"Dropout.*would never act.*MLP\(dropout="):
        vae.fit(random(20, 16).numpy())
    assert not hasattr(vae, "fitted_")

    class Mine(Network):
        def build(self, inputs):
            module = MLP().build(inputs)
            module.encoder.insert(1, nn.BatchNorm1d(400))
            return module

    vae.set_params(network=Mine())
    with pytest.raises(ValueError, match=r"the network has the layer BatchNorm1d"):
        vae.fit(random(20, 16).numpy())


def test_our_own_networks_have_none_of_them():
    for network, latent_dim in CASES.values():
        refuse_random_layers("network", build(network, latent_dim=latent_dim))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((15, 4), (2, 16)), r"encoder does not take an array of shape \(n, 16\)"),
        (
            ((16, 5), (2, 16)),
            r"encoder turns .*\(2, 16\) into \(2, 5\); expected \(2, 4\)",
        ),
        (((16, 4), (3, 16)), r"decoder does not take an array of shape \(n, 2\)"),
        (((16, 4), (2, 8)), r"decoder turns .* into \(2, 8\); expected \(2, 16\)"),
    ],
)
def test_modules_of_the_wrong_width_are_named(shapes, message):
    with pytest.raises(ValueError, match=message):
        build(EncoderDecoder(*modules(*shapes)))


# ------------------------------------------------------------------ convolutional


@pytest.mark.parametrize("n_channels", [1, 3])
@pytest.mark.parametrize("n_outputs", [1, 2])
@pytest.mark.parametrize(
    ("size", "channels"),
    [
        ((8, 8), (4, 4, 4)),
        ((9, 7), (4, 6)),
        ((28, 28), (4, 8)),
        ((33, 5), (2,)),
        ((64, 64), (2, 2, 2, 4)),
    ],
    ids=str,
)
def test_conv_takes_images_of_any_size(size, channels, n_outputs, n_channels):
    shape = (n_channels, *size)
    n_features = n_channels * size[0] * size[1]
    module = build(
        ConvNet(channels),
        n_features=n_features,
        n_outputs=n_outputs,
        image_shape=shape,
    )
    posterior = module.infer(random(2, n_features), random(1, 2, 2))
    raw = module.decode(posterior.z).unflatten(-1, (n_features, n_outputs))
    assert raw.shape == (1, 2, n_features, n_outputs)
    start = torch.arange(float(n_features * n_outputs)).view(n_features, n_outputs)
    assert (raw - start).abs().max() < 3
    # Every pixel of every output is reached, and hears its own bias alone.
    (slope,) = torch.autograd.grad(
        raw.square().sum(), module.output_bias, retain_graph=True
    )
    assert (slope != 0).all()
    before = raw[0, 0]
    pixel, output = n_features - size[1] - 1, n_outputs - 1
    channel, rest = divmod(pixel, size[0] * size[1])
    row, column = divmod(rest, size[1])
    with torch.no_grad():
        module.output_bias[channel * n_outputs + output, row, column] += 1
    changed = module.decode(posterior.z).unflatten(-1, (-1, n_outputs))[0, 0] - before
    expected = torch.zeros_like(changed)
    expected[pixel, output] = 1
    torch.testing.assert_close(changed, expected, atol=1e-2, rtol=0)
    raw.square().sum().backward()
    for name, parameter in module.named_parameters():
        assert (parameter.grad != 0).any(), name


@pytest.mark.parametrize("n_outputs", [1, 2])
@pytest.mark.parametrize("channels", [(4,), (2, 16), (8, 4, 2)])
def test_conv_tells_how_wide_it_is(channels, n_outputs):
    module = build(ConvNet(channels), n_features=3 * 17 * 16, n_outputs=n_outputs,
                   image_shape=(3, 17, 16))  # fmt: skip
    seen = []
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda *call: seen.append(call[2].numel()))
    module.decode(module.infer(random(1, 3 * 17 * 16), random(1, 1, 2)).z)
    assert module.n_widest == max(seen)


def test_conv_sees_where_things_are():
    """A convolution knows of neighbours: images are not scrambled on their way."""
    module = build(
        ConvNet((4,), n_residual=0), n_features=64, hidden_dim=(), image_shape=(1, 8, 8)
    )
    image = torch.zeros(1, 64)
    image[0, 8 * 3 + 5] = 1.0
    seen = module.encoder[1](module.encoder[0](image)) - module.encoder[1](
        module.encoder[0](torch.zeros(1, 64))
    )
    rows, columns = seen[0].abs().sum(0).nonzero().T
    # Row 3 and column 5 under 3 x 3 windows that are 2 apart.
    assert set(rows.tolist()) == {1, 2}
    assert set(columns.tolist()) == {2, 3}


@pytest.mark.parametrize(
    ("network", "n_features", "shape"),
    [
        (ConvNet((2,)), 25, (1, 5, 5)),
        (ConvNet((2,)), 75, (3, 5, 5)),
        (ConvNet((2,), image_shape=(2, 8)), 16, (1, 2, 8)),
        (ConvNet((2,), image_shape=[3, 2, 4]), 24, (3, 2, 4)),
    ],
)
def test_conv_knows_the_shape_of_its_images(network, n_features, shape):
    module = build(network, n_features=n_features)
    assert module.encoder[0].unflattened_size == shape
    # What the spec says wins over the shape of X.
    other = build(network, n_features=n_features, image_shape=shape)
    assert torch.equal(flat(module), flat(other))


@pytest.mark.parametrize(
    ("network", "n_features", "message"),
    [
        (ConvNet(), 15, r"15 features are no square image.*image_shape="),
        (ConvNet((2,) * 3), 16, r"4 x 4 cannot be halved 3 times; give fewer than 3"),
        (ConvNet(()), 16, r"channels=\(\) must be a tuple of ints"),
        (ConvNet((4, 0)), 16, r"channels=\(4, 0\) must be"),
        (ConvNet((4, 2.5)), 16, r"channels=\(4, 2.5\) must be"),
        (ConvNet(image_shape=(4, 5)), 16, r"image_shape=\(1, 4, 5\) does not describe"),
        (ConvNet(image_shape=(2, 2, 4)), 16, r"with 1 or 3 channels"),
        (ConvNet(image_shape=(16,)), 16, r"image_shape=\(16,\) does not describe"),
        (ConvNet(image_shape=(1, 4.0, 4)), 16, r"does not describe"),
    ],
)
def test_conv_refuses_what_does_not_fit(network, n_features, message):
    with pytest.raises(ValueError, match=message):
        build(network, n_features=n_features)


@pytest.mark.parametrize(
    "channels", [np.array([8, 16]), (np.uint8(8), np.int64(16)), [8, 16]], ids=repr
)
def test_channels_may_be_numpys(channels):
    """Finding 24: NumPy's integers failed within torch."""
    network = ConvNet(channels, n_residual=np.int64(1), image_shape=[np.int32(4)] * 2)
    assert torch.equal(flat(build(network)), flat(build(ConvNet((8, 16)))))
    # 20 x 13 = 260 would overflow the uint8 that it came as.
    wide = ConvNet((np.uint8(20),), image_shape=(np.uint8(20), np.uint8(13)))
    module = build(wide, n_features=260)
    assert module.decode(torch.zeros(1, 2)).shape == (1, 260)


def test_conv_needs_as_many_outputs_for_every_pixel():
    with pytest.raises(ValueError, match=r"ConvNet\(\) .*there are 20 of 16 inputs"):
        build(ConvNet(), n_raw=20)


def test_residual_blocks_still_speak_where_the_image_is_one_pixel():
    module = build(ConvNet((8, 8)), hidden_dim=())
    block = module.encoder[4]
    x = random(6, 8, 1, 1)
    added = block(x) - x
    assert (added.std(0) > 1e-3).any()


# ------------------------------------------------------------------ hierarchical


def test_ladder_of_one_level_is_the_mlp():
    ladder, mlp = build(LadderNet(), hidden_dim=(7, 5)), build(MLP(), hidden_dim=(7, 5))
    assert torch.equal(flat(ladder), flat(mlp))
    x, noise = random(4, 16), random(3, 4, 2)
    a, b = ladder.infer(x, noise), mlp.infer(x, noise)
    for left, right in (
        (a.z, b.z),
        (a.mean, b.mean),
        (a.log_prob(), b.log_prob()),
        (a.kl(prior_kl), b.kl(prior_kl)),
        (a.prior_z, b.prior_z),
        (ladder.decode(a.z), mlp.decode(b.z)),
    ):
        torch.testing.assert_close(left, right)
    assert a.inner_log_prior() == 0


@pytest.fixture
def two_levels():
    module = build(LadderNet(), latent_dim=(3, 2), hidden_dim=(8,))
    with torch.no_grad():  # levels that really depend on each other
        for parameter in module.parameters():
            parameter.mul_(1.5)
    return module.double()


def conditional_prior(module, top):
    mean, log_variance = module.down[0](top).chunk(2, dim=-1)
    return Normal(mean, (0.5 * log_variance).exp())


def test_levels_merge_in_proportion_to_their_precisions(two_levels):
    x, noise = random(4, 16).double(), random(5, 4, 5).double()
    posterior = two_levels.infer(x, noise)
    hidden = two_levels.up[0](x)
    said, said_log_variance = two_levels.heads[0](hidden).chunk(2, dim=-1)
    said_mean = said * said_log_variance.exp()
    top_mean, top_log_variance = two_levels.heads[1](two_levels.up[1](hidden)).chunk(
        2, dim=-1
    )
    top = top_mean + (0.5 * top_log_variance).exp() * noise[..., 3:]
    prior = conditional_prior(two_levels, top)
    precisions = said_log_variance.exp().reciprocal(), prior.variance.reciprocal()
    variance = 1 / (precisions[0] + precisions[1])
    mean = variance * (said_mean * precisions[0] + prior.mean * precisions[1])
    bottom = mean + variance.sqrt() * noise[..., :3]
    close = {"rtol": 1e-4, "atol": 1e-5}  # densities are float32
    torch.testing.assert_close(
        posterior.z.double(), torch.cat([bottom, top], -1), **close
    )
    expected = Normal(mean, variance.sqrt()).log_prob(bottom).sum(-1)
    expected += Normal(top_mean, (0.5 * top_log_variance).exp()).log_prob(top).sum(-1)
    torch.testing.assert_close(posterior.log_prob().double(), expected, **close)
    torch.testing.assert_close(
        posterior.inner_log_prior().double(), prior.log_prob(bottom).sum(-1), **close
    )
    closed = kl_divergence(Normal(mean, variance.sqrt()), prior).mean(0)
    kl = posterior.kl(prior_kl)
    torch.testing.assert_close(kl[:, :3].double(), closed, **close)


def test_ladder_kl_is_the_mean_difference_of_log_densities(two_levels):
    n = 100_000
    with torch.no_grad():
        posterior = two_levels.infer(random(2, 16).double(), random(n, 2, 5).double())
        gaps = posterior.log_prob() - (
            log_standard_normal(posterior.prior_z) + posterior.inner_log_prior()
        )
        closed = posterior.kl(prior_kl).sum(-1)
    assert ((gaps.mean(0) - closed).abs() < 5 * gaps.std(0) / n**0.5).all()
    # It is no divergence of independent levels: what is above moves what is below.
    assert posterior.levels[0].mean.std(0).max() > 1e-3


def test_completed_draws_have_the_density_of_the_inner_prior(two_levels):
    top, noise = random(7, 2).double(), random(7, 3, seed=4).double()
    z = two_levels.complete(top, noise)
    prior = conditional_prior(two_levels, top)
    expected = prior.mean + prior.stddev * noise
    torch.testing.assert_close(z[:, :3], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(z[:, 3:], top)


def test_levels_of_a_ladder_stand_in_their_order():
    module = build(LadderNet(), latent_dim=(3, 2, 1))
    posterior = module.infer(random(4, 16), random(2, 4, 6))
    assert [level.z.shape[-1] for level in posterior.levels] == [3, 2, 1]
    assert posterior.prior_z.shape == (2, 4, 1)
    starts = np.cumsum([0, 3, 2, 1])
    for level, (start, stop) in zip(posterior.levels, pairwise(starts), strict=True):
        assert torch.equal(posterior.z[..., start:stop], level.z)
    assert module.n_inner_noise == 5


# ------------------------------------------------------------------ flows


def test_flow_posterior_is_the_change_of_variables():
    module = build(FlowMLP(n_transforms=2, flow_dim=8)).double()
    x, noise = random(3, 16).double(), random(2, 3, 2).double()
    posterior = module.infer(x, noise)
    log_prob = posterior.log_prob()
    for draw in range(2):
        for row in range(3):

            def draw_of(point, row=row):
                return module.infer(x[row : row + 1], point.view(1, 1, 2)).z.view(2)

            point, step = noise[draw, row], 1e-3
            jacobian = torch.stack(
                [
                    (draw_of(point + step * e) - draw_of(point - step * e)) / (2 * step)
                    for e in torch.eye(2, dtype=torch.double)
                ],
                dim=1,
            )
            density = Normal(0.0, 1.0).log_prob(point).sum()
            expected = density - torch.linalg.slogdet(jacobian)[1]
            assert log_prob[draw, row].item() == pytest.approx(
                expected.item(), abs=2e-3
            )


def test_flow_posterior_bends():
    module = build(FlowMLP(n_transforms=2, flow_dim=8))
    with torch.no_grad():
        for parameter in module.flow.parameters():
            parameter.mul_(3)
    noise = torch.linspace(-2, 2, 5).view(5, 1, 1).expand(5, 1, 2)
    steps = module.infer(random(1, 16), noise).z[:, 0, 0].diff()
    assert (steps > 0).all()
    assert steps.max() / steps.min() > 1.05


# ------------------------------------------------------------------ the base class


def test_condition_stands_beside_z():
    z, condition = random(3, 4, 2), torch.eye(2, dtype=torch.float64)[[0, 1, 1, 0]]
    both = beside(z[0], condition)
    torch.testing.assert_close(both[:, :2], z[0])
    torch.testing.assert_close(both[:, 2:], condition.float())
    assert both.dtype == torch.float32
    assert beside(z, None) is z


def test_chains_are_all_that_there_is():
    for activation in ("relu", "tanh"):
        module = build(MLP(activation), hidden_dim=(5, 4), n_conditions=3)
        chains = module.chains()
        assert chains.tanh == (activation == "tanh",) * 2
        assert [layer.out_features for layer in chains.encoder] == [5, 4, 4]
        assert [layer.in_features for layer in chains.decoder] == [5, 4, 5]
        function = getattr(torch, activation)
        x = random(7, 16)
        hidden = function(chains.encoder[1](function(chains.encoder[0](x))))
        torch.testing.assert_close(chains.encoder[2](hidden), module.encoder(x))
    assert build(MLP("gelu"), hidden_dim=()).chains().tanh == (False, False)


def frozen():
    encoder, decoder = modules((16, 4), (2, 16))
    return EncoderDecoder(encoder.requires_grad_(False), decoder)


def shared():
    layer, encoder, decoder = modules((16, 16), (16, 4), (2, 16))
    return EncoderDecoder(nn.Sequential(layer, nn.ReLU(), layer, encoder), decoder)


@pytest.mark.parametrize(
    "network",
    [MLP("gelu"), MLP(dropout=0.1), MLP(layer_norm=True), ConvNet((4,)), frozen(),
     shared(), EncoderDecoder(*modules((16, 4), (2, 16)))],
    ids=lambda network: repr(network)[:30],
)  # fmt: skip
def test_chains_of_anything_else_are_none(network):
    assert build(network).chains() is None

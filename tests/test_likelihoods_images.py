"""The mixture of rounded logistic distributions."""

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from likelihood_helpers import (
    assert_log_prob,
    assert_sums_to_one,
    doubles,
    generator,
    one,
)
from skvae.likelihoods import DiscretizedLogisticMixture

LEVELS = torch.arange(256, dtype=torch.double)[:, None] / 255


@pytest.mark.parametrize("log_scale", [-20.0, -8.0, -6.0, -3.0, 0.0, 5.0, 20.0])
@pytest.mark.parametrize("mean", [-3.0, 0.0, 0.3, 0.5019, 1.0, 8.0])
def test_levels_sum_to_one(mean, log_scale):
    raw = torch.tensor([0.3, -1.0, mean, 0.6, log_scale, -2.0])
    module = one(DiscretizedLogisticMixture(2, 1))
    assert_sums_to_one(module, LEVELS, raw, tolerance=0.5 / 255)
    exact = module.log_prob(LEVELS, raw.double().expand(256, 6))
    float32 = module.log_prob(LEVELS.float(), raw.expand(256, 6))
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
    module = one(DiscretizedLogisticMixture(n_components=3, n_channels=2), 4)
    assert_log_prob(module, x, outputs.flatten(1), np.log((weights * mass).sum(-1)))


def test_levels_of_a_channel_sum_to_those_of_the_others():
    module = one(DiscretizedLogisticMixture(2, 2), 2)
    outputs = doubles(2, 6)
    pairs = torch.cartesian_prod(LEVELS[:, 0], LEVELS[:, 0])
    raw = outputs.flatten().expand(len(pairs), 12)
    masses = module.log_prob(pairs, raw)
    assert masses.exp().sum().item() == pytest.approx(1, abs=1e-9)
    first = masses.view(256, 256).logsumexp(1)
    # Without the second channel its logits still choose the component.
    alone = outputs[:1].clone()
    alone[:, :2] += outputs[1, :2]
    single = one(DiscretizedLogisticMixture(2, 1))
    torch.testing.assert_close(first, single.log_prob(LEVELS, alone.expand(256, 6)))
    # That is what a missing channel leaves, too.
    observed = torch.tensor([True, False])
    x = torch.cat([LEVELS, torch.full_like(LEVELS, torch.nan)], -1)
    torch.testing.assert_close(first, module.log_prob(x, raw[:256], observed))


def test_mean_of_the_cut_off_logistic():
    raw = torch.tensor([[0.0, 0.2, -1.5]], dtype=torch.double)
    ours = one(DiscretizedLogisticMixture(1, 1)).mean(raw).item()
    logistic = stats.logistic(0.2, np.exp(-1.5))
    within, _ = integrate.quad(logistic.sf, 0, 1)
    assert ours == pytest.approx(within, abs=1e-8)


def test_channels_share_the_component():
    # Component 0 is black, component 1 white: no pixel is of two colours.
    outputs = torch.tensor([0.0, 0.0, -0.5, 1.5, -5.0, -5.0]).repeat(1000, 6)
    draws = one(DiscretizedLogisticMixture(2, 3), 6).draw(outputs, generator())
    pixels = draws.view(1000, 3, 2)
    assert (pixels == pixels[:, :1]).all()
    assert 0.45 < draws.mean() < 0.55
    assert not torch.equal(pixels[..., 0], pixels[..., 1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_levels_of_any_precision_are_in_the_support(dtype):
    likelihood = DiscretizedLogisticMixture(n_channels=1)
    levels = np.arange(256).astype(dtype)[None] / 255
    assert levels.dtype == dtype
    assert likelihood.contains(levels).all()
    assert not likelihood.contains(levels + 0.01 / 255).any()
    assert not likelihood.contains(np.array([[256 / 255, -1 / 255]])).any()


@pytest.mark.parametrize("n_channels", [3, np.uint8(3), np.int64(3)], ids=repr)
def test_columns_are_whole_pixels(n_channels):
    likelihood = DiscretizedLogisticMixture(np.uint8(2), n_channels)
    with pytest.raises(ValueError, match=r"X has 256 features, .* n_channels=3"):
        one(likelihood, 256)
    assert one(likelihood, 300).n_raw == 1800

import math

import numpy as np
import pytest
import torch

from skvae.discrepancy import KERNELS, MMD_SCALES, maximum_mean_discrepancy


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def brute_force_mmd(a, b, kernel, weights):
    def k(x, y):
        square = float(((x - y) ** 2).sum())
        scales = [2 * len(x) * scale for scale in MMD_SCALES]
        if kernel == "imq":
            return np.mean([c / (c + square) for c in scales])
        return np.mean([math.exp(-square / c) for c in scales])

    n, total = len(a), {"aa": 0.0, "bb": 0.0, "ab": 0.0}
    mass = {"aa": 0.0, "bb": 0.0, "ab": 0.0}
    for i in range(n):
        for j in range(n):
            parts = [("ab", a[i], b[j], weights[i])]
            if i != j:
                parts.append(("aa", a[i], a[j], weights[i] * weights[j]))
                parts.append(("bb", b[i], b[j], 1.0))
            for name, x, y, weight in parts:
                total[name] += weight * k(x, y)
                mass[name] += weight
    mean = {name: total[name] / mass[name] for name in total}
    return mean["aa"] + mean["bb"] - 2 * mean["ab"]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kernel", sorted(KERNELS))
def test_mmd_by_brute_force(kernel, weighted):
    a, b = random(7, 3) + 1, random(7, 3, seed=1)
    weights = torch.tensor([0.0, 1, 2, 0.5, 1, 1, 1.5]) if weighted else None
    expected = brute_force_mmd(
        a.double().numpy(),
        b.double().numpy(),
        kernel,
        np.ones(7) if weights is None else weights.numpy(),
    )
    got = maximum_mean_discrepancy(a, b, kernel, weights)
    assert got.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kernel", sorted(KERNELS))
def test_mmd_of_equal_densities_is_zero_in_expectation(kernel):
    values = torch.stack(
        [
            maximum_mean_discrepancy(a, b, kernel)
            for a, b in random(400, 2, 30, 2, seed=4)
        ]
    )
    assert values.mean().abs() < 5 * values.std() / 20
    assert (values < 0).any()
    far = maximum_mean_discrepancy(random(30, 2) + 1, random(30, 2, seed=1), kernel)
    assert far > 5 * values.std()


@pytest.mark.parametrize("distance", [1.0, 10.0, 100.0])
def test_mmd_points_inwards_however_far(distance):
    a = (random(50, 2) + torch.tensor([distance, 0.0])).requires_grad_()
    maximum_mean_discrepancy(a, random(50, 2, seed=1)).backward()
    assert a.grad[:, 0].mean() > 1e-7


def test_mmd_of_a_single_row_is_zero_and_differentiable():
    a = random(1, 2).requires_grad_()
    value = maximum_mean_discrepancy(a, random(1, 2))
    value.backward()
    assert value == 0
    assert not a.grad.any()
    # As good as a single row: one has all the weight.
    alone = torch.tensor([1.0, 0.0, 0.0])
    a = random(3, 2).requires_grad_()
    value = maximum_mean_discrepancy(a, random(3, 2, seed=1), weights=alone)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(a.grad).all()

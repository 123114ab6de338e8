import sys

import pytest
import torch

from skvae.flows import SplineFlow


def make(n_features=3, n_context=0, seed=0):
    return SplineFlow(
        n_features, n_context=n_context, n_transforms=2, hidden_dim=8, seed=seed
    )


def random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("n_features", [1, 3])
@pytest.mark.parametrize("n_context", [0, 2])
def test_slope_is_the_determinant_of_the_jacobian(n_features, n_context):
    flow = make(n_features, n_context).double()
    context = random(5, n_context).double() if n_context else None
    x = random(5, n_features).double()
    y, log_slope = flow(x, context)
    assert y.shape == (5, n_features)
    assert log_slope.shape == (5,)
    for i in range(5):
        given = None if context is None else context[i]
        jacobian = torch.autograd.functional.jacobian(
            lambda row, given=given: flow(row, given)[0], x[i]
        )
        expected = torch.linalg.slogdet(jacobian.reshape(n_features, n_features))[1]
        torch.testing.assert_close(log_slope[i], expected)


def test_inverse_undoes_it():
    flow = make().double()
    x = random(50, 3).double()
    y, log_slope = flow(x)
    back, inverse_slope = flow(y, inverse=True)
    assert (y - x).abs().max() > 1e-2  # it does something
    torch.testing.assert_close(back, x, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(inverse_slope, -log_slope, rtol=1e-4, atol=1e-5)


def test_it_depends_on_its_context_row_by_row():
    flow, x, context = make(n_context=2), random(4, 3), random(4, 2)
    context[0] += 1
    changed = flow(x, context)[0] != flow(x, random(4, 2))[0]
    assert changed[0].any()
    assert not changed[1:].any()


def test_weights_come_from_the_seed():
    one, same, other = (
        torch.cat([p.flatten() for p in make(seed=seed).parameters()])
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_without_zuko_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "zuko", None)
    with pytest.raises(ImportError, match=r"pip install 'skvae\[flows\]'"):
        make()

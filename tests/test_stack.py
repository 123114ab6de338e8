"""A model gets in a stack what it gets alone."""

import numpy as np
import pytest
import torch

from skvae import ELBO, Gaussian, stack
from skvae.stack import Stack, can_capture, can_stack, stack_key
from test_estimator import tiny

OPTIONS = {
    "learning rates and seeds": [
        {"learning_rate": 10.0**-k, "random_state": k} for k in (1, 2, 3, 2)
    ],
    "widths": [
        {"hidden_dim": (9, 5), "latent_dim": 2},
        {"hidden_dim": (7, 8), "latent_dim": 4},
        {"hidden_dim": (9, 8), "latent_dim": 3},
    ],
    "linear": [{"hidden_dim": (), "random_state": k} for k in range(3)],
    "betas": [{"objective": ELBO(beta=beta)} for beta in (0.5, 1.0, 4.0)],
    "warm-up": [{"objective": ELBO(warmup=w)} for w in (0.0, 0.5)],
    "schedules": [{"learning_rate_schedule": s} for s in ("constant", "cosine")],
    "gaussian": [{"likelihood": "gaussian", "random_state": k} for k in range(2)],
    "feature scales": [
        {"likelihood": Gaussian(scale="feature"), "hidden_dim": h} for h in (6, 9)
    ],
    "fixed scale": [
        {"likelihood": Gaussian(scale=0.5), "random_state": k} for k in range(2)
    ],
    "continuous Bernoulli": [
        {"likelihood": "continuous_bernoulli", "random_state": k} for k in range(2)
    ],
    "bfloat16": [{"precision": "bfloat16", "random_state": k} for k in range(3)],
    "short batches": [{"batch_size": 33, "random_state": k} for k in range(2)],
    "large batches": [{"batch_size": 500, "random_state": k} for k in range(2)],
}


def fits(options, X, weights=None):
    return [tiny(**one)._begin(X, None, weights, None, None) for one in options]


def start(fits, epochs=4):
    members = [(fit.trainer, fit.data) for fit in fits]
    one = Stack.of(members, [epochs] * len(fits))
    assert one is not None
    return one, [
        fit.run(epochs, train_epoch=one.member(i)) for i, fit in enumerate(fits)
    ]


def assert_alike(fit, alone, rtol=1e-4):
    for ours, theirs in zip(fit.records, alone.records, strict=True):
        assert ours.epoch == theirs.epoch
        assert ours.learning_rate == theirs.learning_rate
        for name in ("loss", "reconstruction", "kl"):
            assert getattr(ours, name) == pytest.approx(
                getattr(theirs, name), rel=rtol, abs=rtol
            )
    state, expected = fit.trainer.state(), alone.trainer.state()
    assert state["n_steps"] == expected["n_steps"]
    assert state["step_count"] == expected["step_count"]
    assert (state["generator"] == expected["generator"]).all()
    for name in ("master", "first_moment", "second_moment"):
        np.testing.assert_allclose(state[name], expected[name], rtol=rtol, atol=rtol)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("weighted", [False, True])
def test_in_a_stack_as_alone(options, weighted, digits):
    X = digits[:120]
    weights = np.linspace(0.5, 2, 120) if weighted else None
    together, alone = fits(options, X, weights), fits(options, X, weights)
    one, runs = start(together)
    for _ in range(4):
        for run in runs:
            next(run)
    one.release()
    low = any(one.get("precision") == "bfloat16" for one in options)
    for ours, theirs in zip(together, alone, strict=True):
        run = theirs.run(4)
        for _ in range(4):
            next(run)
        assert_alike(ours, theirs, rtol=3e-2 if low else 1e-4)


def test_folds_stand_side_by_side(digits):
    folds = [digits[:100], digits[100:200], digits[:100]]
    together = [tiny()._begin(X, None, None, None, None) for X in folds]
    alone = [tiny()._begin(X, None, None, None, None) for X in folds]
    one, runs = start(together)
    assert len(one.X) == 200  # equal data are held once
    for run in runs:
        next(run)
    one.release()
    for ours, theirs in zip(together, alone, strict=True):
        next(theirs.run(4))
        assert_alike(ours, theirs)


def test_those_that_leave_do_not_disturb(digits):
    options = OPTIONS["learning rates and seeds"]
    together, alone = fits(options, digits[:120]), fits(options, digits[:120])
    one, runs = start(together)
    for run in runs:
        next(run)
    one.keep([1, 3])
    for _ in range(3):
        for run in (runs[1], runs[3]):
            next(run)
    one.release()
    for i, theirs in enumerate(alone):
        run = theirs.run(4)
        epochs = 4 if i in (1, 3) else 1
        for _ in range(epochs):
            next(run)
        for ours, other in zip(together[i].records, theirs.records, strict=True):
            assert ours.loss == pytest.approx(other.loss, rel=1e-4)
    one.keep([])  # nobody is left


def test_a_diverging_neighbour_harms_nobody(digits):
    options = [
        {"learning_rate": rate, "likelihood": Gaussian(scale=1.0), "standardize": False}
        for rate in (1e30, 1e-3)
    ]
    together, alone = fits(options, digits[:120]), fits(options, digits[:120])
    _, runs = start(together)
    with pytest.raises(ValueError, match="no longer finite"):
        list(runs[0])
    list(runs[1])
    list(alone[1].run(4))
    assert together[1].records[-1].loss == pytest.approx(
        alone[1].records[-1].loss, rel=1e-4
    )


@pytest.mark.parametrize(
    "other",
    [
        {"batch_size": 20},
        {"hidden_dim": (6, 6)},
        {"likelihood": "gaussian"},
        {"precision": "bfloat16"},
        {"objective": "iwae"},
        {"max_gradient_norm": 1.0},
    ],
    ids=str,
)
def test_only_what_is_alike_is_stacked(other, digits):
    members = [(fit.trainer, fit.data) for fit in fits([{}, other], digits[:100])]
    assert Stack.of(members, [4, 4]) is None
    assert Stack.of(members[:1], [4]) is None
    assert Stack.of([members[0]] * 2, [4, 4]) is not None


def test_only_equal_numbers_of_rows_are_stacked(digits):
    one, two = (tiny()._begin(digits[:n], None, None, None, None) for n in (90, 100))
    assert stack_key(one.trainer, one.data) != stack_key(two.trainer, two.data)
    members = [(one.trainer, one.data), (two.trainer, two.data)]
    assert Stack.of(members, [4, 4]) is None


def test_graphs_are_captured_on_a_gpu_only(digits):
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    (fit,) = fits([{"batch_size": 50}], digits[:120])
    member = (fit.trainer, fit.data)
    assert can_stack(*member)
    assert can_capture(cuda, member)
    assert not can_capture(cpu, member)
    (whole,) = fits([{"batch_size": 500}], digits[:120])
    assert not can_capture(cuda, (whole.trainer, whole.data))
    (autograd,) = fits([{"objective": "iwae"}], digits[:120])
    assert not can_capture(cuda, (autograd.trainer, autograd.data))


class Replay:
    """Stands for a CUDA graph: fixed inputs, and outputs that are always the same."""

    made = 0

    def __init__(self, function, *examples):
        Replay.made += 1
        self.function = function
        self.inputs = [example.clone() for example in examples]
        self.outputs = function(*self.inputs)

    def __call__(self, *arguments):
        for fixed, given in zip(self.inputs, arguments, strict=True):
            fixed.copy_(given)
        for fixed, new in zip(self.outputs, self.function(*self.inputs), strict=True):
            fixed.copy_(new)
        return self.outputs


def test_a_captured_step_is_the_step(digits, monkeypatch):
    options = OPTIONS["learning rates and seeds"]
    eager, captured = fits(options, digits[:120]), fits(options, digits[:120])
    _, runs = start(eager)
    for _ in range(4):
        for run in runs:
            next(run)
    monkeypatch.setattr(stack, "can_capture", lambda device, member: True)
    monkeypatch.setattr(stack, "Graph", Replay)
    Replay.made = 0
    one, runs = start(captured)
    for _ in range(2):
        for run in runs:
            next(run)
    assert Replay.made == 1  # 120 rows in batches of 50: the last is not captured
    one.keep([0, 2])
    for _ in range(2):
        for run in (runs[0], runs[2]):
            next(run)
    assert Replay.made == 2  # other shapes
    for i in (0, 2):
        assert captured[i].records[-1].loss == pytest.approx(
            eager[i].records[-1].loss, rel=1e-5
        )

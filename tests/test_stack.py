"""A model gets in a stack what it gets alone."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from estimator_helpers import tiny, tiny_conditional, training_of
from skvae import (
    ELBO,
    IWAE,
    MLP,
    WAE,
    BetaTC,
    ConvNet,
    FlowMLP,
    Gaussian,
    MixturePrior,
    VampPrior,
)
from skvae.training import Stack, engine, train_stack
from skvae.training.engine import can_capture, stack_key
from skvae.training.step import ClosedFormStep, StackedStep


def seeds(n=2, **parameters):
    return [{**parameters, "random_state": k} for k in range(n)]


# Parameters of the members of a stack.
CLOSED = {
    "learning rates and seeds": [
        {"learning_rate": 10.0**-k, "random_state": k} for k in (1, 2, 3, 2)
    ],
    "widths": [
        {"hidden_dim": (9, 5), "latent_dim": 2},
        {"hidden_dim": (7, 8), "latent_dim": 4},
        {"hidden_dim": (9, 8), "latent_dim": 3},
    ],
    "linear": seeds(3, hidden_dim=()),
    "betas": [{"objective": ELBO(beta=beta)} for beta in (0.5, 1.0, 4.0)],
    "warm-up": [{"objective": ELBO(warmup=w)} for w in (0.0, 0.5)],
    "schedules": [{"learning_rate_schedule": s} for s in ("constant", "cosine")],
    "epochs of a schedule": [
        {"learning_rate_schedule": "cosine", "epochs": n} for n in (4, 6)
    ],
    "clipping": [{"max_gradient_norm": norm} for norm in (None, 0.3, 1.0)],
    "gaussian": seeds(likelihood="gaussian"),
    "feature scales": [
        {"likelihood": Gaussian(scale="feature"), "hidden_dim": h} for h in (6, 9)
    ],
    "row scales": [
        {"likelihood": Gaussian(scale="row"), "hidden_dim": h} for h in (6, 9)
    ],
    "fixed scale": seeds(likelihood=Gaussian(scale=0.5)),
    "student": seeds(likelihood="student_t"),
    "continuous Bernoulli": seeds(likelihood="continuous_bernoulli"),
    "bfloat16": seeds(3, precision="bfloat16"),
    "short batches": seeds(batch_size=33),
    "large batches": seeds(batch_size=500),
    "validation": seeds(validation_fraction=0.25),
}
BY_VMAP = {
    "iwae": seeds(objective=IWAE(k=2)),
    "doubly reparameterized": seeds(
        objective=IWAE(k=2, gradient="doubly_reparameterized")
    ),
    "wae": seeds(objective=WAE()),
    "beta_tc": seeds(objective=BetaTC()),
    "warm-up": seeds(objective=ELBO(warmup=0.5), prior="mixture"),
    "free bits": seeds(objective=ELBO(free_bits=0.1)),
    "bfloat16": seeds(objective=IWAE(k=2), precision="bfloat16"),
    "clipping": [
        {"max_gradient_norm": norm, "prior": MixturePrior(2)} for norm in (None, 0.3)
    ],
    "learning rates": [
        {"learning_rate": rate, "prior": MixturePrior(2)} for rate in (0.1, 1e-3, 0.1)
    ],
    "vamp": seeds(prior=VampPrior(3)),
    "flow prior": seeds(prior="flow"),
    "dropout": seeds(network=MLP(dropout=0.2)),
    "conv": seeds(network=ConvNet((4,))),
    "ladder": seeds(network="ladder", latent_dim=(2, 1)),
    "flow": seeds(network=FlowMLP(1)),
    "fixed scale": seeds(likelihood=Gaussian(scale=0.5), prior=MixturePrior(2)),
    "validation": seeds(prior="vamp", validation_fraction=0.25),
}
OPTIONS = {f"closed form, {k}": v for k, v in CLOSED.items()}
OPTIONS |= {f"by vmap, {k}": v for k, v in BY_VMAP.items()}


@pytest.fixture
def X(digits):
    """Rows of 16 pixels."""
    return digits[:80, 16:32]


def trainings(options, X, y=None, **given):
    make = tiny if y is None else tiny_conditional
    return [training_of(make(**{"epochs": 3, **one}), X, y, **given) for one in options]


def alone(options, X, y=None, **given):
    """The same, each trained by itself."""
    members = trainings(options, X, y, **given)
    for one in members:
        list(train_stack([one]))
    return members


def assert_alike(ours, theirs, rtol=1e-4):
    assert ours.result == theirs.result
    assert len(ours.records) == len(theirs.records)
    for a, b in zip(ours.records, theirs.records, strict=True):
        assert a.epoch == b.epoch
        assert a.learning_rate == b.learning_rate
        for name in ("loss", "reconstruction", "kl", "validation_loss"):
            expected = getattr(b, name)
            if expected is not None:
                expected = pytest.approx(expected, rel=rtol, abs=rtol)
            assert getattr(a, name) == expected
    state, expected = ours.state(), theirs.state()
    assert state["n_steps"] == expected["n_steps"]
    assert state["step_count"] == expected["step_count"]
    assert state["best"]["epoch"] == expected["best"]["epoch"]
    assert (state["generator"] == expected["generator"]).all()
    # Moments are those of a sum over a batch: of size 50 and its square.
    sizes = {"master": 1.0, "first_moment": 50.0, "second_moment": 2500.0}
    for name, size in sizes.items():
        np.testing.assert_allclose(
            state[name], expected[name], rtol=10 * rtol, atol=size * rtol
        )
    ours, theirs = ours.value().module, theirs.value().module
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=10 * rtol, atol=rtol)


UNWEIGHTED = ("closed form, betas", "closed form, gaussian", "by vmap, beta_tc")


@pytest.mark.parametrize(
    ("name", "weighted"),
    [*((name, True) for name in OPTIONS), *((name, False) for name in UNWEIGHTED)],
)
def test_in_a_stack_as_alone(name, weighted, X):
    options = OPTIONS[name]
    given = {"sample_weight": np.linspace(0.5, 2, 80) if weighted else None}
    together, expected = trainings(options, X, **given), alone(options, X, **given)
    assert Stack.fits(together)
    kind = ClosedFormStep if name.startswith("closed") else StackedStep
    assert type(Stack(together).step) is kind
    list(train_stack(together))
    low = any(one.get("precision") == "bfloat16" for one in options)
    for ours, theirs in zip(together, expected, strict=True):
        assert_alike(ours, theirs, rtol=3e-2 if low else 1e-4)


@pytest.mark.parametrize("objective", ["elbo", IWAE(k=2)])
def test_conditions_stand_beside_codes_of_any_width(objective, X):
    y = np.arange(80) % 3
    widths = [2, 2] if objective != "elbo" else [2, 4, 3]
    options = [
        {"latent_dim": width, "random_state": k, "objective": objective}
        for k, width in enumerate(widths)
    ]
    together, expected = trainings(options, X, y), alone(options, X, y)
    assert together[0].data.condition is not None
    assert Stack.fits(together)
    list(train_stack(together))
    for ours, theirs in zip(together, expected, strict=True):
        assert_alike(ours, theirs)


def test_weights_that_are_frozen_stay_so(X):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder, decoder = nn.Linear(16, 4), nn.Linear(2, 16)
    encoder.requires_grad_(False)
    options = seeds(network=(encoder, decoder))
    together, expected = trainings(options, X), alone(options, X)
    assert Stack.fits(together)
    list(train_stack(together))
    for ours, theirs in zip(together, expected, strict=True):
        assert_alike(ours, theirs)
        assert torch.equal(ours.value().module.network.encoder.weight, encoder.weight)
        assert not torch.equal(
            ours.value().module.network.decoder.weight, decoder.weight
        )


# ------------------------------------------------------------------ rows and units


def test_folds_stand_side_by_side(digits):
    folds = [digits[:60], digits[60:120], digits[:60]]
    together = [training_of(tiny(), X) for X in folds]
    stack = Stack(together)
    assert len(stack.data) == 120  # equal data are held once
    assert together[0].data.x.data_ptr() == together[2].data.x.data_ptr()
    list(train_stack(together))
    for ours, X in zip(together, folds, strict=True):
        (theirs,) = alone([{"epochs": 2}], X)
        assert_alike(ours, theirs)


@pytest.mark.parametrize("prior", ["normal", MixturePrior(2)])
def test_a_fixed_scale_is_that_of_each_folds_units(prior, digits):
    """The same number in the user's units is another one inside each model."""
    folds = [digits[:60, 16:32] * scale for scale in (1, 5, 40)]
    options = {"likelihood": Gaussian(scale=0.8), "prior": prior, "epochs": 3}
    together = [training_of(tiny(**options), X) for X in folds]
    scales = {float(one.module.likelihood.log_scale[3]) for one in together}
    assert len(scales) == 3
    assert Stack.fits(together)
    list(train_stack(together))
    for ours, X in zip(together, folds, strict=True):
        (theirs,) = alone([options], X)
        assert_alike(ours, theirs)


# ------------------------------------------------------------------ who leaves when


def test_early_stopping_of_one_member(X):
    options = [
        {
            "early_stopping": True,
            "n_iter_no_change": n,
            "tol": 1e9,
            "epochs": 6,
            "random_state": n,
        }
        for n in (1, 9, 3)
    ]
    together, expected = trainings(options, X), alone(options, X)
    finished = [list(active) for active in train_stack(together)]
    assert [len(active) for active in finished] == [3, 3, 2, 2, 1, 1]
    for ours, theirs in zip(together, expected, strict=True):
        assert_alike(ours, theirs)
    assert [len(one.records) for one in together] == [2, 6, 4]


def test_those_that_leave_do_not_disturb(X):
    options = CLOSED["learning rates and seeds"]
    together, expected = trainings(options, X), alone(options, X)
    for active in train_stack(together):
        for one in (together[0], together[2]):
            if one in active and len(one.records) == 1:
                one.result = "stopped"
    assert [len(one.records) for one in together] == [1, 3, 1, 3]
    for i in (1, 3):
        assert_alike(together[i], expected[i])
    for i in (0, 2):
        first = expected[i].records[0]
        assert together[i].records[0].loss == pytest.approx(first.loss, rel=1e-4)


def test_one_that_leaves_can_go_on_alone(X):
    """Its moments and counters are given back when it leaves."""
    options = CLOSED["widths"]
    together, expected = trainings(options, X), alone(options, X)
    epochs = train_stack(together)
    next(epochs)
    together[1].result = "stopped"
    next(epochs)
    together[1].result = "running"
    list(train_stack([together[1]]))
    assert_alike(together[1], expected[1])
    list(epochs)
    for i in (0, 2):
        assert_alike(together[i], expected[i])


@pytest.mark.parametrize("name", ["widths", "bfloat16"])
def test_a_stack_that_is_let_go_can_be_made_again(name, X):
    together, expected = trainings(CLOSED[name], X), alone(CLOSED[name], X)
    stack = Stack(together)
    for one in together:
        one.begin_epoch()
    for one, record in zip(stack.trainings, stack.epoch(), strict=True):
        one.end_epoch(record)
    stack.release()
    stack.keep([])  # none is left, and nothing is lost
    stack.release()
    list(train_stack(together))
    rtol = 3e-2 if name == "bfloat16" else 1e-4
    for ours, theirs in zip(together, expected, strict=True):
        assert_alike(ours, theirs, rtol)


def test_states_of_a_stack_go_on_in_another(X):
    """What a race does: a snapshot of each, and another stack of some of them."""
    options = CLOSED["learning rates and seeds"]
    together, again = trainings(options, X), trainings(options, X)
    epochs = train_stack(together)
    next(epochs)
    epochs.close()
    for one, other in zip(together, again, strict=True):
        other.restore(one.state())
    survivors = [again[1], again[3]]
    assert Stack.fits(survivors)
    list(train_stack(survivors))
    expected = alone(options, X)
    for i in (1, 3):
        assert_alike(again[i], expected[i])


@pytest.mark.parametrize("prior", ["normal", MixturePrior(2)])
def test_a_member_that_diverges_harms_no_other(prior, X):
    options = [
        {
            "learning_rate": rate,
            "likelihood": Gaussian(scale=1.0),
            "standardize": False,
            "prior": prior,
        }
        for rate in (1e30, 1e-3)
    ]
    together, expected = trainings(options, X), alone(options, X)
    list(train_stack(together))
    assert together[0].result == "diverged"
    assert "no longer finite" in together[0].message
    assert_alike(together[1], expected[1])


# ------------------------------------------------------------------ what fits together


@pytest.mark.parametrize(
    "other",
    [
        {"batch_size": 20},
        {"hidden_dim": (6, 6)},
        {"likelihood": "gaussian"},
        {"precision": "bfloat16"},
        {"objective": "iwae"},
        {"network": MLP("tanh")},
        {"prior": "vamp"},
    ],
    ids=str,
)
def test_only_what_is_alike_is_stacked(other, X):
    one, two = trainings([{}, other], X)
    assert not Stack.fits([one, two])
    assert Stack.fits([one])
    assert Stack.fits([two])
    assert not Stack.fits([])


@pytest.mark.parametrize(
    "other",
    [
        {"objective": IWAE(k=3)},
        {"objective": IWAE(k=2, gradient="doubly_reparameterized")},
        {"latent_dim": 3},
        {"hidden_dim": 9},
    ],
    ids=str,
)
def test_only_models_of_one_shape_and_loss_go_through_vmap(other, X):
    one, two = trainings(
        [{"objective": IWAE(k=2)}, {"objective": IWAE(k=2)} | other], X
    )
    assert not Stack.fits([one, two])


def test_only_equal_warm_ups_go_through_vmap(X):
    """The loss of all members sees one share of the steps that are done."""
    options = {"objective": ELBO(warmup=0.5), "prior": MixturePrior(2)}
    one, two, same = trainings(
        [options | {"epochs": n, "random_state": n} for n in (4, 6, 4)], X
    )
    assert not Stack.fits([one, two])
    assert Stack.fits([one, same])


def test_only_equal_numbers_of_rows_are_stacked(digits):
    one, two = (training_of(tiny(), digits[:n]) for n in (90, 100))
    assert stack_key(one) != stack_key(two)
    assert not Stack.fits([one, two])


def test_rows_that_weigh_anything_are_stacked_with_such_alone(X):
    one = training_of(tiny(), X)
    two = training_of(tiny(), X, sample_weight=np.linspace(1, 2, 80))
    assert not Stack.fits([one, two])


def test_trainings_that_have_come_as_far_are_stacked(X):
    one, two = trainings(seeds(), X)
    epochs = train_stack([one])
    next(epochs)
    epochs.close()
    assert not Stack.fits([one, two])


@pytest.mark.parametrize("prior", ["normal", MixturePrior(2)])
def test_folds_whose_categories_differ_are_not_stacked(prior):
    """The third town is in one of the folds only: other inputs, other outputs."""
    frames = [
        pd.DataFrame(
            {"size": np.arange(20.0), "town": np.array(towns)[np.arange(20) % 2]}
        )
        for towns in (["Rome", "Oslo"], ["Bonn", "Lima"])
    ]
    frames.append(frames[0].replace({"town": {"Rome": "Bonn"}}))
    frames[2].loc[3, "town"] = "Lima"
    one, two, three = (training_of(tiny(prior=prior), frame) for frame in frames)
    assert Stack.fits([one, two])  # as many of them, which are codes
    assert not Stack.fits([one, three])


# ------------------------------------------------------------------ CUDA graphs


def test_graphs_are_captured_on_a_gpu_only(X):
    closed, by_vmap = (
        Stack(trainings(options, X)).step
        for options in (CLOSED["betas"], BY_VMAP["iwae"])
    )
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert can_capture(cuda, closed)
    assert not can_capture(cpu, closed)
    assert not can_capture(cuda, by_vmap)


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


def test_a_captured_step_is_the_step(X, monkeypatch):
    options = CLOSED["learning rates and seeds"]
    eager, captured = trainings(options, X), trainings(options, X)
    list(train_stack(eager))
    monkeypatch.setattr(engine, "can_capture", lambda device, step: True)
    monkeypatch.setattr(engine, "Graph", Replay)
    Replay.made = 0
    for active in train_stack(captured):
        # 80 rows in batches of 50: the last is not captured.
        assert Replay.made == (1 if len(active) == 4 else 2)  # of other shapes
        captured[1].result = captured[3].result = "stopped"
    for i in (0, 2):
        assert_alike(captured[i], eager[i])


# ------------------------------------------------------------- settings of the user's


@pytest.mark.parametrize("prior", ["normal", MixturePrior(2)])
def test_the_default_dtype_of_the_user_does_not_matter(prior, X):
    options = [{"prior": prior, "max_gradient_norm": n} for n in (None, 1.0)]
    expected = trainings(options, X)
    list(train_stack(expected))
    torch.set_default_dtype(torch.float64)
    try:
        together = trainings(options, X)
        assert Stack(together).master.dtype == torch.float32
        list(train_stack(together))
    finally:
        torch.set_default_dtype(torch.float32)
    for ours, theirs in zip(together, expected, strict=True):
        assert ours.master.dtype == torch.float32
        assert_alike(ours, theirs)

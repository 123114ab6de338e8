"""Calibration: shapes of real runs, and costs that follow them."""

import numpy as np
import pytest

from search_helpers import runs_of, tiny
from skvae import ELBO, IWAE, MIWAE, MLP, ConditionalVAEEstimator, runs
from skvae.calibration import (
    N_POINTS,
    cost_model,
    is_worthwhile,
    measure,
    points,
    shape_of,
    shapes_of,
)
from skvae.model_selection import VAEGridSearchCV
from skvae.runs import gather


def test_shape_of_a_run(digits):
    (run, _) = runs_of(tiny(), {"epochs": [2, 5]}, digits[:100])
    shape = shape_of(run)
    assert shape.widths == ((64, 8), (8, 4), (2, 8), (8, 64))
    assert (shape.batch_size, shape.n_rows, shape.n_scored) == (50, 50, 50)
    assert (shape.epochs, shape.snapshots, shape.noise) == (5, 2, 2)
    assert shape.kind is not None
    assert shape.device == "cpu"
    assert not shape.low_precision


@pytest.mark.parametrize(
    ("vae", "stacks"),
    [
        (tiny(objective="iwae"), True),
        (tiny(objective=ELBO(free_bits=0.1)), True),
        (tiny(prior="mixture"), True),
        (tiny(max_gradient_norm=1.0), True),
        (tiny(network=MLP(activation="tanh")), True),
        (tiny(network=MLP(activation="gelu")), False),
        (tiny(network=MLP(dropout=0.1)), False),
        (tiny(network="ladder", latent_dim=(3, 2), hidden_dim=(8, 8)), False),
    ],
    ids=repr,
)
def test_networks_of_linear_layers_have_a_kind(vae, stacks, digits):
    (run, _) = runs_of(vae, {"epochs": [2]}, digits[:60])
    shape = shape_of(run)
    assert (shape.kind is not None) is stacks
    # Of other networks the weights are what counts, a bias for each weight.
    if not stacks:
        n_weights = runs.SharedFit(run).training.master.numel()
        assert shape.n_weights == n_weights + 1


def test_what_cannot_be_one_stack_has_another_kind(digits):
    X, y = digits[:60], np.arange(60) % 3

    def kind(vae, y=None):
        search = VAEGridSearchCV(vae, {"epochs": [1]}, cv=2)
        return shape_of(gather(search._future(X, y))[0][0]).kind

    conditional = ConditionalVAEEstimator(2, hidden_dim=8, batch_size=50)
    kinds = [
        kind(tiny()),
        kind(tiny(objective="iwae")),
        kind(tiny(prior="mixture")),
        kind(tiny(likelihood="gaussian")),
        kind(tiny(hidden_dim=(8, 8))),
        kind(tiny(precision="bfloat16")),
        kind(conditional, y),
    ]
    assert len(set(kinds)) == len(kinds)
    # Narrower layers stand in wider ones; learning rates may differ.
    assert kind(tiny()) == kind(tiny(hidden_dim=4, latent_dim=3, learning_rate=1e-4))


def test_draws_belong_to_the_shape(digits):
    for objective, draws in (("elbo", 1), (IWAE(k=7), 7), (MIWAE(m=2, k=3), 6)):
        (run, _) = runs_of(tiny(objective=objective), {"epochs": [2]}, digits[:60])
        assert shape_of(run).draws == draws


def test_what_cannot_begin_has_no_shape(digits):
    (run, _) = runs_of(tiny(), {"likelihood": ["bernoulli"]}, digits[:60] * 16)
    assert shape_of(run) is None
    assert shapes_of([run]) == [None]


def test_shapes_of_many_are_those_of_each(digits):
    grid = {"epochs": [1, 2], "hidden_dim": [4, 8], "batch_size": [20, 50]}
    found = runs_of(tiny(), grid, digits[:101])  # folds of 50 and 51 rows
    assert shapes_of(found) == [shape_of(run) for run in found]


def test_points_span_the_sizes(digits):
    grid = {"hidden_dim": [2, 4, 8, 16, 32, 64, 128]}
    shapes = [*shapes_of(runs_of(tiny(), grid, digits[:60])), None]
    chosen = [shapes[i] for i in points(shapes)]
    assert len(chosen) == N_POINTS
    assert chosen[0].n_weights < chosen[-1].n_weights
    assert chosen[-1].widths[0] == (64, 128)
    assert points([None]) == []


def test_measured_costs(digits):
    grid = {"hidden_dim": [4, 2000]}
    vae = tiny(precision="float32", batch_size=100)
    found = runs_of(vae, grid, digits[:200])
    shapes = shapes_of(found)
    measured = list(measure([(found[i], shapes[i]) for i in points(shapes)]))
    assert {what for what, *_ in measured} == {"begin", "step", "snapshot"}
    sizes = [(s.widths[0][1], n) for what, s, n, _ in measured if what == "step"]
    # Of large ones as many as a plan would stack.
    assert sorted(sizes) == [(4, 1), (4, 8), (2000, 1), (2000, 4)]
    cost = cost_model(measured)
    small, large = shapes[0], shapes[-1]
    assert 0 < cost.step(small) < cost.step(large)
    # The model gives what was measured, near enough for a plan.
    for what, shape, n, seconds in measured:
        if what == "step":
            assert cost.step(shape, n) == pytest.approx(seconds, rel=0.9)
    assert cost.run > 0
    assert cost.snapshot > 0
    assert not is_worthwhile(shapes)
    assert is_worthwhile(shapes * 10_000)


def test_the_steps_of_a_stack_by_vmap_are_measured_too(digits):
    found = runs_of(tiny(objective="iwae"), {"learning_rate": [1e-3]}, digits[:60])
    shapes = shapes_of(found)
    measured = list(measure([(found[0], shapes[0])]))
    sizes = [n for what, _, n, _ in measured if what == "step"]
    assert sizes == [1, 8]
    assert all(seconds > 0 for *_, seconds in measured)

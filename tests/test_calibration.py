"""Calibration: shapes of real runs, and costs that follow them."""

import pytest

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
from test_estimator import tiny


def runs_of(estimator, grid, X):
    return gather(VAEGridSearchCV(estimator, grid, cv=2)._future(X, None))[0]


def test_shape_of_a_run(digits):
    (run, _) = runs_of(tiny(), {"epochs": [2, 5]}, digits[:100])
    shape = shape_of(run)
    assert shape.widths == ((64, 8), (8, 4), (2, 8), (8, 64))
    assert (shape.batch_size, shape.n_rows, shape.n_scored) == (50, 50, 50)
    assert (shape.epochs, shape.snapshots, shape.noise) == (5, 2, 2)
    assert shape.kind is not None
    assert shape.device == "cpu"
    assert not shape.low_precision
    iwae, _ = runs_of(tiny(objective="iwae"), {"epochs": [2]}, digits[:100])
    shape = shape_of(iwae)
    assert shape.kind is None
    assert shape.n_weights > 64 * 8 * 2


def test_what_cannot_begin_has_no_shape(digits):
    (run, _) = runs_of(tiny(), {"likelihood": ["bernoulli"]}, digits[:60] * 16)
    assert shape_of(run) is None
    assert shapes_of([run]) == [None]


def test_shapes_of_many_are_those_of_each(digits):
    grid = {"epochs": [1, 2], "hidden_dim": [4, 8], "batch_size": [20, 50]}
    runs = runs_of(tiny(), grid, digits[:101])  # folds of 50 and 51 rows
    assert shapes_of(runs) == [shape_of(run) for run in runs]


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
    runs = runs_of(vae, grid, digits[:400])
    shapes = shapes_of(runs)
    said = list(measure([(runs[i], shapes[i]) for i in points(shapes)]))
    assert {what for what, *_ in said} == {"begin", "step", "snapshot"}
    sizes = [(s.widths[0][1], n) for what, s, n, _ in said if what == "step"]
    # Of large ones as many as a plan would stack.
    assert sorted(sizes) == [(4, 1), (4, 8), (2000, 1), (2000, 4)]
    cost = cost_model(said)
    small, large = shapes[0], shapes[-1]
    assert 0 < cost.step(small) < cost.step(large)
    # The model says what was measured, near enough for a plan.
    for what, shape, n, seconds in said:
        if what == "step":
            assert cost.step(shape, n) == pytest.approx(seconds, rel=0.9)
    assert cost.run > 0
    assert cost.snapshot > 0
    assert not is_worthwhile(shapes)
    assert is_worthwhile(shapes * 10_000)

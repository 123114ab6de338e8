"""Plans are pure functions: hand-made costs, known answers."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skvae.plan import (
    CostModel,
    Shape,
    features,
    makespan,
    max_stack,
    n_bytes,
    padded,
    plan,
)

# A step of any model takes a second, a stack of M takes 1 + M / 10; nothing else costs.
FLAT = CostModel(
    {
        (False, False): (1.0, 0, 0, 0),
        (True, False): (1.0, 0, 0.1 / 26, 0),
        (False, True): (1.0, 0, 0, 0),
        (True, True): (1.0, 0, 0.1 / 26, 0),
    },
    scored_product=0.0,
    snapshot=0.0,
    run=0.0,
)
PLENTY = 1e12


def shape(hidden=2, kind="a", **options):
    """Widths 4-hidden-4: 26 weights at a hidden width of 2 and 8 beside."""
    widths = ((4, hidden), (hidden, 4))
    given = {"batch_size": 10, "n_rows": 25, "epochs": 4, **options}
    return Shape(widths, kind=kind, **given)


def test_shape_counts_what_costs():
    one = shape()
    assert one.n_weights == (4 + 1) * 2 + (2 + 1) * 4 == 22
    assert one.steps == 3
    assert one.activations == 6
    assert features(one, 5).tolist() == [1, 5 * 10 * 22, 5 * 22, 5 * 10 * 6]
    # A batch is never larger than the data.
    assert features(shape(batch_size=100)).tolist() == [1, 25 * 22, 22, 25 * 6]


def test_draws_count_as_rows():
    one = shape(draws=5, noise=3)
    assert features(one, 2).tolist() == [1, 2 * 50 * 22, 2 * 22, 2 * 50 * 6]
    assert padded([one, shape(3, draws=5, noise=3)]).draws == 5
    # Each draw has its noise for an epoch, and its activations in a step.
    more = n_bytes([one]) - n_bytes([shape(noise=3)])
    assert more == 4 * (25 * 3 * 4 + 4 * (50 - 10) * 6)
    assert max_stack(shape(hidden=320, batch_size=100, draws=5)) == 6


def test_seconds_add_up():
    cost = CostModel(
        {(False, False): (1, 2, 3, 4)}, scored_product=5, snapshot=6, run=7
    )
    one = shape(snapshots=2, n_scored=3)
    step = 1 + 2 * 220 + 3 * 22 + 4 * 60
    scored = 7 + 2 * (6 + 3 * 22 * 5)
    assert cost.seconds([one]) == 4 * 3 * step + scored


def test_stacks_where_operations_are_what_costs():
    (task,) = plan([shape()] * 8, FLAT, memory=PLENTY, n_jobs=1)
    assert sorted(task.runs) == list(range(8))
    assert task.seconds == pytest.approx(12 * (1 + 8 * 0.1 * 22 / 26))


def test_nothing_is_stacked_where_arithmetic_is_what_costs():
    dear = {key: (0.0, 1.0, 0, 0) for key in FLAT.steps}
    dear[True, False] = (0.1, 1.0, 0, 0)
    tasks = plan([shape()] * 8, CostModel(dear), memory=PLENTY, n_jobs=1)
    assert [len(task.runs) for task in tasks] == [1] * 8


def test_kinds_stay_apart():
    shapes = [shape(kind="a"), shape(kind="b"), shape(kind="a"), shape(kind=None)]
    tasks = plan(shapes, FLAT, memory=PLENTY, n_jobs=1)
    assert sorted(sorted(task.runs) for task in tasks) == [[0, 2], [1], [3]]
    shapes = [shape(batch_size=5), shape(), shape(batch_size=5)]
    tasks = plan(shapes, FLAT, memory=PLENTY, n_jobs=1)
    assert sorted(sorted(task.runs) for task in tasks) == [[0, 2], [1]]


def test_widths_are_padded_only_where_that_pays():
    near = [shape(2), shape(3)]
    assert padded(near).widths == ((4, 3), (3, 4))
    (task,) = plan(near, FLAT, memory=PLENTY, n_jobs=1)
    assert len(task.runs) == 2
    far = plan([shape(2), shape(2000)], FLAT, memory=PLENTY, n_jobs=1)
    assert len(far) == 2


def test_memory_bounds_a_stack():
    shapes = [shape()] * 16
    limit = n_bytes(shapes[:4])
    tasks = plan(shapes, FLAT, memory=limit, n_jobs=1)
    assert all(task.n_bytes <= limit for task in tasks)
    assert max(len(task.runs) for task in tasks) == 4
    # Half of it for each of two workers; and a run alone goes whatever it takes.
    tasks = plan(shapes, FLAT, memory=limit, n_jobs=2)
    assert all(task.n_bytes <= limit / 2 for task in tasks)
    tasks = plan(shapes, FLAT, memory=1, n_jobs=1)
    assert [len(task.runs) for task in tasks] == [1] * 16


def test_the_caches_bound_a_stack_on_a_cpu():
    # 1 MiB over 25 rows of 1,600 numbers, of 4 bytes or of 2.
    assert max_stack(shape(hidden=1600, batch_size=100)) == 2**20 // 160_000 == 6
    half = shape(hidden=1600, batch_size=100, low_precision=True)
    assert max_stack(half) == 13
    assert max_stack(shape(hidden=10**6)) == 4
    assert max_stack(shape()) == 32
    assert max_stack(shape(hidden=1600, batch_size=100, device="cuda")) == 512

    cost = CostModel({key: (1.0, 0, 0, 0) for key in product((0, 1), (0, 1))})
    tasks = plan([shape(hidden=1600, batch_size=100)] * 16, cost, memory=1e12, n_jobs=1)
    assert max(len(task.runs) for task in tasks) == 6


def test_all_workers_have_work():
    tasks = plan([shape()] * 8, FLAT, memory=PLENTY, n_jobs=4)
    assert {task.worker for task in tasks} == set(range(4))


def test_longest_first_to_the_worker_that_is_free():
    shapes = [shape(epochs=e, kind=None) for e in (1, 5, 2, 4)]
    tasks = plan(shapes, FLAT, memory=PLENTY, n_jobs=2)
    assert [task.runs[0] for task in tasks] == [1, 3, 2, 0]
    assert [task.worker for task in tasks] == [0, 1, 1, 0]
    assert makespan(tasks) == 3 * 6
    assert makespan([]) == 0


def test_nothing_to_plan():
    assert plan([], FLAT, memory=PLENTY, n_jobs=2) == []


@given(
    st.lists(
        st.builds(
            shape,
            st.integers(1, 64),
            st.sampled_from(["a", "b", None]),
            epochs=st.integers(1, 5),
        ),
        max_size=30,
    ),
    st.integers(1, 4),
    st.floats(1e3, 1e8),
)
def test_every_run_is_planned_once(shapes, n_jobs, memory):
    tasks = plan(shapes, CostModel(), memory=memory, n_jobs=n_jobs)
    assert sorted(i for task in tasks for i in task.runs) == list(range(len(shapes)))
    for task in tasks:
        assert len({(shapes[i].kind, shapes[i].batch_size) for i in task.runs}) == 1
        assert len(task.runs) == 1 or task.n_bytes <= memory / n_jobs
        assert 0 <= task.worker < n_jobs
    assert tasks == plan(shapes, CostModel(), memory=memory, n_jobs=n_jobs)


def test_cost_model_finds_what_was_put_in():
    true = CostModel({(False, False): (2e-4, 3e-10, 2e-9, 1e-9)})
    shapes = [
        shape(h, batch_size=b, n_rows=10**4) for h in (10, 500, 5000) for b in (10, 400)
    ]
    found = CostModel.fit([(s, 1, true.step(s)) for s in shapes])
    for other in (shape(100, n_rows=10**4, batch_size=100), *shapes):
        assert found.step(other) == pytest.approx(true.step(other), rel=0.1)
    assert all(c >= 0 for c in found.steps[False, False])


def test_what_was_not_measured_is_scaled():
    one = shape(100, n_rows=1000)
    slow = CostModel.fit([(one, 1, 7 * CostModel().step(one))])
    assert slow.step(one, 8) == pytest.approx(7 * CostModel().step(one, 8))
    assert CostModel.fit([]).step(one) == pytest.approx(CostModel().step(one))
    assert np.isfinite(slow.step(one))

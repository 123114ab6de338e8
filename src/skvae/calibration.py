"""Calibration: what steps cost on this machine, on the data's own width.

A few steps of a few of the very runs that are to be planned, alone and stacked; about a
second of work, of which a cost model is made.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import mean

import numpy as np
import torch

from .plan import CostModel, Shape, max_stack
from .runs import Run, SharedFit
from .training.data import Data
from .training.engine import Stack, stack_key

# How many runs are measured, and the largest stack of one.
N_POINTS = 5
STACK = 8
# Steps that are timed together, and how often.
STEPS, REPEATS = 6, 2
# Shorter searches than this, in multiplications, are over before they are measured.
WORTHWHILE = 3e10


def shape_of(run: Run) -> Shape | None:
    """The shape of a run from its beginning; None where it cannot even begin."""
    try:
        shared = SharedFit(replace(run, state=None))
    except Exception:
        return None
    training, data = shared.training, shared.training.data
    assert data is not None
    chains = training.module.network.chains()
    widths: tuple[tuple[int, int], ...] = ((training.master.numel(), 1),)
    if chains is not None:
        # Of other networks the weights are what counts.
        layers = (*chains.encoder, *chains.decoder)
        widths = tuple((layer.in_features, layer.out_features) for layer in layers)
    key = stack_key(training)
    return Shape(
        widths,
        training.options.batch_size,
        len(data),
        run.epochs - run.start,
        len(run.evaluations),
        len(run.evaluations[0].options["test"]),
        training.module.n_training_noise,
        training.module.objective.n_draws,
        training.precision != torch.float32,
        data.x.shape[1],
        _rows_of(run),
        run.start,
        None if chains is None else key[2:],  # but the batch size
        data.x.device.type,
    )


def _rows_of(run: Run) -> tuple[object, ...]:
    return run.training.head, run.fold


def shapes_of(
    runs: Sequence[Run], known: dict[tuple[object, ...], Shape | None] | None = None
) -> list[Shape | None]:
    """The shapes of many runs, of which few differ in more than what they ask for.

    ``known`` remembers them from one part of the runs to the next.
    """
    known = {} if known is None else known
    shapes: list[Shape | None] = []
    for run in runs:
        options = run.evaluations[0].options
        n_rows, n_scored = len(options["train"]), len(options["test"])
        key = (run.training.architecture, n_rows)
        if key not in known:
            known[key] = shape_of(run)
        shape = known[key]
        if shape is not None:
            shape = replace(
                shape,
                batch_size=run.training.batch_size,
                epochs=run.epochs - run.start,
                snapshots=len(run.evaluations),
                n_scored=n_scored,
                data=_rows_of(run),
                start=run.start,
            )
        shapes.append(shape)
    return shapes


def is_worthwhile(shapes: Sequence[Shape]) -> bool:
    """Whether the search is long enough to measure before it is planned."""
    products = sum(s.n_rows * s.draws * s.n_weights * s.epochs for s in shapes)
    return products > WORTHWHILE


def points(shapes: Sequence[Shape | None]) -> list[int]:
    """Indices of runs that span the sizes of all."""
    by_size: dict[tuple[int, int, bool], int] = {}
    for i, shape in enumerate(shapes):
        if shape is None:
            continue
        size = (shape.n_weights, shape.batch_size, shape.low_precision)
        by_size.setdefault(size, i)
    ordered = [
        by_size[key] for key in sorted(by_size, key=lambda k: (k[2], k[0] * k[1]))
    ]
    wanted = np.linspace(0, len(ordered) - 1, min(N_POINTS, len(ordered)))
    return [ordered[round(i)] for i in wanted]


def measure(
    chosen: Sequence[tuple[Run, Shape]],
) -> Iterator[tuple[str, Shape, int, float]]:
    """Time steps and scores of some runs.

    Yields
    ------
    what : {"step", "begin", "snapshot"}
    shape : Shape
    size : int
        Of the stack.
    seconds : float
    """
    for run, shape in chosen:
        stack = 1 if shape.kind is None else min(STACK, max_stack(shape))
        for size in sorted({1, stack}):
            started = time.perf_counter()
            shared = [SharedFit(run) for _ in range(size)]
            yield "begin", shape, 1, (time.perf_counter() - started) / size
            yield "step", shape, size, _seconds_of_step(shared)
            if size == 1:
                for _ in range(2):  # the first warms up
                    one, evaluation = shared[0], run.evaluations[0]
                    evaluation = replace(evaluation, estimator=evaluation.configured())
                    started = time.perf_counter()
                    one.evaluate(evaluation)
                    seconds = time.perf_counter() - started
                yield "snapshot", shape, 1, seconds


def _seconds_of_step(shared: Sequence[SharedFit]) -> float:
    trainings = [one.training for one in shared]
    for one in trainings:
        assert one.data is not None
        one.data = Data(**one.data.take(slice(STEPS * one.batch_size)))
    steps = trainings[0].steps_per_epoch
    stack = Stack(trainings)
    times = []
    for _ in range(1 + REPEATS):
        started = time.perf_counter()
        stack.epoch()  # ends by asking for the losses, which waits for a GPU
        times.append(time.perf_counter() - started)
    stack.release()
    return mean(times[1:]) / steps


def cost_model(measured: Sequence[tuple[str, Shape, int, float]]) -> CostModel:
    """The cost model that measurements speak for."""
    steps = [(shape, n, t) for what, shape, n, t in measured if what == "step"]
    begin = [t for what, _, _, t in measured if what == "begin"]
    # seconds = fixed + per product * products, neither below 0
    scored = [(s, t) for what, s, _, t in measured if what == "snapshot"]
    products = np.array([s.n_scored * s.n_weights for s, _ in scored], dtype=float)
    seconds = np.array([t for _, t in scored])
    slope = 0.0
    if np.ptp(products) > 0:
        slope = max(0.0, float(np.polyfit(products, seconds, 1)[0]))
    return CostModel.fit(
        steps,
        run=float(np.median(begin)),
        scored_product=slope,
        snapshot=max(1e-4, float(np.mean(seconds - slope * products))),
    )

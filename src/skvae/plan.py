"""Plans: which runs of a search train side by side, from what they cost.

Nothing here trains anything: a plan is a pure function of the shapes of the runs and of
a cost model, whose coefficients have been measured.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.optimize import nnls

# How many models a stack may hold: beyond it a CPU gains nothing, a GPU still does.
MAX_STACK = {"cpu": 32, "cuda": 512}
# What a layer of a stack may occupy on a CPU, so that its caches hold a few of them;
# of models whose layers alone are larger, products are what costs, and a few may stack.
LAYER_BYTES, FEW = 2**20, 4
# Float32 numbers that a weight costs a run: itself, the best, gradient, two moments,
# and what a stack and a copy between epochs take beside.
COPIES = 12


@dataclass(frozen=True)
class Shape:
    """What the cost of a run depends on.

    Attributes
    ----------
    widths : tuple of tuple of int
        (in, out) of every product of the network.
    batch_size, n_rows, epochs : int
        Rows of a step and of an epoch, and how many epochs there are.
    snapshots, n_scored : int
        How often the run is scored, and on how many rows.
    noise : int
        Numbers of noise per row and draw.
    draws : int
        Draws of z per row and step, each of which goes through the decoder.
    low_precision : bool
        Whether it trains in bfloat16.
    n_features : int
        Width of the rows.
    data : hashable
        Runs that name the same are trained on the same rows, and hold them once.
    start : int
        Epochs done before these: a stack keeps in step.
    kind : hashable or None
        Runs of one kind, batch size and start can be stacked; None stands alone.
    device : {"cpu", "cuda", ...}
    """

    widths: tuple[tuple[int, int], ...]
    batch_size: int
    n_rows: int
    epochs: int
    snapshots: int = 1
    n_scored: int = 0
    noise: int = 0
    draws: int = 1
    low_precision: bool = False
    n_features: int = 0
    data: Hashable = None
    start: int = 0
    kind: Hashable = None
    device: str = "cpu"

    @property
    def n_weights(self) -> int:
        return sum((n_in + 1) * n_out for n_in, n_out in self.widths)

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return -(-self.n_rows // self.batch_size)

    @property
    def activations(self) -> int:
        """Numbers that one row becomes on its way."""
        return sum(n_out for _, n_out in self.widths)


def features(shape: Shape, size: int = 1) -> np.ndarray:
    """What the time of a step of so many such models is a combination of.

    Operations, products, weights (the optimiser), activations; float64 of shape (4,).
    """
    rows = min(shape.batch_size, shape.n_rows) * shape.draws
    each = [rows * shape.n_weights, shape.n_weights, rows * shape.activations]
    return np.array([1.0, *(size * n for n in each)])


@dataclass(frozen=True)
class CostModel:
    """Seconds, as combinations of :func:`features`.

    Attributes
    ----------
    steps : mapping of (stacked, low precision) to ndarray of shape (4,)
    scored_product : float
        Seconds per product of a row and a weight when a snapshot is scored.
    snapshot, run : float
        Seconds that every snapshot, and every run, costs in any case.

    Notes
    -----
    The defaults were measured on one core of an AMD EPYC (Zen 4); a search of any
    length measures its own.
    """

    steps: Mapping[tuple[bool, bool], Any] = field(
        default_factory=lambda: {
            (False, False): (3.5e-4, 1.2e-10, 1.5e-9, 2e-9),
            (False, True): (4e-4, 5e-11, 1.5e-9, 2e-9),
            (True, False): (4e-4, 1.4e-10, 3e-9, 3e-9),
            (True, True): (5e-4, 1.0e-10, 4e-9, 3e-9),
        }
    )
    scored_product: float = 1.2e-10
    snapshot: float = 4e-3
    run: float = 5e-3

    @classmethod
    def fit(
        cls, measured: Sequence[tuple[Shape, int, float]], **others: float
    ) -> "CostModel":
        """From (shape, size of the stack, seconds of a step) that were measured.

        By least squares of the relative error, no coefficient below 0. Kinds of step
        that were not measured keep the default, scaled as those that were.
        """
        default = cls()
        steps: dict[tuple[bool, bool], Any] = {}
        ratios = []
        for key, coefficients in default.steps.items():
            points = [m for m in measured if (m[1] > 1, m[0].low_precision) == key]
            if not points:
                continue
            rows = np.array([features(shape, size) / t for shape, size, t in points])
            scale = np.asarray(coefficients)
            # A pull towards the default, which rules where nothing was measured.
            pull = 0.1 * np.eye(4)
            target = np.concatenate([np.ones(len(rows)), pull.sum(1)])
            solution, _ = nnls(np.concatenate([rows * scale, pull]), target)
            steps[key] = tuple(scale * solution)
            ratios += [1 / (row @ scale) for row in rows]
        slower = float(np.median(ratios)) if ratios else 1.0
        for key, coefficients in default.steps.items():
            steps.setdefault(key, tuple(slower * np.asarray(coefficients)))
        return cls(steps, **others)

    def step(self, shape: Shape, size: int = 1) -> float:
        """Seconds of a step of so many models."""
        coefficients = self.steps[size > 1, shape.low_precision]
        return float(np.dot(coefficients, features(shape, size)))

    def scoring(self, shape: Shape) -> float:
        """Seconds to begin a run and score its snapshots."""
        products = shape.n_scored * shape.n_weights * self.scored_product
        return self.run + shape.snapshots * (self.snapshot + products)

    def seconds(self, shapes: Sequence[Shape]) -> float:
        """Seconds that runs take as one stack."""
        step = self.step(padded(shapes), len(shapes))
        epochs = max(shape.epochs for shape in shapes)
        return epochs * shapes[0].steps * step + sum(map(self.scoring, shapes))


def padded(shapes: Sequence[Shape]) -> Shape:
    """The least shape that all of them fit in."""
    first = shapes[0]
    if all(shape.widths == first.widths for shape in shapes[1:]):
        return first
    layers = zip(*(shape.widths for shape in shapes), strict=True)
    widths = tuple((max(i for i, _ in w), max(o for _, o in w)) for w in layers)
    return Shape(
        widths,
        first.batch_size,
        first.n_rows,
        first.epochs,
        noise=max(shape.noise for shape in shapes),
        draws=max(shape.draws for shape in shapes),
        low_precision=first.low_precision,
        n_features=first.n_features,
        device=first.device,
    )


def max_stack(shape: Shape) -> int:
    """How many such models a stack may hold, as far as speed is concerned."""
    most = MAX_STACK.get(shape.device, 32)
    if shape.device != "cpu":
        return most
    widest = max(n_out for _, n_out in shape.widths)
    layer = min(shape.batch_size, shape.n_rows) * shape.draws * widest
    layer *= 2 if shape.low_precision else 4
    return min(most, max(FEW, LAYER_BYTES // layer))


def n_bytes(shapes: Sequence[Shape]) -> int:
    """Memory that runs take as one stack."""
    shape = padded(shapes)
    # As the user has them, in the model's units, and side by side with the others'.
    data = 3 * shape.n_rows * shape.n_features * len({one.data for one in shapes})
    weights = COPIES * shape.n_weights
    # Noise, and a permutation in int64.
    epoch = shape.n_rows * (shape.draws * shape.noise + 2)
    rows = min(shape.batch_size, shape.n_rows) * shape.draws
    step = 4 * rows * (shape.activations + shape.n_features)
    scored = 4 * 4 * shape.n_scored * max(out for _, out in shape.widths)
    each = weights + epoch + step
    return 4 * (data + len(shapes) * each + min(scored, 2**22))


@dataclass(frozen=True)
class Task:
    """What one worker does at a time.

    Attributes
    ----------
    runs : tuple of int
        Indices of the runs that train side by side.
    seconds : float
        Estimated.
    n_bytes : int
        Estimated.
    worker : int
        Which would take it, were all estimates true.
    """

    runs: tuple[int, ...]
    seconds: float
    n_bytes: int
    worker: int = 0


def plan(
    shapes: Sequence[Shape], cost: CostModel, *, memory: float, n_jobs: int
) -> list[Task]:
    """Cut the runs into tasks that take the least time, the longest task first.

    Runs of one kind are ordered by size and cut into pieces of neighbours, each a
    stack as wide as its widest run, so that the sum of the estimates is least
    (dynamic programming over the ends of the pieces). No piece needs more than a
    worker's share of the memory, and none keeps the other workers waiting.

    Parameters
    ----------
    shapes : sequence of Shape
    cost : CostModel
    memory : float
        Bytes for all workers together.
    n_jobs : int
    """
    kinds: dict[Hashable, list[int]] = {}
    for i, shape in enumerate(shapes):
        kind = shape.kind, shape.batch_size, shape.start
        kinds.setdefault(i if shape.kind is None else kind, []).append(i)
    # The last tasks to begin must be short, or some workers idle beside the last.
    longest = len(shapes) if n_jobs == 1 else -(-len(shapes) // (2 * n_jobs))
    pieces: list[tuple[int, ...]] = []
    for members in kinds.values():
        # Those of one fold side by side: a stack then holds its rows once.
        members.sort(
            key=lambda i: (shapes[i].widths, shapes[i].epochs, str(shapes[i].data))
        )
        pieces += _cut(members, shapes, cost, memory / n_jobs, longest)
    tasks = []
    for piece in pieces:
        stacked = [shapes[i] for i in piece]
        tasks.append(Task(piece, cost.seconds(stacked), n_bytes(stacked)))
    return _assign(sorted(tasks, key=lambda task: -task.seconds), n_jobs)


def _cut(
    members: list[int],
    shapes: Sequence[Shape],
    cost: CostModel,
    memory: float,
    limit: int,
) -> list[tuple[int, ...]]:
    limit = min(limit, len(members), MAX_STACK.get(shapes[members[0]].device, 32))
    sizes = [
        n
        for n in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256, 512)
        if n <= limit
    ]
    best, cut = [0.0], [0]
    known: dict[tuple[Hashable, ...], float] = {}
    for stop in range(1, len(members) + 1):
        options = []
        for size in sizes:
            if size > stop:
                break
            piece = [shapes[i] for i in members[stop - size : stop]]
            # Neighbours are ordered: the ends say most of what is between.
            key = (size, piece[0], piece[-1], len(set(piece)))
            if key not in known:
                fits = size == 1 or (
                    size <= max_stack(padded(piece)) and n_bytes(piece) <= memory
                )
                known[key] = cost.seconds(piece) if fits else np.inf
            options.append((best[stop - size] + known[key], size))
        seconds, size = min(options)
        best.append(seconds)
        cut.append(size)
    pieces, stop = [], len(members)
    while stop:
        pieces.append(tuple(members[stop - cut[stop] : stop]))
        stop -= cut[stop]
    return pieces


def _assign(tasks: list[Task], n_jobs: int) -> list[Task]:
    """To each worker that is free the longest task that is left."""
    busy = [0.0] * n_jobs
    assigned = []
    for task in tasks:
        worker = min(range(n_jobs), key=busy.__getitem__)
        busy[worker] += task.seconds
        assigned.append(Task(task.runs, task.seconds, task.n_bytes, worker))
    return assigned


def makespan(tasks: Sequence[Task]) -> float:
    """Seconds until the last worker is done."""
    busy: dict[int, float] = {}
    for task in tasks:
        busy[task.worker] = busy.get(task.worker, 0.0) + task.seconds
    return max(busy.values(), default=0.0)

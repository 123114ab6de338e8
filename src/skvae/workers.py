"""Workers: how the tasks of a search go to joblib, and go out again when one dies."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from joblib import effective_n_jobs
from sklearn.utils.parallel import Parallel, delayed

from ._compat import is_local
from .runs import Run, with_rows

# A function, and the runs or evaluations that it is given.
Work = tuple[Callable, Sequence[Any]]
# Number of a task, and of a part of it.
Place = tuple[int, int]

# How often work goes out again of which a worker died.
ATTEMPTS = 3
LOST_WORKER = {"CancelledError", "KilledWorker", "BrokenExecutor"}


def _is_lost_worker(error: Exception) -> bool:
    """Whether a backend says that a process died, by the names that they use."""
    return any(kind.__name__ in LOST_WORKER for kind in type(error).__mro__)


def parallel_results(
    work: Sequence[Work], n_jobs: int | None, pre_dispatch: Any
) -> Iterator[tuple[int, dict[Any, Any]]]:
    """Results of functions of runs or evaluations, as they come, with their number.

    A function yields pairs; where it runs in this process, they are handed on one by
    one, so that an interruption loses none.
    """
    if effective_n_jobs(n_jobs) == 1 or len(work) == 1:
        for i, (function, items) in enumerate(work):
            for pair in function(items):
                yield i, dict([pair])
        return
    options = {"n_jobs": n_jobs, "pre_dispatch": pre_dispatch}
    # Numbers of tasks and of what is left of each.
    left = {(i, 0): task for i, task in enumerate(work)}
    for attempt in range(ATTEMPTS):
        try:
            parallel = Parallel(**options, return_as="generator_unordered")
        except ValueError:  # a backend that gives everything at the end
            parallel = Parallel(**options)
        try:
            for place, results in parallel(
                delayed(_unpack)(place, function, *_parcel(items))
                for place, (function, items) in list(left.items())
            ):
                del left[place]
                yield place[0], results
            return
        except Exception as error:
            if not _is_lost_worker(error) or attempt == ATTEMPTS - 1:
                raise
            left = _in_halves(left)  # it may have died for want of memory


def _in_halves(left: dict[Place, Work]) -> dict[Place, Work]:
    """The same work in tasks of half the size."""
    halves: dict[Place, Work] = {}
    for (i, part), (function, items) in left.items():
        middle = -(-len(items) // 2)
        for j, some in enumerate((items[:middle], items[middle:])):
            if some:
                halves[i, 2 * part + j] = function, some
    return halves


def _parcel(items: Sequence[Any]) -> tuple[list[Any], Any, Any]:
    """What goes to a worker: X and y by themselves, which some backends send once."""
    first = items[0]
    first = first.evaluations[0] if isinstance(first, Run) else first
    light = [with_rows(item, None, None) for item in items]
    if not is_local():
        light = [one.with_state() if isinstance(one, Run) else one for one in light]
    return light, first.X, first.y


def _unpack(
    place: Place, function: Callable, items: Sequence[Any], X: Any, y: Any
) -> tuple[Place, dict[Any, Any]]:
    """Number and results of a task, on a worker."""
    return place, dict(function([with_rows(item, X, y) for item in items]))

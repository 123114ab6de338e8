"""Runs: one training of which several candidates of a search are snapshots.

A candidate with fewer epochs is the beginning of the same candidate with more, where
nothing in the training depends on how many there will be. So a search trains once, to
the most epochs asked for, and scores each candidate on its way by the weights that it
would have kept alone.
"""

import copy
import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import joblib
import numpy as np
import torch
from sklearn.base import clone
from sklearn.pipeline import Pipeline

from ._compat import (
    asks_for_the_bound,
    check_method_params,
    fit_and_score,
    has_callbacks,
    safe_split,
)
from .estimator import VAEEstimator
from .fingerprint import fingerprint
from .fitted import FittedVAE
from .objectives import OBJECTIVES, Objective
from .spec import resolve
from .training import TRAIN, Request, prepare, train
from .training.engine import stack_key, train_stack
from .training.setup import INTERRUPTIBLE, finished, request_of, setting

# What ``fit`` takes beside X and y.
FIT_PARAMETERS = ("sample_weight", "X_val", "y_val")


@dataclass
class Evaluation:
    """One candidate on one fold: what scikit-learn would hand to a worker.

    Attributes
    ----------
    index : int
        Its place among all evaluations of a search.
    estimator : estimator
        Unfitted, the candidate's parameters not yet set.
    X, y : array-like
        All rows.
    options : dict
        How to fit and score: parameters, train, test, scorer, ...
    epochs : int
        After how many epochs of its run it is complete.
    is_probe : bool
        Whether a race asked for it, and not the user.
    """

    index: int
    estimator: Any
    X: Any
    y: Any
    options: dict[str, Any]
    epochs: int = 0
    is_probe: bool = False

    @property
    def fold(self) -> int:
        return self.options["split_progress"][0]

    def configured(self) -> Any:
        """The estimator with the candidate's parameters."""
        parameters = clone(self.options["parameters"], safe=False)
        return clone(self.estimator).set_params(**parameters)

    def alone(self) -> dict[str, Any]:
        """Fit and score as scikit-learn does."""
        if self.is_probe:
            estimator, options = self.configured(), {**self.options, "parameters": {}}
        else:
            estimator, options = clone(self.estimator), self.options
        vae = last_steps(estimator)[1]
        if self.is_probe:
            vae.set_params(epochs=self.epochs)
        with setting(INTERRUPTIBLE, False):
            return fit_and_score(estimator, self.X, self.y, **options)


@dataclass(frozen=True)
class Training:
    """What a candidate asks of a training.

    Attributes
    ----------
    name : str
        The same for candidates that are snapshots of one training.
    epochs, batch_size : int
    architecture : str
        The same where the weights have the same shapes and the same loss.
    head : str or None
        The same where the steps before the VAE are the same; None without such steps.
    draws : bool
        Whether it asks for fresh randomness.
    """

    name: str
    epochs: int
    batch_size: int
    architecture: str
    head: str | None
    draws: bool


@dataclass
class Head:
    """The fitted steps before the VAE of a Pipeline, and what they made of a fold."""

    steps: list[list[tuple[str, Any]]]
    X: Any
    y: Any


@dataclass
class Run:
    """Evaluations that are snapshots of one training, by ascending epochs.

    Attributes
    ----------
    evaluations : list of Evaluation
    training : Training
    total : int
        Epochs of the whole training, of which this may be a part.
    random_state : int or None
        Stands for a ``random_state`` of None: all parts of a training share one.
    head : Head or None
        Where the earlier steps of a Pipeline have been fitted already.
    state : path-like, dict or None
        Where an earlier part of the training stopped.
    start : int
        After how many epochs that was.
    """

    evaluations: list[Evaluation]
    training: Training
    total: int = 0
    random_state: int | None = None
    head: Head | None = None
    state: Any = None
    start: int = 0

    @property
    def epochs(self) -> int:
        return self.evaluations[-1].epochs

    @property
    def fold(self) -> int:
        return self.evaluations[0].fold

    def with_state(self) -> "Run":
        """The same with its state in memory."""
        if self.state is None:
            return self
        state = self.state if isinstance(self.state, dict) else joblib.load(self.state)
        return replace(self, state=state, random_state=state["random_state"])


def with_rows(item: Run | Evaluation, X: Any, y: Any) -> Run | Evaluation:
    """The same on these rows: what travels to a worker goes without, apart from X."""
    if isinstance(item, Run):
        evaluations = [replace(e, X=X, y=y) for e in item.evaluations]
        return replace(item, evaluations=evaluations)
    return replace(item, X=X, y=y)


def last_steps(estimator: Any) -> tuple[list[Pipeline], Any]:
    """The (nested) Pipelines around the last step, from the outermost, and it."""
    pipelines = []
    while isinstance(estimator, Pipeline):
        pipelines.append(estimator)
        estimator = estimator.steps[-1][1]
    return pipelines, estimator


def can_be_shared(evaluation: Evaluation, configured: Any) -> bool:
    """Whether we know how this estimator trains, so that we can do it in its stead.

    ``configured`` is ``evaluation.configured()``, to be asked once per candidate.
    """
    pipelines, vae = last_steps(configured)
    ours = (
        isinstance(vae, VAEEstimator)
        and type(vae).__module__.split(".")[0] == __package__
        and isinstance(vae.epochs, Integral)
        and int(vae.epochs) >= 1
    )
    if not ours:
        return False
    context = evaluation.options["callback_ctx"]
    # Subclasses may do anything between two steps. Parts of X for several of them are
    # one of scikit-learn's riches that we leave to it.
    if any(type(p) is not Pipeline or p.transform_input for p in pipelines):
        return False
    listened_to = any(has_callbacks(step) for step in (*pipelines, vae))
    if not listened_to and context is not None:
        with context.propagate_callback_context(configured):
            listened_to = has_callbacks(configured)
    fit_params = evaluation.options["fit_params"] or {}
    if listened_to or (pipelines and fit_params):
        return False
    return set(fit_params) <= set(FIT_PARAMETERS)


def epochs_nest(vae: VAEEstimator) -> bool:
    """Whether fewer epochs are the beginning of more.

    Not where the learning rate or the objective follow the share of all steps that is
    done.
    """
    objective = resolve(vae.objective, OBJECTIVES, "objective", Objective)
    return vae.learning_rate_schedule == "constant" and not objective.follows_progress


def evaluate_alone(
    evaluations: Sequence[Evaluation],
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Index and result of each, as scikit-learn works them out."""
    for evaluation in evaluations:
        yield evaluation.index, evaluation.alone()


def gather(
    evaluations: Sequence[Evaluation],
) -> tuple[list[Run], list[Evaluation]]:
    """The runs that the evaluations come from, and those to be fitted alone."""
    runs: dict[tuple[str, int], Run] = {}
    alone = []
    trainings: dict[int, Training | None] = {}
    for evaluation in evaluations:
        candidate = evaluation.options["candidate_progress"][0]
        if candidate not in trainings:
            trainings[candidate] = _training(evaluation)
        training = trainings[candidate]
        if training is None:
            alone.append(evaluation)
            continue
        evaluation.epochs = training.epochs
        key = training.name, evaluation.fold
        runs.setdefault(key, Run([], training)).evaluations.append(evaluation)
    for run in runs.values():
        if run.training.draws:
            run.random_state = int(np.random.SeedSequence().generate_state(1)[0] >> 1)
        run.evaluations.sort(key=lambda evaluation: evaluation.epochs)
        run.total = run.epochs
    return list(runs.values()), alone


# Parameters of the VAE that change no shape and no term of the loss.
_SAME_SHAPE = ("epochs", "learning_rate", "batch_size", "random_state")


def _training(evaluation: Evaluation) -> Training | None:
    """What a candidate asks for; None where it is to be fitted alone."""
    try:
        configured = evaluation.configured()
        if not can_be_shared(evaluation, configured):
            return None
        pipelines, vae = last_steps(configured)
        epochs, batch_size = int(vae.epochs), int(vae.batch_size)
        if epochs_nest(vae):
            vae.epochs = 1
        head = [_step(step) for p in pipelines for step in p.steps[:-1]]
        parameters = parameters_of(vae)
        shapes = {k: v for k, v in parameters.items() if k not in _SAME_SHAPE}
        return Training(
            fingerprint(head, type(vae), parameters),
            epochs,
            batch_size,
            fingerprint(head, type(vae), shapes),
            fingerprint(head) if head else None,
            vae.random_state is None,
        )
    except Exception:
        # Whatever is wrong with it, scikit-learn is to say it.
        return None


def parameters_of(estimator: Any) -> dict[str, Any]:
    """Everything that was set, nested objects by their own parameters."""
    return {
        name: type(value) if hasattr(value, "get_params") else value
        for name, value in estimator.get_params(deep=True).items()
    }


def _step(step: tuple[str, Any]) -> tuple[Any, ...]:
    name, estimator = step
    if not hasattr(estimator, "get_params"):
        return name, estimator
    return name, type(estimator), parameters_of(estimator)


# ------------------------------------------------------------------ before the VAE


def fit_heads(runs: Sequence[Run]) -> Iterator[tuple[int, Head | None]]:
    """Number and head of each run."""
    for i, run in enumerate(runs):
        yield i, fit_head(run)


def fit_head(run: Run) -> Head | None:
    """Fit the earlier steps of a run's Pipeline on its fold.

    None where that fails: fitting alone will tell how.
    """
    evaluation = run.evaluations[-1]
    try:
        estimator = evaluation.configured()
        X, y = training_rows(evaluation, estimator)
        steps = []
        for pipeline in last_steps(estimator)[0]:
            before = pipeline[:-1]
            if len(before):
                X = before.fit_transform(X) if y is None else before.fit_transform(X, y)
            steps.append(before.steps)
    except Exception:
        return None
    return Head(steps, X, y)


def training_rows(evaluation: Evaluation, estimator: Any) -> tuple[Any, Any]:
    return safe_split(
        estimator, evaluation.X, evaluation.y, evaluation.options["train"]
    )


# ------------------------------------------------------------------ training


class SharedFit:
    """A run in training.

    Parameters
    ----------
    run : Run
    """

    def __init__(self, run: Run):
        started = time.perf_counter()
        run = run.with_state()
        self.run = run
        last = run.evaluations[-1]
        if run.training.head is not None and run.head is None:
            raise ValueError("The steps before the VAE could not be fitted.")
        configured = last.configured()
        _, vae = last_steps(configured)
        if run.training.draws:
            vae.random_state = run.random_state
        if run.head is not None:
            X, y = run.head.X, run.head.y
        else:
            X, y = training_rows(last, configured)
        options = check_method_params(
            last.X, last.options["fit_params"] or {}, indices=last.options["train"]
        )
        request = request_of(lambda: vae.fit(X, y, **options))
        self.request = replace(
            request,
            options=replace(request.options, epochs=run.total),
            with_codes=not asks_for_the_bound(last.options["scorer"]),
        )
        self.training, self.rows = prepare(self.request)
        if run.state is not None:
            self.training.restore(run.state["training"])
            self.training.result = run.state["result"]
        self.waiting = list(run.evaluations)
        #: "running", or how the training ended before its last epoch.
        self.result = self.training.result
        #: What it took since the last score, its share of a stack's time included.
        self.seconds = time.perf_counter() - started

    @property
    def goes_on(self) -> bool:
        """Whether a later part of the training may follow."""
        return self.run.epochs < self.run.total and self.result != "diverged"

    def complete(self) -> list[Evaluation]:
        """The evaluations that are complete after the epochs so far."""
        epoch = len(self.training.records)
        if self.training.result in ("stopped", "diverged"):
            epoch = self.run.epochs  # more epochs change nothing
            self.result = self.training.result
        done = [e for e in self.waiting if e.epochs <= epoch]
        self.waiting = [e for e in self.waiting if e.epochs > epoch]
        return done

    def evaluate(self, evaluation: Evaluation) -> dict[str, Any]:
        """scikit-learn's own fit and score, answered by what has been trained."""
        # A copy of its own: models are not kept.
        estimator = copy.deepcopy(evaluation.estimator)
        head = self.run.head

        def fit(X: Any, y: Any = None, **params: Any) -> Any:
            """Fit with the steps before the VAE as they have been fitted already."""
            del estimator.fit
            pipelines, vae = last_steps(estimator)
            assert head is not None
            for pipeline, steps in zip(pipelines, head.steps, strict=True):
                pipeline.steps[:-1] = steps
            vae.fit(head.X, head.y, **params)
            return estimator

        if head is not None:
            estimator.fit = fit
        with setting(TRAIN, self._answer):
            result = fit_and_score(
                estimator, evaluation.X, evaluation.y, **evaluation.options
            )
        result["fit_time"] += self.seconds
        self.seconds = 0.0
        return result

    def _answer(self, request: Request) -> FittedVAE:
        """The fitted VAE as training would have returned it."""
        TRAIN.set(train)  # a scorer may fit models of its own
        return finished(self.training, self.request, self.rows)

    def state(self) -> dict[str, Any]:
        """Where the training stands, to go on in another process."""
        return {
            "random_state": self.run.random_state,
            "training": self.training.state(),
            "result": self.result,
        }

    def share_rows(self, others: Sequence["SharedFit"]) -> None:
        """Hold no rows that another of the same fold holds already."""
        assert self.training.data is not None
        for other in others:
            assert other.training.data is not None
            if (
                other.run.fold == self.run.fold
                and other.run.training.head == self.run.training.head
                and other.training.data.equals(self.training.data)
            ):
                self.training.data, self.rows = other.training.data, other.rows
                return


def train_together(
    runs: Sequence[Run], *, states: Any = None
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Train runs epoch by epoch, as one stack where they can be one.

    Yields
    ------
    index, result
        Of each evaluation, as soon as it is complete. With ``states``, at last
        ("state", index of a run's last evaluation) and what that makes of where a run
        stands that will go on.

    Notes
    -----
    What cannot even begin is fitted alone, so that scikit-learn says what is wrong.
    Where memory runs out the runs are trained in two halves.
    """
    done: set[int] = set()
    try:
        for index, result in _begin_and_train(runs, states):
            yield index, result
            done.add(index)
        return
    except Exception as error:
        if not out_of_memory(error):
            raise
    # Out here nothing refers to what has filled the memory.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    yield from _in_halves(runs, done, states)


def _begin_and_train(
    runs: Sequence[Run], states: Any
) -> Iterator[tuple[Any, dict[str, Any]]]:
    stacks: dict[Any, list[SharedFit]] = {}
    for run in runs:
        one = None
        try:
            one = SharedFit(run)
        except Exception as error:
            if out_of_memory(error):
                raise
        if one is None:
            for evaluation in run.evaluations:
                yield evaluation.index, evaluation.alone()
            continue
        # What a plan takes for alike need not be: folds of a table may hold different
        # numbers of categories. And a stack keeps in step: a training that starts
        # afresh does not wait for those that go on.
        key = stack_key(one.training), one.training.n_steps
        stack = stacks.setdefault(key, [])
        one.share_rows(stack)
        stack.append(one)
    while stacks:
        yield from _train(stacks.popitem()[1], states)


def _train(
    shared: list[SharedFit], states: Any
) -> Iterator[tuple[Any, dict[str, Any]]]:
    epochs = train_stack([one.training for one in shared])
    active = list(shared)
    try:
        while active:
            started, failed = time.perf_counter(), False
            try:
                next(epochs, None)  # nothing is left of those that had stopped early
            except Exception as error:
                if out_of_memory(error):
                    raise
                failed = True
            if failed:
                # Some part of the model is not ours: as it would train or fail alone.
                yield from _one_by_one(active, states)
                return
            share = (time.perf_counter() - started) / len(active)
            for one in active:
                one.seconds += share
            for one in active:
                for evaluation in one.complete():
                    yield evaluation.index, one.evaluate(evaluation)
            for one in active:
                if not one.waiting and not one.training.ended:
                    one.training.result = "stopped"
            active = [one for one in active if one.waiting]
        epochs.close()  # the trainings get their optimisers' state
        if states is not None:
            for one in shared:
                if one.goes_on:
                    index = one.run.evaluations[-1].index
                    yield ("state", index), states.hand_over(one.state())
    finally:
        epochs.close()


def _one_by_one(
    shared: Sequence[SharedFit], states: Any
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """What is left of trainings that failed together: alone, and then by themselves."""
    for one in shared:
        if len(shared) == 1:
            for evaluation in one.waiting:
                yield evaluation.index, evaluation.alone()
        else:
            rest = replace(one.run, evaluations=one.waiting)
            yield from _begin_and_train([rest], states)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is used up."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # Torch's words where the memory of the CPU is out.
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _in_halves(
    runs: Sequence[Run], done: set[int], states: Any
) -> Iterator[tuple[Any, dict[str, Any]]]:
    left = []
    for run in runs:
        waiting = [e for e in run.evaluations if e.index not in done]
        if waiting:
            left.append(replace(run, evaluations=waiting))
    if len(runs) == 1:
        for run in left:
            for evaluation in run.evaluations:
                yield evaluation.index, evaluation.alone()
        return
    middle = -(-len(left) // 2)
    for half in (left[:middle], left[middle:]):
        yield from train_together(half, states=states)

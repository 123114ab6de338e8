"""Runs: one training of which several candidates of a search are snapshots.

A candidate with fewer epochs is the beginning of the same candidate with more, where
nothing in the training depends on how many there will be. So a search trains once, to
the most epochs asked for, and scores each candidate on its way by the weights that it
would have kept alone.
"""

import copy
import gc
import time
from collections.abc import Generator, Iterator, Sequence
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
from .engine import DivergenceError, Record
from .estimator import VAEEstimator
from .fingerprint import fingerprint
from .fitting import Fit
from .objectives import OBJECTIVES, Objective
from .stack import Stack, same_rows

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
        Whether nobody asked for it but a race.
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
        if isinstance(vae, VAEEstimator):
            vae._within_search = True
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
    done. Of an objective that is not ours nobody knows.
    """
    objective = vae.objective
    if isinstance(objective, str):
        known = OBJECTIVES.get(objective)
        return known is not None and vae.learning_rate_schedule == "constant"
    return (
        vae.learning_rate_schedule == "constant"
        and isinstance(objective, Objective)
        and type(objective) in OBJECTIVES.values()
        and objective.warmup == 0
    )


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
        _, self.vae = last_steps(configured)
        if run.training.draws:
            self.vae.random_state = run.random_state
        if run.head is not None:
            X, y = run.head.X, run.head.y
        else:
            X, y = training_rows(last, configured)
        options = check_method_params(
            last.X, last.options["fit_params"] or {}, indices=last.options["train"]
        )
        self.vae._validate_params()
        self.fit: Fit = self.vae._begin(
            X, y, *(options.get(name) for name in FIT_PARAMETERS)
        )
        if run.state is not None:
            self.fit.records = list(run.state["records"])
            self.fit.trainer.restore(run.state["trainer"])
        self.waiting = list(run.evaluations)
        self.has_failed = False
        self.codes = not asks_for_the_bound(last.options["scorer"])
        self.generator: Generator[Record, None, None] | None = None
        #: What it took since the last score, its share of a stack's time included.
        self.seconds = time.perf_counter() - started

    @property
    def epochs_left(self) -> int:
        return self.run.total - len(self.fit.records)

    @property
    def goes_on(self) -> bool:
        """Whether a later part of the training may follow."""
        return self.run.epochs < self.run.total and not self.has_failed

    def start(self, train_epoch=None) -> None:
        """Get ready for :meth:`advance`; with an epoch of a stack to take part in."""
        self.generator = self.fit.run(self.epochs_left, train_epoch=train_epoch)

    def advance(self) -> list[tuple[Evaluation, str | None]]:
        """One epoch; returns the evaluations that it completes, with a divergence."""
        assert self.generator is not None
        divergence = None
        try:
            epoch = len(self.fit.records)
            next(self.generator)
            epoch += 1
        except StopIteration:
            epoch = self.run.epochs  # stopped early: more epochs change nothing
        except DivergenceError as error:
            epoch, divergence = self.run.epochs, str(error)
            self.has_failed = True
        done = [e for e in self.waiting if e.epochs <= epoch]
        self.waiting = [e for e in self.waiting if e.epochs > epoch]
        return [(evaluation, divergence) for evaluation in done]

    def evaluate(
        self, evaluation: Evaluation, divergence: str | None
    ) -> dict[str, Any]:
        """scikit-learn's own fit and score, where the fit is what we have already."""
        # A copy of its own, for nobody is to keep the models.
        estimator, arrive = copy.deepcopy(evaluation.estimator), self._arrive

        def fit(X, y=None, **params):
            del estimator.fit
            arrive(estimator, divergence)
            return estimator

        estimator.fit = fit
        with self.fit.trainer.best_weights():
            result = fit_and_score(
                estimator, evaluation.X, evaluation.y, **evaluation.options
            )
        result["fit_time"] += self.seconds
        self.seconds = 0.0
        return result

    def _arrive(self, estimator: Any, divergence: str | None) -> None:
        """Make a candidate what its own fit would have made of it."""
        pipelines, vae = last_steps(estimator)
        if self.run.head is not None:
            for pipeline, steps in zip(pipelines, self.run.head.steps, strict=True):
                pipeline.steps[:-1] = steps
        learned = {
            name: value
            for name, value in vars(self.vae).items()
            if name not in vars(vae)
        }
        vae.__dict__.update(learned)
        vae.__dict__.update(self.fit.attributes())
        if divergence is not None:
            vae._divergence = divergence
            vae._raise_divergence()
        if self.codes:
            vae._keep_codes(self.fit.rows)
        if self.fit.records:
            vae._warn_of_collapse(self.fit.trainer.n_steps)

    def state(self) -> dict[str, Any]:
        """Where the training stands, to go on in another process."""
        return {
            "random_state": self.run.random_state,
            "records": self.fit.records,
            "trainer": self.fit.trainer.state(),
        }

    def share_rows(self, others: Sequence["SharedFit"]) -> None:
        """Hold no rows that another of the same fold holds already."""
        for other in others:
            if (
                other.run.fold == self.run.fold
                and other.run.training.head == self.run.training.head
                and same_rows(other.fit.data, self.fit.data)
            ):
                self.fit.data, self.fit.rows = other.fit.data, other.fit.rows
                return

    def close(self) -> None:
        if self.generator is not None:
            self.generator.close()
        self.fit.trainer.close()


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
    stacks: dict[int, list[SharedFit]] = {}
    for run in runs:
        try:
            one = SharedFit(run)
        except Exception as error:
            if out_of_memory(error):
                raise
            for evaluation in run.evaluations:
                yield evaluation.index, evaluation.alone()
            continue
        # A stack keeps in step; who starts behind (afresh) goes by itself.
        stack = stacks.setdefault(one.fit.trainer.n_steps, [])
        one.share_rows(stack)
        stack.append(one)
    while stacks:
        yield from _train(stacks.popitem()[1], states)


def _train(
    shared: list[SharedFit], states: Any
) -> Iterator[tuple[Any, dict[str, Any]]]:
    members = [(one.fit.trainer, one.fit.data) for one in shared]
    stack = Stack.of(members, [one.epochs_left for one in shared])
    for i, one in enumerate(shared):
        if stack is None:
            one.start()
        else:
            one.fit.data = stack.members[i][1]
            one.start(stack.member(i))
    del members
    try:
        training = list(shared)
        while training:
            started = time.perf_counter()
            arrived: list[tuple[SharedFit, Evaluation, str | None]] = []
            failed = []
            for one in training:
                try:
                    arrived += [(one, *done) for done in one.advance()]
                except Exception as error:
                    if out_of_memory(error):
                        raise
                    # Some part of the model that is not ours: as it would fail alone.
                    failed += one.waiting
                    one.waiting = []
                    one.has_failed = True
            share = (time.perf_counter() - started) / len(training)
            for one in training:
                one.seconds += share
            for one, evaluation, divergence in arrived:
                yield evaluation.index, one.evaluate(evaluation, divergence)
            for evaluation in failed:
                yield evaluation.index, evaluation.alone()
            training = [one for one in training if one.waiting]
            if stack is not None:
                stack.keep([i for i, one in enumerate(shared) if one.waiting])
        if states is not None:
            if stack is not None:
                stack.release()
            for one in shared:
                if one.goes_on:
                    index = one.run.evaluations[-1].index
                    yield ("state", index), states.hand_over(one.state())
    finally:
        for one in shared:
            one.close()


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

"""Searches that train all their candidates as one computation."""

import copy
import warnings
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import product
from numbers import Real
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from joblib import effective_n_jobs
from sklearn.base import clone, is_classifier
from sklearn.model_selection import (
    GridSearchCV,
    ParameterGrid,
    ParameterSampler,
    RandomizedSearchCV,
    check_cv,
)
from sklearn.utils import indexable
from sklearn.utils.parallel import Parallel, delayed

from ._compat import (
    BaseSearchCV,
    Interval,
    callbacks_of,
    is_local,
    search_fit,
)
from .calibration import cost_model, is_worthwhile, measure, points, shapes_of
from .checkpoint import Checkpoint, States
from .device import available_memory
from .plan import CostModel, Shape, Task, makespan, padded, plan
from .progress import SearchProgress
from .racing import Race
from .runs import (
    Evaluation,
    Run,
    evaluate_alone,
    fit_heads,
    gather,
    out_of_memory,
    train_together,
)
from .scorers import log_likelihood_scorer, neg_elbo_scorer
from .workers import Work, parallel_results

__all__ = [
    "VAEGridSearchCV",
    "VAERandomizedSearchCV",
    "log_likelihood_scorer",
    "neg_elbo_scorer",
]

# The share of the candidates that a race stops at each rung, as scikit-learn's halving.
RACING = 2 / 3
# The shape of what cannot even begin.
UNKNOWN = Shape(((1, 1),), 1, 1, 1)


class _Session:
    """One pass over a list of candidates: results by evaluation."""

    def __init__(self, n_candidates: int) -> None:
        self.n_candidates = n_candidates
        self.n_folds = 1
        self.results: dict[int, dict[str, Any]] = {}
        #: Columns of ``cv_results_`` beside scikit-learn's, filled as they are known.
        self.columns: dict[str, list[Any]] = {}
        self.replayed: list[dict[str, Any]] | None = None
        self.checkpoint = Checkpoint(None, [])
        self.cost: CostModel | None = None
        self.shapes: dict[tuple[object, ...], Shape | None] = {}
        self.race: Race | None = None
        self.rung = 0

    def complete(self) -> list[int]:
        """The candidates with a result in every fold."""
        return [
            candidate
            for candidate in range(self.n_candidates)
            if all(index in self.results for index in self._indices(candidate))
        ]

    def _indices(self, candidate: int) -> range:
        return range(candidate * self.n_folds, (candidate + 1) * self.n_folds)

    def replay(self, candidates: Sequence[int]) -> None:
        """Answer the next question, for these candidates, from memory."""
        self.replayed = [self.results[i] for c in candidates for i in self._indices(c)]
        for column in self.columns.values():
            column[:] = [column[c] for c in candidates]


class _SharedTraining(BaseSearchCV):
    """What the two searches have in common; stands before scikit-learn's class."""

    _parameter_constraints: dict[str, list[Any]] = {
        "racing": ["boolean", Interval(Real, 0, 1, closed="neither"), None],
        "checkpoint_dir": [str, PathLike, None],
        "memory_limit": [Interval(Real, 0, None, closed="neither"), None],
    }

    fit = search_fit

    def _run_search(self, evaluate_candidates: Any, *, callback_ctx: Any = None) -> Any:
        def evaluate(candidate_params: Any, callback_ctx: Any = None) -> Any:
            candidates = list(candidate_params)
            session = self._session = _Session(len(candidates))
            if self.racing:
                session.columns = {"rung": [], "n_epochs": [], "finished": []}
            try:
                return evaluate_candidates(
                    candidates,
                    callback_ctx=callback_ctx,
                    more_results=session.columns,
                )
            except KeyboardInterrupt:
                complete = session.complete()
                if not complete:
                    raise
                warnings.warn(
                    f"The search was interrupted; cv_results_ holds the {len(complete)}"
                    f" of {len(candidates)} candidates that were complete.",
                    UserWarning,
                    stacklevel=2,
                )
                session.replay(complete)
                return evaluate_candidates(
                    [candidates[i] for i in complete], more_results=session.columns
                )
            finally:
                del self._session

        super()._run_search(evaluate, callback_ctx=callback_ctx)

    @staticmethod
    def _select_best_index(refit: Any, refit_metric: Any, results: Any) -> Any:
        """The best candidate; in a race, of those that got to their last epoch."""
        if callable(refit) or "finished" not in results:
            return GridSearchCV._select_best_index(refit, refit_metric, results)
        rank = np.asarray(results[f"rank_test_{refit_metric}"])
        finished = np.asarray(results["finished"], dtype=bool)
        return int(np.where(finished, rank, np.iinfo(rank.dtype).max).argmin())

    # ------------------------------------------------------------------ evaluating

    def _evaluate(self, calls: Iterable[tuple[tuple, dict]]) -> list[dict[str, Any]]:
        """Results of the fits that scikit-learn asks for, in their order."""
        session = self._session
        if session.replayed is not None:
            return session.replayed
        caller = copy.copy(self)
        del caller._session  # callbacks are given the search without it
        evaluations = [
            Evaluation(index, estimator, X, y, {**options, "caller": caller})
            for index, ((estimator, X, y), options) in enumerate(calls)
        ]
        session.n_folds = len(evaluations) // session.n_candidates
        session.checkpoint = Checkpoint(self.checkpoint_dir, evaluations)
        session.results.update(session.checkpoint.results)
        if self.racing:
            self._race(evaluations, session)
        else:
            left = [e for e in evaluations if e.index not in session.results]
            runs, alone = self._gather(left)
            self._fit_heads(runs)
            self._work(session, runs, alone)
        return [session.results[evaluation.index] for evaluation in evaluations]

    def _race(self, evaluations: Sequence[Evaluation], session: _Session) -> None:
        """From rung to rung of epochs, each time without the worst."""
        runs, alone = self._gather(evaluations)
        kept = self.checkpoint_dir
        with TemporaryDirectory() if kept is None else nullcontext(kept) as folder:
            race = session.race = Race(
                runs,
                evaluations,
                session.results,
                States(Path(folder), shared=is_local()),
                session.checkpoint,
                RACING if self.racing is True else self.racing,
                self.refit if isinstance(self.refit, str) else None,
            )
            try:
                self._fit_heads(runs)
                left = [e for e in alone if e.index not in session.results]
                self._work(session, [], left)
                for session.rung in range(len(race.rungs)):
                    self._work(session, race.parts(session.rung), [])
                    race.stop_worst()
                race.finish()
            finally:
                for name, column in race.columns().items():
                    session.columns[name].extend(column)

    def _work(
        self,
        session: _Session,
        runs: Sequence[Run],
        alone: Sequence[Evaluation],
    ) -> None:
        """Train runs, and fit evaluations alone, for the results of both."""
        race = session.race
        train = partial(train_together, states=None if race is None else race.states)
        tasks, _, session.cost = self._plan(runs, session.cost, session.shapes)
        work: list[Work] = [(train, [runs[i] for i in task.runs]) for task in tasks]
        work += [(evaluate_alone, [evaluation]) for evaluation in alone]
        seconds = [task.seconds for task in tasks] + [0.0] * len(alone)
        counts = [sum(len(runs[i].evaluations) for i in task.runs) for task in tasks]
        counts += [1] * len(alone)
        progress = SearchProgress(seconds, counts) if self.verbose and work else None
        for i, results in parallel_results(work, self.n_jobs, self.pre_dispatch):
            for key in [key for key in results if isinstance(key, tuple)]:
                assert race is not None
                race.keep_state(session.rung, key[1], results.pop(key))
            session.results.update(results)
            session.checkpoint.keep(results)
            if race is not None:
                race.stop_worst()
            if progress is not None:
                progress(i, len(results))
        if progress is not None:
            progress.close()

    def _gather(
        self, evaluations: Sequence[Evaluation]
    ) -> tuple[list[Run], list[Evaluation]]:
        """Runs, and what is to be fitted alone."""
        runs, alone = gather(evaluations)
        if not callbacks_of(self):
            # There are no callbacks, and the context of one fit holds those of all
            # others: megabytes, which would go with every task.
            for run in runs:
                for evaluation in run.evaluations:
                    evaluation.options |= {"callback_ctx": None, "caller": None}
        return runs, alone

    def _fit_heads(self, runs: Sequence[Run]) -> None:
        """Fit the steps before the VAE once per fold."""
        groups: dict[tuple[str, int], list[Run]] = {}
        for run in runs:
            if run.training.head is not None:
                groups.setdefault((run.training.head, run.fold), []).append(run)
        members = list(groups.values())
        work = [(fit_heads, group[:1]) for group in members]
        for i, heads in parallel_results(work, self.n_jobs, self.pre_dispatch):
            for run in members[i]:
                run.head = heads[0]

    # ------------------------------------------------------------------ planning

    def _plan(
        self,
        runs: Sequence[Run],
        cost: CostModel | None,
        known_shapes: dict[tuple[object, ...], Shape | None],
        *,
        measured: bool = False,
    ) -> tuple[list[Task], list[Shape], CostModel | None]:
        """Tasks of runs, and the cost model, measured where that pays."""
        if not runs:
            return [], [], cost
        found = shapes_of(runs, known_shapes)
        known = [i for i, shape in enumerate(found) if shape is not None]
        shapes = [found[i] or UNKNOWN for i in range(len(runs))]
        if cost is None and known and (measured or is_worthwhile(shapes)):
            chosen = [(runs[i], shapes[i]) for i in points(found)]
            n_jobs = min(effective_n_jobs(self.n_jobs), 4)
            # All at once, as the search will have it.
            try:
                said = Parallel(n_jobs=self.n_jobs)(
                    delayed(_measured)(chosen) for _ in range(n_jobs)
                )
                cost = cost_model([one for part in said for one in part])
            except Exception as error:
                if not out_of_memory(error):
                    raise
                cost = CostModel()
        tasks = plan(
            shapes,
            cost or CostModel(),
            memory=self.memory_limit or available_memory(shapes[0].device),
            n_jobs=effective_n_jobs(self.n_jobs),
        )
        return tasks, shapes, cost

    def plan(self, X: Any, y: Any = None) -> Any:
        """Show which trainings each worker would run side by side, before any is run.

        Measures a few steps of a few candidates, on all workers, for about a second,
        and fits the steps before the VAE of a Pipeline.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : array-like or None

        Returns
        -------
        plan : DataFrame (a list of dicts where pandas is missing)
            One row per task, the longest first: worker, n_runs (trainings side by
            side), n_fits (candidates and folds that they give), epochs, batch_size,
            n_weights of the widest model, seconds and megabytes (both estimated), and
            the parameters that all of its candidates share. What cannot be shared is
            not in it. ``plan.attrs["seconds"]`` is the estimate for the whole search,
            without refit.
        """
        X, y = indexable(X, y)
        evaluations = self._future(X, y)
        runs, alone = self._gather(evaluations)
        self._fit_heads(runs)
        tasks, shapes, _ = self._plan(runs, None, {}, measured=True)
        rows = []
        for task in tasks:
            members = [runs[i] for i in task.runs]
            widest = padded([shapes[i] for i in task.runs])
            parameters = [
                e.options["parameters"] for run in members for e in run.evaluations
            ]
            rows.append(
                {
                    "worker": task.worker,
                    "n_runs": len(members),
                    "n_fits": len(parameters),
                    "epochs": max(run.epochs for run in members),
                    "batch_size": widest.batch_size,
                    "n_weights": widest.n_weights,
                    "seconds": task.seconds,
                    "megabytes": task.n_bytes / 1e6,
                    **_common(parameters),
                }
            )
        try:
            import pandas
        except ImportError:
            return rows
        table = pandas.DataFrame(rows)
        table.attrs = {"seconds": makespan(tasks), "n_alone": len(alone)}
        return table

    def _future(self, X: Any, y: Any) -> list[Evaluation]:
        """The evaluations that ``fit`` would ask for."""
        cv = check_cv(self.cv, y, classifier=is_classifier(self.estimator))
        folds = list(cv.split(X, y))
        scorers, _ = self._get_scorers()
        candidates = list(self._candidates())
        return [
            Evaluation(
                index,
                clone(self.estimator),
                X,
                y,
                {
                    "parameters": candidates[c],
                    "train": train,
                    "test": test,
                    "candidate_progress": (c, len(candidates)),
                    "split_progress": (f, len(folds)),
                    "scorer": scorers,
                    "fit_params": {},
                    "score_params": {},
                    "error_score": self.error_score,
                    "return_train_score": self.return_train_score,
                    "return_n_test_samples": True,
                    "return_times": True,
                    "caller": self,
                    "verbose": 0,
                    "callback_ctx": None,
                },
            )
            for index, (c, (f, (train, test))) in enumerate(
                product(range(len(candidates)), enumerate(folds))
            )
        ]


def _common(parameters: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The parameters that have one value in all."""
    first = parameters[0]
    names = set(first).intersection(*parameters[1:])
    return {
        name: first[name]
        for name in sorted(names)
        if all(repr(other[name]) == repr(first[name]) for other in parameters)
    }


def _measured(chosen: Sequence[tuple[Run, Shape]]) -> list[tuple]:
    return list(measure(chosen))


class VAEGridSearchCV(_SharedTraining, GridSearchCV):
    """Exhaustive search over a grid, trained as one computation.

    A drop-in for :class:`sklearn.model_selection.GridSearchCV`: the same parameters,
    the same results, but for rounding. Only the training is shared:

    - Candidates that differ in ``epochs`` alone are one run with snapshots, unless the
      training depends on how many epochs there will be (a learning rate schedule, a
      warm-up).
    - Small models of one shape train side by side in the same operations, whatever
      their learning rates, seeds and folds, where a short calibration says that this
      is faster; :meth:`plan` shows it.
    - The steps before the VAE of a Pipeline are fitted once per fold.

    What cannot be shared (other estimators, a VAE in the middle of a Pipeline, metadata
    for other steps, callbacks that listen to epochs) is fitted alone, as scikit-learn
    would.

    Parameters
    ----------
    estimator : VAEEstimator, or Pipeline that ends in one

    param_grid : dict or list of dicts
        As in GridSearchCV, as are scoring, n_jobs, refit, cv, verbose (1 also shows
        the time that is left), pre_dispatch, error_score and return_train_score.

    racing : bool or float, default=False
        Whether candidates race: all start, and at each rung of epochs (those that the
        candidates ask for; before the fewest of them an eighth, a quarter and a half of
        the most) this fraction of those still running stops, the worst by mean test
        score; True is two thirds. The others go on from where they are. The search is
        then no longer exhaustive: what was stopped keeps the score of where it was,
        and ``cv_results_`` says so in "rung", "n_epochs" and "finished". The best is
        one that finished.

    checkpoint_dir : path-like or None, default=None
        Folder for results as they come. The same search, started again with the same
        folder, goes on from there.

    memory_limit : float or None, default=None
        Bytes that all workers together may fill with stacks; None is half of what is
        free.

    Notes
    -----
    ``mean_fit_time`` is the time that a candidate added to what was trained already.
    KeyboardInterrupt keeps the candidates that are complete, with a warning.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skvae import VAEEstimator, VAEGridSearchCV
    >>> X = load_digits().data / 16
    >>> vae = VAEEstimator(hidden_dim=32, random_state=0)
    >>> grid = {"epochs": [2, 10], "learning_rate": [1e-4, 1e-3]}
    >>> search = VAEGridSearchCV(vae, grid, cv=2)
    >>> search.fit(X).best_params_
    {'epochs': 10, 'learning_rate': 0.001}
    """

    _parameter_constraints = {
        **GridSearchCV._parameter_constraints,
        **_SharedTraining._parameter_constraints,
    }

    def __init__(
        self,
        estimator: Any,
        param_grid: Any,
        *,
        scoring: Any = None,
        n_jobs: Any = None,
        refit: Any = True,
        cv: Any = None,
        verbose: Any = 0,
        pre_dispatch: Any = "2*n_jobs",
        error_score: Any = np.nan,
        return_train_score: Any = False,
        racing: Any = False,
        checkpoint_dir: Any = None,
        memory_limit: Any = None,
    ) -> None:
        super().__init__(
            estimator,
            param_grid,
            scoring=scoring,
            n_jobs=n_jobs,
            refit=refit,
            cv=cv,
            verbose=verbose,
            pre_dispatch=pre_dispatch,
            error_score=error_score,
            return_train_score=return_train_score,
        )
        self.racing = racing
        self.checkpoint_dir = checkpoint_dir
        self.memory_limit = memory_limit

    def _candidates(self) -> Any:
        return ParameterGrid(self.param_grid)


class VAERandomizedSearchCV(_SharedTraining, RandomizedSearchCV):
    """Search over random parameters, trained as one computation.

    A drop-in for :class:`sklearn.model_selection.RandomizedSearchCV`; what it shares,
    and what not, is as in :class:`VAEGridSearchCV`.

    Parameters
    ----------
    estimator : VAEEstimator, or Pipeline that ends in one

    param_distributions : dict or list of dicts
        As in RandomizedSearchCV, as are n_iter, scoring, n_jobs, refit, cv, verbose,
        pre_dispatch, random_state, error_score and return_train_score.

    racing, checkpoint_dir, memory_limit
        As in VAEGridSearchCV.

    Examples
    --------
    >>> from scipy.stats import loguniform
    >>> from sklearn.datasets import load_digits
    >>> from skvae import VAEEstimator, VAERandomizedSearchCV
    >>> X = load_digits().data / 16
    >>> search = VAERandomizedSearchCV(
    ...     VAEEstimator(hidden_dim=32, epochs=5, random_state=0),
    ...     {"learning_rate": loguniform(1e-5, 1e-2)}, n_iter=4, cv=2, random_state=0)
    >>> bool(search.fit(X).best_params_["learning_rate"] > 1e-4)
    True
    """

    _parameter_constraints = {
        **RandomizedSearchCV._parameter_constraints,
        **_SharedTraining._parameter_constraints,
    }

    def __init__(
        self,
        estimator: Any,
        param_distributions: Any,
        *,
        n_iter: Any = 10,
        scoring: Any = None,
        n_jobs: Any = None,
        refit: Any = True,
        cv: Any = None,
        verbose: Any = 0,
        pre_dispatch: Any = "2*n_jobs",
        random_state: Any = None,
        error_score: Any = np.nan,
        return_train_score: Any = False,
        racing: Any = False,
        checkpoint_dir: Any = None,
        memory_limit: Any = None,
    ) -> None:
        super().__init__(
            estimator,
            param_distributions,
            n_iter=n_iter,
            scoring=scoring,
            n_jobs=n_jobs,
            refit=refit,
            cv=cv,
            verbose=verbose,
            pre_dispatch=pre_dispatch,
            random_state=random_state,
            error_score=error_score,
            return_train_score=return_train_score,
        )
        self.racing = racing
        self.checkpoint_dir = checkpoint_dir
        self.memory_limit = memory_limit

    def _candidates(self) -> Any:
        # A copy, so that a plan does not use up what the search is to draw.
        random_state = copy.deepcopy(self.random_state)
        return ParameterSampler(
            self.param_distributions, self.n_iter, random_state=random_state
        )

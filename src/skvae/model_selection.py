"""Scorers, and searches that train all their candidates as one computation."""

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from joblib import effective_n_jobs
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV
from sklearn.utils.parallel import Parallel, delayed

from ._compat import EstimatorScorer, search_fit
from .estimator import unwrap
from .runs import (
    Evaluation,
    Run,
    evaluate_alone,
    fit_heads,
    gather,
    head_key,
    train_together,
)


def _neg_elbo(estimator, X, y=None, *, sample_weight=None):
    if sample_weight is None:
        return estimator.score(X, y)
    return estimator.score(X, y, sample_weight=sample_weight)


def _log_likelihood(estimator, X, y=None, *, sample_weight=None, n_importance_samples):
    vae, X = unwrap(estimator, X)
    rows = vae._log_likelihood(X, y, n_importance_samples)
    return float(np.average(rows.astype(np.float64), weights=sample_weight))


_neg_elbo.__name__ = "neg_elbo_scorer"
_log_likelihood.__name__ = "log_likelihood_scorer"

neg_elbo_scorer = EstimatorScorer(_neg_elbo)
neg_elbo_scorer.__doc__ = """Score by the ELBO, minus the negative ELBO: greater wins.

A scorer ``(estimator, X, y=None, *, sample_weight=None) -> float`` for ``scoring=``.

The score is the mean evidence lower bound in nats per row of a fitted VAEEstimator, or
of a Pipeline that ends in one. Within a Pipeline the density is that of the transformed
data: compare candidates of one preprocessing only.

Examples
--------
>>> from sklearn.datasets import load_digits
>>> from sklearn.model_selection import GridSearchCV
>>> from skvae import VAEEstimator, neg_elbo_scorer
>>> X = load_digits().data / 16
>>> search = GridSearchCV(
...     VAEEstimator(hidden_dim=32, random_state=0),
...     {"epochs": [2, 20]}, scoring=neg_elbo_scorer, cv=2)
>>> search.fit(X).best_params_
{'epochs': 20}
"""


def log_likelihood_scorer(n_importance_samples=100):
    """Make a scorer of the importance-weighted log-likelihood.

    Parameters
    ----------
    n_importance_samples : int, default=100
        Draws per row. More of them tighten the bound and take longer.

    Returns
    -------
    scorer : callable(estimator, X, y=None, *, sample_weight=None) -> float
        Mean estimate of log p(x) in nats per row; greater is better.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skvae import VAEEstimator, log_likelihood_scorer
    >>> X = load_digits().data / 16
    >>> vae = VAEEstimator(hidden_dim=32, epochs=2, random_state=0).fit(X)
    >>> log_likelihood_scorer(50)(vae, X[:100]) > vae.score(X[:100])
    True
    """
    return EstimatorScorer(_log_likelihood, n_importance_samples=n_importance_samples)


class _Session:
    """One pass over a list of candidates: results by evaluation."""

    def __init__(self, n_candidates: int):
        self.n_candidates = n_candidates
        self.results: dict[int, dict[str, Any]] = {}
        self.n_folds = 1
        self.replayed: list[dict[str, Any]] | None = None

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


class _SharedTraining:
    """What the two searches have in common; stands before scikit-learn's class."""

    fit = search_fit

    def _run_search(self, evaluate_candidates, *, callback_ctx=None):
        def evaluate(candidate_params, callback_ctx=None, **options):
            candidates = list(candidate_params)
            session = self._session = _Session(len(candidates))
            try:
                return evaluate_candidates(
                    candidates, callback_ctx=callback_ctx, **options
                )
            except KeyboardInterrupt:
                complete = session.complete()
                if not complete:
                    raise
                warnings.warn(
                    f"The search was interrupted; cv_results_ holds the {len(complete)}"
                    f" candidates of {len(candidates)} that were complete.",
                    UserWarning,
                    stacklevel=2,
                )
                session.replay(complete)
                return evaluate_candidates([candidates[i] for i in complete], **options)
            finally:
                del self._session

        super()._run_search(evaluate, callback_ctx=callback_ctx)

    def _evaluate(self, calls: Iterable[tuple[tuple, dict]]) -> list[dict[str, Any]]:
        """Results of the fits that scikit-learn asks for, in their order."""
        session = self._session
        if session.replayed is not None:
            return session.replayed
        caller = copy.copy(self)
        del caller._session  # it stays here, whoever else is told of the search
        evaluations = [
            Evaluation(index, *args, {**options, "caller": caller})
            for index, (args, options) in enumerate(calls)
        ]
        session.n_folds = len(evaluations) // session.n_candidates
        runs, alone = gather(evaluations)
        self._fit_heads(runs)
        tasks = [[run] for run in runs]
        tasks.sort(key=lambda runs: -sum(run.epochs for run in runs))
        work = [(train_together, task) for task in tasks]
        work += [(evaluate_alone, [evaluation]) for evaluation in alone]
        session.results.update(self._parallel(work))
        return [session.results[evaluation.index] for evaluation in evaluations]

    def _fit_heads(self, runs: Sequence[Run]) -> None:
        """Fit the steps before the VAE once per fold."""
        groups: dict[tuple[str, int], list[Run]] = {}
        for run in runs:
            key = head_key(run)
            if key is not None:
                groups.setdefault((key, run.fold), []).append(run)
        members = list(groups.values())
        work = [(fit_heads, [(i, group[0])]) for i, group in enumerate(members)]
        for i, head in self._parallel(work):
            for run in members[i]:
                run.head = head

    def _parallel(self, work: Sequence[tuple[Callable, Any]]) -> Iterator[Any]:
        """What the functions yield of their arguments, as it comes."""
        if effective_n_jobs(self.n_jobs) == 1 or len(work) == 1:
            for function, argument in work:
                yield from function(argument)
            return
        options = {"n_jobs": self.n_jobs, "pre_dispatch": self.pre_dispatch}
        try:
            parallel = Parallel(**options, return_as="generator_unordered")
        except ValueError:  # a backend that gives everything at the end
            parallel = Parallel(**options)
        calls = (delayed(_list)(function, argument) for function, argument in work)
        for results in parallel(calls):
            yield from results


def _list(function: Callable, argument: Any) -> list[Any]:
    return list(function(argument))


class VAEGridSearchCV(_SharedTraining, GridSearchCV):
    """temp"""


class VAERandomizedSearchCV(_SharedTraining, RandomizedSearchCV):
    """temp"""

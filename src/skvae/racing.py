"""Races: the candidates that are behind stop, the others go on from where they are.

Successive halving (Jamieson and Talwalkar, 2016) over epochs. It does not look at all
candidates to the end, so it may miss the best one.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from math import inf, isnan
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import clone

from .checkpoint import Checkpoint, States
from .runs import Evaluation, Run


def rungs_of(epochs: Sequence[int]) -> list[int]:
    """The epochs at which candidates are compared, given those they ask for.

    These very epochs; before the first of them an eighth, a quarter and a half of the
    last, since what is hopeless shows early.
    """
    asked = sorted(set(epochs))
    if not asked:
        return []
    early = {-(-asked[-1] // part) for part in (8, 4, 2)}
    return sorted({rung for rung in early if rung < asked[0]}.union(asked))


class Race:
    """Where each training of a search stands.

    Parameters
    ----------
    runs : sequence of Run
    evaluations : sequence of Evaluation
        All of the search, those included that are fitted alone.
    results : dict
        Results by index of the evaluation, which whoever trains adds to.
    states : States
    checkpoint : Checkpoint
    metric : str or None
        Which of several scores counts.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        evaluations: Sequence[Evaluation],
        results: dict[int, dict[str, Any]],
        states: States,
        checkpoint: Checkpoint,
        metric: str | None,
    ):
        self.runs, self.evaluations, self.results = runs, evaluations, results
        self.states, self.checkpoint, self.metric = states, checkpoint, metric
        self.rungs = rungs_of([e.epochs for run in runs for e in run.evaluations])
        self.racing = {run.training.name for run in runs}
        #: The rung that each training has reached.
        self.reached: dict[str, int] = {}
        #: The latest evaluation of each run, and where its state is.
        self.latest: dict[tuple[str, int], Evaluation] = {}
        self.saved: dict[tuple[str, int], Path] = {}
        self._indices = count(len(evaluations))

    def parts(self, rung: int) -> list[Run]:
        """What is to be trained to reach a rung: the runs still in the race."""
        before = self.rungs[rung - 1] if rung else 0
        here, parts = self.rungs[rung], []
        for run in self.runs:
            name, place = run.training.name, (run.training.name, run.fold)
            if name not in self.racing or run.total <= before:
                continue
            self.reached[name] = rung
            if place in self.latest and self._failed(self.latest[place]):
                continue
            due = [e for e in run.evaluations if before < e.epochs <= here]
            if run.total > here and (not due or due[-1].epochs < here):
                due.append(self._probe(run.evaluations[-1], here))
            self.latest[place] = due[-1]
            # Where a checkpoint knows the scores but not the state, whoever needs that
            # trains again from the beginning.
            path = self.states.path(self._key(due[-1]), rung)
            if any(e.index not in self.results for e in due):
                parts.append(replace(run, evaluations=due, state=self.saved.get(place)))
            elif path.exists():
                self.saved[place] = path
            else:
                self.saved.pop(place, None)
        return parts

    def _probe(self, evaluation: Evaluation, epochs: int) -> Evaluation:
        """A look at a run where no candidate is complete."""
        probe = replace(
            evaluation,
            index=next(self._indices),
            estimator=clone(evaluation.estimator),
            epochs=epochs,
            is_probe=True,
        )
        self.checkpoint.recall(probe)
        if probe.index in self.checkpoint.results:
            self.results[probe.index] = self.checkpoint.results[probe.index]
        return probe

    def _key(self, evaluation: Evaluation) -> str:
        return self.checkpoint.keys.get(evaluation.index, str(evaluation.index))

    def keep_state(self, rung: int, index: int, state: dict[str, Any]) -> None:
        """Where the run of this latest evaluation stands."""
        for place, evaluation in self.latest.items():
            if evaluation.index == index:
                self.saved[place] = self.states.keep(self._key(evaluation), rung, state)

    def stop_worst(self, rung: int, fraction: float) -> None:
        """Take the worst of those that want to go on out of the race."""
        here, scores = self.rungs[rung], defaultdict(list)
        for run in self.runs:
            name = run.training.name
            if name in self.racing and run.total > here:
                scores[name].append(self._score(self.latest[name, run.fold]))
        mean = {name: float(np.mean(values)) for name, values in scores.items()}
        order = sorted(mean, key=lambda name: -inf if isnan(mean[name]) else mean[name])
        n_stopped = min(int(fraction * len(order)), max(0, len(order) - 1))
        self.racing -= set(order[:n_stopped])

    def _score(self, evaluation: Evaluation) -> float:
        scores = self.results[evaluation.index]["test_scores"]
        if not isinstance(scores, Mapping):
            return scores
        if self.metric not in scores:
            raise ValueError(
                f"racing compares candidates by one score, and there are "
                f"{sorted(scores)}; name one of them in refit, which is "
                f"{self.metric!r}."
            )
        return scores[self.metric]

    def _failed(self, evaluation: Evaluation) -> bool:
        return self.results[evaluation.index]["fit_error"] is not None

    def finish(self) -> None:
        """Those that were stopped keep the result of where they were."""
        self.states.clear()
        for run in self.runs:
            latest = self.latest[run.training.name, run.fold]
            for evaluation in run.evaluations:
                if evaluation.index not in self.results:
                    self.results[evaluation.index] = dict(self.results[latest.index])

    def columns(self) -> dict[str, list[Any]]:
        """For each candidate: its rung, its epochs so far, whether these were all."""
        training = {
            evaluation.index: run for run in self.runs for evaluation in run.evaluations
        }
        columns: dict[str, list[Any]] = {"rung": [], "n_epochs": [], "finished": []}
        for evaluation in self.evaluations:
            if evaluation.fold:
                continue
            run = training.get(evaluation.index)
            if run is None:  # fitted alone, to its end
                rung, epochs, finished = len(self.rungs) - 1, None, True
            else:
                rung = self.reached.get(run.training.name, 0)
                epochs = min(evaluation.epochs, self.rungs[rung])
                finished = epochs == evaluation.epochs
                rung = min(rung, self._rung(epochs))
            for name, value in zip(columns, (rung, epochs, finished), strict=True):
                columns[name].append(value)
        return columns

    def _rung(self, epochs: int) -> int:
        return next(i for i, here in enumerate(self.rungs) if here >= epochs)

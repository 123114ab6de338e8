"""Races: the candidates that are behind stop, the others go on from where they are.

Successive halving (Jamieson and Talwalkar, 2016) over epochs. It does not look at all
candidates to the end, so it may miss the best one.
"""

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
        Results by index of the evaluation; the search adds to them as they come.
    states : States
    checkpoint : Checkpoint
    fraction : float
        Of those still racing, how many stop at a rung.
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
        fraction: float,
        metric: str | None,
    ):
        self.runs, self.evaluations, self.results = runs, evaluations, results
        self.states, self.checkpoint = states, checkpoint
        self.fraction, self.metric = fraction, metric
        self.rungs = rungs_of([e.epochs for run in runs for e in run.evaluations])
        self.racing = {run.training.name for run in runs}
        #: Those that want to go on after this rung, and how many of them will.
        self.field: dict[str, list[Run]] = {}
        self.n_places = 0
        #: What those of them came to that are through, and their order in the search.
        self.scores: dict[str, tuple[float, int]] = {}
        #: After how many epochs the candidates stopped that did not get to their last.
        self.stopped: dict[int, int] = {}
        #: The latest evaluation of each run, and where its state is.
        self.latest: dict[tuple[str, int], Evaluation] = {}
        self.places: dict[int, tuple[str, int]] = {}
        self.saved: dict[tuple[str, int], Path] = {}
        self._indices = count(len(evaluations))

    def parts(self, rung: int) -> list[Run]:
        """What is to be trained to reach a rung: the runs still in the race."""
        before = self.rungs[rung - 1] if rung else 0
        here, parts = self.rungs[rung], []
        self.field, self.scores = {}, {}
        for run in self.runs:
            if run.training.name in self.racing and run.total > here:
                self.field.setdefault(run.training.name, []).append(run)
        self.n_places = max(1, len(self.field) - int(self.fraction * len(self.field)))
        for run in self.runs:
            name, place = run.training.name, (run.training.name, run.fold)
            if name not in self.racing or run.total <= before:
                continue
            if place in self.latest and self._failed(self.latest[place]):
                continue
            due = [e for e in run.evaluations if before < e.epochs <= here]
            if run.total > here and (not due or due[-1].epochs < here):
                due.append(self._probe(run.evaluations[-1], here))
            self.latest[place] = due[-1]
            self.places[due[-1].index] = place
            # Where a checkpoint has the scores but not the state, the next rung trains
            # again from the beginning.
            path = self.states.path(self._key(due[-1]), rung)
            if any(e.index not in self.results for e in due):
                state = self.saved.get(place)
                start = 0 if state is None else before
                parts.append(replace(run, evaluations=due, state=state, start=start))
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

    def keep_state(self, rung: int, index: int, state: dict[str, Any] | Path) -> None:
        """Where the run of this latest evaluation stands, or a file that says so."""
        place = self.places[index]
        if place[0] not in self.racing:
            if isinstance(state, Path):
                state.unlink()
            return
        before = self.saved.get(place)
        evaluation = self.latest[place]
        self.saved[place] = self.states.keep(self._key(evaluation), rung, state)
        if before is not None:
            before.unlink(missing_ok=True)

    def stop_worst(self) -> None:
        """Take those out of the race that so many are ahead of that no place is left.

        To be asked whenever results have come: states are large, and most of them are
        those of losers.
        """
        for position, (name, runs) in enumerate(self.field.items()):
            latest = [self.latest[name, run.fold] for run in runs]
            if name in self.scores or any(e.index not in self.results for e in latest):
                continue
            mean = float(np.mean([self._score(evaluation) for evaluation in latest]))
            # Of equals the first: the order in which they come must not matter.
            self.scores[name] = (-inf if isnan(mean) else mean, -position)
        best_first = sorted(self.scores, key=self.scores.__getitem__, reverse=True)
        for name in best_first[self.n_places :]:
            self.racing.discard(name)
            for run in self.field[name]:
                state = self.saved.pop((name, run.fold), None)
                if state is not None:
                    state.unlink(missing_ok=True)

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
                    self.stopped[evaluation.index] = latest.epochs

    def columns(self) -> dict[str, list[Any]]:
        """For each candidate: its rung, its epochs so far, whether these were all."""
        shared = {e.index for run in self.runs for e in run.evaluations}
        columns: dict[str, list[Any]] = {"rung": [], "n_epochs": [], "finished": []}
        for evaluation in self.evaluations:
            if evaluation.fold:
                continue
            if evaluation.index in shared:
                epochs = self.stopped.get(evaluation.index, evaluation.epochs)
                row: tuple[Any, ...] = (
                    self._rung(epochs),
                    epochs,
                    epochs == evaluation.epochs,
                )
            else:  # fitted alone, to its end
                row = len(self.rungs) - 1, None, True
            for name, value in zip(columns, row, strict=True):
                columns[name].append(value)
        return columns

    def _rung(self, epochs: int) -> int:
        return next(i for i, here in enumerate(self.rungs) if here >= epochs)

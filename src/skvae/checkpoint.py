"""Checkpoints: results of a search on disk, as they come, to go on from after a kill.

One small JSON file for each finished task, written whole or not at all, and in a race
the state of each run at its last rung. A result is known by a hash of all that it
depends on: data, fold, estimator, parameters, scorer.
"""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import joblib

from . import __version__
from .fingerprint import fingerprint
from .runs import Evaluation, parameters_of


class Checkpoint:
    """The results of a search in a folder.

    Parameters
    ----------
    folder : path-like or None
        Made where it is missing; None keeps nothing.
    evaluations : sequence of Evaluation

    Attributes
    ----------
    results : dict
        What was found, by the index of the evaluation.
    """

    def __init__(self, folder: Any, evaluations: Sequence[Evaluation]):
        self.folder = None if folder is None else Path(folder)
        self.results: dict[int, dict[str, Any]] = {}
        self.keys: dict[int, str] = {}
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.common = _common(evaluations[0])
        self.folds: dict[int, str] = {}
        found: dict[str, dict[str, Any]] = {}
        for path in sorted(self.folder.glob("*.json")):
            found.update(json.loads(path.read_text("utf-8")))
        self.found = found
        for evaluation in evaluations:
            self.recall(evaluation)

    def recall(self, evaluation: Evaluation) -> None:
        """Look whether there is a result of this evaluation."""
        if self.folder is None:
            return
        options, fold = evaluation.options, evaluation.fold
        if fold not in self.folds:
            self.folds[fold] = fingerprint(options["train"], options["test"])
        key = fingerprint(
            self.common,
            options["parameters"],
            self.folds[fold],
            evaluation.epochs if evaluation.is_probe else None,
        )
        self.keys[evaluation.index] = key
        if key in self.found:
            self.results[evaluation.index] = self.found[key]

    def keep(self, results: Mapping[Any, Any]) -> None:
        """Write results of some evaluations to a file of their own."""
        if self.folder is None:
            return
        named = {
            self.keys[i]: result for i, result in results.items() if i in self.keys
        }
        if named:
            name = f"{next(iter(named))}.json"
            _write(self.folder / name, json.dumps(named).encode("utf-8"))


def _common(evaluation: Evaluation) -> str:
    """A hash of what all evaluations of a search have in common."""
    options = evaluation.options
    names = ("scorer", "fit_params", "score_params", "return_train_score")
    return fingerprint(
        __version__,
        evaluation.X,
        evaluation.y,
        type(evaluation.estimator),
        parameters_of(evaluation.estimator),
        *(options[name] for name in (*names, "error_score")),
    )


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


class States:
    """States of runs between the rungs of a race: on disk, one file each.

    Parameters
    ----------
    folder : Path
    shared : bool, default=False
        Whether workers have the folder before them, and write and read for themselves.
    """

    def __init__(self, folder: Path, shared: bool = False):
        self.folder, self.shared = folder, shared
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, key: str, rung: int) -> Path:
        return self.folder / f"{key}-{rung}.state"

    def clear(self) -> None:
        """Remove them all."""
        for path in self.folder.glob("*.state*"):
            path.unlink()

    def hand_over(self, state: dict[str, Any]) -> dict[str, Any] | Path:
        """What a worker sends for a state: where it has written it, or the state."""
        return self._write(state) if self.shared else state

    def keep(self, key: str, rung: int, state: dict[str, Any] | Path) -> Path:
        """The file of a state, under the name by which it is found again."""
        written = state if isinstance(state, Path) else self._write(state)
        path = self.path(key, rung)
        os.replace(written, path)
        return path

    def _write(self, state: dict[str, Any]) -> Path:
        part = self.folder / f"{uuid4().hex}.state.part"
        joblib.dump(state, part)
        return part

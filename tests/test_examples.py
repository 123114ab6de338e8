"""The examples of the searches run, on fewer rows."""

import importlib.util
import random
import warnings
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_grid_search(tmp_path, capsys):
    pytest.importorskip("pandas")
    plt = pytest.importorskip("matplotlib.pyplot")
    example = load("grid_search")
    example.QUICK = {
        **example.QUICK,
        "epochs": [2],
        "hidden_dim": [4, 8],
        "latent_dim": [1, 2],
    }
    search = example.main(out=tmp_path, n_jobs=1, rows=100)
    plt.close("all")
    assert len(search.cv_results_["params"]) == 16
    assert len(list(tmp_path.glob("*.png"))) == 2
    assert list((tmp_path / "checkpoint").glob("*.json"))
    assert "tasks, about" in capsys.readouterr().out


def test_optuna_pruning():
    optuna = pytest.importorskip("optuna")
    optuna.logging.disable_default_handler()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = load("optuna_pruning").study(n_trials=8, epochs=8, rows=300)
    states = {trial.state.name for trial in study.trials}
    assert states == {"COMPLETE", "PRUNED"}
    pruned = [t for t in study.trials if t.state.name == "PRUNED"]
    assert all(max(t.intermediate_values) < 8 for t in pruned)


@pytest.mark.slow  # a cluster of processes that import torch
@pytest.mark.slow  # its workers are processes, which import torch
def test_dask_cluster():
    pytest.importorskip("distributed")
    state = random.getstate()  # which the cluster's client stirs
    example = load("dask_cluster")
    example.GRID = {"epochs": [1, 2], "latent_dim": [2, 3]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        search = example.main(rows=150)
    random.setstate(state)
    assert len(search.cv_results_["params"]) == 4

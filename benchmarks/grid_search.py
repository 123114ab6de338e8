"""A grid of 3,125 candidates x 3 folds as one computation, against one by one.

    python benchmarks/grid_search.py equality
    python benchmarks/grid_search.py full --out grid-search
    python benchmarks/grid_search.py small --fraction 0.1
    python benchmarks/grid_search.py plan --rows 10000 --data mnist
    python benchmarks/grid_search.py skorch --peers .venv-peers/bin/python

A fraction below 1 takes a random sample of the trainings (all epochs of each);
GridSearchCV is always measured on a random sample of all candidates and scaled. What is
sampled is printed.
"""

import argparse
import json
import resource
import subprocess
import time
from itertools import product
from pathlib import Path

import numpy as np
from joblib.externals.loky import get_reusable_executor
from sklearn.model_selection import GridSearchCV

from skvae import VAEEstimator, VAEGridSearchCV
from skvae.datasets import load_digits, load_mnist

# The grid of the notebook that skvae began as, and the ranges that it calls optimal.
EPOCHS = [10, 20, 30, 40, 50]
FULL = {
    "batch_size": [100, 200, 300, 400, 500],
    "learning_rate": [0.001, 0.005, 0.01, 0.05, 0.1],
    "hidden_dim": [400, 500, 600, 700, 800],
    "latent_dim": [8, 16, 32, 64, 128],
}
CALLED_OPTIMAL = {
    "epochs": (20, 30),
    "batch_size": (100, 200),
    "learning_rate": (0.001, 0.005),
    "hidden_dim": (400, 500),
    "latent_dim": (16, 32),
}
SMALL = {**FULL, "hidden_dim": [16, 24, 32, 48, 64], "latent_dim": [2, 4, 8, 12, 16]}
EQUALITY = {
    "epochs": [5, 10, 20],
    "batch_size": [50, 100],
    "learning_rate": [1e-3, 5e-3],
    "hidden_dim": [32, 200],
    "latent_dim": [2, 8],
}
FOLDS = 3
VAE = VAEEstimator(random_state=0)


def trainings(grid):
    """All that differ in more than epochs, as single-candidate grids."""
    names = list(grid)
    return [dict(zip(names, v, strict=True)) for v in product(*grid.values())]


def as_grid(some, epochs=None):
    return [
        {**{k: [v] for k, v in one.items()}, "epochs": epochs or [one["epochs"]]}
        for one in some
    ]


def search(kind, grid, X, n_jobs, **options):
    started = time.perf_counter()
    one = kind(VAE, grid, cv=FOLDS, n_jobs=n_jobs, refit=False, **options).fit(X)
    return one, time.perf_counter() - started


def peak_megabytes():
    """Of this process, and of the largest worker that has ended."""
    return [
        resource.getrusage(who).ru_maxrss / 1024
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]


def warm_up(X, n_jobs):
    """Start the workers before anything is timed."""
    search(GridSearchCV, {"epochs": [1, 1]}, X[:200], n_jobs)


def equality(X, options):
    ours, _ = search(VAEGridSearchCV, EQUALITY, X, options.n_jobs)
    theirs, _ = search(GridSearchCV, EQUALITY, X, options.n_jobs)
    a, b = (s.cv_results_["mean_test_score"] for s in (ours, theirs))
    same = list(np.argsort(-a)[:10]) == list(np.argsort(-b)[:10])
    print(
        f"{len(a)} candidates x {FOLDS} folds: largest relative difference of "
        f"mean_test_score {np.nanmax(np.abs(a / b - 1)):.1e} (asked: 1e-3), "
        f"first ten in the same order: {same}"
    )


def ratio(grid, X, options):
    """Ours on a sample of trainings, theirs on a sample of candidates, in turns.

    Ours twice: exhaustive, and as a race.
    """
    rng = np.random.default_rng(options.seed)
    every = trainings(grid)
    n_ours = max(3, round(options.fraction * len(every)))
    chosen = rng.permutation(len(every))[:n_ours]
    ours = as_grid([every[i] for i in sorted(chosen)], EPOCHS)
    n_candidates = len(every) * len(EPOCHS)
    chosen = rng.choice(n_candidates, options.candidates, replace=False)
    sample = [
        {**every[i // len(EPOCHS)], "epochs": EPOCHS[i % len(EPOCHS)]} for i in chosen
    ]
    warm_up(X, options.n_jobs)
    # Theirs in two halves around ours: a machine that slows down does so for both.
    halves = sample[::2], sample[1::2]
    verbose = {"verbose": 1}
    theirs = search(GridSearchCV, as_grid(halves[0]), X, options.n_jobs)[1]
    whole, seconds = search(VAEGridSearchCV, ours, X, options.n_jobs, **verbose)
    race, raced = search(
        VAEGridSearchCV, ours, X, options.n_jobs, racing=True, **verbose
    )
    theirs += search(GridSearchCV, as_grid(halves[1]), X, options.n_jobs)[1]

    # Workers count once they have ended.
    get_reusable_executor().shutdown(wait=True)
    this, worker = peak_megabytes()
    per_candidate = theirs / len(sample)
    n_fitted = n_ours * len(EPOCHS)
    best = np.nanmax(whole.cv_results_["mean_test_score"])
    found = race.cv_results_["mean_test_score"][race.best_index_]
    print(
        f"{n_fitted:,} of {n_candidates:,} candidates x {FOLDS} folds, "
        f"n_jobs={options.n_jobs}\n"
        f"  GridSearchCV     {per_candidate * n_fitted:8.0f} s, scaled from "
        f"{theirs:.1f} s for {len(sample)} candidates drawn from all\n"
        f"  VAEGridSearchCV  {seconds:8.1f} s, ratio "
        f"{per_candidate * n_fitted / seconds:.2f}\n"
        f"  racing=True      {raced:8.1f} s, ratio "
        f"{per_candidate * n_fitted / raced:.2f}, best ELBO {found:.4f} against "
        f"{best:.4f}: {abs(found / best - 1):.2%} apart\n"
        f"  peak memory {this:.0f} MB here, {worker:.0f} MB in a worker"
    )
    if options.out is not None:
        pictures(whole, options.out)


def pictures(found, folder):
    """Heat maps of pairs of parameters, and the ten best."""
    import pandas as pd

    from skvae.plotting import SearchDisplay

    folder.mkdir(parents=True, exist_ok=True)
    for x, y in (("hidden_dim", "latent_dim"), ("learning_rate", "batch_size")):
        display = SearchDisplay.from_search(found, x=x, y=y)
        display.figure_.savefig(folder / f"{x}-{y}.png", dpi=110)
    table = pd.DataFrame(found.cv_results_["params"])
    table["elbo"] = found.cv_results_["mean_test_score"]
    table.to_csv(folder / "all.csv", index=False)
    best = table.nlargest(10, "elbo")
    best.to_csv(folder / "best.csv", index=False)
    print(best.to_string(index=False))
    print(f"{'':14}{'ten best':>18}{'called optimal':>18}")
    for name, called in CALLED_OPTIMAL.items():
        found = f"{best[name].min():g} to {best[name].max():g}"
        print(f"{name:14}{found:>18}{f'{called[0]:g} to {called[1]:g}':>18}")


def plan(X, options):
    """What the plan says against what a sample of it takes."""
    rng = np.random.default_rng(options.seed)
    every = trainings(SMALL if options.small else FULL)
    n = max(2, round(options.fraction * len(every)))
    grid = as_grid([every[i] for i in rng.permutation(len(every))[:n]], EPOCHS)
    warm_up(X, options.n_jobs)
    one = VAEGridSearchCV(VAE, grid, cv=FOLDS, n_jobs=options.n_jobs, refit=False)
    table = one.plan(X)
    print(table.head(12).to_string())
    said = table.attrs["seconds"]
    _, took = search(VAEGridSearchCV, grid, X, options.n_jobs)
    print(
        f"{n} trainings: plan {said:.1f} s, took {took:.1f} s, {took / said - 1:+.0%}"
    )


def skorch(X, options):
    """GridSearchCV of a skorch module in the peers' environment, on a sample."""
    rng = np.random.default_rng(options.seed)
    every = trainings(FULL)
    chosen = rng.choice(len(every) * 5, options.candidates, replace=False)
    sample = [{**every[i // 5], "epochs": EPOCHS[i % 5]} for i in chosen]
    np.save("/tmp/skvae-digits.npy", X.astype(np.float32))
    script = Path(__file__).parent / "peers" / "search_skorch.py"
    arguments = ["/tmp/skvae-digits.npy", json.dumps(sample), str(options.n_jobs)]
    output = subprocess.run(
        [options.peers, str(script), *arguments],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    theirs = json.loads(output.strip().split("\n")[-1])["seconds"]
    n = max(1, round(options.fraction * len(every)))
    ours_sample = [every[i] for i in rng.permutation(len(every))[:n]]
    warm_up(X, options.n_jobs)
    grid = as_grid(ours_sample, EPOCHS)
    ours = search(VAEGridSearchCV, grid, X, options.n_jobs)[1]
    ours_scaled = ours * len(every) / n
    theirs_scaled = theirs * len(every) * 5 / len(sample)
    print(
        f"skorch {theirs:.1f} s for {len(sample)} candidates -> {theirs_scaled:.0f} s; "
        f"ours {ours:.1f} s for {n} trainings -> {ours_scaled:.0f} s; "
        f"ratio {theirs_scaled / ours_scaled:.1f} (both scaled)"
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = ["equality", "full", "small", "plan", "skorch"]
    parser.add_argument("what", choices=what)
    parser.add_argument("--data", choices=["digits", "mnist"], default="digits")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--fraction", type=float, default=1.0, help="of the trainings")
    parser.add_argument("--candidates", type=int, default=100, help="of GridSearchCV")
    parser.add_argument("--small", action="store_true", help="plan: small nets")
    parser.add_argument("--n-jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peers", help="python that has skorch")
    parser.add_argument("--out", type=Path, help="folder for heat maps and the best")
    options = parser.parse_args()
    data = load_digits() if options.data == "digits" else load_mnist("train")
    X = data.data[: options.rows]
    if options.what in ("full", "small"):
        ratio(FULL if options.what == "full" else SMALL, X, options)
    else:
        globals()[options.what](X, options)


if __name__ == "__main__":
    main()

"""The demo: fit, look, search and sample on real digits, and a report of it all."""

import base64
import html
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.model_selection import GridSearchCV, train_test_split

from . import __version__, plotting
from .datasets import load_digits, load_mnist
from .estimator import VAEEstimator
from .metrics import elbo_parts
from .model_selection import neg_elbo_scorer


def _digits() -> tuple[np.ndarray, ...]:
    digits = load_digits()
    return tuple(
        train_test_split(
            digits.data,
            digits.target,
            test_size=0.2,
            stratify=digits.target,
            random_state=0,
        )
    )


def _mnist() -> tuple[np.ndarray, ...]:
    train, test = load_mnist("train"), load_mnist("test")
    return train.data, test.data, train.target, test.target


# How to load (X_train, X_test, y_train, y_test), and how long to train: steps count,
# not epochs, so a small data set takes more of them.
DATASETS: dict[str, dict[str, Any]] = {
    "digits": {"load": _digits, "epochs": 200, "search_epochs": 50},
    "mnist": {"load": _mnist, "epochs": 20, "search_epochs": 5},
}
GRID = {"latent_dim": [2, 5, 10, 20], "learning_rate": [3e-4, 1e-3, 3e-3]}
# Rows that the search sees: enough to rank candidates.
SEARCH_ROWS = 5000
SEARCH_JOBS = 2


def run(dataset: str, out: Path) -> Path:
    """Run the demo and return the path of its report.

    Parameters
    ----------
    dataset : {"digits", "mnist"}
    out : Path
        Folder for the pictures and ``report.html``; made where it is missing.
    """
    out.mkdir(parents=True, exist_ok=True)
    settings = DATASETS[dataset]
    X_train, X_test, _, y_test = settings["load"]()
    print(f"{dataset}: {len(X_train):,} images to learn from, {len(X_test):,} held out")
    pictures: list[tuple[str, str]] = []

    def keep(name: str, caption: str, display: Any) -> None:
        display.figure_.savefig(out / f"{name}.png", dpi=110)
        _close(display.figure_)
        pictures.append((name, caption))

    print("\n1. Fit")
    started = time.perf_counter()
    vae = VAEEstimator(
        epochs=settings["epochs"],
        learning_rate=3e-3,
        learning_rate_schedule="cosine",
        random_state=0,
        verbose=1,
    ).fit(X_train, X_val=X_test)
    seconds = time.perf_counter() - started
    print(f"fitted in {seconds:.1f} s\n")
    table = loss_table(vae, {"train": X_train, "test": X_test})
    print(table)

    print("\n2. Look")
    keep(
        "loss",
        "Loss per epoch: the total is reconstruction plus KL.",
        plotting.LossCurveDisplay.from_estimator(vae),
    )
    keep(
        "reconstructions",
        "Held-out images over their reconstructions.",
        plotting.ReconstructionDisplay.from_estimator(vae, X_test),
    )
    keep(
        "samples",
        "New images, sampled from the prior and decoded.",
        plotting.SampleDisplay.from_estimator(vae, random_state=0),
    )
    keep(
        "latent_space",
        "Posterior means of the held-out images, coloured by class; the classes were "
        "not shown to the model.",
        plotting.LatentSpaceDisplay.from_estimator(vae, X_test[:3000], y_test[:3000]),
    )
    starts, ends = _pairs(X_test, y_test)
    keep(
        "interpolations",
        "Straight lines between the codes of two images.",
        plotting.InterpolationDisplay.from_estimator(vae, starts, ends),
    )
    keep(
        "traversals",
        "One latent dimension varied at a time, the most active ones first.",
        plotting.LatentTraversalDisplay.from_estimator(vae, X_test, n_dimensions=6),
    )
    flat = VAEEstimator(
        latent_dim=2,
        epochs=settings["epochs"],
        learning_rate=3e-3,
        learning_rate_schedule="cosine",
        random_state=0,
    ).fit(X_train)
    keep(
        "manifold",
        "A second model with a latent space of two dimensions, decoded over the "
        "quantiles of its prior.",
        plotting.ManifoldDisplay.from_estimator(flat, n_steps=15),
    )
    print(f"{len(pictures)} pictures in {out}")

    print("\n3. Search")
    search = GridSearchCV(
        VAEEstimator(epochs=settings["search_epochs"], random_state=0),
        GRID,
        scoring=neg_elbo_scorer,
        cv=3,
        n_jobs=SEARCH_JOBS,
    )
    with_progress_bar(search).fit(X_train[:SEARCH_ROWS])
    best = ", ".join(f"{name}={value}" for name, value in search.best_params_.items())
    candidates = len(search.cv_results_["params"])
    summary = (
        f"best of {candidates} candidates by 3-fold ELBO: {best}, "
        f"{search.best_score_:.2f} nats per image after "
        f"{settings['search_epochs']} epochs"
    )
    print(summary)
    keep(
        "search",
        f"Mean held-out ELBO of each candidate; {summary}.",
        plotting.SearchDisplay.from_search(search, x="latent_dim", y="learning_rate"),
    )

    report = out / "report.html"
    report.write_text(_report(dataset, vae, seconds, table, out, pictures), "utf-8")
    print(f"\nreport: {report}")
    return report


def loss_table(estimator: VAEEstimator, parts: dict[str, np.ndarray]) -> str:
    """Reconstruction, KL and their sum, per image and per batch of 100."""
    names, width = ("reconstruction", "KL", "total"), 15
    lines = [
        f"{'nats':<7}{'per image':>42}{'per batch of 100 images':>45}",
        " " * 7 + "".join(f"{name:>{width}}" for name in names * 2),
    ]
    for label, X in parts.items():
        values = [
            float(v.mean(dtype=np.float64)) for v in elbo_parts(estimator, X).values()
        ]
        lines.append(
            f"{label:<7}"
            + "".join(f"{value:>{width}.2f}" for value in values)
            + "".join(f"{100 * value:>{width},.0f}" for value in values)
        )
    return "\n".join(lines)


def with_progress_bar(search: Any) -> Any:
    """Register scikit-learn's progress bar, where there is a terminal to show it."""
    if not sys.stdout.isatty():
        return search
    try:
        from sklearn.callback import ProgressBar

        return search.set_callbacks(ProgressBar(max_propagation_depth=0))
    except ImportError:
        return search.set_params(verbose=1)


def _pairs(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first image of each class, and that of the class after next."""
    firsts = np.array([np.flatnonzero(y == label)[0] for label in np.unique(y)])
    return X[firsts[:6]], X[np.roll(firsts, -2)[:6]]


def _close(figure: Any) -> None:
    import matplotlib.pyplot as plt

    plt.close(figure)


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fafafa;
       max-width: 1000px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-weight: 600; } h1 small { color: #777; font-weight: 400; }
pre { background: #fff; border: 1px solid #ddd; padding: 1rem; overflow-x: auto;
      font-size: 14px; }
main { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; }
figure { margin: 0; background: #fff; border: 1px solid #ddd; padding: 1rem; }
figure img { width: 100%; height: auto; }
figure.wide { grid-column: 1 / -1; }
figcaption { color: #555; font-size: 14px; margin-top: .5rem; }
@media (max-width: 700px) { main { grid-template-columns: 1fr; } }
"""
WIDE = {"loss", "reconstructions"}


def _report(
    dataset: str,
    vae: VAEEstimator,
    seconds: float,
    table: str,
    out: Path,
    pictures: list[tuple[str, str]],
) -> str:
    """One HTML page that holds its pictures."""
    figures = []
    for name, caption in pictures:
        data = base64.b64encode((out / f"{name}.png").read_bytes()).decode()
        width = ' class="wide"' if name in WIDE else ""
        figures.append(
            f'<figure{width}><img alt="{html.escape(caption)}" '
            f'src="data:image/png;base64,{data}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )
    layers = [vae.n_features_in_, vae.hidden_dim, vae.latent_dim]
    shape = "-".join(str(width) for width in [*layers, *layers[-2::-1]])
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>skvae on {dataset}</title><style>{STYLE}</style></head><body>
<h1>A variational autoencoder on {dataset} <small>skvae {__version__}</small></h1>
<p>{shape}, {type(vae.likelihood_).__name__} likelihood, {vae.n_iter_} epochs, batches
of {vae.batch_size}, {seconds:.1f} s on {vae.model_.device}. The weights of epoch
{vae.best_epoch_} were kept: it has the lowest loss on the held-out images.</p>
<pre>{html.escape(table)}</pre>
<p>Total = reconstruction + KL = minus the evidence lower bound, in nats. The images are
grey and the likelihood is a Bernoulli, so these numbers compare with each other but not
with those of binarised data.</p>
<main>{"".join(figures)}</main></body></html>
"""

"""Likelihoods on MNIST beside the published ones, and networks and priors compared.

    python benchmarks/published_likelihoods.py vae iwae5 --epochs 1000
    python benchmarks/published_likelihoods.py vae vamp --epochs 40 --rows 2000
    python benchmarks/published_likelihoods.py level levels --rows 2000
    python benchmarks/published_likelihoods.py mlp conv neighbours

The first three are 784-200-200-50 with tanh under dynamic binarization (a new draw of
every pixel each epoch), batch 100, 2e-3 falling to 0 along a cosine, seed 0; log p(x)
of the test set, binarized once with seed 0, by K importance samples. "level" and
"levels" compare a hierarchy with one level on a single draw of the training set, with a
warm-up. The last three are on grey values. Results are appended to a file of JSON
lines, with K (``--samples``), seed, minutes; the curve goes to standard output. A run
that is stopped goes on from its checkpoint.
"""

import argparse
import json
import sys
import time
from math import cos, pi
from pathlib import Path

import joblib
from sklearn.decomposition import PCA

from skvae import ELBO, IWAE, MLP, ConvNet, LadderNet, VAEEstimator, VampPrior
from skvae.datasets import binarize, load_mnist
from skvae.metrics import active_units, knn_accuracy

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("runs", nargs="+")
parser.add_argument("--epochs", type=int, default=50)
parser.add_argument("--rows", type=int, default=10_000, help="of the test set")
parser.add_argument("--samples", type=int, default=5000, help="K, importance samples")
parser.add_argument("--data", default=None, help="folder of MNIST, else SKVAE_DATA")
parser.add_argument("--out", type=Path, default=Path("published_likelihoods"))
options = parser.parse_args()
options.out.mkdir(exist_ok=True)

X, y = load_mnist("train", root=options.data, return_X_y=True)
X_test, y_test = load_mnist("test", root=options.data, return_X_y=True)
binary_test = binarize(X_test, 0)[: options.rows]

BINARY = {
    "vae": {},
    "iwae5": {"objective": IWAE(k=5)},
    "vamp": {"prior": VampPrior(n_components=200)},
}
ONE_DRAW = {
    "level": {"network": MLP(activation="tanh"), "latent_dim": 50},
    "levels": {"network": LadderNet("tanh"), "latent_dim": (50, 20)},
}
GREY = {
    "mlp": {},
    "conv": {
        "network": ConvNet(channels=(32, 64), n_residual=0),
        "hidden_dim": 256,
        "epochs": 8,
        "learning_rate": 2e-3,
        "learning_rate_schedule": "cosine",
    },
}


def n_trained(vae):
    """Epochs that an estimator has seen, 0 before it is fitted."""
    return len(vae.fitted_.history) if vae.__sklearn_is_fitted__() else 0


def report(name, **figures):
    figures = {
        k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()
    }
    line = json.dumps({"run": name, **figures})
    print(line, flush=True)
    with open(options.out / "results.jsonl", "a") as file:
        file.write(line + "\n")


def train_on_new_draws(name):
    """Dynamic binarization: partial_fit on a new draw for each epoch."""
    checkpoint = options.out / f"{name}-{options.epochs}.joblib"
    vae = VAEEstimator(
        **{
            "latent_dim": 50,
            "hidden_dim": (200, 200),
            "network": MLP(activation="tanh"),
            "likelihood": "bernoulli",
            "random_state": 0,
            **BINARY[name],
        }
    )
    minutes = 0.0
    if checkpoint.exists():
        vae, minutes = joblib.load(checkpoint)
    for epoch in range(n_trained(vae), options.epochs):
        started = time.perf_counter()
        rate = 1e-3 * (1 + cos(pi * epoch / options.epochs))
        vae.set_params(learning_rate=max(rate, 1e-6))
        vae.partial_fit(binarize(X, 1000 + epoch))
        minutes += (time.perf_counter() - started) / 60
        if (epoch + 1) % 25 == 0 or epoch + 1 == options.epochs:
            joblib.dump((vae, minutes), checkpoint)
            few = binary_test[:1000]
            print(
                f"{name} epoch {epoch + 1}: {minutes:.1f} min, ELBO "
                f"{vae.score(few):.2f}, log p(x) at K = 100 "
                f"{vae.log_likelihood(few, 100).mean():.2f} (first 1,000 test rows)",
                flush=True,
            )
    return vae, minutes


for name in options.runs:
    if name in BINARY:
        vae, minutes = train_on_new_draws(name)
        report(
            name,
            binarization="dynamic",
            epochs=options.epochs,
            seed=0,
            minutes=minutes,
            test_rows=len(binary_test),
            elbo=vae.score(binary_test),
            K=options.samples,
            log_likelihood=float(
                vae.log_likelihood(binary_test, options.samples).mean()
            ),
            active_units=int(active_units(vae, binary_test).sum()),
        )
    elif name in ONE_DRAW:
        started = time.perf_counter()
        vae = VAEEstimator(
            hidden_dim=(200, 200),
            epochs=25,
            learning_rate=2e-3,
            learning_rate_schedule="cosine",
            likelihood="bernoulli",
            objective=ELBO(warmup=0.3),
            random_state=0,
            verbose=1,
            **ONE_DRAW[name],
        ).fit(binarize(X, 1))
        report(
            name,
            binarization="static",
            epochs=25,
            seed=0,
            minutes=(time.perf_counter() - started) / 60,
            test_rows=len(binary_test),
            elbo=vae.score(binary_test),
            K=options.samples,
            log_likelihood=float(
                vae.log_likelihood(binary_test, options.samples).mean()
            ),
        )
    elif name in GREY:
        started = time.perf_counter()
        vae = VAEEstimator(random_state=0, verbose=1, **GREY[name]).fit(X)
        report(
            name,
            binarization=None,
            epochs=vae.epochs,
            seed=0,
            minutes=(time.perf_counter() - started) / 60,
            elbo=vae.score(X_test),
        )
    elif name == "neighbours":
        vae = VAEEstimator(10, random_state=0).fit(X)
        pca = PCA(10, random_state=0).fit(X)
        for kind, model in (("VAE(10)", vae), ("PCA(10)", pca)):
            accuracy = knn_accuracy(
                model.transform(X), y, model.transform(X_test), y_test
            )
            report(kind, epochs=20, seed=0, nearest_neighbours=5, accuracy=accuracy)
    else:
        sys.exit(f"{name!r} is not one of {[*BINARY, *ONE_DRAW, *GREY, 'neighbours']}.")

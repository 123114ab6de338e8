"""Rows per second of OnnxVAE against the torch path, on one thread, taking turns."""

import statistics
import tempfile
import time
from pathlib import Path

import torch

from skvae import OnnxVAE, VAEEstimator
from skvae.datasets import load_mnist
from skvae.onnx import export, quantize

REPEATS = 15
METHODS = ("transform", "inverse_transform", "score_samples")


def rows_per_second(models, X, n_rows):
    """Median, by method and model, of runs that take turns."""
    Z = models["torch"].transform(X)
    seconds = {(method, name): [] for method in METHODS for name in models}
    n_batches = max(1, min(100, 2048 // n_rows))
    for _ in range(REPEATS):
        for method in METHODS:
            source = Z if method == "inverse_transform" else X
            for name, model in models.items():
                function = getattr(model, method)
                started = time.perf_counter()
                for i in range(n_batches):
                    function(source[i * n_rows : (i + 1) * n_rows])
                seconds[method, name].append(time.perf_counter() - started)
    return {
        key: n_rows * n_batches / statistics.median(times)
        for key, times in seconds.items()
    }


torch.set_num_threads(1)
vae = VAEEstimator(epochs=5, random_state=0).fit(load_mnist().data)
X = load_mnist(split="test").data
with tempfile.TemporaryDirectory() as folder:
    whole, small = Path(folder) / "vae.onnx", Path(folder) / "int8.onnx"
    export(vae, whole)
    print(quantize(whole, small, X=X[:2000]), end="\n\n")
    models = {
        "torch": vae,
        "onnx": OnnxVAE(whole, n_threads=1),
        "int8": OnnxVAE(small, n_threads=1),
    }
    for part in ("encoder", "decoder", "autoencoder", "elbo", "prior", "all"):
        export(vae, Path(folder) / f"{part}.onnx", part)
        size = (Path(folder) / f"{part}.onnx").stat().st_size
        print(f"{part:12} {size:>10,} bytes")
    print("\nrows per second (ratio to torch)")
    for n_rows in (1, 1024):
        found = rows_per_second(models, X, n_rows)
        for method in METHODS:
            figures = "  ".join(
                f"{name} {found[method, name]:>9,.0f} "
                f"({found[method, name] / found[method, 'torch']:.2f})"
                for name in models
            )
            print(f"batch {n_rows:>4}  {method:18} {figures}")

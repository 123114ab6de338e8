"""Draws the pictures of the README, from MNIST (`load_mnist(download=True)` first)."""

from pathlib import Path

import matplotlib.pyplot as plt

from skvae import VAEEstimator
from skvae.datasets import load_mnist
from skvae.plotting import (
    InterpolationDisplay,
    LatentSpaceDisplay,
    ReconstructionDisplay,
    SampleDisplay,
)

FOLDER = Path(__file__).parent / "images"
train, test = load_mnist("train"), load_mnist("test")
vae = VAEEstimator(learning_rate_schedule="cosine", random_state=0, verbose=1)
vae.fit(train.data)

display = ReconstructionDisplay.from_estimator(vae, test.data, n_samples=12)
display.figure_.savefig(FOLDER / "reconstructions.png", dpi=80)

figure, axes = plt.subplots(1, 3, figsize=(15, 5), layout="constrained")
SampleDisplay.from_estimator(vae, n_samples=64, random_state=0, ax=axes[0])
LatentSpaceDisplay.from_estimator(vae, test.data[:2000], test.target[:2000], ax=axes[1])
InterpolationDisplay.from_estimator(
    vae, test.data[:8], test.data[8:16], n_steps=8, ax=axes[2]
)
figure.savefig(FOLDER / "gallery.png", dpi=70)

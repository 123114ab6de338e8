"""The default model on MNIST: 20 epochs, with and without the cosine schedule."""

import sys
from pathlib import Path

from skvae import VAEEstimator
from skvae.demo import loss_table

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from mnist import images

X_train, X_test = images("train"), images("test")
cosine = {"learning_rate_schedule": "cosine"}
for options in ({}, cosine, {**cosine, "learning_rate": 3e-3}):
    vae = VAEEstimator(random_state=0, verbose=1, **options).fit(X_train)
    print(f"\n{vae!r}: best epoch {vae.best_epoch_} by training loss")
    print(loss_table(vae, {"train": X_train, "test": X_test}), flush=True)

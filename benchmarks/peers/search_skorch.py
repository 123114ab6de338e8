"""GridSearchCV over skorch. Arguments: rows (.npy), candidates (JSON), n_jobs."""

import json
import sys
import time

import numpy as np
import torch
from sklearn.model_selection import GridSearchCV
from skorch import NeuralNet
from torch import nn
from torch.nn import functional as F


class VAE(nn.Module):
    def __init__(self, width=64, hidden_dim=400, latent_dim=20):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(width, hidden_dim),
            nn.ReLU(),
            nn.Linear(hidden_dim, 2 * latent_dim),
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, width)
        )

    def forward(self, x):
        mean, log_variance = self.encoder(x).chunk(2, dim=-1)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        return self.decoder(z), mean, log_variance


def negative_elbo(outputs, x):
    logits, mean, log_variance = (torch.as_tensor(part) for part in outputs)
    x = torch.as_tensor(x)
    entropy = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum()
    return (entropy + kl) / len(x)


class NegativeELBO(nn.Module):
    def forward(self, outputs, x):
        return negative_elbo(outputs, x)


def elbo(net, X, y=None):
    parts = [torch.cat(part) for part in zip(*net.forward_iter(X), strict=True)]
    return -float(negative_elbo(parts, X))


NAMES = {
    "epochs": "max_epochs",
    "batch_size": "batch_size",
    "learning_rate": "lr",
    "hidden_dim": "module__hidden_dim",
    "latent_dim": "module__latent_dim",
}


def main():
    torch.manual_seed(0)
    X = np.load(sys.argv[1])
    candidates = [
        {NAMES[name]: [value] for name, value in candidate.items()}
        for candidate in json.loads(sys.argv[2])
    ]
    net = NeuralNet(
        VAE,
        NegativeELBO,
        module__width=X.shape[1],
        optimizer=torch.optim.Adam,
        iterator_train__shuffle=True,
        train_split=None,
        verbose=0,
    )
    started = time.perf_counter()
    search = GridSearchCV(
        net, candidates, scoring=elbo, cv=3, n_jobs=int(sys.argv[3]), refit=False
    ).fit(X, X)
    print(
        json.dumps(
            {
                "seconds": time.perf_counter() - started,
                "best": float(np.nanmax(search.cv_results_["mean_test_score"])),
            }
        )
    )


if __name__ == "__main__":
    main()

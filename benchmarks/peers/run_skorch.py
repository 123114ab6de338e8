"""The same model in skorch. Arguments: epochs, batch size."""

import sys

import torch
from mnist import images, report
from skorch import NeuralNet
from torch import nn
from torch.nn import functional as F


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 40))
        self.decoder = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784))

    def forward(self, x):
        mean, log_variance = self.encoder(x).chunk(2, dim=-1)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        return self.decoder(z), mean, log_variance


class NegativeELBO(nn.Module):
    def forward(self, outputs, x):
        logits, mean, log_variance = outputs
        entropy = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum()
        return (entropy + kl) / len(x)


torch.manual_seed(0)
X = images()
net = NeuralNet(
    VAE,
    NegativeELBO,
    optimizer=torch.optim.Adam,
    lr=1e-3,
    max_epochs=int(sys.argv[1]),
    batch_size=int(sys.argv[2]),
    iterator_train__shuffle=True,
    train_split=None,
    verbose=0,
).fit(X, X)
report(net.history[:, "dur"], net.history[-1, "train_loss"])

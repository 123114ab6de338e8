"""The same model in Pythae. Arguments: epochs, batch size."""

import logging
import sys
import tempfile
import time

import torch
from mnist import images, report
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.pipelines import TrainingPipeline
from pythae.trainers import BaseTrainerConfig
from pythae.trainers.training_callbacks import TrainingCallback
from torch import nn


class Encoder(BaseEncoder):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(784, 400), nn.ReLU())
        self.mean, self.log_variance = nn.Linear(400, 20), nn.Linear(400, 20)

    def forward(self, x):
        hidden = self.hidden(x)
        return ModelOutput(
            embedding=self.mean(hidden), log_covariance=self.log_variance(hidden)
        )


class Decoder(BaseDecoder):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784), nn.Sigmoid()
        )

    def forward(self, z):
        return ModelOutput(reconstruction=self.layers(z))


class Clock(TrainingCallback):
    def __init__(self):
        self.seconds, self.loss = [], float("nan")

    def on_epoch_begin(self, training_config, **kwargs):
        self.started = time.perf_counter()

    def on_epoch_end(self, training_config, **kwargs):
        self.seconds.append(time.perf_counter() - self.started)

    def on_log(self, training_config, logs, **kwargs):
        self.loss = logs.get("train_epoch_loss", self.loss)


logging.disable(logging.CRITICAL)
clock = Clock()
config = VAEConfig(input_dim=(784,), latent_dim=20, reconstruction_loss="bce")
with tempfile.TemporaryDirectory() as folder:
    trainer = BaseTrainerConfig(
        output_dir=folder,
        num_epochs=int(sys.argv[1]),
        per_device_train_batch_size=int(sys.argv[2]),
        learning_rate=1e-3,
        seed=0,
        no_cuda=True,
    )
    TrainingPipeline(
        model=VAE(config, encoder=Encoder(), decoder=Decoder()), training_config=trainer
    )(train_data=torch.tensor(images()), callbacks=[clock])
report(clock.seconds, clock.loss)

"""Training: from rows and choices to a fitted VAE."""

from .data import Data
from .engine import Stack, train_stack
from .setup import TRAIN, Request, prepare, train, train_more
from .training import SCHEDULES, DivergenceError, Options, Training

__all__ = [
    "SCHEDULES",
    "TRAIN",
    "Data",
    "DivergenceError",
    "Options",
    "Request",
    "Stack",
    "Training",
    "prepare",
    "train",
    "train_more",
    "train_stack",
]

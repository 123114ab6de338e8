"""One model in training: its weights, its optimiser, its randomness."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import cos, isfinite, pi
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..fitted import FittedVAE
from ..history import Record
from ..model import Batch, Model
from .averages import BestEpoch
from .data import Data
from .step import Losses, summed
from .weights import Weights, ordered, point_at

# Noise is drawn in blocks of this many numbers, so that long data need no more memory.
NOISE_BLOCK = 2**22
# Rows of a validation set that are evaluated at a time.
EVALUATED_ROWS = 1024


class DivergenceError(ValueError):
    """Training met a loss that is not finite before any epoch was complete."""


def constant(progress: float) -> float:
    """The learning rate as it is."""
    return 1.0


def cosine(progress: float) -> float:
    """From the learning rate down to 0 along half a cosine."""
    return 0.5 * (1 + cos(pi * progress))


# Share of all steps that is done -> factor of the learning rate.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": constant,
    "cosine": cosine,
}


@dataclass(frozen=True)
class Options:
    """How to train, as the estimator's parameters say.

    Attributes
    ----------
    epochs, batch_size : int
    learning_rate : float
    schedule : str
        A key of ``SCHEDULES``.
    patience : int or None
        Epochs without an improvement after which the training stops.
    tolerance : float
        Smallest improvement that counts, in nats per row.
    max_gradient_norm : float or None
        Longer gradients are scaled down to this norm.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    schedule: str = "constant"
    patience: int | None = None
    tolerance: float = 0.0
    max_gradient_norm: float | None = None


class Training:
    """A model in training: weights, optimiser, randomness. The one mutable object.

    Parameters
    ----------
    start : FittedVAE
        What to begin with; it is left as it is.
    options : Options
    precision : torch.dtype
        What the network computes in while it trains.
    data : Data or None
        Rows to train on.
    held_out : (Data, Tensor) or None
        The validation set and the noise to evaluate it with.

    Attributes
    ----------
    module : Model
        Trained in place. Between epochs its weights are float32.
    records : list of Record
        Of the epochs so far.
    result : {"running", "complete", "stopped", "interrupted", "diverged"}
    """

    def __init__(
        self,
        start: FittedVAE,
        options: Options,
        precision: torch.dtype,
        data: Data | None = None,
        held_out: tuple[Data, Tensor] | None = None,
    ):
        self.start, self.options, self.precision = start, options, precision
        self.data, self.held_out = data, held_out
        self.module = copy.deepcopy(start.module)
        self.records: list[Record] = []
        self.result, self.message = "running", ""
        #: Epochs that the model has ever seen, and the steps of this training.
        self.n_epochs, self.n_steps = len(start.history), 0
        # Every epoch so far moves the seed: to go on is not to repeat order and noise.
        seed = np.random.SeedSequence([start.seed, self.n_epochs]).generate_state(1)
        # On the CPU, so that a seed means the same on every device.
        self.generator = torch.Generator().manual_seed(int(seed[0]))
        parameters = ordered(self.module).values()
        self.master = torch.cat([p.detach().flatten() for p in parameters])
        self.first_moment = torch.zeros_like(self.master)
        self.second_moment = torch.zeros_like(self.master)
        device = self.module.device
        self.step_count = torch.zeros(
            (),
            dtype=torch.float32,
            device=device if device.type == "cuda" else "cpu",
        )
        # For good: Adam's moments have it. A square of it must fit into float32.
        self.gradient_scale = min(options.batch_size, 2**40)
        self.best = BestEpoch(self.master)
        self.views = Weights(self.master[None], self.shapes, 0, torch.float32).values
        point_at(self.module, self.views)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the parameters, in the order of the flat weights."""
        return [tuple(p.shape) for p in ordered(self.module).values()]

    @property
    def batch_size(self) -> int:
        """Rows of a step."""
        assert self.data is not None
        return min(self.options.batch_size, len(self.data))

    @property
    def steps_per_epoch(self) -> int:
        assert self.data is not None
        return -(-len(self.data) // self.batch_size)

    @property
    def total_steps(self) -> int:
        """Steps of the whole training: the length of the schedule."""
        return self.steps_per_epoch * self.options.epochs

    @property
    def ended(self) -> bool:
        return self.result != "running"

    @property
    def epochs_left(self) -> int:
        return self.options.epochs - len(self.records)

    def paces(self, n_steps: int) -> list[tuple[float, float]]:
        """Learning rate and progress of the steps of an epoch, after so many."""
        schedule, rate = SCHEDULES[self.options.schedule], self.options.learning_rate
        total = self.total_steps
        # 1 at the last step: whatever warms up has ended by then.
        return [
            (rate * schedule(i / total), i / max(1, total - 1))
            for i in range(n_steps, n_steps + self.steps_per_epoch)
        ]

    # ------------------------------------------------------------------ epochs

    def begin_epoch(self) -> None:
        self.best.begin_epoch(self.master)
        warmup_steps = self.start.choices.objective.warmup * self.total_steps
        self.warming_up = self.n_steps < warmup_steps

    def end_epoch(self, record: Record) -> None:
        """Evaluate, and select the weights; decide whether to go on."""
        self.n_epochs, self.n_steps = record.epoch, self.n_steps + self.steps_per_epoch
        if self.held_out is not None:
            (
                record.validation_loss,
                record.validation_reconstruction,
                record.validation_kl,
            ) = self.evaluate(*self.held_out)
        if not self.is_finite(record):
            self.result, self.message = "diverged", not_finite(record)
            return
        self.records.append(record)
        self.best.end_epoch(
            record,
            self.master,
            compares=not self.warming_up,
            tolerance=self.options.tolerance,
        )
        patience = self.options.patience
        if len(self.records) >= self.options.epochs:
            self.result = "complete"
        elif patience is not None and self.best.waited >= patience:
            self.result = "stopped"

    def is_finite(self, record: Record) -> bool:
        return (
            isfinite(record.loss)
            and isfinite(record.monitored)
            and bool(torch.isfinite(self.master).all())
        )

    def interrupt(self) -> None:
        """End here, in the middle of an epoch: the best weights so far are kept."""
        self.best.interrupt(self.master)
        self.result = "interrupted"

    def noise(self, n_rows: int) -> Iterator[Tensor]:
        """Noise of each batch in turn, (S, batch, n_training_noise)."""
        draws, width = self.module.objective.n_draws, self.module.n_training_noise
        size = min(self.options.batch_size, n_rows)
        batches = max(1, NOISE_BLOCK // (draws * width * size))
        for start in range(0, n_rows, batches * size):
            block = min(batches * size, n_rows - start)
            noise = torch.randn(
                (block, draws, width), generator=self.generator, dtype=torch.float32
            )
            noise = noise.to(self.module.device).transpose(0, 1)
            yield from noise.split(size, dim=1)

    @torch.no_grad()
    def evaluate(self, data: Data, noise: Tensor) -> tuple[float, float, float]:
        """Loss, reconstruction and KL: means over the rows, under this noise."""
        totals = torch.zeros(3, dtype=torch.float32, device=data.x.device)
        for start in range(0, len(data), EVALUATED_ROWS):
            rows = slice(start, start + EVALUATED_ROWS)
            parts = data.take(rows)
            batch = Batch(noise=noise[:, rows], n_rows=len(data), **parts)
            loss, terms = self.module.loss(batch)
            losses = Losses(loss, terms.reconstruction, terms.divergence, terms.mean)
            totals += summed(losses, batch.weights)
        return self.means(totals, len(data))

    def means(self, totals: Tensor, n_rows: int) -> tuple[float, float, float]:
        """Sums of loss, reconstruction and KL as means in the user's units."""
        loss, reconstruction, kl = (totals / n_rows).tolist()
        log_scale = self.start.units.log_scale
        return loss + log_scale, reconstruction + log_scale, kl

    # ------------------------------------------------------------------ results

    def value(self) -> FittedVAE:
        """The fitted VAE with the weights that are selected so far."""
        module: Model = copy.deepcopy(self.start.module)
        weights = Weights(
            self.best.weights[None].clone(), self.shapes, 0, torch.float32
        )
        for parameter, view in zip(
            ordered(module).values(), weights.values, strict=True
        ):
            parameter.data = view.clone()
        return replace(
            self.start,
            module=module,
            history=(*self.start.history, *self.records),
            n_epochs=len(self.records),
            best_epoch=self.best.epoch or len(self.start.history),
            result="complete" if self.result == "running" else self.result,
            n_steps=self.n_steps,
            message=self.message,
        )

    def state(self) -> dict[str, Any]:
        """All that the epochs so far have changed, to go on elsewhere."""
        state: dict[str, Any] = {
            "n_epochs": self.n_epochs,
            "n_steps": self.n_steps,
            "records": list(self.records),
            "best": self.best.counts(),
            "generator": self.generator.get_state().numpy(),
        }
        tensors = {
            "master": self.master,
            "first_moment": self.first_moment,
            "second_moment": self.second_moment,
            "step_count": self.step_count,
            "best_weights": self.best.weights,
        }
        if torch.equal(self.best.weights, self.master):  # as it usually is
            del tensors["best_weights"]
        return state | {name: t.cpu().numpy().copy() for name, t in tensors.items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from where the :meth:`state` of a training of this model was taken."""
        self.n_epochs, self.n_steps = state["n_epochs"], state["n_steps"]
        self.records = list(state["records"])
        self.best.restore(state["best"])
        self.master.copy_(torch.tensor(state["master"]))
        self.best.weights.copy_(
            torch.tensor(state.get("best_weights", state["master"]))
        )
        self.first_moment.copy_(torch.tensor(state["first_moment"]))
        self.second_moment.copy_(torch.tensor(state["second_moment"]))
        self.step_count.copy_(torch.tensor(state["step_count"]))
        self.generator.set_state(torch.tensor(state["generator"]))


def not_finite(record: Record) -> str:
    """What a loss that is not finite looked like."""
    return (
        f"Training stopped: the loss is no longer finite in epoch {record.epoch} "
        f"(loss {record.loss}, reconstruction {record.reconstruction}, KL "
        f"{record.kl}, in nats per row)"
    )

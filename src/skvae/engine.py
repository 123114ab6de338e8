"""The engine: trains a model on an array that already lies on its device.

No DataLoader and no per-row Python: a batch is a slice of a permutation, noise and
permutation come from the engine's own generator, all weights are one flat float32
buffer that a single fused Adam call updates.
"""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import cos, isfinite, pi
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._compat import adam_step
from .device import training
from .gradients import Rows, gradient_step
from .model import Batch, Model

# A latent dimension is active where its posterior mean varies this much over the data
# (Burda et al., 2016).
ACTIVE_VARIANCE = 0.01
# Noise is drawn in blocks of this many numbers, so that long data need no more memory.
NOISE_BLOCK = 2**22


class DivergenceError(ValueError):
    """Training met a loss that is not finite; the last finite weights were kept."""


@dataclass(frozen=True)
class Data:
    """Rows in the model's units, on its device.

    Attributes
    ----------
    X : Tensor of shape (N, D)
    weights : Tensor of shape (N,) or None
        Of mean 1.
    condition : Tensor of shape (N, n_conditions) or None
        What the decoder sees beside z.
    """

    X: Tensor
    weights: Tensor | None = None
    condition: Tensor | None = None

    @classmethod
    def from_rows(
        cls,
        rows: np.ndarray,
        weights: np.ndarray | None,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        condition: np.ndarray | None = None,
    ) -> "Data":
        """Move float32 rows to the device once; on the CPU share them where possible.

        Training only reads, so sharing is safe; torch cannot see a read-only array.
        """
        if not (rows.flags.writeable and rows.flags.c_contiguous):
            rows = np.array(rows, order="C")
        X = torch.from_numpy(rows).to(device, dtype)

        def tensor(array):
            if array is None:
                return None
            return torch.tensor(array, dtype=torch.float32, device=device)

        if weights is not None:
            weights = weights / weights.mean()
        return cls(X, tensor(weights), tensor(condition))

    def __len__(self) -> int:
        return len(self.X)

    def take(self, rows: Tensor | slice) -> "Data":
        """Some of the rows, by their indices or a slice."""

        def of(tensor):
            if tensor is None or isinstance(rows, slice):
                return None if tensor is None else tensor[rows]
            return tensor.index_select(0, rows)

        return Data(of(self.X), of(self.weights), of(self.condition))


@dataclass(kw_only=True)
class Record:
    """What one epoch came to; losses in nats per row, means over the rows.

    Without a validation set its losses are None.
    """

    epoch: int
    loss: float
    reconstruction: float
    kl: float
    validation_loss: float | None = None
    validation_reconstruction: float | None = None
    validation_kl: float | None = None
    active_units: int
    learning_rate: float
    seconds: float

    @property
    def monitored(self) -> float:
        """What the best epoch has least of."""
        return self.loss if self.validation_loss is None else self.validation_loss


def constant(progress: float) -> float:
    """The learning rate as it is."""
    return 1.0


def cosine(progress: float) -> float:
    """From the learning rate down to 0 along half a cosine."""
    return 0.5 * (1 + cos(pi * progress))


# Fraction of all steps done -> factor of the learning rate.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": constant,
    "cosine": cosine,
}


# What a trainer counts.
_COUNTS = ("n_epochs", "n_steps", "best_epoch", "best_loss", "waited")


class Trainer:
    """A model in training: its flat weights, their optimiser, its randomness.

    Parameters
    ----------
    model : Model
        Trained in place. Between epochs its weights are float32.
    learning_rate : float
    batch_size : int
    precision : torch.dtype
        What the network computes in while it trains.
    generator : torch.Generator
        On the CPU, so that a seed means the same on every device.
    n_epochs : int
        Epochs that the model has seen before: where the records go on counting.
    schedule : str
        A key of ``SCHEDULES``.
    max_gradient_norm : float or None
        Gradients longer than this are scaled down to it.
    log_scale : float
        What the units add to -log p(x|z): records are in the user's own units.
    """

    def __init__(
        self,
        model: Model,
        *,
        learning_rate: float,
        batch_size: int,
        precision: torch.dtype,
        generator: torch.Generator,
        n_epochs: int = 0,
        schedule: str = "constant",
        max_gradient_norm: float | None = None,
        log_scale: float = 0.0,
    ):
        self.model = model
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.gradient_scale = batch_size  # for good: Adam's moments have it
        self.precision = precision
        self.generator = generator
        self.schedule = SCHEDULES[schedule]
        self.max_gradient_norm = max_gradient_norm
        self.log_scale = log_scale
        self.n_epochs = n_epochs
        self.n_steps = 0
        #: The epoch whose weights ``train`` keeps, 0 before the first is whole.
        self.best_epoch = 0
        self.best_loss = float("inf")
        self.waited = 0

        self.weights = FlatWeights(model, precision)
        self.gradient_step = gradient_step(model, self.weights.gradients)
        self.weights.full_precision()
        self.first_moment = torch.zeros_like(self.weights.master)
        self.second_moment = torch.zeros_like(self.weights.master)
        self.step_count = torch.zeros(
            (),
            dtype=torch.float32,
            device=model.device if model.device.type == "cuda" else "cpu",
        )
        #: The weights that ``train`` keeps, as one buffer.
        self.best = self.weights.master.clone()

    def close(self) -> None:
        """Give the model weights of its own, and let go of the buffers."""
        self.weights.detach()

    @contextmanager
    def best_weights(self) -> Iterator[None]:
        """Within, between two epochs, the model is what ``train`` would leave."""
        master = self.weights.master
        last = master.clone()
        master.copy_(self.best)
        try:
            yield
        finally:
            master.copy_(last)

    def state(self) -> dict[str, Any]:
        """All that the epochs so far have changed, to go on elsewhere."""
        state = {name: getattr(self, name) for name in _COUNTS}
        tensors = {
            "master": self.weights.master,
            "best": self.best,
            "first_moment": self.first_moment,
            "second_moment": self.second_moment,
            "step_count": self.step_count,
        }
        if torch.equal(self.best, self.weights.master):  # as it usually is
            del tensors["best"]
        state |= {name: t.cpu().numpy().copy() for name, t in tensors.items()}
        return state | {"generator": self.generator.get_state().numpy()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from where the :meth:`state` of a trainer of this model was taken."""
        for name in _COUNTS:
            setattr(self, name, state[name])
        self.weights.master.copy_(torch.tensor(state["master"]))
        self.best.copy_(torch.tensor(state.get("best", state["master"])))
        self.first_moment.copy_(torch.tensor(state["first_moment"]))
        self.second_moment.copy_(torch.tensor(state["second_moment"]))
        self.step_count.copy_(torch.tensor(state["step_count"]))
        self.generator.set_state(torch.tensor(state["generator"]))

    def data(
        self,
        rows: np.ndarray,
        weights: np.ndarray | None,
        condition: np.ndarray | None = None,
    ) -> Data:
        """Rows to train on, in the dtype that is fastest without loss.

        Grey values may be as coarse as the products; a residual must not be.
        """
        rounded = self.model.likelihood.tolerates_rounding
        dtype = self.precision if rounded else torch.float32
        data = Data.from_rows(rows, weights, self.model.device, dtype, condition)
        if data.weights is None:
            return data
        # Both halves of a row's loss must see the same weight.
        return replace(data, weights=data.weights.to(self.precision).float())

    def train_pass(self, data: Data) -> Record:
        """An epoch after which the model is usable, whatever happens in it.

        Raises
        ------
        DivergenceError
            If the loss or a weight is no longer finite; the weights are then those
            from before, as they are after any other exception.
        """
        master = self.weights.master
        before = master.clone()
        try:
            record = self.train_epoch(data)
            if not (isfinite(record.loss) and bool(torch.isfinite(master).all())):
                raise DivergenceError(_not_finite(record))
        except BaseException:
            master.copy_(before)
            self.weights.full_precision()
            raise
        return record

    def train_epoch(self, data: Data, total_steps: int | None = None) -> Record:
        """One pass over the rows in a new order; returns its record.

        ``total_steps`` is the length of the schedule, in steps.
        """
        started = time.perf_counter()
        device, size = data.X.device, self.batch_size
        order = torch.randperm(len(data), generator=self.generator).to(device)
        totals = torch.zeros(3, dtype=torch.float32, device=device)
        mean_sum = totals.new_zeros(self.model.latent_dim)
        square_sum = torch.zeros_like(mean_sum)
        # Without an end in sight there is no warm-up either.
        rate, progress = self.learning_rate, 1.0

        self.weights.training_precision()
        noise = self._noise(len(data))
        with training(device, self.weights.master.numel() * size):
            for start in range(0, len(data), size):
                rows = order[start : start + size]
                if total_steps is not None:
                    rate, progress = self.pace(self.n_steps, total_steps)
                some = data.take(rows)
                batch = Batch(
                    some.X,
                    next(noise),
                    some.weights,
                    some.condition,
                    n_rows=len(data),
                    progress=progress,
                )
                result = self.gradient_step(batch)
                with torch.no_grad():
                    self._update(rate, len(rows))
                    totals.add_(summary(result, batch.weights))
                    mean_sum.add_(result.mean.sum(0))
                    square_sum.add_(result.mean.square().sum(0))
        self.weights.full_precision()

        self.n_epochs += 1
        loss_mean, reconstruction, kl = self._means(totals, len(data))
        variance = square_sum / len(data) - (mean_sum / len(data)).square()
        return Record(
            epoch=self.n_epochs,
            loss=loss_mean,
            reconstruction=reconstruction,
            kl=kl,
            active_units=int((variance > ACTIVE_VARIANCE).sum()),
            learning_rate=rate,
            seconds=time.perf_counter() - started,
        )

    def pace(self, n_steps: int, total_steps: int) -> tuple[float, float]:
        """Learning rate and progress of a step, after so many."""
        rate = self.learning_rate * self.schedule(n_steps / total_steps)
        # 1 at the last step: whatever warms up has ended by then.
        return rate, n_steps / max(1, total_steps - 1)

    def _noise(self, n_rows: int) -> Iterator[Tensor]:
        """Noise of each batch in turn, (S, batch, n_noise)."""
        draws, width = self.model.objective.n_draws, self.model.n_training_noise
        per_row = draws * width
        batches = max(1, NOISE_BLOCK // (per_row * self.batch_size))
        for start in range(0, n_rows, batches * self.batch_size):
            block = min(batches * self.batch_size, n_rows - start)
            noise = torch.randn(
                (block, draws, width), generator=self.generator, dtype=torch.float32
            )
            noise = noise.to(self.model.device).transpose(0, 1)
            yield from noise.split(self.batch_size, dim=1)

    def _update(self, rate: float, n_rows: int) -> None:
        """One step of Adam from the gradient of a sum over so many rows.

        Adam does not see the scale of a gradient, but for its epsilon: instead of the
        gradient, epsilon is multiplied, by the rows of a full batch. A short batch is
        brought to the same scale, so that each step follows the mean of its rows.
        """
        gradient = self.weights.gather_gradients()
        if n_rows != self.gradient_scale:
            gradient.mul_(self.gradient_scale / n_rows)
        if self.max_gradient_norm is not None:
            norm = gradient.norm() + 1e-12
            limit = self.gradient_scale * self.max_gradient_norm
            gradient.mul_((limit / norm).clamp(max=1.0))
        adam_step(
            self.weights.master,
            gradient,
            self.first_moment,
            self.second_moment,
            self.step_count,
            rate,
            1e-8 * self.gradient_scale,
        )
        self.weights.spread()
        self.n_steps += 1

    def evaluate(self, data: Data, noise: Tensor) -> tuple[float, float, float]:
        """Loss, reconstruction and KL: means over the rows, under this noise."""
        totals = torch.zeros(3, dtype=torch.float32, device=data.X.device)
        with torch.no_grad():
            for start in range(0, len(data), 1024):
                rows = slice(start, start + 1024)
                some = data.take(rows)
                batch = Batch(
                    some.X.float(),
                    noise[:, rows],
                    some.weights,
                    some.condition,
                    n_rows=len(data),
                )
                loss, terms = self.model.loss(batch)
                result = Rows(loss, terms.reconstruction, terms.divergence, terms.mean)
                totals += summary(result, batch.weights)
        return self._means(totals, len(data))

    def _means(self, totals: Tensor, n_rows: int) -> tuple[float, float, float]:
        loss, reconstruction, kl = (totals / n_rows).tolist()
        return loss + self.log_scale, reconstruction + self.log_scale, kl


def summary(rows: Rows, weights: Tensor | None) -> Tensor:
    """Loss, reconstruction and KL, each a weighted sum over the rows, (3,)."""
    parts = torch.stack([rows.loss, rows.reconstruction, rows.kl])
    return parts.sum(1) if weights is None else parts @ weights


class FlatWeights:
    """All weights of a model in one float32 buffer, seen by the model as its own.

    Where training runs in a lower precision the network computes with a copy that
    follows the float32 master; the few weights outside the network stay float32.
    """

    def __init__(self, model: Model, precision: torch.dtype):
        self.parameters = list(model.parameters())
        in_network = {id(p) for p in model.network.parameters()}
        # The network's weights first: the copy is then one piece of the buffer.
        self.parameters.sort(key=lambda p: id(p) not in in_network)
        n_network = sum(p.numel() for p in model.network.parameters())

        self.master = torch.cat([p.detach().flatten() for p in self.parameters])
        self.gradient = torch.zeros_like(self.master)
        self.low = self.low_gradient = None
        if precision != torch.float32:
            self.low = self.master[:n_network].to(precision)
            self.low_gradient = torch.zeros_like(self.low)
        self.full_views = self._views(self.master, None)
        self.training_views = self._views(self.master, self.low)
        views = self._views(self.gradient, self.low_gradient)
        self.training_precision()
        by_parameter = dict(zip(map(id, self.parameters), views, strict=True))
        #: Where each parameter's gradient goes, in the order of model.parameters().
        self.gradients = [by_parameter[id(p)] for p in model.parameters()]

    def _views(self, buffer: Tensor, low: Tensor | None) -> list[Tensor]:
        views, start = [], 0
        for parameter in self.parameters:
            stop = start + parameter.numel()
            source = low if low is not None and stop <= len(low) else buffer
            views.append(source[start:stop].view(parameter.shape))
            start = stop
        return views

    def _point_at(self, views: list[Tensor]) -> None:
        for parameter, view in zip(self.parameters, views, strict=True):
            parameter.data = view

    def training_precision(self) -> None:
        self.spread()
        self._point_at(self.training_views)

    def full_precision(self) -> None:
        self._point_at(self.full_views)

    def gather_gradients(self) -> Tensor:
        if self.low_gradient is not None:
            self.gradient[: len(self.low_gradient)].copy_(self.low_gradient)
        return self.gradient

    def spread(self) -> None:
        if self.low is not None:
            self.low.copy_(self.master[: len(self.low)])

    def detach(self) -> None:
        self._point_at([view.clone() for view in self.full_views])


def train(
    trainer: Trainer,
    data: Data,
    *,
    epochs: int,
    validation: Data | None = None,
    validation_noise: Tensor | None = None,
    patience: int | None = None,
    tolerance: float = 0.0,
    on_epoch_begin: Callable[[], object] = lambda: None,
    train_epoch: Callable[[Data, int], Record] | None = None,
) -> Generator[Record, None, None]:
    """Train for some epochs, yielding the record of each; the best weights stay.

    The best epoch has the lowest validation loss, or the lowest training loss where
    there is no validation set, among those that began after the objective's warm-up.
    Whoever iterates may stop at any time, by ``close()`` or by an exception such as
    KeyboardInterrupt: the best weights so far are in place.

    Parameters
    ----------
    patience : int or None
        Stop after this many epochs in a row without an improvement.
    tolerance : float
        What counts as an improvement, in nats per row.
    on_epoch_begin : callable
        Called without arguments before each epoch.
    train_epoch : callable or None
        In place of the trainer's own: the epoch of a stack that it belongs to.

    Raises
    ------
    DivergenceError
        If the loss or a weight is no longer finite. The weights are then those of the
        best epoch, or the last finite ones where no epoch was whole.
    """
    steps = -(-len(data) // trainer.batch_size)
    total_steps = trainer.n_steps + steps * epochs
    warmup_steps = trainer.model.objective.warmup * total_steps
    master = trainer.weights.master
    train_epoch = train_epoch or trainer.train_epoch
    if trainer.best_epoch == 0:
        trainer.best.copy_(master)
    try:
        for _ in range(epochs):
            if patience is not None and trainer.waited >= patience:
                return
            on_epoch_begin()
            if trainer.best_loss == float("inf"):
                trainer.best.copy_(master)  # none is better, but it is finite
            warming_up = trainer.n_steps < warmup_steps
            record = train_epoch(data, total_steps)
            if validation is not None:
                assert validation_noise is not None
                (
                    record.validation_loss,
                    record.validation_reconstruction,
                    record.validation_kl,
                ) = trainer.evaluate(validation, validation_noise)
            finite_losses = isfinite(record.loss) and isfinite(record.monitored)
            if not (finite_losses and bool(torch.isfinite(master).all())):
                raise DivergenceError(_not_finite(record))
            if warming_up:
                # Its loss does not compare with those of later epochs.
                trainer.best.copy_(master)
                trainer.best_epoch = record.epoch
                yield record
                continue
            improved = record.monitored < trainer.best_loss - tolerance
            trainer.waited = 0 if improved else trainer.waited + 1
            if record.monitored < trainer.best_loss:
                trainer.best.copy_(master)
                trainer.best_loss, trainer.best_epoch = record.monitored, record.epoch
            yield record
    except KeyboardInterrupt:
        trainer.weights.full_precision()
        if trainer.best_loss == float("inf") and bool(torch.isfinite(master).all()):
            trainer.best.copy_(master)
        raise
    finally:
        master.copy_(trainer.best)
        trainer.weights.full_precision()


def _not_finite(record: Record) -> str:
    return (
        f"the loss is no longer finite in epoch {record.epoch} (loss {record.loss}, "
        f"reconstruction {record.reconstruction}, KL {record.kl}, in nats per row)"
    )

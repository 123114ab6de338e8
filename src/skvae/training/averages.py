"""The weights that a training hands out: those of its best epoch."""

from math import inf

import torch
from torch import Tensor

from ..history import Record


class BestEpoch:
    """The weights of the best epoch so far.

    The best epoch has the lowest validation loss, or the lowest training loss where
    there is no validation set, among those that began after the objective's warm-up.

    Parameters
    ----------
    master : Tensor of shape (P,)
        The weights in training, at their start.

    Attributes
    ----------
    weights : Tensor of shape (P,)
    epoch : int
        0 before the first epoch has ended.
    loss : float
    waited : int
        Epochs since the last improvement.
    """

    def __init__(self, master: Tensor):
        self.weights = master.clone()
        self.epoch = 0
        self.loss = inf
        self.waited = 0

    def begin_epoch(self, master: Tensor) -> None:
        """Note the weights while no epoch is better than them."""
        if self.loss == inf:
            self.weights.copy_(master)

    def end_epoch(
        self, record: Record, master: Tensor, *, compares: bool, tolerance: float
    ) -> None:
        """Take over the weights of an epoch that is better than all before.

        ``compares`` says whether its loss compares with that of other epochs.
        """
        if not compares:
            self.weights.copy_(master)
            self.epoch = record.epoch
            return
        improved = record.monitored < self.loss - tolerance
        self.waited = 0 if improved else self.waited + 1
        if record.monitored < self.loss:
            self.weights.copy_(master)
            self.loss, self.epoch = record.monitored, record.epoch

    def interrupt(self, master: Tensor) -> None:
        """Take over the weights of an unfinished first epoch, if they are finite."""
        if self.loss == inf and bool(torch.isfinite(master).all()):
            self.weights.copy_(master)

    def counts(self) -> dict[str, float]:
        """The numbers among the attributes, by name."""
        return {"epoch": self.epoch, "loss": self.loss, "waited": self.waited}

    def restore(self, counts: dict[str, float]) -> None:
        """Take over the numbers of :meth:`counts`."""
        self.epoch, self.loss = int(counts["epoch"]), counts["loss"]
        self.waited = int(counts["waited"])

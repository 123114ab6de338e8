"""Weights of models in training: rows of one float32 buffer."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..model import Model


def ordered(module: Model) -> dict[str, nn.Parameter]:
    """The parameters of a model by name, those of the network first.

    A copy of the network's in another precision is then one piece of the buffer.
    """
    named = dict(module.named_parameters())
    names = sorted(named, key=lambda name: not name.startswith("network."))
    return {name: named[name] for name in names}


class Weights:
    """Weights of M models, one after the other, with gradients of the same layout.

    Where training runs in a lower precision the network computes with a copy that
    follows the float32 master; the few weights outside the network stay float32.

    Parameters
    ----------
    master : Tensor of shape (M, P)
    shapes : sequence of tuple of int
        Shapes of the parameters, in the order of :func:`ordered`.
    n_network : int
        How many of the parameters are the network's.
    precision : torch.dtype

    Attributes
    ----------
    gradient : Tensor of shape (M, P)
    values, gradients : list of Tensor
        What the models compute with and where the gradient of each parameter goes,
        (M, ...) each; without the leading axis at M = 1.
    """

    def __init__(
        self,
        master: Tensor,
        shapes: Sequence[tuple[int, ...]],
        n_network: int,
        precision: torch.dtype,
    ):
        self.master, self.shapes = master, list(shapes)
        self.gradient = torch.zeros_like(master)
        self.low = self.low_gradient = None
        self.n_network = n_network
        if precision != torch.float32:
            size = sum(torch.Size(shape).numel() for shape in self.shapes[:n_network])
            self.low = master[:, :size].to(precision)
            self.low_gradient = torch.zeros_like(self.low)
        self.values = self.views(master, self.low)
        self.gradients = self.views(self.gradient, self.low_gradient)

    def views(self, buffer: Tensor, low: Tensor | None = None) -> list[Tensor]:
        """The parameters as parts of a buffer (M, P); the network's as parts of low."""
        views, start = [], 0
        for i, shape in enumerate(self.shapes):
            stop = start + torch.Size(shape).numel()
            source = low if low is not None and i < self.n_network else buffer
            view = source[:, start:stop].unflatten(1, shape or (1,))
            view = view if shape else view.squeeze(-1)
            views.append(view[0] if len(buffer) == 1 else view)
            start = stop
        return views

    def follow(self) -> None:
        """Bring the copy in low precision up to date with the master."""
        if self.low is not None:
            self.low.copy_(self.master[:, : self.low.shape[1]])

    def collect(self) -> Tensor:
        """The whole gradient in float32, (M, P)."""
        if self.low_gradient is not None:
            self.gradient[:, : self.low_gradient.shape[1]].copy_(self.low_gradient)
        return self.gradient


def point_at(module: Model, values: Sequence[Tensor]) -> None:
    """Make a model compute with these tensors in place of its parameters."""
    for parameter, value in zip(ordered(module).values(), values, strict=True):
        parameter.data = value

"""Rows to train on, as tensors on their device."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Data:
    """Rows in the model's units, on its device.

    Attributes
    ----------
    x : Tensor of shape (N, n_columns)
        Numbers and codes.
    observed : Tensor of bool, shape (N, n_columns), or None
        Which entries are not missing; None where all are observed.
    condition : Tensor of shape (N, n_conditions) or None
    weights : Tensor of shape (N,) or None
        Of mean 1.
    """

    x: Tensor
    observed: Tensor | None = None
    condition: Tensor | None = None
    weights: Tensor | None = None

    @classmethod
    def of(
        cls,
        rows: np.ndarray,
        weights: np.ndarray | None,
        condition: np.ndarray | None,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> "Data":
        """Move float32 rows to the device once; on the CPU share them where possible.

        Training only reads, so sharing is safe; torch cannot see a read-only array.
        """
        if not (rows.flags.writeable and rows.flags.c_contiguous):
            rows = np.array(rows, order="C")

        def tensor(array: np.ndarray | None) -> Tensor | None:
            if array is None:
                return None
            return torch.tensor(array, dtype=torch.float32, device=device)

        if weights is not None:
            weights = weights / weights.mean()
        x = torch.from_numpy(rows).to(device, dtype)
        return cls(x, None, tensor(condition), tensor(weights))

    def __len__(self) -> int:
        return len(self.x)

    @cached_property
    def parts(self) -> dict[str, Tensor]:
        """The tensors that are there, by name."""
        named = {
            "x": self.x,
            "observed": self.observed,
            "condition": self.condition,
            "weights": self.weights,
        }
        return {name: part for name, part in named.items() if part is not None}

    def take(self, rows: Tensor | slice) -> dict[str, Any]:
        """The parts of some rows, by their indices (..., n) or a slice."""
        if isinstance(rows, slice):
            return {name: part[rows] for name, part in self.parts.items()}
        if rows.ndim == 1:
            return {k: part.index_select(0, rows) for k, part in self.parts.items()}
        flat = rows.reshape(-1)
        return {
            name: part.index_select(0, flat).unflatten(0, rows.shape)
            for name, part in self.parts.items()
        }

    def equals(self, other: "Data") -> bool:
        """Whether two sets hold the same rows in the same order."""
        return self.parts.keys() == other.parts.keys() and all(
            part is other.parts[name] or torch.equal(part, other.parts[name])
            for name, part in self.parts.items()
        )

"""What every likelihood has in common."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..spec import Spec


class Likelihood(Spec):
    """Base of the likelihoods.

    Attributes
    ----------
    n_outputs : int
        Raw parameters per feature that the decoder must give.
    real_valued : bool
        Whether x is any real number: such data are standardised inside the model.
    tolerates_rounding : bool
        Whether training may see x, and give its outputs, in the three digits of
        bfloat16 without loss.
    support : str
        The support in words, for error messages.
    mend : str
        What to do about data outside the support, for error messages.
    """

    n_outputs: Any = 1
    real_valued: Any = False
    tolerates_rounding: Any = False
    support: Any = "any finite number"
    mend = (
        "Scale the data (MinMaxScaler) or choose another likelihood, such as "
        "'gaussian'."
    )

    def standardized(self, n_features: int) -> np.ndarray:
        """Which features are standardised inside the model, a boolean array (D,)."""
        return np.full(n_features, self.real_valued)

    def check_n_features(self, n_features: int) -> None:
        """Refuse a number of features that this family cannot have."""

    def in_support(self, X: np.ndarray) -> np.ndarray:
        """Which entries of X this density can produce, a boolean array like X."""
        return np.isfinite(X)

    def check_support(
        self, X: np.ndarray, name: str = "X", columns: Sequence[Any] | None = None
    ) -> None:
        """Refuse X (N, D) at its first entry outside the support, naming it."""
        self.check_n_features(X.shape[1])
        inside = self.in_support(X)
        if inside.all():
            return
        row, column = np.argwhere(~inside)[0]
        label = column if columns is None else repr(columns[column])
        raise ValueError(
            f"{name} has the value {X[row, column]!s} in row {row}, column {label}, "
            f"outside the support {self.support} of {self!r}. {self.mend}"
        )

    def nearest_in_support(self, X: np.ndarray) -> np.ndarray:
        """X with each entry replaced by the nearest one in the support."""
        return X

    def parameters(self, n_features: int) -> Mapping[str, Tensor]:
        """Initial values of what is learned beside the network, by name."""
        return {}

    def constants(self, unit: Tensor) -> Mapping[str, Tensor]:
        """What is fixed beside the network, by name.

        ``unit`` (D,) is what 1 inside the model is worth in the user's units.
        """
        return {}

    def output_bias(self, mean: Tensor) -> Tensor:
        """Where the decoder's raw output starts, (D,) to (D, n_outputs)."""
        return mean.new_zeros(len(mean), self.n_outputs)

    def network_input(self, x: Tensor) -> Tensor:
        """What the encoder sees of x, (..., D) to (..., D)."""
        return x

    def log_prob(self, x: Tensor, raw: Tensor, **parameters: Tensor) -> Tensor:
        """log p(x|z) in nats, summed over features: (..., D, n_outputs) to (...)."""
        raise NotImplementedError

    def reconstruction_and_gradient(
        self,
        x: Tensor,
        raw: Tensor,
        row_weights: Tensor | None,
        **parameters: Tensor,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """-log p(x|z) of N rows, and the gradient of its weighted sum over the rows.

        By autograd; a family with a short derivative may write it out. Returns the
        reconstruction terms (N,), the gradient by ``raw`` (N, D, n_outputs), and those
        by the parameters that ask for one, by name.
        """
        learned = {k: v for k, v in parameters.items() if v.requires_grad}
        with torch.enable_grad():
            raw = raw.detach().requires_grad_()
            terms = -self.log_prob(x, raw, **parameters)
            total = terms.sum() if row_weights is None else terms @ row_weights
            slope, *rest = torch.autograd.grad(total, [raw, *learned.values()])
        return terms.detach(), slope, dict(zip(learned, rest, strict=True))

    def mean(self, raw: Tensor, **parameters: Tensor) -> Tensor:
        """E[x|z], (..., D, n_outputs) to (..., D)."""
        raise NotImplementedError

    def draw(
        self, raw: Tensor, generator: torch.Generator, **parameters: Tensor
    ) -> Tensor:
        """Draw x from p(x|z), (..., D, n_outputs) to (..., D)."""
        raise NotImplementedError

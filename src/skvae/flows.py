"""Normalizing flows, by zuko: the extra ``flows``."""

from typing import Any

import torch
from torch import Tensor, nn

from ._compat import without_torch_modes

# Of eight bins: 8 widths, 8 heights, 7 slopes.
SPLINE_NUMBERS = 23


class SplineFlow(nn.Module):
    """Autoregressive rational-quadratic splines: an invertible map of (..., L).

    Parameters
    ----------
    n_features : int
        L.
    n_context : int
        Width of what the map may depend on, 0 for nothing.
    n_transforms, hidden_dim : int
        Transforms in a row, and the width of the two hidden layers of each.
    seed : int
        Of the initial weights.

    References
    ----------
    Durkan et al. (2019), "Neural spline flows".
    """

    def __init__(
        self,
        n_features: int,
        *,
        n_context: int = 0,
        n_transforms: int,
        hidden_dim: int,
        seed: int,
    ):
        try:
            import zuko
        except ImportError as error:
            raise ImportError(
                "Flows need zuko; install it with: pip install 'skvae[flows]'"
            ) from error
        super().__init__()
        if torch.get_default_device().type == "meta":
            # zuko looks at values while it builds, so that it cannot do without memory:
            # whoever watches the sizes sees them before.
            n_inputs, n_outputs = n_features + n_context, SPLINE_NUMBERS * n_features
            for _ in range(n_transforms):
                torch.empty(hidden_dim, n_inputs)
                torch.empty(hidden_dim, hidden_dim)
                torch.empty(n_outputs, hidden_dim)
        # zuko draws its initial weights from torch's global generator, that of the CPU:
        # torch.manual_seed would touch those of the GPUs as well.
        with without_torch_modes(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            flow = zuko.flows.NSF(
                n_features,
                n_context,
                transforms=n_transforms,
                hidden_features=(hidden_dim, hidden_dim),
            )
        self.transform: Any = flow.transform.float()

    def forward(
        self, x: Tensor, context: Tensor | None = None, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        """f(x) and log|det df/dx|; with ``inverse`` those of the inverse of f."""
        transform = self.transform(context)
        if inverse:
            transform = transform.inv
        return transform.call_and_ladj(x)

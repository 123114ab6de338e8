"""The only file that touches private names of other libraries."""

import mmap
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.base import _fit_context as fit_context
from sklearn.metrics._scorer import _BaseScorer
from sklearn.utils import _safe_indexing as safe_indexing
from sklearn.utils._param_validation import (
    Interval,
    StrOptions,
    validate_parameter_constraints,
)
from sklearn.utils.validation import _check_sample_weight as check_sample_weight
from sklearn.utils.validation import _num_samples as num_samples
from torch import Tensor
from torch.optim.adam import adam

__all__ = [
    "EstimatorScorer",
    "Interval",
    "StrOptions",
    "adam_step",
    "check_sample_weight",
    "cpu_has_bfloat16",
    "fit_context",
    "num_samples",
    "release_pages",
    "safe_indexing",
    "standard_gamma",
    "validate_parameter_constraints",
    "without_torch_modes",
]


def cpu_has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices natively."""
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        supported = getattr(torch.cpu, name, None)
        if supported is not None and supported():
            return True
    return False


def without_torch_modes() -> Any:
    """Within, torch makes real tensors, whatever default device or mode is around."""
    return torch._C.DisableTorchFunction()


def adam_step(
    parameter: Tensor,
    gradient: Tensor,
    first_moment: Tensor,
    second_moment: Tensor,
    step: Tensor,
    learning_rate: float,
    epsilon: float,
) -> None:
    """One step of Adam (Kingma and Ba, 2015) in place, by torch's fused kernel.

    Not by an optimiser object: constructing one imports a compiler that is not used
    here, which costs a second in every process.
    """
    tensors: Any = (
        [parameter],
        [gradient],
        [first_moment],
        [second_moment],
        [],
        [step],
    )
    options: dict[str, Any] = {
        "amsgrad": False,
        "beta1": 0.9,
        "beta2": 0.999,
        "lr": learning_rate,
        "weight_decay": 0.0,
        "eps": epsilon,
        "maximize": False,
    }
    if parameter.device.type in ("cpu", "cuda"):
        step.add_(1)
        torch._fused_adam_(*tensors, **options)
    else:
        adam(*tensors, **options)


def standard_gamma(concentration: Tensor, generator: torch.Generator) -> Tensor:
    """Gamma(concentration, 1) variables; torch.distributions takes no generator."""
    return torch._standard_gamma(concentration, generator=generator)


def release_pages(X: np.memmap) -> None:
    """Let go of the pages of a read-only memory map that have been read.

    They stay in the system's cache; they no longer count as this process's memory.
    """
    mapping = getattr(X, "_mmap", None)
    if mapping is not None and X.mode == "r" and hasattr(mapping, "madvise"):
        mapping.madvise(mmap.MADV_DONTNEED)


class EstimatorScorer(_BaseScorer):
    """A scikit-learn scorer that asks a fitted estimator, not its predictions.

    A plain function would do for GridSearchCV; ScoringMonitor and metadata routing
    want an instance of scikit-learn's own class.

    Parameters
    ----------
    function : callable(estimator, X, y, sample_weight=None, **options) -> float
    **options
        Handed to the function.
    """

    def __init__(self, function: Callable[..., float], **options: Any):
        # The method is only looked up, to see whether its answers could be shared.
        super().__init__(function, sign=1, kwargs=options, response_method="transform")

    def __call__(self, estimator, X, y=None, *, sample_weight=None):
        """Score an estimator on X (n_samples, n_features); greater is better."""
        return self._score(None, estimator, X, y, sample_weight=sample_weight)

    def _score(self, method_caller, estimator, X, y_true=None, sample_weight=None):
        return self._score_func(
            estimator, X, y_true, sample_weight=sample_weight, **self._kwargs
        )

    def __repr__(self):
        options = ", ".join(f"{k}={v}" for k, v in self._kwargs.items())
        return self._score_func.__name__ + (f"({options})" if options else "")

"""The only file that touches private names of other libraries."""

import inspect
import mmap
from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any

import numpy as np
import torch
from joblib.parallel import get_active_backend
from sklearn.base import _fit_context as fit_context
from sklearn.callback import ProgressBar
from sklearn.metrics._scorer import _BaseScorer, _PassthroughScorer
from sklearn.model_selection._search import BaseSearchCV
from sklearn.model_selection._validation import _fit_and_score as fit_and_score
from sklearn.utils import _safe_indexing as safe_indexing
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.metaestimators import _safe_split as safe_split
from sklearn.utils.validation import _check_method_params as check_method_params
from sklearn.utils.validation import _check_sample_weight as check_sample_weight
from sklearn.utils.validation import _num_samples as num_samples
from torch import Tensor
from torch.optim.adam import adam

__all__ = [
    "BaseSearchCV",
    "EstimatorScorer",
    "Interval",
    "StrOptions",
    "adam_step",
    "asks_for_the_bound",
    "callbacks_of",
    "check_method_params",
    "check_sample_weight",
    "cpu_has_bfloat16",
    "fit_and_score",
    "fit_context",
    "has_callbacks",
    "is_local",
    "num_samples",
    "release_pages",
    "safe_indexing",
    "safe_split",
    "search_fit",
    "standard_gamma",
    "validate_parameters",
    "without_torch_modes",
]


def cpu_has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices natively."""
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        supported = getattr(torch.cpu, name, None)
        if supported is not None and supported():
            return True
    return False


def validate_parameters(estimator: Any) -> None:
    """Refuse parameters that are not as the estimator's class declares them."""
    estimator._validate_params()


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

    def __init__(self, function: Callable[..., float], **options: Any) -> None:
        # The method is only looked up, to see whether its answers could be shared.
        super().__init__(function, sign=1, kwargs=options, response_method="transform")

    def __call__(
        self, estimator: Any, X: Any, y: Any = None, *, sample_weight: Any = None
    ) -> Any:
        """Score an estimator on X (n_samples, n_features); greater is better."""
        return self._score(None, estimator, X, y, sample_weight=sample_weight)

    def _score(
        self,
        method_caller: Any,
        estimator: Any,
        X: Any,
        y_true: Any = None,
        sample_weight: Any = None,
    ) -> Any:
        return self._score_func(
            estimator, X, y_true, sample_weight=sample_weight, **self._kwargs
        )

    def __repr__(self) -> str:
        options = ", ".join(f"{k}={v}" for k, v in self._kwargs.items())
        return self._score_func.__name__ + (f"({options})" if options else "")


def asks_for_the_bound(scorer: Any) -> bool:
    """Whether a scorer asks for nothing but a score of rows (and never samples)."""
    return isinstance(scorer, EstimatorScorer | _PassthroughScorer)


def is_local() -> bool:
    """Whether joblib's workers, as it stands, are processes of this machine."""
    backend = type(get_active_backend()[0])
    return backend.__module__ == "joblib._parallel_backends"


def callbacks_of(estimator: Any) -> list[Any]:
    """What listens to an estimator."""
    return getattr(estimator, "_skl_callbacks", None) or []


def has_callbacks(estimator: Any) -> bool:
    """Whether someone has to hear of the epochs of this estimator's fit.

    A progress bar of scikit-learn's is content with whole fits.
    """
    return any(not isinstance(one, ProgressBar) for one in callbacks_of(estimator))


class _Evaluations:
    """Stands where a search of scikit-learn calls joblib.

    What it is called with are the fits of all candidates and folds, as scikit-learn
    would run them; it hands them to the search's own ``_evaluate``.
    """

    def __init__(self, n_jobs: Any = None, pre_dispatch: Any = None) -> None:
        pass

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def __call__(self, calls: Iterable[tuple[Callable, tuple, dict]]) -> list[dict]:
        evaluations = [(args, kwargs) for _, args, kwargs in calls]
        if not evaluations:
            return []  # scikit-learn has a message for that
        return evaluations[0][1]["caller"]._evaluate(evaluations)


def _search_fit() -> Callable:
    """scikit-learn's ``fit`` of a search, asking the search to evaluate candidates.

    Everything before and after (routing, splits, contexts, ``cv_results_``, the best,
    the refit) is scikit-learn's very code, with joblib's name pointing elsewhere: the
    only hook it offers would fit each candidate alone.
    """
    original = inspect.unwrap(BaseSearchCV.fit)
    assert "Parallel" in original.__code__.co_names
    code = FunctionType(
        original.__code__,
        {**original.__globals__, "Parallel": _Evaluations},
        original.__name__,
        original.__defaults__,
        original.__closure__,
    )
    code.__kwdefaults__ = original.__kwdefaults__
    code.__doc__ = original.__doc__
    return fit_context(prefer_skip_nested_validation=False)(code)


search_fit = _search_fit()

"""What a file may hold: estimators by name, and what they may have learned."""

import re

from ..conditional import ConditionalVAEEstimator
from ..estimator import VAEEstimator

# Name -> class of every estimator that a file may hold beside the user's own, which are
# subclasses of VAEEstimator.
ESTIMATORS: dict[str, type[VAEEstimator]] = {
    estimator.__name__: estimator
    for estimator in (VAEEstimator, ConditionalVAEEstimator)
}

# Names of devices.
DEVICE = re.compile(r"cpu|mps|(cuda|xpu)(:\d{1,2})?")
# What a fitted estimator holds beside its parameters, and what set_output has left.
LEARNED = ("fitted_", "n_features_in_", "feature_names_in_")
OUTPUT = "_sklearn_output_config"
# What scikit-learn keeps on an estimator that belongs to a training, not to a model.
LEFT_OUT = ("_skl_callbacks", "_metadata_request")
# Numbers of NumPy, alone or in arrays.
SCALARS = {
    *("bool", "float16", "float32", "float64"),
    *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
}


def may_be_learned(cls: type[VAEEstimator], name: str) -> bool:
    """Whether a fitted estimator may hold an attribute of this name.

    Those of a class of the user's own end in an underscore, by scikit-learn's
    convention, and hide nothing that the class has.
    """
    if name in (*LEARNED, OUTPUT):
        return True
    own = re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*_", name) and name not in dir(cls)
    return cls not in ESTIMATORS.values() and bool(own)

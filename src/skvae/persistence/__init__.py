"""Save and load estimators as files that are safe to open: safetensors and JSON.

pickle, joblib and skops work as well. A pickle runs whatever its author wrote into it:
pickle and joblib are for files that you trust. Opening a file of :func:`save` runs
nothing, whoever made it.

A file is one of the safetensors format. Its arrays are the weights, the units, the
history and long lists; its only metadatum, ``skvae``, is JSON: a checksum, the version
of the format, and the estimator in plain values: its class, its parameters, and what it
has learned, of which ``fitted_`` is the :meth:`~skvae.fitted.FittedVAE.state`.

Files of format version 1, which skvae 0.1 wrote, are read by :mod:`skvae.version1`.
"""

import os
from collections.abc import Iterable
from typing import Any

from ..estimator import VAEEstimator
from ..plain import SPECS
from ..spec import Spec
from .container import FORMAT_VERSION, pack, read, replace, unpack
from .decoding import Decoder
from .encoding import Encoder
from .errors import (
    CorruptedFileError,
    FileFormatError,
    NotASkvaeFileError,
    ShapeMismatchError,
    TruncatedFileError,
    UnsafeFileError,
    VersionError,
)
from .estimators import ESTIMATORS

__all__ = [
    "ESTIMATORS",
    "FORMAT_VERSION",
    "CorruptedFileError",
    "FileFormatError",
    "NotASkvaeFileError",
    "ShapeMismatchError",
    "TruncatedFileError",
    "UnsafeFileError",
    "VersionError",
    "dump",
    "load",
    "parse",
    "save",
]


def save(estimator: VAEEstimator, path: str | os.PathLike[str]) -> None:
    """Write an estimator to a file, fitted or not.

    The file appears at once and as a whole: a crash leaves what was there before.
    Callbacks, metadata requests and the optimiser's state are not kept.

    Parameters
    ----------
    estimator : VAEEstimator
        Its parameters, and those of its specs, must be numbers, strings, booleans,
        None, devices, specs, or tuples, lists and dicts of these.
    path : str or path-like
        By custom it ends in ``.safetensors``.

    Raises
    ------
    TypeError
        If a parameter cannot be written, naming it.

    See Also
    --------
    load : Read it back.

    Notes
    -----
    pickle and joblib hold everything else too, whole pipelines for one, but are for
    trusted files only: to open a pickle is to run what its author wrote.

    Examples
    --------
    >>> import os, tempfile
    >>> import skvae
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "vae.safetensors")
    ...     skvae.save(skvae.VAEEstimator(latent_dim=2), path)
    ...     skvae.load(path)
    VAEEstimator(latent_dim=2)
    """
    replace(path, dump(estimator))


def load(path: str | os.PathLike[str], *, classes: Iterable[type] = ()) -> Any:
    """Read an estimator from a file that :func:`save` has written.

    Nothing in the file is run or imported, whoever made it: classes and parameters are
    looked up by name among those of skvae and ``classes``, sizes are bounded by what
    the file really holds, and every value is checked. A file fitted on a GPU opens
    without one.

    Parameters
    ----------
    path : str or path-like
    classes : iterable of type, default=()
        Your own networks, likelihoods, priors, objectives or estimators that the file
        may hold.

    Returns
    -------
    estimator : VAEEstimator
        As it was saved, to the bit.

    Raises
    ------
    FileFormatError
        If the file cannot be read. A ValueError, of these kinds:
        ``NotASkvaeFileError``, ``TruncatedFileError``, ``CorruptedFileError``,
        ``VersionError``, ``UnsafeFileError``, ``ShapeMismatchError``.
    OSError
        If it is not there, or may not be read.

    See Also
    --------
    save : Write it.

    Notes
    -----
    pickle and joblib remain, for trusted files only. The checksum tells an accident;
    it is no signature, since those who change a file can change its checksum.

    Models that version 0.1 has saved give the codes, scores and samples that they gave
    then. Only where an array has blocks of one-hot columns (Categorical, or Mixed with
    pairs), ``inverse_transform`` and ``sample`` now give the most probable category of
    each block, one-hot, and no longer the probabilities. To train such a Mixed further,
    ``set_params(likelihood=vae.likelihood_)`` first; a new fit of it takes codes.
    """
    return parse(read(path), classes=classes)


def dump(estimator: VAEEstimator) -> bytes:
    """The content of the file of an estimator."""
    encoder = Encoder()
    content = pack(encoder.estimator(estimator), encoder.arrays)
    try:
        version, tree, arrays = unpack(content)
        Decoder(version, arrays, encoder.classes, build=False).root(tree)
    except FileFormatError as error:
        raise ValueError(
            f"{type(estimator).__name__} cannot be saved, since it could not be "
            f"loaded: {error}"
        ) from error
    return content


def parse(content: bytes, *, classes: Iterable[type] = ()) -> Any:
    """The estimator of a file's content."""
    named = _by_name(classes)
    version, tree, arrays = unpack(content)
    return Decoder(version, arrays, named, build=True).root(tree)


def _by_name(classes: Iterable[type]) -> dict[str, type]:
    if isinstance(classes, type):
        raise TypeError(
            f"classes={classes!r} must be a list of classes: classes=[{classes!r}]."
        )
    named: dict[str, type] = {}
    for cls in classes:
        if not isinstance(cls, type) or not (issubclass(cls, Spec | VAEEstimator)):
            raise TypeError(
                f"classes must hold networks, likelihoods, priors, objectives or "
                f"estimators, got {cls!r}."
            )
        if {**SPECS, **ESTIMATORS, **named}.get(cls.__name__, cls) is not cls:
            raise ValueError(
                f"classes has {cls!r}, but a file knows classes by name, and another "
                f"{cls.__name__} is known already."
            )
        named[cls.__name__] = cls
    return named

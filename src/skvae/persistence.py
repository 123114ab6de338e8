"""Save and load estimators as files that are safe to open: safetensors and JSON.

pickle, joblib and skops work as well. A pickle runs whatever its author wrote into it:
pickle and joblib are for files that you trust. Opening a file of :func:`save` runs
nothing, whoever made it.

A file is one of the safetensors format. Its arrays are the weights, the units and the
history; its only metadatum, ``skvae``, is JSON: a checksum, the version of the format,
and the estimator in plain values, as :mod:`skvae.state` has it.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import Tensor
from torch.overrides import TorchFunctionMode

from . import __version__
from ._compat import validate_parameter_constraints
from .conditional import ConditionalVAEEstimator
from .engine import Record
from .estimator import VAEEstimator
from .fitting import untrained
from .spec import Spec
from .state import SPECS, UnknownClassError, create, flatten, revive

# Raised with every change that an older reader would misunderstand.
FORMAT_VERSION = 1

# Name -> class of every estimator that a file may hold. The class declares what it
# learns in ``_state_constraints``.
ESTIMATORS: dict[str, type[BaseEstimator]] = {
    estimator.__name__: estimator
    for estimator in (VAEEstimator, ConditionalVAEEstimator)
}

# What a file may ask for, whatever it says.
MAX_BYTES = 2**34
MAX_HEADER_BYTES = 2**21
MAX_TENSORS = 4096
MAX_DIMENSION = 2**31 - 1
MAX_AXES = 8
MAX_DEPTH = 32  # of nested JSON
# To build a model may take so many calls of torch for each array that the file has, and
# tensors so many times as large as all of them together (or of a million numbers).
MAX_CALLS_PER_TENSOR = 200
MAX_GROWTH = 16

DTYPES = {
    *("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"),
    *("F16", "F32", "F64"),
}
DEVICE = re.compile(r"cpu|mps|(cuda|xpu)(:\d{1,2})?")
# What scikit-learn keeps on an estimator that belongs to a training, not to a model.
LEFT_OUT = ("_skl_callbacks", "_metadata_request")

# Every file begins with its length, this, and the checksum: sha256 of the whole file
# with zeros in the checksum's place.
MAGIC = rb'{"__metadata__":{"skvae":"{\"sha256\":\"'
DIGEST = slice(8 + len(MAGIC), 8 + len(MAGIC) + 64)
BLANK = "0" * 64


class FileFormatError(ValueError):
    """A file that :func:`load` refuses; its subclasses say why."""


class NotASkvaeFileError(FileFormatError):
    """A file that :func:`save` has not written."""


class TruncatedFileError(FileFormatError):
    """A file that ends too early."""


class CorruptedFileError(FileFormatError):
    """A file whose content has changed, or makes no sense."""


class VersionError(FileFormatError):
    """A file in a newer format than this version of skvae knows."""


class UnsafeFileError(FileFormatError):
    """A file with an unknown class, or that asks for more than it may."""


class ShapeMismatchError(FileFormatError):
    """A file whose arrays do not fit the model that it describes."""


def save(estimator, path):
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
    _replace(path, dump(estimator))


def load(path, *, classes=()):
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
    it is no signature, since whoever changes a file can mend its checksum.
    """
    return parse(_read(path), classes=classes)


# ------------------------------------------------------------------------- writing


def dump(estimator: BaseEstimator) -> bytes:
    """The content of the file of an estimator."""
    from safetensors.numpy import save as serialize

    encoder = _Encoder()
    tree = encoder.estimator(estimator)
    metadata = {
        "sha256": BLANK,
        "version": FORMAT_VERSION,
        "skvae": __version__,
        "estimator": tree,
    }
    text = json.dumps(metadata, separators=(",", ":"), allow_nan=False)
    content = serialize(encoder.arrays, {"skvae": text})
    digest = hashlib.sha256(content).hexdigest().encode()
    content = content[: DIGEST.start] + digest + content[DIGEST.stop :]
    try:
        tree, arrays = _open(content)
        _Decoder(arrays, encoder.classes, build=False).root(tree)
    except FileFormatError as error:
        raise ValueError(
            f"{type(estimator).__name__} cannot be saved, since it could not be "
            f"loaded: {error}"
        ) from error
    return content


class _Encoder:
    """From an estimator to JSON, with the arrays and the user's classes put aside."""

    def __init__(self):
        self.arrays: dict[str, np.ndarray] = {}
        self.classes: dict[str, type] = {}

    def estimator(self, estimator: BaseEstimator, where: str = "") -> dict[str, Any]:
        cls = type(estimator)
        if not hasattr(cls, "_state_constraints"):
            raise TypeError(
                f"{where or 'the estimator'} is a {cls.__name__}, which cannot be "
                f"saved; expected one of {sorted(ESTIMATORS)}. joblib.dump and "
                "skops.io.dump save pipelines and estimators of any kind."
            )
        self._allow(cls, ESTIMATORS)
        state = dict(estimator.__getstate__())
        parameters = {k: state.pop(k) for k in cls._get_param_names()}
        learned = {k: v for k, v in sorted(state.items()) if k not in LEFT_OUT}
        for name in learned:
            if name not in _constraints(cls):
                raise TypeError(
                    f"{cls.__name__}.{name} cannot be saved: only parameters and "
                    f"what fit has learned are. Delete it first: "
                    f"del estimator.{name}."
                )
        return {
            "class": cls.__name__,
            "parameters": {
                k: self.value(v, where + k, parameter=True)
                for k, v in parameters.items()
            },
            "learned": {
                k: self.value(v, where + k, parameter=False) for k, v in learned.items()
            },
        }

    def _allow(self, cls: type, known: Mapping[str, type]) -> None:
        """Remember a class of the user's."""
        name = cls.__name__
        other = known.get(name) or self.classes.get(name)
        if other not in (None, cls):
            raise TypeError(
                f"{cls!r} cannot be saved beside {other!r}: a file knows classes by "
                f"name. Rename yours."
            )
        if name not in known:
            self.classes[name] = cls

    def value(self, value: Any, where: str, *, parameter: bool) -> Any:
        if value is None or type(value) in (bool, str):
            return value
        if type(value) is int:
            if abs(value) < 2**63:
                return value
        elif type(value) is float:
            return value if np.isfinite(value) else {"float": str(value)}
        elif type(value) is list:
            return self._items(value, where, parameter)
        elif type(value) is tuple:
            return {"tuple": self._items(value, where, parameter)}
        elif type(value) is dict:
            if all(type(k) is str for k in value):
                return {
                    "dict": {
                        k: self.value(v, f"{where}.{k}", parameter=parameter)
                        for k, v in value.items()
                    }
                }
        elif isinstance(value, Spec):
            self._allow(type(value), SPECS)
            flat = flatten(value, {**SPECS, type(value).__name__: type(value)})
            if flat is not value:
                return self.value(flat, where, parameter=parameter)
        elif isinstance(value, np.str_):
            return str(value)
        elif isinstance(value, np.bool_ | np.integer | np.floating):
            item = self.value(value.item(), where, parameter=parameter)
            if value.dtype.name in _SCALARS:
                return {"scalar": [value.dtype.name, item]}
        elif isinstance(value, torch.device):
            return {"device": str(value)}
        elif isinstance(value, np.ndarray) and not parameter:
            return self._array(value, where)
        elif isinstance(value, BaseEstimator) and not isinstance(value, type):
            return {"estimator": self.estimator(value, f"{where}.")}
        mend = (
            " Give an int, such as random_state=0."
            if isinstance(value, np.random.RandomState)
            else ""
        )
        raise TypeError(
            f"{where}={value!r} cannot be saved; expected a number, a string, a bool, "
            "None, a torch.device, a spec, or a tuple, a list or a dict of these."
            f"{mend}"
        )

    def _items(self, values: Iterable[Any], where: str, parameter: bool) -> list[Any]:
        return [
            self.value(v, f"{where}[{i}]", parameter=parameter)
            for i, v in enumerate(values)
        ]

    def _array(self, array: np.ndarray, where: str) -> dict[str, Any]:
        kind = "array"
        if array.dtype == object and all(type(v) is str for v in array.flat):
            kind = "objects"
        elif array.dtype.kind == "U":
            kind = "strings"
        elif array.dtype.name not in _SCALARS:
            raise TypeError(
                f"{where} is an array of {array.dtype}, which cannot be saved; "
                "expected numbers, booleans or strings."
            )
        array = np.asarray(array, order="C")
        if kind != "array":  # as code points
            text = array.astype(str)
            if (text != array).any():
                raise TypeError(
                    f"{where} has a string that ends in a null character, which "
                    "cannot be saved."
                )
            width = text.dtype.itemsize // 4
            array = text.reshape(-1).view(np.uint32).reshape(*text.shape, width)
        self.arrays[where] = array
        return {kind: where}


_SCALARS = {
    *("bool", "float16", "float32", "float64"),
    *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
}


def _replace(path: Any, content: bytes) -> None:
    """Write a file that is there as a whole or not at all, even if power fails."""
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileNotFoundError):
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


# ------------------------------------------------------------------------- reading


def parse(content: bytes, *, classes: Iterable[type] = ()) -> Any:
    """The estimator of a file's content."""
    named = _by_name(classes)
    tree, arrays = _open(content)
    return _Decoder(arrays, named, build=True).root(tree)


def _by_name(classes: Iterable[type]) -> dict[str, type]:
    if isinstance(classes, type):
        raise TypeError(
            f"classes={classes!r} must be a list of classes: classes=[{classes!r}]."
        )
    named: dict[str, type] = {}
    for cls in classes:
        if not isinstance(cls, type) or not (
            issubclass(cls, Spec) or hasattr(cls, "_state_constraints")
        ):
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


def _read(path: Any) -> bytes:
    if not stat.S_ISREG(os.stat(path).st_mode) and not os.path.isdir(path):
        raise NotASkvaeFileError(f"{os.fspath(path)!r} is no regular file.")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        _check_start(start + file.read(MAX_HEADER_BYTES), size)
        file.seek(0)
        return file.read(size)


def _check_start(start: bytes, size: int) -> int:
    """The length of the header; refuse what is not ours, too short or too large."""
    found = start[8 : 8 + len(MAGIC)]
    if size < DIGEST.stop and MAGIC.startswith(found):
        raise TruncatedFileError(
            f"The file ends after {size} bytes, before its header does. Copy it again."
        )
    if found != MAGIC:
        raise NotASkvaeFileError(
            "This is no file of skvae.save. A pickle, if it is one and you trust it, "
            "opens with joblib.load."
        )
    length = int.from_bytes(start[:8], "little")
    _check_cap("header", length, MAX_HEADER_BYTES, "bytes")
    _check_cap("file", size, MAX_BYTES, "bytes")
    if 8 + length > size:
        raise TruncatedFileError(
            f"The file ends after {size} bytes, before its header of {length} does. "
            "Copy it again."
        )
    return length


def _check_cap(name: str, value: int, cap: int, unit: str) -> None:
    if value > cap:
        raise UnsafeFileError(
            f"The {name} of {value:,} {unit} is larger than the {cap:,} that are "
            "allowed."
        )


def _open(content: bytes) -> tuple[Any, dict[str, np.ndarray]]:
    """The JSON and the arrays of a file, after all checks that know no classes."""
    from safetensors import SafetensorError
    from safetensors.numpy import load as deserialize

    length = _check_start(content[: DIGEST.stop], len(content))
    header = _json(content[8 : 8 + length], "header")
    # The magic makes sure of this much, if the JSON is sound.
    text = header.pop("__metadata__")["skvae"]
    metadata = _json(text.encode("utf-8", "surrogatepass"), "description")
    version = metadata.get("version")
    if type(version) is not int or version < 1:
        raise CorruptedFileError(f"The format version {_some(version)} is no version.")
    if version > FORMAT_VERSION:
        raise VersionError(
            f"The file has format version {version} (written by skvae "
            f"{_some(metadata.get('skvae'))}), but skvae {__version__} reads versions "
            f"up to {FORMAT_VERSION}. Upgrade: pip install --upgrade skvae."
        )
    _check_cap("list of tensors", len(header), MAX_TENSORS, "entries")
    ends = [_check_entry(name, entry) for name, entry in header.items()]
    if 8 + length + max(ends, default=0) > len(content):
        raise TruncatedFileError(
            f"The file ends after {len(content)} bytes, before its arrays do. Copy it "
            "again."
        )
    if content[DIGEST].decode("latin-1") != _digest(content):
        raise CorruptedFileError(
            "The checksum does not agree with the content: the file has been changed. "
            "Copy it again, or save the estimator again."
        )
    try:
        return metadata.get("estimator"), deserialize(content)
    except (SafetensorError, ValueError) as error:
        raise CorruptedFileError(f"The arrays cannot be read: {error}") from error


def _digest(content: bytes) -> str:
    view = memoryview(content)
    digest = hashlib.sha256(view[: DIGEST.start])
    digest.update(BLANK.encode())
    digest.update(view[DIGEST.stop :])
    return digest.hexdigest()


# A string, or what begins as one and never ends.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)


def _json(text: bytes, name: str) -> dict[str, Any]:
    """A JSON object, not nested too deeply and without doubled keys."""
    steps = (
        (byte in b"[{") - (byte in b"]}")
        for byte in re.sub(rb"[^][{}]+", b"", _STRING.sub(b"", text))
    )
    _check_cap(
        f"nesting of the {name}", max(accumulate(steps), default=0), MAX_DEPTH, "levels"
    )

    def once(pairs):
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("a key occurs twice")
        return dict(pairs)

    def refuse(constant):
        raise ValueError(f"{constant} is no JSON")

    try:
        value = json.loads(text, object_pairs_hook=once, parse_constant=refuse)
    except ValueError as error:
        raise CorruptedFileError(f"The {name} cannot be read: {error}.") from error
    if type(value) is not dict:
        raise CorruptedFileError(f"The {name} must be an object, got {_some(value)}.")
    return value


def _check_entry(name: str, entry: Any) -> int:
    """Where a tensor ends, by its entry in the header."""
    try:
        dtype, shape, (start, end) = (
            entry["dtype"],
            entry["shape"],
            entry["data_offsets"],
        )
        sound = all(type(v) is int and v >= 0 for v in (*shape, start, end))
    except (TypeError, KeyError, ValueError) as error:
        raise CorruptedFileError(
            f"The entry of tensor {_some(name)} is not as it must be."
        ) from error
    if not sound or not isinstance(dtype, str):
        raise CorruptedFileError(
            f"The entry of tensor {_some(name)} is not as it must be: {_some(entry)}."
        )
    if dtype not in DTYPES:
        raise UnsafeFileError(
            f"Tensor {_some(name)} has the dtype {_some(dtype)}; expected one of "
            f"{sorted(DTYPES)}."
        )
    _check_cap(f"shape of tensor {_some(name)}", len(shape), MAX_AXES, "axes")
    _check_cap(
        f"longest axis of tensor {_some(name)}",
        max(shape, default=0),
        MAX_DIMENSION,
        "entries",
    )
    return end


def _some(value: Any) -> str:
    """The beginning of what a file says, for a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."


class _Decoder:
    """From JSON and arrays to an estimator; ``classes`` are the user's."""

    def __init__(
        self,
        arrays: dict[str, np.ndarray],
        classes: Mapping[str, type],
        *,
        build: bool,
    ):
        self.arrays = arrays
        self.classes = classes
        self.specs = {**SPECS, **classes}
        self.build = build

    def root(self, tree: Any) -> Any:
        try:
            estimator = self.estimator(tree)
        except FileFormatError:
            raise
        except UnknownClassError as error:
            raise UnsafeFileError(
                f"The file is refused: {error} A class of yours must be given, "
                "load(path, classes=[...]); one of a newer skvae needs an upgrade."
            ) from error
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            TypeError,
            ValueError,
        ) as error:
            raise CorruptedFileError(f"The content is not valid: {error}") from error
        if self.arrays:
            raise CorruptedFileError(
                f"The file has arrays that belong to nothing: "
                f"{_some(sorted(self.arrays))}."
            )
        return estimator

    def estimator(self, tree: Any) -> Any:
        name, parameters, learned = (
            tree[key] for key in ("class", "parameters", "learned")
        )
        known = {
            k: v
            for k, v in {**ESTIMATORS, **self.classes}.items()
            if hasattr(v, "_state_constraints")
        }
        if not isinstance(name, str) or name not in known:
            raise UnknownClassError(
                f"the estimator {_some(name)} is not known; expected one of "
                f"{sorted(known)}."
            )
        cls = known[name]
        parameters, learned = (
            revive({k: self.value(v) for k, v in part.items()}, self.specs)
            for part in (parameters, learned)
        )
        device = parameters.get("device", "auto")
        if device != "auto" and not DEVICE.fullmatch(str(device)):
            raise ValueError(
                f"the device {_some(device)} is not known; expected 'auto', 'cpu', "
                "'cuda', 'xpu' or 'mps'."
            )
        estimator = create(cls, parameters)
        estimator._validate_params()
        _validate_specs(parameters)
        if not learned:
            return estimator
        _check_learned(cls, learned)
        if "model_" in learned:
            _check_model(learned)
        if self.build:
            estimator.__setstate__({**vars(estimator), **learned})
        return estimator

    def value(self, node: Any) -> Any:
        if type(node) is int and abs(node) >= 2**63:
            raise ValueError(f"{_some(node)} is too large.")
        if node is None or type(node) in (bool, int, float, str):
            return node
        if type(node) is list:
            return [self.value(v) for v in node]
        if len(node) != 1:
            raise ValueError(f"{_some(node)} must have one key.")
        ((tag, content),) = node.items()
        if tag == "tuple" and type(content) is list:
            return tuple(self.value(v) for v in content)
        if tag == "dict" and type(content) is dict:
            return {k: self.value(v) for k, v in content.items()}
        if tag == "float" and content in ("nan", "inf", "-inf"):
            return float(content)
        if tag == "scalar":
            dtype, item = content
            item = self.value(item)
            if dtype in _SCALARS and type(item) in (bool, int, float):
                with np.errstate(over="ignore"):
                    return np.array(item, dtype=dtype)[()]
        if tag == "device" and type(content) is str and DEVICE.fullmatch(content):
            return torch.device(content)
        if tag == "estimator":
            return self.estimator(content)
        if tag in ("array", "strings", "objects") and content in self.arrays:
            array = self.arrays.pop(content)
            return array if tag == "array" else _text(array, tag)
        raise ValueError(f"{_some(node)} means nothing.")


def _text(points: np.ndarray, kind: str) -> np.ndarray:
    """Strings from code points, the last axis of which goes along a string."""
    if points.dtype != np.uint32 or points.ndim < 1 or not points.shape[-1]:
        raise ValueError("strings must be arrays of code points.")
    if points.size and points.max() > 0x10FFFF:
        raise ValueError(f"{points.max():#x} is no code point.")
    *shape, width = points.shape
    text = points.reshape(-1).view(f"U{width}").reshape(shape)
    return text.astype(object) if kind == "objects" else text


def _constraints(cls: Any) -> dict[str, list[Any]]:
    return {**cls._state_constraints, "_sklearn_output_config": [dict]}


def _check_learned(cls: Any, learned: dict[str, Any]) -> None:
    """Refuse learned attributes that are not all there, or not what they must be."""
    constraints = _constraints(cls)
    missing = {
        name
        for name, allowed in cls._state_constraints.items()
        if name not in learned and None not in allowed
    }
    output = learned.get("_sklearn_output_config", {})
    if learned.keys() == {"_sklearn_output_config"}:
        missing = set()
    if missing or not learned.keys() <= constraints.keys():
        raise ValueError(
            f"{cls.__name__} must hold {sorted(constraints)}, got {sorted(learned)}."
        )
    validate_parameter_constraints(constraints, learned, caller_name=cls.__name__)
    if output and output not in [
        {"transform": library} for library in ("default", "pandas", "polars")
    ]:
        raise ValueError(f"the output of transform is no {_some(output)}.")
    _validate_specs(learned)


def _validate_specs(value: Any) -> None:
    """Validate every spec within a value, as ``fit`` does."""
    if isinstance(value, Spec):
        value._validate_params()
        value = value.get_params(deep=False)
    if type(value) is dict:
        value = list(value.values())
    if type(value) in (list, tuple):
        for item in value:
            _validate_specs(item)


def _check_model(learned: dict[str, Any]) -> None:
    """Refuse weights that do not fit the model, before anything large is built."""
    n_inside = len(learned["units_"].scale)
    table = learned.get("_table")
    if table is not None and len(table.encoded_names) != n_inside:
        raise ShapeMismatchError(
            f"The table has {len(table.encoded_names)} columns of numbers, but the "
            f"units are those of {n_inside}."
        )
    n_features = n_inside if table is None else len(table.columns)
    names = learned.get("feature_names_in_")
    if learned["n_features_in_"] != n_features or (
        names is not None and (names.shape != (n_features,) or names.dtype != object)
    ):
        raise ShapeMismatchError(
            f"n_features_in_={learned['n_features_in_']}, the units of {n_features} "
            "features and the names of the features must agree."
        )
    if not all(isinstance(record, Record) for record in learned["_records"]):
        raise ValueError("the history must hold records.")
    weights = learned["model_"]
    for name, array in weights.items():
        if not isinstance(array, np.ndarray):
            raise ValueError(f"the weight {_some(name)} must be an array.")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"the weight {_some(name)} must be finite.")
    rehearsal = _Rehearsal(
        calls=MAX_CALLS_PER_TENSOR * (len(weights) + 10),
        size=max(2**20, MAX_GROWTH * sum(array.size for array in weights.values())),
    )
    try:
        with torch.device("meta"), rehearsal:
            model = untrained(learned)
    except FileFormatError:
        raise
    except Exception as error:  # whatever a network says to widths that it cannot have
        raise ShapeMismatchError(
            f"The model that the file describes cannot be built: {error}"
        ) from error
    expected = {
        name: (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in model.state_dict().items()
    }
    given = {name: (array.shape, array.dtype.name) for name, array in weights.items()}
    for name in sorted(expected.keys() | given.keys()):
        if expected.get(name) != given.get(name):
            raise ShapeMismatchError(
                f"The model that the file describes needs {_some(name)} as "
                f"{expected.get(name)}, but the file has {given.get(name)}."
            )


class _Rehearsal(TorchFunctionMode):
    """Within, tensors have a shape and no memory, and only so many are made.

    Parameters
    ----------
    calls : int
        Of functions of torch.
    size : int
        Numbers in a tensor.
    """

    def __init__(self, *, calls: int, size: int):
        super().__init__()
        self.calls = calls
        self.size = size

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if "device" in kwargs:
            kwargs["device"] = "meta"
        if "generator" in kwargs:
            kwargs["generator"] = None  # there is none for this device
        self.calls -= 1
        result = func(*args, **kwargs)
        large = isinstance(result, Tensor) and result.numel() > self.size
        if self.calls < 0 or large:
            raise UnsafeFileError(
                "The model that the file describes is larger than the file: it would "
                f"take more than {self.size:,} numbers in one array, or too many steps "
                "to build."
            )
        return result

"""The container: one file of the safetensors format, with a checksum of all of it.

Its only metadatum, ``skvae``, is JSON: the checksum, the version of the format, and a
description. Nothing here knows what is described.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from .errors import (
    CorruptedFileError,
    NotASkvaeFileError,
    TruncatedFileError,
    UnsafeFileError,
    VersionError,
    check_cap,
    some,
)

# Raised with every change that an older reader would misunderstand.
FORMAT_VERSION = 2

# What a file may ask for, whatever it says.
MAX_BYTES = 2**34
MAX_HEADER_BYTES = 2**21
MAX_TENSORS = 4096
MAX_DIMENSION = 2**31 - 1
MAX_AXES = 8
MAX_DEPTH = 32  # of nested JSON

DTYPES = {
    *("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"),
    *("F16", "F32", "F64"),
}

# Every file begins with its length, this, and the checksum: sha256 of the whole file
# with zeros in the checksum's place.
MAGIC = rb'{"__metadata__":{"skvae":"{\"sha256\":\"'
DIGEST = slice(8 + len(MAGIC), 8 + len(MAGIC) + 64)
BLANK = "0" * 64


def pack(description: Any, arrays: dict[str, np.ndarray]) -> bytes:
    """The content of a file."""
    from safetensors.numpy import save as serialize

    metadata = {
        "sha256": BLANK,
        "version": FORMAT_VERSION,
        "skvae": __version__,
        "estimator": description,
    }
    text = json.dumps(metadata, separators=(",", ":"), allow_nan=False)
    content = serialize(arrays, {"skvae": text})
    digest = hashlib.sha256(content).hexdigest().encode()
    return content[: DIGEST.start] + digest + content[DIGEST.stop :]


def unpack(content: bytes) -> tuple[int, Any, dict[str, np.ndarray]]:
    """Version, JSON and arrays of a file, after all checks that know no classes."""
    from safetensors import SafetensorError
    from safetensors.numpy import load as deserialize

    length = _check_start(content[: DIGEST.stop], len(content))
    header = _json(content[8 : 8 + length], "header")
    # The magic makes sure of this much, if the JSON is sound.
    text = header.pop("__metadata__")["skvae"]
    metadata = _json(text.encode("utf-8", "surrogatepass"), "description")
    version = metadata.get("version")
    if type(version) is not int or version < 1:
        raise CorruptedFileError(f"The format version {some(version)} is no version.")
    if version > FORMAT_VERSION:
        raise VersionError(
            f"The file has format version {version} (written by skvae "
            f"{some(metadata.get('skvae'))}), but skvae {__version__} reads versions "
            f"up to {FORMAT_VERSION}. Upgrade: pip install --upgrade skvae."
        )
    check_cap("list of tensors", len(header), MAX_TENSORS, "entries")
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
        return version, metadata.get("estimator"), deserialize(content)
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
    check_cap(
        f"nesting of the {name}", max(accumulate(steps), default=0), MAX_DEPTH, "levels"
    )

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("a key occurs twice")
        return dict(pairs)

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    try:
        value = json.loads(text, object_pairs_hook=once, parse_constant=refuse)
    except ValueError as error:
        raise CorruptedFileError(f"The {name} cannot be read: {error}.") from error
    if type(value) is not dict:
        raise CorruptedFileError(f"The {name} must be an object, got {some(value)}.")
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
            f"The entry of tensor {some(name)} is not as it must be."
        ) from error
    if not sound or not isinstance(dtype, str):
        raise CorruptedFileError(
            f"The entry of tensor {some(name)} is not as it must be: {some(entry)}."
        )
    if dtype not in DTYPES:
        raise UnsafeFileError(
            f"Tensor {some(name)} has the dtype {some(dtype)}; expected one of "
            f"{sorted(DTYPES)}."
        )
    check_cap(f"shape of tensor {some(name)}", len(shape), MAX_AXES, "axes")
    check_cap(
        f"longest axis of tensor {some(name)}",
        max(shape, default=0),
        MAX_DIMENSION,
        "entries",
    )
    return end


# ------------------------------------------------------------------------- files


def read(path: Any) -> bytes:
    """The content of a file, unless its first bytes say that it is none of ours."""
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
    check_cap("header", length, MAX_HEADER_BYTES, "bytes")
    check_cap("file", size, MAX_BYTES, "bytes")
    if 8 + length > size:
        raise TruncatedFileError(
            f"The file ends after {size} bytes, before its header of {length} does. "
            "Copy it again."
        )
    return length


def replace(path: Any, content: bytes) -> None:
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
    except BaseException as error:
        with suppress(FileNotFoundError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno is not None:
            # Not by the name of the temporary file, nor without one (a full disk).
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

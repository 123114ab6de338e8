"""Why a file is refused."""

from typing import Any


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


def check_cap(name: str, value: int, cap: int, unit: str) -> None:
    """Refuse what is more than any file may ask for."""
    if value > cap:
        raise UnsafeFileError(
            f"The {name} of {value:,} {unit} is larger than the {cap:,} that are "
            "allowed."
        )


def some(value: Any) -> str:
    """The beginning of what a file says, for a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."

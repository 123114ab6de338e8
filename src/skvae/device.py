"""Where the arithmetic runs, and in which precision."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from math import inf
from pathlib import Path
from threading import Lock

import torch

from ._compat import cpu_has_bfloat16

# Below this many multiplications a step runs on one thread: a second one saves nothing,
# and where it is kept from its core every small operation waits for it.
MULTI_THREAD_MIN_PRODUCTS = 25_000_000
# Where Linux tells of its memory, and of that of the group that this process is in.
MEMORY, GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Below this many weights the casts cost more than bfloat16 products save.
BFLOAT16_MIN_WEIGHTS = 100_000


def resolve_device(device: str | torch.device) -> torch.device:
    """The torch device that a ``device`` parameter stands for.

    Parameters
    ----------
    device : str or torch.device
        "auto" is CUDA where there is a GPU, else the CPU; anything else is any device
        string that torch knows ("cpu", "cuda", "cuda:1", "mps").

    Raises
    ------
    ValueError
        If torch does not know the device, or this machine does not have it.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    available = ["auto", "cpu"]
    if torch.cuda.is_available():
        available += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        available.append("mps")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device={device!r} is not known; expected one of {available}."
        ) from error
    try:
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device={device!r} cannot be used on this machine ({_first_line(error)}); "
            f"expected one of {available}."
        ) from error
    if resolved.type == "meta":
        raise ValueError(f"device='meta' holds no data; expected one of {available}.")
    return resolved


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")


def resolve_precision(
    precision: str,
    device: torch.device,
    *,
    exact: bool,
    n_weights: int,
    needs_float32: bool = False,
) -> torch.dtype:
    """What the network computes in while it trains.

    "auto" takes bfloat16 where the hardware multiplies it natively, the network is
    large enough to gain, and the likelihood is not ``exact`` (rounding a real-valued
    residual or a count to three digits would cost likelihood). Weights and optimiser
    stay float32 in any case.
    """
    if precision == "float32":
        return torch.float32
    if precision == "bfloat16":
        if needs_float32:
            raise ValueError(
                "precision='bfloat16' does not do for a network with a flow, whose "
                "splines need float32; use precision='auto' or 'float32'."
            )
        return torch.bfloat16
    if exact or needs_float32 or n_weights < BFLOAT16_MIN_WEIGHTS:
        return torch.float32
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device.type == "cpu" and cpu_has_bfloat16()
    return torch.bfloat16 if native else torch.float32


def available_memory(device: str) -> float:
    """Bytes that may well be used on a kind of device: half of what is free."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0] / 2
    free = _kilobytes_available()
    if free is None:  # not a system that tells
        free = 4 * 2**20
    return min(1024.0 * free, _left_of_group()) / 2


def _kilobytes_available() -> int | None:
    """What Linux would give: what is free, and caches that it can drop."""
    try:
        lines = MEMORY.read_text("ascii").splitlines()
    except OSError:
        return None
    told = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(told[0]) if told else None


def _left_of_group() -> float:
    """What a container, or a job of a cluster, may still take."""
    try:
        limit, used = (
            (GROUP / name).read_text("ascii")
            for name in ("memory.max", "memory.current")
        )
        return float(limit) - float(used)
    except (OSError, ValueError):  # no group, or "max"
        return inf


_threads_lock = Lock()
_threads_users = 0
_threads_before = 1


@contextmanager
def one_thread() -> Iterator[None]:
    """Within, torch computes on one thread.

    Torch's count belongs partly to the process and partly to the Python thread that
    set it. So with fits in several Python threads the first to enter remembers the
    count for all, and each sets it back for itself.
    """
    global _threads_users, _threads_before
    with _threads_lock:
        if _threads_users == 0:
            _threads_before = torch.get_num_threads()
        _threads_users += 1
        before = _threads_before
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _threads_lock:
            torch.set_num_threads(before)
            _threads_users -= 1


_forked = False


def _note_fork() -> None:
    global _forked
    _forked = True
    torch.set_num_threads(1)  # for what runs outside of the two below as well


# In a forked process the threads of torch's pool are gone, and an operation that waits
# for one of them waits for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


@contextmanager
def answering() -> Iterator[None]:
    """The state of the process in which a fitted model computes safely."""
    with one_thread() if _forked else nullcontext():
        yield


@contextmanager
def training(device: torch.device, products_per_step: int) -> Iterator[None]:
    """The state of the process in which a model of this size trains best."""
    small = products_per_step < MULTI_THREAD_MIN_PRODUCTS
    with ExitStack() as stack:
        if device.type == "cpu" and (small or _forked):
            stack.enter_context(one_thread())
        stack.enter_context(flush_denormals())
        yield


@contextmanager
def flush_denormals() -> Iterator[None]:
    """Within, numbers under 1e-38 count as 0 on this thread.

    Adam's moments of a weight whose gradient stays away decay into that range, where
    some processors are many times slower.
    """
    tiny = torch.full((), 1e-40)
    before = bool(tiny * 1.0 == 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)

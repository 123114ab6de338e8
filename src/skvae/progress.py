"""Progress bars for ``verbose=1``: what is done, and the time that is left."""

import sys
import time
from collections.abc import Sequence
from typing import TextIO

from .history import Record


class Progress:
    """Writes one line that is rewritten in a terminal, and a few lines elsewhere."""

    def __init__(self, epochs: int, stream: TextIO | None = None, width: int = 20):
        self.epochs = epochs
        self.stream = sys.stderr if stream is None else stream
        self.width = width
        self.started = time.perf_counter()
        self.done = 0
        self.terminal = self.stream.isatty()

    def __call__(self, record: Record) -> None:
        self.done += 1
        elapsed = time.perf_counter() - self.started
        left = elapsed / self.done * (self.epochs - self.done)
        filled = self.width * self.done // self.epochs
        line = (
            f"epoch {self.done:>{len(str(self.epochs))}}/{self.epochs} "
            f"[{'#' * filled}{'.' * (self.width - filled)}] "
            f"loss {record.loss:.2f}  recon {record.reconstruction:.2f}  "
            f"KL {record.kl:.2f}"
        )
        if record.validation_loss is not None:
            line += f"  validation {record.validation_loss:.2f}"
        line += f"  {_clock(left)} left"
        if self.terminal:
            self.stream.write(f"\r\x1b[K{line}")
        elif self.done == self.epochs or self.done % max(1, self.epochs // 10) == 0:
            self.stream.write(f"{line}\n")
        self.stream.flush()

    def close(self) -> None:
        if self.terminal and self.done:
            self.stream.write("\n")
            self.stream.flush()


class SearchProgress:
    """The same for the tasks of a search, whose lengths were estimated.

    Parameters
    ----------
    seconds : sequence of float
        Estimate for each task.
    counts : sequence of int
        Results that each will give.
    """

    def __init__(
        self,
        seconds: Sequence[float],
        counts: Sequence[int],
        stream: TextIO | None = None,
        width: int = 20,
    ):
        # Where nothing was estimated, all results count the same.
        known = [s for s in seconds if s > 0]
        usual = sum(known) / len(known) if known else 1.0
        self.shares = [
            (s or usual) / max(1, n) for s, n in zip(seconds, counts, strict=True)
        ]
        self.work = sum(s * n for s, n in zip(self.shares, counts, strict=True))
        self.total, self.done, self.done_work = sum(counts), 0, 0.0
        self.stream = sys.stderr if stream is None else stream
        self.width = width
        self.terminal = self.stream.isatty()
        self.started = time.perf_counter()
        self.tenths = 0

    def __call__(self, task: int, n_results: int) -> None:
        self.done += n_results
        self.done_work += n_results * self.shares[task]
        finished = self.done == self.total
        fraction = 1.0 if finished else min(1.0, self.done_work / self.work)
        elapsed = time.perf_counter() - self.started
        left = elapsed * (1 - fraction) / fraction
        filled = int(self.width * fraction)
        line = (
            f"fit {self.done:>{len(str(self.total))}}/{self.total} "
            f"[{'#' * filled}{'.' * (self.width - filled)}]  {_clock(left)} left"
        )
        if self.terminal:
            self.stream.write(f"\r\x1b[K{line}")
        elif int(10 * fraction) > self.tenths:
            self.tenths = int(10 * fraction)
            self.stream.write(f"{line}\n")
        self.stream.flush()

    def close(self) -> None:
        if self.terminal and self.done:
            self.stream.write("\n")
            self.stream.flush()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
    )

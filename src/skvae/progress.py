"""A progress bar for ``verbose=1``: epochs, losses and the time that is left."""

import sys
import time
from typing import TextIO

from .engine import Record


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


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
    )

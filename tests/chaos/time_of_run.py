"""Seconds since a run began, the same in all of its processes. It begins when all of them are there."""

from pathlib import Path
from time import time

NOT_YET = -1.0


class TimeOfRun:
    """`now` is negative until somebody calls `begin`, in whatever process."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self._file = folder / "began-at"
        self._seconds = seconds
        self._began_at: float | None = None

    def begin(self) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(repr(time()))
        new.rename(self._file)

    def now(self) -> float:
        if self._began_at is None and self._file.exists():
            self._began_at = float(self._file.read_text())
        return NOT_YET if self._began_at is None else time() - self._began_at

    def is_on(self) -> bool:
        return 0 <= self.now() < self._seconds

    def is_over(self) -> bool:
        return self.now() >= self._seconds

"""A lock on a folder. The kernel releases it when its holder ends, however it ends."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """Holds the folder, made if missing, against every other thread and process, waiting as long as another holds it.

    Raises BlockingIOError if it is held and `wait` is false.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield

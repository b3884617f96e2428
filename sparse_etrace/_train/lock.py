"""One run at a time on a file, and none that ends in the middle of it."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


def beside(path: Path, ending: str) -> Path:
    """A file beside the one that links lead to."""
    return Path(os.path.realpath(path) + ending)


@contextlib.contextmanager
def alone(path: Path | None) -> Iterator[None]:
    """Keep a path for one run; the system gives it free again when the process ends, however it does.

    Raises:
        ValueError: it is a folder or no file, its folder cannot be made or written, or another run has it.
    """
    if path is None:
        yield
        return
    if os.path.isdir(path) or not path.name:
        raise ValueError(f"checkpoint: expected a file, got the folder {path}. Name a file in it.")
    if os.path.exists(path) and not path.is_file():
        raise ValueError(f"checkpoint: expected a file, got {path}, a device, a pipe or a socket. Name a file.")
    while True:
        try:
            lock = beside(path, ".lock")
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = open(lock, "a+b")
        except (OSError, ValueError) as error:
            raise ValueError(
                f"checkpoint: expected a file that can be written, got {str(path)!r}: {error}. Name another file."
            ) from error
        with file:
            try:
                if sys.platform == "win32":
                    msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
                else:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ValueError(
                    f"checkpoint: expected a file of no other run, got {path}, whose run goes on. Wait for "
                    "its end, or name another file."
                ) from error
            # The run before may have removed the file just after it was opened here.
            if lock.exists() and os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                try:
                    yield
                finally:
                    with contextlib.suppress(OSError):
                        lock.unlink()
                return


class Ending:
    """While a run ends, be it by Ctrl-C, further ones are not heard: nothing may come between it and its file.

    Attributes:
        has_begun: whether it ends.
    """

    def __enter__(self) -> "Ending":
        self.has_begun, self._before = False, signal.getsignal(signal.SIGINT)
        self._is_asked = threading.current_thread() is threading.main_thread() and callable(self._before)
        if self._is_asked:
            signal.signal(signal.SIGINT, self._hear)
        return self

    def __exit__(self, *error: object) -> None:
        if self._is_asked:
            signal.signal(signal.SIGINT, self._before)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if not self.has_begun:
            try:
                self._before(number, frame)  # type: ignore[operator,misc]
            except BaseException:
                self.has_begun = True
                raise

"""SIGTERM, which a machine sends some seconds before it is taken away."""

import contextlib
import signal


class Terminated(BaseException):
    """SIGTERM came; whatever had to be saved has been.

    Not an `Exception`: no library on the way may take it for an error.
    """


class Termination:
    """Turns SIGTERM into `Terminated`, at once or at the next safe moment.

    Use as a context manager around a job. Inside `deferred()` a signal is only
    noted in `requested`, for the code there to act on.
    """

    def __init__(self):
        self.requested = False
        self._deferred = False

    def __enter__(self):
        self._previous = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *exception):
        signal.signal(signal.SIGTERM, self._previous)

    @contextlib.contextmanager
    def deferred(self):
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self.requested:
            raise Terminated

    def _receive(self, signal_number, frame):
        self.requested = True
        if not self._deferred:
            raise Terminated

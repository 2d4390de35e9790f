"""SIGTERM, which a machine sends before it is taken away, and Ctrl-C."""

import contextlib
import os
import signal

_HINT = b"\nSaving. Ctrl-C again stops at once.\n"


class Terminated(BaseException):
    """A signal came, whose number it holds; what had to be saved has been.

    Not an `Exception`: no library on the way may take it for an error.
    """


class Termination:
    """Turns the signals into `Terminated`, at once or at the next safe moment.

    Use as a context manager around a job. Inside `deferred()` a signal is only
    noted in `requested`, for the code there to act on; a second Ctrl-C is not
    kept waiting.

    Attributes:
        requested: Number of the signal that came, 0 if none has.
    """

    def __init__(self):
        self.requested = 0
        self._deferred = False
        self._agreed = False

    def __enter__(self):
        self._previous = {signal.SIGTERM: signal.getsignal(signal.SIGTERM)}
        # A shell has Ctrl-C ignored in what it starts in the background.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._previous[signal.SIGINT] = signal.default_int_handler
        for number in self._previous:
            signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self):
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self.requested:
            raise Terminated(self.requested)

    def agree(self):
        """Leaves it to JAX to agree on a step, for processes that train
        together: its handler of SIGTERM tells the others.
        """
        self._agreed = True
        self._steps = 0

    def stops_before_step(self):
        """Whether to stop now; asked by all processes before each step."""
        if not self._agreed:
            return bool(self.requested)
        from jax.experimental import multihost_utils  # noqa: PLC0415

        self._steps += 1
        if multihost_utils.reached_preemption_sync_point(self._steps):
            self.requested = self.requested or signal.SIGTERM
            return True
        return False

    def _receive(self, signal_number, frame):
        impatient = self.requested and signal_number == signal.SIGINT
        self.requested = signal_number
        if impatient or not self._deferred:
            raise Terminated(signal_number)
        if self._agreed:
            signal.raise_signal(signal.SIGTERM)
        if signal_number == signal.SIGINT:
            # Not by print, which may be what the signal has interrupted.
            os.write(2, _HINT)

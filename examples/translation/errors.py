"""What the command line tells its user without a traceback."""

import sys


class UserError(Exception):
    """A mistake the user can mend: printed as it is, exit status 2."""


def notice(message: str) -> None:
    """Tells the user one line, on stderr: stdout is for translations."""
    # On a terminal it takes the place of the progress bar, if there is one.
    start = "\r\x1b[K" if sys.stderr.isatty() else ""
    print(f"{start}{message}", file=sys.stderr, flush=True)

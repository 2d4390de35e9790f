"""English-German translation with a Transformer, trained by Adafactor."""

import time

STARTED = time.monotonic()
"""When this process began, for what it reports of the time it took."""

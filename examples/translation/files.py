"""Files that are never half there."""

import os
import pathlib


def write_atomically(path, text):
    """Replaces a text file so that a reader sees the old or the new one."""
    path = pathlib.Path(path)
    unfinished = path.with_name(f".unfinished-{path.name}")
    with open(unfinished, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

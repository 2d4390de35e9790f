"""A libtpu, or none with the fault no_libtpu."""

import os
import pathlib

if pathlib.Path(os.environ["GCLOUD_STUB"], "faults/no_libtpu").exists():
    raise ImportError("no libtpu")


def get_library_path():
    return "/stub/libtpu.so"

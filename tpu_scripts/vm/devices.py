"""Prints versions and devices; exits with 1 unless they are of the kind asked.

python devices.py tpu
"""

import os
import platform
import sys


def main(wanted):
    print(f"python {platform.python_version()}")
    backend = os.environ["KERAS_BACKEND"]
    found, devices = {"jax": _jax, "tensorflow": _tensorflow}[backend](wanted)
    for device in devices:
        print(f"  {device}")
    if found != wanted:
        print(f"The devices must be of type {wanted}. Received: {found}")
        return 1
    return 0


def _jax(wanted):
    import jax  # noqa: PLC0415

    print(f"jax {jax.__version__}")
    return jax.default_backend(), jax.devices()


def _tensorflow(wanted):
    import tensorflow as tf  # noqa: PLC0415

    print(f"tensorflow {tf.__version__}")
    if wanted == "tpu":
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver("local")
        tf.tpu.experimental.initialize_tpu_system(resolver)
    kind = "TPU" if tf.config.list_logical_devices("TPU") else "CPU"
    devices = tf.config.list_logical_devices(kind)
    return kind.lower(), [device.name for device in devices]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

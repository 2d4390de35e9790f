"""Where the backends differ: one module for each, with the same functions.

`backend` is that of Keras. The functions are described in `tensorflow.py`;
the other two say where and why they are not as plain as they could be.
"""

import keras

if keras.backend.backend() == "tensorflow":
    from keras_adafactor.backends import tensorflow as backend
elif keras.backend.backend() == "jax":
    from keras_adafactor.backends import jax as backend  # type: ignore
elif keras.backend.backend() == "torch":
    from keras_adafactor.backends import torch as backend  # type: ignore
else:
    raise ImportError(
        "keras_adafactor needs Keras' TensorFlow, JAX or PyTorch backend: set "
        "KERAS_BACKEND before Keras is imported. "
        f"Received: KERAS_BACKEND={keras.backend.backend()}"
    )

__all__ = ["backend"]

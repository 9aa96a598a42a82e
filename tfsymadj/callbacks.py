"""Keras callbacks."""

import keras
import tensorflow as tf

MIB = 2**20


class GradientMemory(keras.callbacks.Callback):
    """Adds the memory that training steps took at most to the logs of each epoch.

    It is the peak of what TensorFlow's allocator had handed out during a step, above what was held
    before the step: activations, checkpoints and gradients, in MiB. The first epoch contains what
    tracing and compiling took. Put it before callbacks that read the logs.

    Args:
        device: such as `"GPU:0"`; None: the first GPU, or the CPU.
        name: the key in the logs.

    Raises:
        ValueError: at the start of the training, if the device does not count its memory.

    Example:

    >>> import keras, numpy as np, tfsymadj
    >>> model = keras.Sequential([keras.Input((2,)), tfsymadj.ODELayer(keras.layers.Dense(2))])
    >>> model.compile("sgd", "mse")
    >>> memory = tfsymadj.callbacks.GradientMemory()
    >>> x = np.ones((4, 2), "float32")
    >>> logs = model.fit(x, x, epochs=2, verbose=0, callbacks=[memory]).history
    >>> logs["gradient_memory_mib"][-1] >= 0.0
    True
    """

    def __init__(self, device=None, name="gradient_memory_mib"):
        super().__init__()
        self.device = device
        self.name = name
        self._largest = self._before = 0

    def on_train_begin(self, logs=None):
        if self.device is None:
            self.device = "GPU:0" if tf.config.list_logical_devices("GPU") else "CPU:0"
        try:
            tf.config.experimental.get_memory_info(self.device)
        except ValueError as error:
            raise ValueError(
                "`device` must be one that counts its memory; a CPU does if TensorFlow runs with "
                f"oneDNN (TF_ENABLE_ONEDNN_OPTS=1). Received: {self.device!r}"
            ) from error

    def on_epoch_begin(self, epoch, logs=None):
        self._largest = 0

    def on_train_batch_begin(self, batch, logs=None):
        tf.config.experimental.reset_memory_stats(self.device)
        self._before = tf.config.experimental.get_memory_info(self.device)["current"]

    def on_train_batch_end(self, batch, logs=None):
        tf.test.experimental.sync_devices()
        peak = tf.config.experimental.get_memory_info(self.device)["peak"]
        self._largest = max(self._largest, peak - self._before)

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            logs[self.name] = self._largest / MIB

"""Keras callbacks."""

import logging
from typing import Any

import keras
import tensorflow as tf

from tfsymadj import _platform
from tfsymadj.layers import ODELayer
from tfsymadj.solution import MESSAGES, Status

_log = logging.getLogger("tfsymadj")

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

    def __init__(self, device: str | None = None, name: str = "gradient_memory_mib"):
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


class KeepWeights(keras.callbacks.Callback):
    """Undoes the training steps in which a solve failed: the model is left as if they had not been.

    The result of a failed solve and all its gradients are NaN, and with them all weights are after
    the optimizer's next step. Outside of XLA the error of `on_failure="raise"` comes first; XLA
    drops it. This callback keeps a copy of the weights, the optimizer's state and the metrics of
    before each step, and brings them back where an `ODELayer` reports a failure, or a weight is no
    longer finite. The reason is logged, as a warning of the logger "tfsymadj". Outside of XLA give
    the layers `on_failure="status"`, so that training can go on.

    It works with every optimizer, and takes as much memory as all that it copies, and one look at
    the result of each step. Several `steps_per_execution` are undone together.

    Args:
        patience: after how many failures in a row training is stopped.
        name: the key in the logs of an epoch of the number of its steps that were undone.

    Raises:
        ValueError: if `patience` is not a positive integer.

    Example:

    >>> import keras, numpy as np, tfsymadj
    >>> layer = tfsymadj.ODELayer(keras.layers.Dense(2), on_failure="status")
    >>> model = keras.Sequential([keras.Input((2,)), layer])
    >>> model.compile("adam", "mse")
    >>> x = np.ones((4, 2), "float32")
    >>> keep = tfsymadj.callbacks.KeepWeights()
    >>> model.fit(x, x, verbose=0, callbacks=[keep]).history["undone_steps"]
    [0]
    """

    def __init__(self, patience: int = 10, name: str = "undone_steps"):
        super().__init__()
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise ValueError(f"`patience` must be a positive integer. Received: {patience!r}")
        self.patience = patience
        self.name = name
        self._counts: Any = {}  # layer -> how often its solves ended with each status
        self._before: Any = []  # pairs of a variable and its value before the step
        self._undone = self._in_a_row = 0

    def on_train_begin(self, logs=None):
        layers = [x for x in _platform.parts(self.model) if isinstance(x, ODELayer)]
        # Dynamics must not write to variables: layers in the dynamics of others are theirs.
        inside = {id(x) for layer in layers for x in _platform.parts(layer) if x is not layer}
        with self.model.distribute_strategy.scope():
            if not self.model.optimizer.built:  # or its state of before the first step is unknown
                self.model.optimizer.build(self.model.trainable_variables)
            self._counts = {
                layer: tf.Variable(
                    tf.zeros([len(Status)], tf.int64),
                    trainable=False,
                    synchronization=tf.VariableSynchronization.ON_READ,
                    aggregation=tf.VariableAggregation.SUM,
                )
                for layer in layers
                if id(layer) not in inside
            }
        for layer, counts in self._counts.items():
            layer.count_statuses(counts)
        self.model.make_train_function(force=True)
        self._in_a_row = 0

    def on_train_end(self, logs=None):
        for layer in self._counts:
            layer.count_statuses(None)
        self._counts, self._before = {}, []
        self.model.make_train_function(force=True)  # the last one needs the counts

    def on_epoch_begin(self, epoch, logs=None):
        self._undone = 0

    def on_train_batch_begin(self, batch, logs=None):
        for counts in self._counts.values():
            counts.assign(tf.zeros_like(counts))
        state = [*self._weights(), *self.model.metrics_variables]
        self._before = [(v, tf.identity(v.value)) for v in state]

    def on_train_batch_end(self, batch, logs=None):
        reasons = [
            f"layer {layer.name!r}: {MESSAGES[status]} Received: status {status.name}"
            for layer, counts in self._counts.items()
            for status, count in zip(Status, counts.numpy())
            if status is not Status.SUCCESS and count
        ]
        if not reasons and all(map(_is_finite, self._weights())):
            self._in_a_row = 0
            return
        for variable, value in self._before:
            variable.assign(value)
        known = {id(variable) for variable, _ in self._before}
        for metric in self.model.metrics:  # some are made in the first step
            if not known.issuperset(map(id, metric.variables)):
                metric.reset_state()
        self._undone += 1
        self._in_a_row += 1
        reason = "; ".join(reasons) or "a weight was not finite, though no `ODELayer` failed"
        _log.warning("The training step that ended with batch %d was undone: %s", batch, reason)
        if self._in_a_row == self.patience:
            _log.warning("Training is stopped after %d such steps in a row", self.patience)
            self.model.stop_training = True

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            logs[self.name] = self._undone

    def _weights(self):
        return [*self.model.variables, *self.model.optimizer.variables]


def _is_finite(variable):
    if not keras.backend.is_float_dtype(variable.dtype):
        return True
    return bool(tf.reduce_all(tf.math.is_finite(variable.value)))

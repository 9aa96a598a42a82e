"""Preconditioners of the equations of implicit stages, and their transposes."""

import tensorflow as tf

from tfsymadj.dynamics.operators import adjoint, applied


class Preconditioner:
    """About the inverse of I - h a_ii J_i for each stage of a block, over vectors of all stages.

    Args:
        system: `System`.
        function: see `Newton`.
        block: `Block`.
        h: as of `step_of`.
        xs: list of the stage values, vectors.
        transposed: whether it is the transpose.
    """

    def __init__(self, system, function, block, h, xs, transposed):
        self._system, self._transposed = system, transposed
        self._approximations = []
        for i, (t, x) in enumerate(zip(block.ts, xs)):
            ys = self._state(x)
            size = tf.cast(h * block.number(i, i, h), ys[0].dtype.real_dtype)
            size = tf.reshape(size, [-1] if system.lanes else [])
            t = tf.cast(t, ys[0].dtype.real_dtype)
            found = function(t, ys[0] if len(ys) == 1 else ys, size)
            several = isinstance(found, tf.linalg.LinearOperator) and len(ys) > 1
            if several or not (callable(found) or isinstance(found, tf.linalg.LinearOperator)):
                raise TypeError(
                    "`preconditioner` must return a linear function of what is like the state, or, "
                    f"for a state of one tensor, a `tf.linalg.LinearOperator`. Received: {found!r}"
                )
            self._approximations.append(found)

    def __call__(self, v):
        parts = zip(self._approximations, tf.split(v, len(self._approximations), 1))
        return tf.concat([self._applied(found, part) for found, part in parts], 1)

    def _state(self, x):
        zeros = [tf.zeros_like(y) for y in self._system.like]
        return self._system.joined(self._system.unpack(x), zeros)

    def _applied(self, approximation, v):
        if isinstance(approximation, tf.linalg.LinearOperator):
            product = adjoint if self._transposed else applied
            return self._packed([product(approximation, self._state(v)[0])])
        if not self._transposed:
            return self._value(approximation, v)
        x = tf.zeros_like(v)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            value = self._value(approximation, x)
        found = tape.gradient(value, x, output_gradients=v)
        return tf.zeros_like(v) if found is None else tf.ensure_shape(found, v.shape)

    def _value(self, function, v):
        ys = self._state(v)
        found = tf.nest.flatten(function(ys[0] if len(ys) == 1 else ys))
        if [x.shape for x in found] != [y.shape for y in ys]:
            raise ValueError(
                "`preconditioner` must return a function that keeps the shapes of the state. "
                f"Received: shapes {[x.shape for x in found]} for {[y.shape for y in ys]}"
            )
        return self._packed(found)

    def _packed(self, ys):
        return tf.ensure_shape(
            self._system.pack(self._system.live_of(ys)), [None, self._system.size]
        )

"""Gradients of many outputs with tfsymadj, as `outputs.py` asks for them."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import measure
import tensorflow as tf
from workloads import SERIES

import tfsymadj

KERNELS, BIASES = ([tf.Variable(x) for x in arrays] for arrays in SERIES.data()[:2])
START = tf.constant(SERIES.data()[2])


def network(t, y):
    for kernel, bias in zip(KERNELS[:-1], BIASES[:-1]):
        y = tf.nn.elu(y @ kernel + bias)
    return y @ KERNELS[-1] + BIASES[-1]


def build(method, count):
    """The gradient; `method` is `outputs-mode`."""
    outputs, mode = method.split("-")
    times = SERIES.times(count)  # no tensor, which would get a gradient too

    @tf.function(jit_compile=mode == "xla")
    def gradient(start):
        with tf.GradientTape() as tape:
            tape.watch(start)
            solution = tfsymadj.solve(
                network, start, times, rtol=SERIES.rtol, atol=SERIES.atol, outputs=outputs
            )
            loss = tf.reduce_mean(solution.y**2)
        return loss, tape.gradient(loss, [start, *KERNELS, *BIASES]), solution.stats

    def run():
        loss, gradients, stats = gradient(START)
        for x in gradients:
            x.numpy()
        return loss, stats

    return run


def facts(method, count, stats):
    return dict(steps=int(stats.num_steps), evaluations=int(stats.num_evaluations))


if __name__ == "__main__":
    measure.serve(build, facts, f"TensorFlow {tf.__version__}")

"""Gradients of many outputs with diffrax, as `outputs.py` asks for them."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import diffrax
import jax
import jax.numpy as jnp
import measure
from workloads import SERIES


def network(t, y, weights):
    kernels, biases = weights
    for kernel, bias in zip(kernels[:-1], biases[:-1]):
        y = jax.nn.elu(y @ kernel + bias)
    return y @ kernels[-1] + biases[-1]


def make_loss(visit=None):
    """`(inputs, times) -> loss, stats`; `visit` is called in each evaluation."""

    def dynamics(t, y, weights):
        if visit is not None:
            jax.debug.callback(visit)
        return network(t, y, weights)

    def loss(inputs, times):
        start, *weights = inputs
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(dynamics), diffrax.Dopri5(), 0.0, SERIES.end, None, start, weights,
            saveat=diffrax.SaveAt(ts=times),
            stepsize_controller=diffrax.PIDController(rtol=SERIES.rtol, atol=SERIES.atol),
        )  # fmt: skip
        return jnp.mean(solution.ys**2), solution.stats

    return loss


def arguments(count):
    kernels, biases, start = jax.tree.map(jnp.asarray, SERIES.data())
    return (start, kernels, biases), jnp.asarray(SERIES.times(count), jnp.float32)


def build(method, count):
    """The gradient, by the default adjoint."""
    gradient, inputs = jax.jit(jax.value_and_grad(make_loss(), has_aux=True)), arguments(count)

    def run():
        (loss, stats), _ = jax.block_until_ready(gradient(*inputs))
        return loss, stats

    return run


def facts(method, count, stats):
    evaluations = 0

    def visit():
        nonlocal evaluations
        evaluations += 1

    jax.block_until_ready(jax.jit(make_loss(visit))(*arguments(count)))
    jax.effects_barrier()
    return dict(steps=int(stats["num_steps"]), evaluations=evaluations)


if __name__ == "__main__":
    measure.serve(build, facts, f"diffrax {diffrax.__version__}, JAX {jax.__version__}")

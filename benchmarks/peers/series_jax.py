"""Gradients of small problems with diffrax, as `turns.py` asks for them."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import diffrax
import jax
import jax.numpy as jnp
import measure
import numpy as np


class Rk4(diffrax.AbstractERK):
    """The classical method, which diffrax does not have; without an error estimate."""

    tableau = diffrax.ButcherTableau(
        c=np.array([0.5, 0.5, 1.0]),
        b_sol=np.array([1, 2, 2, 1]) / 6,
        b_error=np.zeros(4),
        a_lower=[np.array([0.5]), np.array([0.0, 0.5]), np.array([0.0, 0.0, 1.0])],
    )
    interpolation_cls = diffrax.ThirdOrderHermitePolynomialInterpolation.from_k

    def order(self, terms):
        return 4


def make_dynamics(series, visit):
    activation = {"elu": jax.nn.elu, "tanh": jnp.tanh}[series.activation]

    def dynamics(t, y, weights):
        kernels, biases, *rates = weights
        if visit is not None:
            jax.debug.callback(visit)
        if not biases:
            (a, b, c, d), (prey, predators) = kernels[0], y
            meetings = prey * predators
            return jnp.stack([a * prey - b * meetings, d * meetings - c * predators])
        for kernel, bias in zip(kernels[:-1], biases[:-1]):
            y = activation(y @ kernel + bias)
        slopes = y @ kernels[-1] + biases[-1]
        return rates[0] * slopes if rates else slopes

    return dynamics


def make_loss(series, visit=None):
    """`(inputs, times) -> loss, stats`; `visit` is called in each evaluation."""
    term = diffrax.ODETerm(make_dynamics(series, visit))
    if series.num_steps is None:
        controller = diffrax.PIDController(rtol=series.rtol, atol=series.atol)
        solver, step, most = diffrax.Dopri5(), None, measure.MOST
    else:
        controller, solver = diffrax.ConstantStepSize(), Rk4()
        step, most = series.end / series.num_steps, series.num_steps

    def solve(start, weights, times):
        return diffrax.diffeqsolve(
            term, solver, 0.0, series.end, step, start, weights, max_steps=most,
            saveat=diffrax.SaveAt(ts=times), stepsize_controller=controller,
        )  # fmt: skip

    def loss(inputs, times):
        start, *weights = inputs
        if series.spread == 1.0:
            solution = solve(start, weights, times)
        else:  # each example by itself
            each = jax.vmap(lambda y, rate: solve(y, [*weights, rate], times))
            solution = each(start, jnp.asarray(series.rates))
        return jnp.mean(solution.ys**2), solution.stats

    return loss


def arguments(series, count):
    kernels, biases, start = jax.tree.map(jnp.asarray, series.data())
    return (start, kernels, biases), jnp.asarray(series.times(count), jnp.float32)


def build(series, method, count):
    """The gradient, by the default adjoint, or the loss alone if `method` is `forward`."""
    loss, inputs = make_loss(series), arguments(series, count)
    if method == "forward":
        value = jax.jit(loss)
        return lambda: jax.block_until_ready(value(*inputs))
    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))

    def run():
        (loss, stats), _ = jax.block_until_ready(gradient(*inputs))
        return loss, stats

    return run


def facts(series, method, count, stats):
    evaluations = 0

    def visit():
        nonlocal evaluations
        evaluations += 1

    jax.block_until_ready(jax.jit(make_loss(series, visit))(*arguments(series, count)))
    jax.effects_barrier()
    return dict(steps=int(jnp.max(stats["num_steps"])), evaluations=evaluations)


if __name__ == "__main__":
    measure.serve(build, facts, f"diffrax {diffrax.__version__}, JAX {jax.__version__}")

"""One case with diffrax: `python run_jax.py --workload W1b --method default`."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import diffrax
import jax
import jax.numpy as jnp
import measure
import numpy as np

CHECKPOINTS = [2, 4, 8, 16, 32, 64]
METHODS = ["default", "per_step", "direct", "backsolve", *map(str, CHECKPOINTS)]


class RK38(diffrax.AbstractERK):
    """The 3/8 rule."""

    tableau = diffrax.ButcherTableau(
        c=np.array([1 / 3, 2 / 3, 1]),
        a_lower=(np.array([1 / 3]), np.array([-1 / 3, 1]), np.array([1.0, -1, 1])),
        b_sol=np.array([1 / 8, 3 / 8, 3 / 8, 1 / 8]),
        b_error=np.zeros(4),
    )
    interpolation_cls = diffrax.ThirdOrderHermitePolynomialInterpolation.from_k

    def order(self, terms):
        return 4


SOLVERS = {"rk38": RK38, "dopri5": diffrax.Dopri5, "dopri8": diffrax.Dopri8}


def network(t, y, weights):
    """The network's output."""
    x = jnp.concatenate([y, jnp.broadcast_to(t, (y.shape[0], 1)).astype(y.dtype)], axis=1)
    kernels, biases = weights
    for kernel, bias in zip(kernels[:-1], biases[:-1]):
        x = jnp.tanh(x @ kernel + bias)
    return x @ kernels[-1] + biases[-1]


def flow(t, y, args):
    """The derivatives of samples and log-density."""
    weights, noise = args
    dz, vjp = jax.vjp(lambda z: network(t, z, weights), y[:, :-1])
    (product,) = vjp(noise)
    return jnp.concatenate([dz, -jnp.sum(product * noise, axis=1, keepdims=True)], axis=1)


def make_loss(work, method, max_steps, visit=None):
    """`(weights, y0, noise) -> loss, stats`; `visit` is called in each evaluation."""

    def dynamics(t, y, args):
        if visit is not None:
            jax.debug.callback(visit)
        return flow(t, y, args) if work.flow else network(t, y, args[0])

    solver = SOLVERS[work.method]()
    if work.adaptive:
        controller = diffrax.PIDController(rtol=work.tolerance, atol=work.tolerance)
        back = controller
    else:
        # Not `ConstantStepSize`: sums of float32 steps may end before t = 1 and need one more.
        times = np.linspace(0, 1, work.num_steps + 1, dtype=np.float32)
        controller, back = diffrax.StepTo(times), diffrax.StepTo(times[::-1])
        max_steps = work.num_steps
    if method == "backsolve":
        # Keeps nothing of a step, and its backward solve may need more of them.
        adjoint = diffrax.BacksolveAdjoint(solver=solver, stepsize_controller=back)
        max_steps = max(max_steps, 4096)
    elif method == "direct":
        adjoint = diffrax.DirectAdjoint()
    else:
        named = {"default": None, "per_step": max_steps}
        checkpoints = named[method] if method in named else int(method)
        adjoint = diffrax.RecursiveCheckpointAdjoint(checkpoints)

    def loss(weights, y0, noise):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(dynamics), solver, 0.0, 1.0, None, y0, (weights, noise),
            stepsize_controller=controller, adjoint=adjoint, max_steps=max_steps,
        )  # fmt: skip
        y = solution.ys[-1]
        if not work.flow:
            return jnp.mean(y**2), solution.stats
        density = -0.5 * jnp.sum(y[:, :-1] ** 2, axis=1) - work.log_normalizer - y[:, -1]
        return -jnp.mean(density), solution.stats

    return loss


def count_evaluations(work, method, max_steps, inputs):
    """Evaluations of the dynamics, forward and backward."""
    count = 0

    def visit():
        nonlocal count
        count += 1

    loss = make_loss(work, method, max_steps, visit)
    counts = []
    for function in (loss, jax.value_and_grad(loss, has_aux=True)):
        count = 0
        jax.block_until_ready(jax.jit(function)(*inputs))
        jax.effects_barrier()
        counts.append(count)
    return dict(forward=counts[0], backward=counts[1] - counts[0])


def main():
    arguments = measure.parse(METHODS)
    work = arguments.work
    data = work.data()
    inputs = jax.tree.map(jnp.asarray, ((data.kernels, data.biases), data.y0, data.noise))
    case = (work, arguments.method, arguments.max_steps)
    compiled = None

    def build():
        nonlocal compiled
        function = jax.jit(jax.value_and_grad(make_loss(*case), has_aux=True))
        compiled = function.lower(*inputs).compile()

        def run():
            (loss, stats), (kernels, biases) = jax.block_until_ready(compiled(*inputs))
            return loss, [*kernels, *biases], stats

        return run

    def facts(stats):
        found = dict(
            accepted=int(stats["num_accepted_steps"]),
            xla_temporaries=compiled.memory_analysis().temp_size_in_bytes / 2**20,
        )
        if arguments.memory:
            found |= count_evaluations(*case, inputs)
        return found

    version = f"diffrax {diffrax.__version__}, JAX {jax.__version__}"
    measure.report(arguments, "diffrax", version, build, facts)


if __name__ == "__main__":
    main()

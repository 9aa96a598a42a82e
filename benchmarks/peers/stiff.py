"""Robertson's kinetics with diffrax: `python stiff.py 100 5`, batch and rounds; a line of JSON."""

import json
import statistics
import sys
import time

import numpy as np

END = 1e5
BATCH_TOLERANCES = 1e-5, 1e-10


def rates_of(batch):
    """The rates of each example, within a factor of two of Robertson's; of the first, his own."""
    factors = 2.0 ** np.random.default_rng(0).uniform(-1, 1, [batch, 3])
    factors[0] = 1.0
    return np.array([0.04, 3e7, 1e4]) * factors


def main():
    import diffrax
    import jax
    import jax.numpy as jnp
    import optimistix

    jax.config.update("jax_enable_x64", True)
    batch, rounds = map(int, sys.argv[1:])
    rtol, atol = BATCH_TOLERANCES
    # With diffrax 0.7 and JAX 0.10 its own root finder, `VeryChord`, lets no step pass.
    solver = diffrax.Kvaerno5(root_finder=optimistix.Chord(rtol=rtol, atol=atol))

    def dynamics(t, y, k):
        first, second, third = k[0] * y[0], k[1] * y[1] ** 2, k[2] * y[1] * y[2]
        return jnp.stack([third - first, first - second - third, second])

    def end(k):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(dynamics), solver, 0.0, END, 2e-4,
            jnp.array([1.0, 0.0, 0.0]), k, max_steps=4096,
            stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
        )  # fmt: skip
        return solution.ys[-1, 2]

    def loss(rates):
        return jnp.sum(jax.vmap(end)(rates))

    rates, times = jnp.asarray(rates_of(batch)), []
    for function in (jax.jit(loss), jax.jit(jax.value_and_grad(loss))):
        value = jax.block_until_ready(function(rates))
        each = []
        for _ in range(rounds):
            start = time.perf_counter()
            jax.block_until_ready(function(rates))
            each.append(1e3 * (time.perf_counter() - start))
        times.append(statistics.median(each))
    print(json.dumps(dict(forward=times[0], gradient=times[1], loss=float(value[0]))))


if __name__ == "__main__":
    main()

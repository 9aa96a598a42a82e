"""Gradients with diffrax' recursive checkpointing, as `reversible.py` asks for them."""

import json
import sys
import time

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from series_jax import Rk4

jax.config.update("jax_enable_x64", True)
SOLVERS = {"midpoint": diffrax.Midpoint, "rk4": Rk4, "bosh3": diffrax.Bosh3}


def loss_function(request, arrays, checkpoints):
    """`weights -> (loss, number of steps)`."""
    times, observed, start = (jnp.asarray(arrays[k]) for k in ("times", "observed", "start"))
    steps, tolerance = request["steps"], request["tolerance"]

    def dynamics(t, y, weights):
        x = jnp.append(y, t) if request["with_time"] else y
        x = jnp.tanh(x @ weights[0] + weights[1])
        return x @ weights[2] + weights[3]

    def loss(weights):
        controller, first = diffrax.ConstantStepSize(), None
        if steps is None:
            controller = diffrax.PIDController(rtol=tolerance, atol=tolerance)
        else:
            first = (times[-1] - times[0]) / steps
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(dynamics), SOLVERS[request["method"]](), times[0], times[-1], first,
            start, weights, saveat=diffrax.SaveAt(ts=times), stepsize_controller=controller,
            max_steps=4096 if steps is None else steps + 1,
            adjoint=diffrax.RecursiveCheckpointAdjoint(checkpoints=checkpoints),
        )  # fmt: skip
        return jnp.mean((solution.ys - observed) ** 2), solution.stats["num_steps"]

    return loss


def main():
    request = json.loads(sys.argv[1])
    arrays = np.load(request["path"])
    weights = [jnp.asarray(arrays[f"arr_{i}"]) for i in range(4)]
    rows = []
    for checkpoints in request["checkpoints"]:
        loss = loss_function(request, arrays, checkpoints)
        gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (value, steps), _ = jax.block_until_ready(gradient(weights))
        seconds = []
        for _ in range(request["rounds"]):
            begin = time.perf_counter()
            jax.block_until_ready(gradient(weights))
            seconds.append(time.perf_counter() - begin)
        ms = 1e3 * min(seconds)
        rows.append(dict(checkpoints=checkpoints, ms=ms, steps=int(steps), loss=float(value)))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()

"""Checkpoints in half precision: memory, and the error of the gradient.

    python benchmarks/half_checkpoints.py

The network of gradient_cost.py, rk4, under XLA. See README.md here.
"""

import json
import sys

import common
import numpy as np
import tensorflow as tf

import tfsymadj

KEPT = ("steps", "sqrt")
DTYPES = (None, "float16", "bfloat16")


def gradients(arguments):
    """For each of `KEPT` and `DTYPES` the gradient function, and what they are called with."""
    networks, options = [common.Network()], dict(method="rk4", num_steps=arguments.steps)
    functions = {
        (kept, dtype): common.gradient_function(
            networks, tfsymadj.SymplecticAdjoint(kept, checkpoint_dtype=dtype), options, "XLA"
        )
        for kept in KEPT
        for dtype in DTYPES
    }
    return functions, tf.random.stateless_normal([arguments.batch, 64], [1, 1])


def main():
    parser = common.parser(__doc__, figure=False)
    parser.add_argument("--steps", type=int, default=400, help="of the solver (default: 400)")
    parser.add_argument("--batch", type=int, default=512, help="size of the batch (default: 512)")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.steps, arguments.batch = 20, 64
    functions, y0 = gradients(arguments)
    if arguments.child:
        common.reserve()
        function = functions[tuple(arguments.child)]
        print(json.dumps(common.peak_of_first_call(function, y0)))
        return
    print(f"{common.machine()}\nrk4, {arguments.steps} steps, batch {arguments.batch}\n")
    print("| checkpoints | kept in | peak MiB | error of the gradient |\n|---|---|---|---|")
    for kept in KEPT:
        exact = None
        for dtype in DTYPES:
            child = json.dumps([kept, dtype])
            peak = common.in_child(__file__, *sys.argv[1:], "--child", child) / 2**20
            flat = np.concatenate([np.ravel(x) for x in functions[kept, dtype](y0)[0]])
            exact = flat if exact is None else exact
            error = np.linalg.norm(flat - exact) / np.linalg.norm(exact)
            print(f"| {kept} | {dtype or 'float32'} | {peak:.1f} | {error:.1e} |", flush=True)


if __name__ == "__main__":
    main()

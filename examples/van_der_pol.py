"""Van der Pol's equation: what the step size controller does, from the solver's own steps.

    python examples/van_der_pol.py    # a few seconds

The oscillator relaxes slowly and then jumps. The table counts the steps and evaluations of several
methods at one tolerance; the picture shows where the steps are.
"""

import argparse
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import matplotlib
import numpy as np
import tensorflow as tf

import tfsymadj

matplotlib.use("Agg")
import matplotlib.pyplot as plt

STIFFNESS = 10.0
END = 40.0
METHODS = ["bosh3", "dopri5", "tsit5", "dopri8"]
DRAWN = "dopri5"


def van_der_pol(t, y):
    return tf.stack([y[1], STIFFNESS * (1.0 - y[0] ** 2) * y[1] - y[0]])


def solve(method, tolerance):
    """The solution after each step."""
    return tfsymadj.solve(
        van_der_pol, tf.constant([2.0, 0.0], tf.float64), [0.0, END], method=method,
        rtol=tolerance, atol=tolerance, outputs="steps",
    )  # fmt: skip


def taken(solution):
    """Times and states of the steps that were taken."""
    count = int(solution.stats.num_accepted) + 1
    return solution.t[:count].numpy(), solution.y[:count].numpy()


def draw(solution, path):
    times, states = taken(solution)
    figure, (above, below) = plt.subplots(2, 1, figsize=(7, 4.5), sharex=True, layout="constrained")
    above.plot(times, states[:, 0], ".-", color="#0072B2", markersize=3, linewidth=0.8)
    above.set_ylabel("position")
    below.semilogy(times[:-1], np.diff(times), ".", color="#D55E00", markersize=3)
    below.set_ylabel("step size")
    below.set_xlabel("time")
    above.set_title(f"Van der Pol's equation by {DRAWN}: {len(times) - 1} steps")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default="out", help="folder to write to")
    parser.add_argument("--tolerance", type=float, default=1e-6, help="relative and absolute")
    arguments = parser.parse_args()

    print("method   steps  rejected  evaluations  smallest step  largest step")
    for method in METHODS:
        solution = solve(method, arguments.tolerance)
        if method == DRAWN:
            draw(solution, arguments.output / "van_der_pol.png")
        sizes, stats = np.diff(taken(solution)[0]), solution.stats
        print(
            f"{method:8} {int(stats.num_accepted):5}  {int(stats.num_rejected):8}  "
            f"{int(stats.num_evaluations):11}  {sizes.min():13.2e}  {sizes.max():12.2e}"
        )
    print(f"Picture: {arguments.output / 'van_der_pol.png'}")


if __name__ == "__main__":
    main()

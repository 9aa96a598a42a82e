"""Robertson's kinetics: three rates, nine orders of magnitude apart, from 40 noisy measurements.

    python examples/robertson.py            # a few minutes on two cores
    python examples/robertson.py --quick    # every part, in a minute

Three species react with the rates 0.04, 3e7 and 1e4; the second one is never more than 4e-5. The
measurements are at 40 times from 1e-5 to 1e5, with an error of two per cent of a species' range.
The rates are found by the gradient of an implicit solve, from starts that are wrong by factors of
up to 30. Errors are divided by each species' range, as in Kim, Ji, Deng, Ma, Rackauckas, Stiff
neural ordinary differential equations, Chaos 31 (2021), 093122; without that the second species has
no say.
"""

import argparse
import os
import pathlib
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import matplotlib
import numpy as np
import tensorflow as tf
from scipy.integrate import solve_ivp
from scipy.optimize import minimize

import tfsymadj

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RATES = np.array([0.04, 3e7, 1e4])
TIMES = np.append(0.0, np.geomspace(1e-5, 1e5, 40))
FINE = np.append(0.0, np.geomspace(1e-5, 1e5, 200))
START = np.array([1.0, 0.0, 0.0])
NOISE = 0.02  # of a species' range
WRONG = 30.0  # the largest factor between a rate and its start
SOLVER = {"method": "kvaerno5", "rtol": 1e-5, "atol": [1e-8, 1e-11, 1e-8], "max_steps": 500}
COLORS = ["#0072B2", "#D55E00", "#009E73"]


def robertson(t, y, rates):
    a, b, c = tf.unstack(y)
    first, second, third = rates[0] * a, rates[1] * b * b, rates[2] * b * c
    return tf.stack([third - first, first - second - third, second])


def measurements(seed):
    """What is measured at `TIMES`, and each species' range; the truth is SciPy's."""

    def dynamics(t, y):
        first, second, third = RATES * [y[0], y[1] ** 2, y[1] * y[2]]
        return [third - first, first - second - third, second]

    options = {"method": "Radau", "t_eval": TIMES, "rtol": 1e-9, "atol": [1e-12, 1e-15, 1e-12]}
    exact = solve_ivp(dynamics, (TIMES[0], TIMES[-1]), START, **options).y.T
    ranges = exact.max(0) - exact.min(0)
    noise = NOISE * ranges * np.random.default_rng(seed).normal(size=exact.shape)
    return exact + noise, ranges


@tf.function(jit_compile=True)
def misfit(logs, measured, weights):
    """Mean of the weighted squared errors, and its gradient for the logarithms of the rates."""
    with tf.GradientTape() as tape:
        tape.watch(logs)
        options = {"outputs": "step", "on_failure": "status", **SOLVER}
        y = tfsymadj.odeint(robertson, START, TIMES, args=(tf.exp(logs),), **options)
        value = tf.reduce_mean(((y - measured)[1:] * weights) ** 2)
    return value, tape.gradient(value, logs)


def fit(start, measured, weights):
    """Rates by BFGS, the least mean of weighted squared errors, and how many gradients it took."""
    measured, weights = tf.constant(measured), tf.constant(weights)

    def value_and_gradient(logs):
        value, gradient = misfit(tf.constant(logs), measured, weights)
        # A line search understands no NaN, which is what a failed solve gives.
        return (value, gradient) if np.isfinite(value) else (1e10, np.zeros(3))

    found = minimize(value_and_gradient, np.log(start), jac=True, method="BFGS")
    return np.exp(found.x), float(found.fun), found.nfev


def check_gradient(measured, weights):
    """The largest relative difference of a gradient and of differences of the misfit."""
    logs, measured, weights = np.log(2 * RATES), tf.constant(measured), tf.constant(weights)
    _, gradient = misfit(tf.constant(logs), measured, weights)
    errors = []
    for i in range(3):
        values = [
            float(misfit(tf.constant(logs + d * np.eye(3)[i]), measured, weights)[0])
            for d in (1e-3, -1e-3)
        ]
        errors.append(abs((values[0] - values[1]) / 2e-3 - gradient[i]) / abs(gradient[i]))
    return max(errors)


def steps_of(method, end):
    """Accepted steps to a time, or None if 10,000 are not enough."""
    options = {**SOLVER, "method": method, "max_steps": 10_000, "on_failure": "status"}
    options["gradient"] = tfsymadj.NoGradient()
    rates = tf.constant(RATES)
    solution = tfsymadj.solve(
        robertson, START, [0.0, end], args=(rates,), jit_compile=True, **options
    )
    return int(solution.stats.num_accepted) if solution.success else None


def draw(measured, ranges, starts, fits, path):
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    names = ["scaled", "not scaled"]
    for axis, name in zip(axes, names):
        rates, _, _ = min(fits[name], key=lambda x: x[1])
        options = {**SOLVER, "gradient": tfsymadj.NoGradient()}
        y = tfsymadj.odeint(robertson, START, FINE, args=(tf.constant(rates),), **options)
        for k, color in enumerate(COLORS):
            axis.plot(TIMES[1:], measured[1:, k] / ranges[k], "o", color=color, markersize=4)
            axis.plot(FINE[1:], y[1:, k] / ranges[k], color=color, label=f"species {k + 1}")
        axis.set(xscale="log", xlabel="Time", ylim=(-0.2, 1.6), title=f"Errors {name}")
    axes[0].set_ylabel("Share of the species' range")
    axes[0].legend(frameon=False, fontsize=9.5)
    for k, color in enumerate(COLORS):
        axes[2].plot(
            starts[:, k] / RATES[k], np.full(len(starts), k), "|", color="#777777", markersize=16
        )
        for offset, name, marker in ((0.2, "scaled", "o"), (-0.2, "not scaled", "x")):
            found = np.array([rates for rates, _, _ in fits[name]])[:, k] / RATES[k]
            label = f"errors {name}" if k == 0 else None
            places = np.full(len(found), k + offset)
            axes[2].plot(found, places, marker, color=color, label=label)
    axes[2].axvline(1.0, color="#777777", linewidth=0.8)
    axes[2].set(
        xscale="log", xlabel="Found over true (bars: starts)", title="Rates", ylim=(-0.6, 2.8)
    )
    axes[2].set_yticks(range(3), [f"rate {k + 1}" for k in range(3)])
    axes[2].legend(frameon=False, fontsize=9.5, loc="upper right")
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short run, to try it out")
    parser.add_argument(
        "--output", type=pathlib.Path, default="out", help="folder to write to (default: out)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of random numbers (default: 0)")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)

    began = time.perf_counter()
    measured, ranges = measurements(arguments.seed)
    weights = {"scaled": 1.0 / ranges, "not scaled": np.ones(3)}
    print("Steps to a time    t = 40   t = 1e5")
    ends = (40.0, 1e5)
    steps = {name: [steps_of(name, end) for end in ends] for name in ("kvaerno5", "dopri5")}
    for name, counts in steps.items():
        print(f"{name:<17}" + "".join(f"{x if x else '> 10000':>8}" for x in counts))
    difference = check_gradient(measured, weights["scaled"])
    print(f"Gradient against differences: {difference:.1e}")

    count = 3 if arguments.quick else 10
    random = np.random.default_rng(arguments.seed + 1)
    starts = RATES * np.exp(random.uniform(-np.log(WRONG), np.log(WRONG), [count, 3]))
    fits, errors = {}, {}
    print(f"\nErrors of the rates, median of {count} starts (per cent)")
    print(f"{'':<12}" + "".join(f"{f'rate {k + 1}':>9}" for k in range(3)))
    for name in weights:
        fits[name] = [fit(start, measured, weights[name]) for start in starts]
        found = np.array([rates for rates, _, _ in fits[name]])
        errors[name] = np.median(np.abs(found / RATES - 1), 0)
        print(f"{name:<12}" + "".join(f"{100 * x:9.2f}" for x in errors[name]))
    gradients = [n for name in weights for _, _, n in fits[name]]
    print(f"Gradients per fit: {np.mean(gradients):.0f}")
    picture = arguments.output / "robertson.png"
    draw(measured, ranges, starts, fits, picture)
    print(f"Time {time.perf_counter() - began:.0f} s")
    print(f"Picture {picture}")
    if difference > 1e-2:
        sys.exit("The gradient is not that of the misfit.")
    if steps["kvaerno5"][1] is None or steps["dopri5"][1] is not None:
        sys.exit("The implicit method did not do what the explicit one could not.")
    # Two per cent of noise, 40 measurements of each species.
    if errors["scaled"].max() > 0.05:
        sys.exit("The rates were not found.")


if __name__ == "__main__":
    main()

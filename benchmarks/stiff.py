"""Stiff problems: error against steps beside SciPy, and batches of Robertson's beside diffrax.

    python benchmarks/stiff.py                  # both
    python benchmarks/stiff.py --only problems  # without the batches

Problems: Robertson's kinetics to 1e5, Van der Pol's oscillator with mu = 1e6 to 2, HIRES to
321.8122, OREGO to 360 (Hairer, Wanner, Solving Ordinary Differential Equations II, section IV.10),
and the heat equation on 200 points to 0.1, whose equations are solved by GMRES. The reference is
SciPy's Radau at 1e-11. The error is the largest relative one of a component at the end. Batches:
the same kinetics to 1e5, each example with rates of its own; diffrax takes Kvaerno5 under `vmap`,
in the environment that `make benchmark-peers` makes. See README.md here.
"""

import dataclasses
import json
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import common
import numpy as np
import tensorflow as tf
from peers.stiff import BATCH_TOLERANCES, END, rates_of
from scipy.integrate import solve_ivp

import tfsymadj

METHODS = ["trbdf2", "kvaerno3", "kvaerno5", "kencarp4", "radau5"]
PEERS = ["Radau", "BDF"]
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#555555", "#E69F00"]
TOLERANCES = [1e-3, 1e-4, 1e-5, 1e-6, 1e-7]


@dataclasses.dataclass(frozen=True)
class Problem:
    """An initial value problem.

    Attributes:
        derivative: from t, the list of components and a module of mathematics to that of slopes.
        y0: the start.
        end: the last time.
        atol: absolute tolerance over relative one.
        newton: of implicit methods.
    """

    derivative: Callable
    y0: np.ndarray
    end: float
    atol: float
    newton: tfsymadj.Newton | None = None


def robertson(a, b, c):
    first, second, third = 0.04 * a, 3e7 * b * b, 1e4 * b * c
    return [third - first, first - second - third, second]


def van_der_pol(x, v):
    return [v, 1e6 * ((1.0 - x * x) * v - x)]


def hires(a, b, c, d, e, f, g, h):
    return [
        -1.71 * a + 0.43 * b + 8.32 * c + 0.0007,
        1.71 * a - 8.75 * b,
        -10.03 * c + 0.43 * d + 0.035 * e,
        8.32 * b + 1.71 * c - 1.12 * d,
        -1.745 * e + 0.43 * f + 0.43 * g,
        -280.0 * f * h + 0.69 * d + 1.71 * e - 0.43 * f + 0.69 * g,
        280.0 * f * h - 1.81 * g,
        -280.0 * f * h + 1.81 * g,
    ]


def orego(a, b, c):
    return [
        77.27 * (b + a * (1.0 - 8.375e-6 * a - b)),
        (c - (1.0 + a) * b) / 77.27,
        0.161 * (a - c),
    ]


def by_components(function):
    def derivative(y, library):
        parts = tf.unstack(y) if library is tf else list(y)
        return library.stack(function(*parts)) if library is tf else np.array(function(*parts))

    return derivative


def heat(y, library):
    pad = (lambda x: tf.pad(x, [[1, 1]])) if library is tf else (lambda x: np.pad(x, 1))
    wide = pad(y)
    return 201.0**2 * (wide[2:] + wide[:-2] - 2.0 * y)


_GRID = np.arange(1, 201) / 201.0
PROBLEMS = {
    "Robertson": Problem(by_components(robertson), np.array([1.0, 0.0, 0.0]), 1e5, 1e-4),
    "Van der Pol": Problem(by_components(van_der_pol), np.array([2.0, 0.0]), 2.0, 1.0),
    "HIRES": Problem(by_components(hires), np.eye(8)[0] + 0.0057 * np.eye(8)[7], 321.8122, 1e-4),
    "OREGO": Problem(by_components(orego), np.array([1.0, 2.0, 3.0]), 360.0, 1.0),
    "heat": Problem(
        heat, np.sin(np.pi * _GRID) + np.sign(_GRID - 0.5), 0.1, 1.0, tfsymadj.Newton("krylov")
    ),
}


def ours(problem, method, rtol):
    """`(steps, milliseconds, y)` of a solve under XLA."""
    options = dict(
        method=method, rtol=rtol, atol=rtol * problem.atol, newton=problem.newton,
        max_steps=100_000, gradient=tfsymadj.NoGradient(), on_failure="status", jit_compile=True,
    )  # fmt: skip
    y0 = tf.constant(problem.y0)

    def solve():
        solution = tfsymadj.solve(
            lambda t, y: problem.derivative(y, tf), y0, [0.0, problem.end], **options
        )
        return int(solution.stats.num_accepted), solution.y[-1].numpy()

    solve()
    start = time.perf_counter()
    steps, y = solve()
    return steps, 1e3 * (time.perf_counter() - start), y


def scipys(problem, method, rtol):
    """The same of SciPy's."""
    start = time.perf_counter()
    found = solve_ivp(
        lambda t, y: problem.derivative(y, np),
        (0.0, problem.end),
        problem.y0,
        method=method,
        rtol=rtol,
        atol=rtol * problem.atol,
    )
    return len(found.t) - 1, 1e3 * (time.perf_counter() - start), found.y[:, -1]


def work_precision(names, tolerances):
    """`(problem, method) -> [(tolerance, steps, milliseconds, error)]`."""
    found = {}
    for name in names:
        problem = PROBLEMS[name]
        _, _, exact = scipys(problem, "Radau", 1e-11)
        scale = np.abs(exact) + 1e-11 * problem.atol
        for method in (*METHODS, *PEERS):
            for rtol in tolerances:
                solve = scipys if method in PEERS else ours
                steps, ms, y = solve(problem, method, rtol)
                error = float(np.max(np.abs(y - exact) / scale))
                found.setdefault((name, method), []).append((rtol, steps, ms, error))
                print(
                    f"{name:<12} {method:<9} {rtol:.0e} {steps:>7} steps {ms:9.1f} ms   "
                    f"error {error:.1e}",
                    flush=True,
                )
    return found


def draw(found, path):
    plt = common.pyplot()
    names = list(dict.fromkeys(name for name, _ in found))
    figure, axes = plt.subplots(
        1, len(names), figsize=(4 * len(names), 4), layout="constrained", squeeze=False
    )
    for axis, name in zip(axes[0], names):
        for method, color in zip((*METHODS, *PEERS), COLORS):
            _, steps, _, errors = zip(*found[name, method])
            line = "--" if method in PEERS else "-"
            axis.loglog(errors, steps, line, marker="o", markersize=4, color=color, label=method)
        axis.set(title=name, xlabel="Error at the end")
        axis.invert_xaxis()
    axes[0][0].set_ylabel("Steps")
    handles = axes[0][0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=7, frameon=False)
    common.save(figure, path)


def batch_of_ours(batch, own, rounds):
    """Milliseconds of solves, and of solves with gradients, and a loss."""
    rates = tf.constant(rates_of(batch))

    def loss(rates):
        def dynamics(t, y):
            a, b, c = tf.unstack(y, axis=1)
            k = tf.unstack(rates, axis=1)
            first, second, third = k[0] * a, k[1] * b * b, k[2] * b * c
            return tf.stack([third - first, first - second - third, second], 1)

        y0 = tf.concat([tf.ones([batch, 1], tf.float64), tf.zeros([batch, 2], tf.float64)], 1)
        options = dict(method="kvaerno5", batch_axis=0 if own else None)
        rtol, atol = BATCH_TOLERANCES
        y = tfsymadj.odeint(dynamics, y0, [0.0, END], rtol=rtol, atol=atol, **options)
        return tf.reduce_sum(y[-1, :, 2])

    def gradient(rates):
        with tf.GradientTape() as tape:
            tape.watch(rates)
            value = loss(rates)
        return value, tape.gradient(value, rates)

    times = []
    for function in (lambda x: (loss(x),), gradient):
        compiled = tf.function(function, jit_compile=True)
        value, *_ = compiled(rates)
        value = float(value)
        each = []
        for _ in range(rounds):
            start = time.perf_counter()
            tf.nest.map_structure(lambda x: x.numpy(), compiled(rates))
            each.append(1e3 * (time.perf_counter() - start))
        times.append(statistics.median(each))
    return dict(forward=times[0], gradient=times[1], loss=value)


def batch_of_diffrax(python, batch, rounds):
    path = pathlib.Path(__file__).resolve().parent / "peers" / "stiff.py"
    command = [python, path, str(batch), str(rounds)]
    result = subprocess.run(
        command, env=common.peer_environment(), capture_output=True, text=True, check=False
    )
    if result.returncode:
        sys.exit(result.stderr)
    return json.loads(result.stdout.splitlines()[-1])


def batches(python, sizes, rounds):
    print(f"\nRobertson's kinetics, {'':<14}{'batch':>8}{'forward, ms':>14}{'gradient, ms':>14}")
    for batch in sizes:
        cases = {
            "tfsymadj, own steps": lambda n=batch: batch_of_ours(n, True, rounds),
            "tfsymadj, shared steps": lambda n=batch: batch_of_ours(n, False, rounds),
            "diffrax under vmap": lambda n=batch: batch_of_diffrax(python, n, rounds),
        }
        losses = {}
        for name, case in cases.items():
            row = case()
            losses[name] = row["loss"]
            print(f"{name:<36}{batch:>8}{row['forward']:14.1f}{row['gradient']:14.1f}", flush=True)
        values = np.array(list(losses.values()))
        # Written so that NaN is an error, too.
        if not np.ptp(values) <= 1e-4 * abs(values[0]):
            sys.exit(f"The losses differ: {losses}")


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--only", choices=["problems", "batches"], help="one of both parts")
    parser.add_argument("--rounds", type=int, default=5, help="of measuring (default: 5)")
    common.add_peers(parser)
    arguments = parser.parse_args()
    print(common.machine())
    if arguments.only != "batches":
        names = ["Robertson", "HIRES"] if arguments.quick else list(PROBLEMS)
        found = work_precision(names, TOLERANCES[::2] if arguments.quick else TOLERANCES)
        if arguments.plot:
            draw(found, arguments.output / "stiff.png")
    if arguments.only != "problems":
        sizes = [1, 100] if arguments.quick else [1, 100, 10_000]
        python = common.peer_pythons(arguments)["jax"]
        batches(python, sizes, 1 if arguments.quick else arguments.rounds)


if __name__ == "__main__":
    main()

"""Checkpoints or none: the symplectic adjoint's budgets beside reversible steps and diffrax.

    python benchmarks/reversible.py
    python benchmarks/reversible.py --problems oscillators --train 0

The problems and networks are those of McCallum and Foster (arXiv:2410.11648, section 5), with data
made here. See README.md here; `make benchmark-peers` makes the environment that diffrax runs in.
"""

import argparse
import dataclasses
import json
import pathlib
import subprocess
import tempfile
import time

import common
import numpy as np
import scipy.integrate
import tensorflow as tf

import tfsymadj

PEER = pathlib.Path(__file__).resolve().parent / "peers" / "checkpoints_jax.py"
OUTPUTS, NOISE, RATE = 11, 0.01, 1e-2
CHECKPOINTS = (44, 16, 8)


@dataclasses.dataclass(frozen=True)
class Study:
    """A system to be learned.

    Attributes:
        title: for headings.
        slopes: `(t, y) -> dy/dt`, of arrays.
        start: initial state.
        times: first and last one.
        hidden: width of the network's one hidden layer.
        with_time: whether it gets the time.
        methods: to solve it with.
        steps: number of equal steps; None: adaptive.
    """

    title: str
    slopes: object
    start: tuple
    times: tuple
    hidden: int
    with_time: bool
    methods: tuple
    steps: int | None


def white_dwarf(t, y):
    """Chandrasekhar's equation with C = 0.001, for the density function and its slope."""
    return [y[1], -2.0 * y[1] / max(t, 1e-9) - max(y[0] ** 2 - 0.001, 0.0) ** 1.5]


def oscillators(t, y):
    """Two masses between walls with damping, three springs."""
    return [y[2], y[3], y[1] - 2.0 * y[0] - 0.1 * y[2], y[0] - 2.0 * y[1] - 0.1 * y[3]]


def double_pendulum(t, y):
    """Two equal rods and masses; angles and angular velocities."""
    a, b, v, w = y
    c, s = np.cos(a - b), np.sin(a - b)
    first, second = -w * w * s - 2.0 * np.sin(a), v * v * s - np.sin(b)
    return [v, w, (first - c * second) / (2.0 - c * c), (2.0 * second - c * first) / (2.0 - c * c)]


STUDIES = {
    "white dwarf": Study(
        "1,000 steps, 2-10-2 network with the time", white_dwarf, (1.0, 0.0), (0.0, 5.0), 10, True,
        ("midpoint", "rk4"), 1000,
    ),
    "oscillators": Study(
        "500 steps, 4-10-4 network", oscillators, (1.0, 0.0, 0.0, 0.5), (0.0, 10.0), 10, False,
        ("midpoint", "rk4"), 500,
    ),
    "double pendulum": Study(
        "adaptive steps, 4-10-4 network", double_pendulum, (0.8, 1.2, 0.0, 0.0), (0.0, 5.0), 10,
        False, ("bosh3",), None,
    ),
}  # fmt: skip
ADAPTIVE = dict(rtol=1e-8, atol=1e-8, max_steps=4096, outputs="step")


def data(study):
    """Times, noisy observations, and the network's first weights, from fixed seeds."""
    times = np.linspace(*study.times, OUTPUTS)
    options = dict(t_eval=times, rtol=1e-10, atol=1e-12)
    clean = scipy.integrate.solve_ivp(study.slopes, study.times, study.start, **options).y.T
    random = np.random.default_rng(0)
    size, width = len(study.start), study.hidden
    sizes = (size + study.with_time, width, size)
    weights = []
    for fan_in, fan_out in zip(sizes, sizes[1:]):
        weights += [random.normal(size=(fan_in, fan_out)) / np.sqrt(fan_in), np.zeros(fan_out)]
    return times, clean + NOISE * random.normal(size=clean.shape), weights


def training_step(study, method, gradient, times, observed, weights):
    """A function that computes loss and gradient and moves the weights, by Adam, under XLA."""
    variables = [tf.Variable(w) for w in weights]
    moments = [tf.Variable(tf.zeros_like(v)) for v in variables]
    squares = [tf.Variable(tf.zeros_like(v)) for v in variables]
    count = tf.Variable(0.0, dtype=tf.float64)
    options = ADAPTIVE if study.steps is None else dict(num_steps=study.steps // (OUTPUTS - 1))

    def dynamics(t, y):
        x = tf.concat([y, [t]], 0) if study.with_time else y
        x = tf.tanh(tf.linalg.matvec(variables[0], x, transpose_a=True) + variables[1])
        return tf.linalg.matvec(variables[2], x, transpose_a=True) + variables[3]

    @tf.function(jit_compile=True)
    def step(rate):
        with tf.GradientTape() as tape:
            start = tf.constant(study.start, tf.float64)
            solution = tfsymadj.solve(
                dynamics, start, times, method=method, gradient=gradient, **options
            )
            loss = tf.reduce_mean((solution.y - observed) ** 2)
        count.assign_add(1.0)
        for v, m, s, g in zip(variables, moments, squares, tape.gradient(loss, variables)):
            m.assign(0.9 * m + 0.1 * g)
            s.assign(0.999 * s + 0.001 * g * g)
            scaled = m / (1.0 - 0.9**count) / (tf.sqrt(s / (1.0 - 0.999**count)) + 1e-8)
            v.assign_sub(rate * scaled)
        return loss, solution.stats

    return step


def measured(step, rounds, train):
    """A row of the table: milliseconds, states, steps, and the losses before and after training."""
    zero = tf.zeros([], tf.float64)
    first, stats = step(zero)  # compiles
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        step(zero)[0].numpy()
        seconds.append(time.perf_counter() - begin)
    last = None
    for _ in range(train):
        last, _ = step(tf.constant(RATE, tf.float64))
    return dict(
        ms=1e3 * min(seconds),
        states=int(stats.num_states),
        steps=int(stats.num_accepted),
        loss=float(first),
        trained=None if last is None else float(last),
    )


def peers(study, method, python, rounds):
    """The rows of diffrax."""
    times, observed, weights = data(study)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "data.npz"
        np.savez(path, *weights, times=times, observed=observed, start=study.start)
        request = dict(
            path=str(path), method=method, with_time=study.with_time, steps=study.steps,
            tolerance=ADAPTIVE["rtol"], rounds=rounds, checkpoints=[None, *CHECKPOINTS, 4],
        )  # fmt: skip
        result = subprocess.run(
            [python, PEER, json.dumps(request)], env=common.peer_environment(),
            capture_output=True, text=True,
        )  # fmt: skip
    if result.returncode:
        raise SystemExit(result.stderr)
    return json.loads(result.stdout.splitlines()[-1])


def table(name, method, arguments):
    """Prints the rows of a problem with a method."""
    study = STUDIES[name]
    cases = {f"symplectic adjoint, {k} states": tfsymadj.SymplecticAdjoint(k) for k in CHECKPOINTS}
    cases = {
        "reversible": "reversible",
        'symplectic adjoint, `"auto"`': "symplectic_adjoint",
    } | cases
    print(f"\n{name}, {method}: {study.title}\n")
    print("| | ms | states | steps | loss | after training |\n|---|---|---|---|---|---|")
    for case, gradient in cases.items():
        trained = arguments.train if case == "reversible" or "44" in case else 0
        row = measured(
            training_step(study, method, gradient, *data(study)), arguments.rounds, trained
        )
        after = "" if row["trained"] is None else f"{row['trained']:.3e}"
        print(
            f"| {case} | {row['ms']:.1f} | {row['states']} | {row['steps']} | {row['loss']:.6f} | "
            f"{after} |", flush=True,
        )  # fmt: skip
    if arguments.peer:
        for row in peers(study, method, arguments.jax_python, arguments.rounds):
            label = "default" if row["checkpoints"] is None else f"{row['checkpoints']} checkpoints"
            print(
                f"| diffrax, {label} | {row['ms']:.1f} | | {row['steps']} | {row['loss']:.6f} | |",
                flush=True,
            )


def main():
    parser = common.parser(__doc__, figure=False)
    parser.add_argument("--problems", nargs="+", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--rounds", type=int, default=40, help="of measuring (default: 40)")
    parser.add_argument("--train", type=int, default=500, help="steps of training (default: 500)")
    parser.add_argument(
        "--peer", action=argparse.BooleanOptionalAction, default=True, help="run diffrax, too"
    )
    common.add_peers(parser)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.train = 2, 2
    if arguments.peer:
        common.check_peer(arguments.jax_python)
    print(common.machine())
    for name in arguments.problems:
        for method in STUDIES[name].methods:
            table(name, method, arguments)


if __name__ == "__main__":
    main()

"""A parameter study: many small systems, of which few take most of the steps.

    python benchmarks/study.py

Van der Pol oscillators whose damping is spread over three decades, with steps of their own
(`batch_axis=0`): all of them at once; so many at a time, each share waiting for its slowest; and in
a queue before so many lanes (`lanes`). The end states, and the gradient of their sum of squares for
all dampings and initial states, under XLA. See README.md here.
"""

import functools
import time

import common
import numpy as np
import tensorflow as tf

import tfsymadj

OPTIONS = dict(rtol=1e-5, atol=1e-7, max_steps=1024, batch_axis=0)
END = 10.0


def oscillator(t, y, mu):
    x, v = y[:, 0], y[:, 1]
    return tf.stack([v, mu * (1 - x**2) * v - x], 1)


def systems(count):
    """Dampings and initial states."""
    random = np.random.default_rng(0)
    mu = tf.constant(10.0 ** random.uniform(-1, 2, count))
    return mu, tf.constant(random.uniform(1.0, 2.0, (count, 2)))


@functools.cache
def compiled(lanes, differentiate):
    @tf.function(jit_compile=True)
    def compute(mu, y0):
        with tf.GradientTape() as tape:
            tape.watch([mu, y0])
            solution = tfsymadj.solve(
                oscillator, y0, [0.0, END], args=(mu,), lanes=lanes, **OPTIONS
            )
            loss = tf.reduce_sum(solution.y[-1] ** 2)
        found = tape.gradient(loss, [mu, y0]) if differentiate else []
        return loss, solution.stats.num_steps, found

    return compute


def solve(mu, y0, share, lanes, differentiate):
    """The loss, the numbers of steps, and the time, by shares of the systems."""
    count = len(mu)
    compute = compiled(lanes, differentiate)
    compute(mu[:share], y0[:share])  # compiles
    if count % share:
        compute(mu[-(count % share) :], y0[-(count % share) :])
    begin, losses, steps = time.perf_counter(), [], []
    for i in range(0, count, share):
        loss, own, _ = compute(mu[i : i + share], y0[i : i + share])
        losses.append(loss.numpy())
        steps.append(own.numpy())
    return sum(losses), np.concatenate(steps), time.perf_counter() - begin


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--systems", type=int, default=100_000, help="(default: 100000)")
    parser.add_argument("--lanes", type=int, nargs="+", default=[1024], help="(default: 1024)")
    arguments = parser.parse_args()
    count = 200 if arguments.quick else arguments.systems
    lanes = [32] if arguments.quick else arguments.lanes
    mu, y0 = systems(count)
    print(f"{count:,} systems\n{common.machine()}\n")
    print("| | iterations at least | forward, s | and gradient, s |\n|---|---|---|---|")
    rows = [("all at once", count, None)]
    for width in lanes:
        rows.append((f"{width:,} at a time", width, None))
        rows.append((f"`lanes={width}`", count, width))
    losses = []
    for name, share, width in rows:
        loss, steps, forward = solve(mu, y0, share, width, False)
        *_, both = solve(mu, y0, share, width, True)
        losses.append(loss)
        if width is None:
            shares = [steps[i : i + share].max() for i in range(0, count, share)]
            iterations = sum(shares)
        else:
            iterations = -(-steps.sum() // width)
        print(f"| {name} | {iterations:,} | {forward:.1f} | {both:.1f} |", flush=True)
    print(f"\nsteps: {steps.min()} to {steps.max():,}, {steps.mean():.0f} on average")
    if np.ptp(losses) > 1e-9 * abs(losses[0]):
        raise SystemExit(f"The losses differ: {losses}")


if __name__ == "__main__":
    main()

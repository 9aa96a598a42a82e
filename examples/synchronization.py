"""Optimal control through a long horizon: a chaotic system is made to follow another one.

    python examples/synchronization.py            # about three minutes on two cores
    python examples/synchronization.py --quick    # every part, in half a minute

Of a Lorenz system only x is observed. A second one, started elsewhere, may be pushed in its own x,
by a network that sees the difference and the second system. Its weights are found by gradient
descent on the mean distance over 5,000 Heun steps, two evaluations each, for 512 pairs at once.
Back-propagation would keep 10,000 uses of the network; the symplectic adjoint method keeps about
200 states. Both are measured. Chaos more than doubles a change in every time unit, so that the
horizon grows while the network learns; it is an entry of `t`, a tensor: nothing is traced again.
Gradients for the follower's parameters (`args`) and for the end of the horizon (`t`) tell what the
cost of the first time unit is sensitive to.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import matplotlib
import numpy as np
import tensorflow as tf

import tfsymadj

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HORIZON, STEPS, BATCH = 10.0, 5000, 512
LARGEST_PUSH = 100.0
PARAMETERS = {"sigma": 10.0, "rho": 28.0, "beta": 8.0 / 3.0}


def lorenz(y, sigma, rho, beta):
    x, y, z = tf.unstack(y, axis=-1)
    return tf.stack([sigma * (y - x), x * (rho - z) - y, x * y - beta * z], -1)


class Pair(keras.Layer):
    """Dynamics of (leader, follower, cost); the parameters in `args` are the follower's."""

    def __init__(self):
        super().__init__()
        self.network = keras.Sequential(
            [
                keras.Input((4,)),
                keras.layers.Dense(64, "tanh"),
                keras.layers.Dense(64, "tanh"),
                keras.layers.Dense(
                    1, "tanh", kernel_initializer=keras.initializers.RandomNormal(0.0, 0.01)
                ),
            ]
        )

    def push(self, leader, follower):
        seen = tf.concat([(leader - follower)[..., :1] / 10.0, follower / 20.0], -1)
        return LARGEST_PUSH * self.network(seen)

    def call(self, t, y, sigma, rho, beta):
        leader, follower, _ = y
        push = self.push(leader, follower)
        cost = tf.reduce_mean((leader - follower) ** 2, -1, keepdims=True) / 100.0 + 1e-5 * push**2
        slope = lorenz(follower, sigma, rho, beta) + tf.pad(push, [[0, 0], [0, 2]])
        return lorenz(leader, **PARAMETERS), slope, cost


def attractor(count=4000):
    """Points that have come close to the attractor."""
    random = np.random.default_rng(0)
    y = tf.constant(random.normal([0.0, 0.0, 25.0], 8.0, size=[count, 3]), tf.float32)
    solve = tf.function(
        lambda y: tfsymadj.odeint(
            lambda t, y: lorenz(y, **PARAMETERS), y, [0.0, 10.0], method="rk4", num_steps=1000,
            gradient=tfsymadj.NoGradient(),
        )[-1],
        jit_compile=True,
    )  # fmt: skip
    return solve(y).numpy()


def starts(points, count, seed):
    """Pairs of points, and no cost yet."""
    chosen = np.random.default_rng(seed).integers(len(points), size=[2, count])
    leader, follower = points[chosen]
    return tf.constant(leader), tf.constant(follower), tf.zeros([count, 1])


def mean_cost(pair, start, steps, end, args=None, gradient="symplectic_adjoint"):
    """Mean cost of a unit of time."""
    args = tuple(PARAMETERS.values()) if args is None else args
    y = tfsymadj.odeint(
        pair, start, tf.stack([0.0, end]), args=args, method="heun", num_steps=steps,
        gradient=gradient,
    )  # fmt: skip
    return tf.reduce_mean(y[2][-1]) / end


def make_update(pair, optimizer, steps, gradient="symplectic_adjoint", jit_compile=True):
    weights = pair.network.trainable_variables

    @tf.function(jit_compile=jit_compile)
    def update(start, end):
        with tf.GradientTape() as tape:
            cost = mean_cost(pair, start, steps, end, gradient=gradient)
        gradients = tape.gradient(cost, [w.value for w in weights])
        gradients, _ = tf.clip_by_global_norm(gradients, 1.0)
        optimizer.apply(gradients, weights)
        return cost

    return update


def train(pair, points, steps, updates):
    """Costs and horizons."""
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.01, updates))
    optimizer.build(pair.network.trainable_variables)
    update, history = make_update(pair, optimizer, steps), []
    bar = keras.utils.Progbar(updates, stateful_metrics=["cost", "horizon"], unit_name="update")
    for i in range(updates):
        end = HORIZON * 0.05 ** max(0.0, 1.0 - i / (0.7 * updates))
        cost = float(update(starts(points, BATCH, seed=i + 1), tf.constant(end)))
        history.append((cost, end))
        bar.add(1, [("cost", cost), ("horizon", end)])
    return np.array(history)


def sensitivities(pair, start, steps):
    """dL/dp of the follower's parameters and dL/dT of the end, beside central differences."""
    names = [*PARAMETERS, "end"]
    values = [tf.constant(x) for x in [*PARAMETERS.values(), 1.0]]

    @tf.function(jit_compile=True)
    def cost(values):
        return mean_cost(pair, start, steps, values[-1], tuple(values[:-1]))

    @tf.function(jit_compile=True)
    def exact(values):
        with tf.GradientTape() as tape:
            tape.watch(values)
            value = mean_cost(pair, start, steps, values[-1], tuple(values[:-1]))
        return tape.gradient(value, values)

    rows = {}
    for i, (name, gradient) in enumerate(zip(names, exact(values))):
        ends = [
            float(cost([x * (1.0 + s) if j == i else x for j, x in enumerate(values)]))
            for s in (2e-3, -2e-3)
        ]
        rows[name] = float(gradient), (ends[0] - ends[1]) / (4e-3 * float(values[i]))
    return rows


def peak(gradient, steps):
    """Peak MiB of one update, all tensors counted."""
    tf.raw_ops.Empty(shape=[8, 2**30], dtype=tf.uint8, init=False)  # a block to cut from
    pair = Pair()
    optimizer = keras.optimizers.SGD(0.0)
    optimizer.build(pair.network.trainable_variables)
    update = make_update(pair, optimizer, steps, gradient, jit_compile=False)
    start = starts(np.random.default_rng(0).normal(size=[9, 3]).astype("float32"), BATCH, seed=0)
    before = tf.config.experimental.get_memory_info("CPU:0")["current"]
    tf.config.experimental.reset_memory_stats("CPU:0")
    float(update(start, tf.constant(1.0)))
    return (tf.config.experimental.get_memory_info("CPU:0")["peak"] - before) / 2**20


def peak_in_child(gradient, steps):
    command = [sys.executable, __file__, "--child", json.dumps([gradient, steps])]
    environment = {**os.environ, "TF_CPU_ALLOCATOR_USE_BFC": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def distances(pair, start, times, push=True):
    """Distances of leader and follower, and their x, at all times."""
    dynamics = pair
    if not push:
        dynamics = Pair()
        dynamics.push = lambda leader, follower: 0.0 * leader[..., :1]
    y = tfsymadj.odeint(
        dynamics, start, times, args=tuple(PARAMETERS.values()), rtol=1e-5, atol=1e-5,
        gradient=tfsymadj.NoGradient(),
    )  # fmt: skip
    return tf.norm(y[0] - y[1], axis=-1).numpy(), y[0][..., 0].numpy(), y[1][..., 0].numpy()


def draw(history, times, followed, free, path):
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.4), layout="constrained")
    axes[0].semilogy(history[:, 0], color="#0072B2", label="mean cost")
    axes[0].semilogy(history[:, 1], color="#999999", linestyle="--", label="horizon")
    axes[0].set(title="Training", xlabel="Update", ylabel="Cost; horizon (time units)")
    axes[0].legend(frameon=False)
    axes[1].plot(times, followed[1][:, 0], color="#000000", label="leader")
    axes[1].plot(times, followed[2][:, 0], color="#0072B2", linestyle="--", label="follower")
    axes[1].set(title="One unseen pair", xlabel="Time (time units)", ylabel="x (dimensionless)")
    axes[1].set_ylim(-22.0, 26.0)
    axes[1].legend(frameon=False, loc="upper center", ncols=2)
    for found, color, label in [(free, "#D55E00", "not pushed"), (followed, "#0072B2", "pushed")]:
        low, middle, high = np.quantile(found[0], [0.1, 0.5, 0.9], axis=1)
        axes[2].fill_between(times, low, high, color=color, alpha=0.2, linewidth=0)
        axes[2].semilogy(times, middle, color=color, label=label)
    axes[2].set(title="Unseen pairs: median, 10 % to 90 %")
    axes[2].set(xlabel="Time (time units)", ylabel="Distance (dimensionless)")
    axes[2].legend(frameon=False)
    figure.savefig(path, dpi=130)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short run, to try it out")
    parser.add_argument(
        "--output", type=pathlib.Path, default="out", help="folder to write to (default: out)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of random numbers (default: 0)")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(peak(*arguments.child)))
        return
    keras.utils.set_random_seed(arguments.seed)
    arguments.output.mkdir(parents=True, exist_ok=True)
    steps, updates = (400, 20) if arguments.quick else (STEPS, 60)

    begin = time.perf_counter()
    print(f"Gradient descent through {steps:,} steps")
    pair, points = Pair(), attractor()
    history = train(pair, points, steps, updates)
    seconds = (time.perf_counter() - begin) / updates  # compiling included
    unseen, times = starts(points, 500, seed=10**6), np.linspace(0.0, HORIZON, 201)
    followed, free = (distances(pair, unseen, times, push) for push in (True, False))
    median, alone = (np.median(found[0][-1]) for found in (followed, free))

    print(f"\nMean cost               {history[0, 0]:.3f} at first, {history[-1, 0]:.3f} at last")
    print(
        f"Distance at the end     {median:.2f} (median of 500 unseen pairs), {alone:.2f} not pushed"
    )
    print(f"Time of an update       {seconds:.2f} s, {2 * steps:,} evaluations forward")
    print("Sensitivity of the first cost  gradient  central difference")
    for name, (exact, difference) in sensitivities(pair, starts(points, BATCH, 0), steps).items():
        print(f"  {name:<22}{exact:15.5f}{difference:11.5f}")
    memory = {name: peak_in_child(name, steps) for name in ("symplectic_adjoint", "backprop")}
    for name, mib in memory.items():
        print(f"Peak memory of {name:<18}{mib:8.1f} MiB")
    picture = arguments.output / "synchronization.png"
    draw(history, times, followed, free, picture)
    print(f"Time                    {time.perf_counter() - begin:.0f} s")
    print(f"Picture                 {picture}")
    if not arguments.quick and (median > 0.1 * alone or memory["backprop"] < 2048):
        sys.exit("The follower does not follow, or back-propagation fits into 2 GiB.")


if __name__ == "__main__":
    main()

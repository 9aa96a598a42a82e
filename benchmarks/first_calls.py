"""How long the first call of a small gradient, Jacobian or Hessian takes: tracing and compiling it.

    python benchmarks/first_calls.py
    python benchmarks/first_calls.py --rounds 5

Each in a process of its own, in which another function was compiled before. `one by one` is
`experimental_use_pfor=False`: the products follow each other in a loop, in place of operations that
TensorFlow vectorizes one after another. See README.md here.
"""

import json
import statistics
import time

import common
import tensorflow as tf

import tfsymadj

METHODS = {"rk4": dict(method="rk4", num_steps=10), "dopri5": dict(method="dopri5")}
DERIVATIVES = [
    "gradient",
    "Jacobian, vectorized",
    "Jacobian, one by one",
    "Hessian, vectorized",
    "Hessian, one by one",
    "Hessian, by jvp",
]
MODES = {"graph": None, "XLA": True}
TIMES = [0.0, 1.0]
#: What takes minutes, or what XLA can't compile when TensorFlow has vectorized it.
LEFT_OUT = [
    ("Hessian, vectorized", "rk4", "XLA"),
    ("Hessian, vectorized", "dopri5", "graph"),
    ("Hessian, vectorized", "dopri5", "XLA"),
    ("Jacobian, vectorized", "dopri5", "XLA"),
]


class Network(tf.Module):
    """2-8-2, which counts how often it is called by Python."""

    def __init__(self):
        super().__init__()
        generator = tf.random.Generator.from_seed(0)
        self.first = tf.Variable(generator.normal([2, 8], dtype=tf.float64))
        self.second = tf.Variable(generator.normal([8, 2], dtype=tf.float64))
        self.calls = 0

    def __call__(self, t, y):
        self.calls += 1
        return tf.tanh(y @ self.first) @ self.second


def derivative(name, network, options):
    """A function of the state, not compiled yet."""
    kind, _, way = name.partition(", ")

    def loss_of(y):
        return tf.reduce_sum(y[-1] ** 2)

    def gradient(y0):
        with tf.GradientTape() as tape:
            tape.watch(y0)
            loss = loss_of(tfsymadj.odeint(network, y0, TIMES, **options))
        return tape.gradient(loss, y0)

    def jacobian(y0):
        with tf.GradientTape() as tape:
            tape.watch(y0)
            if kind == "Hessian":
                y = gradient(y0)
            else:
                y = tfsymadj.odeint(network, y0, TIMES, **options)[-1]
        return tape.jacobian(y, y0, experimental_use_pfor=way == "vectorized")

    def hessian(y0):
        def product(direction):
            with tf.GradientTape() as tape:
                tape.watch(y0)
                solution, dy = tfsymadj.jvp(
                    network, y0, TIMES, tangents={"y0": direction}, **options
                )
                with tf.GradientTape() as inside:
                    inside.watch(solution.y)
                    loss = loss_of(solution.y)
                slope = tf.reduce_sum(inside.gradient(loss, solution.y) * dy)
            return tape.gradient(slope, y0)

        return tf.map_fn(product, tf.eye(2, dtype=tf.float64)[:, tf.newaxis])

    return gradient if not way else hessian if way == "by jvp" else jacobian


def first_call(name, method, mode):
    """Seconds of tracing, of all of the first call, and how often the network was called."""
    network, y0 = Network(), tf.constant([[0.3, -0.4]], tf.float64)
    compiled = tf.function(jit_compile=MODES[mode])
    compiled(tf.linalg.inv)(tf.eye(2))  # what TensorFlow does once
    function = compiled(derivative(name, network, METHODS[method]))
    begin = time.perf_counter()
    function.get_concrete_function(y0)
    traced = time.perf_counter()
    function(y0).numpy()
    return traced - begin, time.perf_counter() - begin, network.calls


def main():
    parser = common.parser(__doc__, figure=False)
    parser.add_argument("--rounds", type=int, default=3, help="processes for each (default: 3)")
    parser.add_argument("--only", help="derivatives whose names contain this")
    arguments = parser.parse_args()
    if arguments.child:
        print(list(first_call(*arguments.child)))
        return
    rounds = 1 if arguments.quick else arguments.rounds
    print(common.machine())
    print(f"{'':<22}{'':<8}{'':<7}{'tracing':>10}{'in all':>10}{'calls of the network':>22}")
    for name in (x for x in DERIVATIVES if (arguments.only or "") in x):
        for method in METHODS:
            for mode in MODES:
                if (name, method, mode) in LEFT_OUT:
                    continue
                child = __file__, "--child", json.dumps([name, method, mode])
                found = [common.in_child(*child) for _ in range(rounds)]
                tracing, total, calls = (statistics.median(x) for x in zip(*found))
                print(
                    f"{name:<22}{method:<8}{mode:<7}{tracing:>8.2f} s{total:>8.2f} s{calls:>22.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()

"""One case with tfsymadj or TFP: `python run_tensorflow.py --workload W1b --method auto-xla`."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import measure
import tensorflow as tf

import tfsymadj

BUDGETS = [2, 4, 8, 16, 32, 64, 256, 2048]  # MiB
GRADIENTS = {
    "auto": tfsymadj.SymplecticAdjoint("auto"),
    "sqrt": tfsymadj.SymplecticAdjoint("sqrt"),
    "64": tfsymadj.SymplecticAdjoint(64),
    **{f"{n}MiB": tfsymadj.SymplecticAdjoint(memory=f"{n} MiB") for n in BUDGETS},
    "steps": tfsymadj.SymplecticAdjoint("steps"),
    "stages": tfsymadj.SymplecticAdjoint("stages"),
    "aca": tfsymadj.StepCheckpoint(),
    "baseline": tfsymadj.SolveCheckpoint(),
    "backprop": tfsymadj.Backprop(),
    "continuous": tfsymadj.ContinuousAdjoint(),
}
METHODS = [f"{name}-{mode}" for name in (*GRADIENTS, "tfp") for mode in ("xla", "graph")]


class Dynamics(tf.Module):
    """The network, or the flow that it drives."""

    def __init__(self, work, data):
        super().__init__()
        self.kernels = [tf.Variable(x) for x in data.kernels]
        self.biases = [tf.Variable(x) for x in data.biases]
        self.noise = data.noise
        self.flow = work.flow
        self.visit = None

    def network(self, t, y):
        x = tf.concat([y, t * tf.ones_like(y[:, :1])], axis=1)
        for kernel, bias in zip(self.kernels[:-1], self.biases[:-1]):
            x = tf.tanh(x @ kernel + bias)
        return x @ self.kernels[-1] + self.biases[-1]

    def __call__(self, t, y):
        if self.visit is not None:
            tf.numpy_function(self.visit, [], [])
        if not self.flow:
            return self.network(t, y)
        z = y[:, :-1]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(z)
            dz = self.network(t, z)
        product = tape.gradient(dz, z, self.noise)
        divergence = tf.reduce_sum(product * self.noise, axis=1, keepdims=True)
        return tf.concat([dz, -divergence], axis=1)


def solve(dynamics, y0, work, name, max_steps):
    """The state at t = 1, and the solution's or the diagnostics' counts."""
    if name == "tfp":
        import tensorflow_probability as tfp

        solver = tfp.math.ode.DormandPrince(rtol=work.tolerance, atol=work.tolerance)
        result = solver.solve(dynamics, 0.0, y0, solution_times=[1.0])
        # The diagnostics count steps, and not the evaluation before the first one.
        return result.states[-1], dict(forward=1 + result.diagnostics.num_ode_fn_evaluations)
    if work.adaptive:
        options = dict(rtol=work.tolerance, atol=work.tolerance, max_steps=max_steps)
    else:
        options = dict(num_steps=work.num_steps)
    gradient = GRADIENTS[name]
    times = (0.0, 1.0)
    solution = tfsymadj.solve(dynamics, y0, times, method=work.method, gradient=gradient, **options)
    stats = solution.stats
    return solution.y[-1], dict(
        accepted=stats.num_accepted,
        forward=stats.num_evaluations,
        backward=stats.num_backward_evaluations,
    )


def make_gradient(dynamics, work, name, max_steps):
    """`y0 -> loss, gradients, counts`."""
    variables = [*dynamics.kernels, *dynamics.biases]

    def gradient(y0):
        with tf.GradientTape() as tape:
            y, counts = solve(dynamics, y0, work, name, max_steps)
            if work.flow:
                density = -0.5 * tf.reduce_sum(y[:, :-1] ** 2, axis=1) - work.log_normalizer
                loss = -tf.reduce_mean(density - y[:, -1])
            else:
                loss = tf.reduce_mean(y**2)
        return loss, tape.gradient(loss, variables), counts

    return gradient


def count_evaluations(dynamics, gradient, y0):
    """Evaluations of the dynamics by one gradient in graph mode."""
    count = 0

    def visit():
        nonlocal count
        count += 1

    dynamics.visit = visit
    tf.function(gradient)(y0)
    return count


def main():
    arguments = measure.parse(METHODS)
    work = arguments.work
    name, mode = arguments.method.split("-")
    data = work.data()
    dynamics = Dynamics(work, data)
    y0 = tf.constant(data.y0)
    gradient = make_gradient(dynamics, work, name, arguments.max_steps)

    def build():
        function = tf.function(gradient, jit_compile=mode == "xla")
        return lambda: function(y0)

    def facts(counts):
        found = {key: int(value) for key, value in counts.items()}
        if name == "tfp" and arguments.memory:  # which does not tell
            found["backward"] = count_evaluations(dynamics, gradient, y0) - found["forward"]
        return found

    version = f"TensorFlow {tf.__version__}"
    if name == "tfp":
        import tensorflow_probability as tfp

        version = f"TFP {tfp.__version__}, {version}"
    framework = "TFP" if name == "tfp" else "tfsymadj"
    measure.report(arguments, framework, version, build, facts)


if __name__ == "__main__":
    main()

"""A neural ODE that reads handwritten digits: trained, measured, exported, drawn.

    python examples/digits.py            # about two minutes on two cores
    python examples/digits.py --quick    # every part, in seconds, with an untrained result

Data: the 1,797 digits of 8 x 8 pixels that come with scikit-learn.
"""

import argparse
import contextlib
import os
import pathlib
import statistics
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Without it TensorFlow does not count tensors below 256 KiB on a CPU.
os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "1")

import matplotlib
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

matplotlib.use("Agg")
import matplotlib.pyplot as plt


@contextlib.contextmanager
def no_start_up_lines():
    """Drops what TensorFlow writes to standard error before it reads how much it should."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


with no_start_up_lines():
    import keras
    import tensorflow as tf

    import tfsymadj
    from tfsymadj.layers import ConcatTime

    tf.config.list_logical_devices()  # which writes some more

tf.get_logger().setLevel("ERROR")
DEVICE = "GPU:0" if tf.config.list_physical_devices("GPU") else "CPU:0"
GRADIENTS = {
    "symplectic adjoint, auto": tfsymadj.SymplecticAdjoint("auto"),
    "symplectic adjoint, sqrt": tfsymadj.SymplecticAdjoint("sqrt"),
    "symplectic adjoint, steps": tfsymadj.SymplecticAdjoint("steps"),
    "back-propagation": tfsymadj.Backprop(),
}
COLORS = dict(zip(GRADIENTS, ["#0072B2", "#009E73", "#D55E00", "#555555"]))


def load_data():
    """Training and test images in [0, 1] with their labels; the split is always the same."""
    digits = load_digits()
    images = digits.images[..., np.newaxis].astype("float32") / 16.0
    return train_test_split(
        images, digits.target, test_size=0.2, stratify=digits.target, random_state=0
    )


def shift(image, label):
    """Moves an image by up to one pixel."""
    return tf.image.random_crop(tf.pad(image, [[1, 1], [1, 1], [0, 0]]), image.shape), label


def build_model(channels=16, dtype="float32"):
    """Convolution, neural ODE, linear classifier; 12,282 weights."""
    keras.config.set_dtype_policy(dtype)
    dynamics = keras.Sequential()
    dynamics.add(keras.layers.Conv2D(2 * channels, 3, padding="same", activation="tanh"))
    dynamics.add(keras.layers.Conv2D(channels, 3, padding="same"))

    model = keras.Sequential()
    model.add(keras.Input((8, 8, 1)))
    model.add(keras.layers.Conv2D(channels, 3, padding="same", activation="tanh"))
    model.add(tfsymadj.ODELayer(ConcatTime(dynamics), t=(0.0, 1.0), method="rk4", num_steps=3))
    model.add(keras.layers.MaxPooling2D(2))
    model.add(keras.layers.Flatten())
    model.add(keras.layers.Dropout(0.3))
    model.add(keras.layers.Dense(10))
    keras.config.set_dtype_policy("float32")
    return model


class ProgressBar(keras.callbacks.Callback):
    """One bar for the whole training."""

    def on_train_begin(self, logs=None):
        total = self.params["epochs"] * self.params["steps"]
        names = ["loss", "accuracy", "val_loss", "val_accuracy"]
        interval = 0.1 if sys.stdout.isatty() else 15.0
        self.bar = keras.utils.Progbar(
            total, unit_name="batch", stateful_metrics=names, interval=interval
        )

    def on_train_batch_end(self, batch, logs=None):
        self.bar.add(1, list(logs.items()))

    def on_epoch_end(self, epoch, logs=None):
        self.bar.add(0, list(logs.items()))


def train(model, data, epochs, batch_size=32):
    train_images, test_images, train_labels, test_labels = data
    batches = tf.data.Dataset.from_tensor_slices((train_images, train_labels))
    batches = batches.cache().shuffle(len(train_images)).map(shift).batch(batch_size).prefetch(2)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, epochs * len(batches), warmup_target=4e-3, warmup_steps=2 * len(batches)
    )
    model.compile(
        optimizer=keras.optimizers.AdamW(schedule, weight_decay=1e-4),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    history = model.fit(
        batches,
        validation_data=(test_images, test_labels),
        epochs=epochs,
        shuffle=False,  # the batches are shuffled already
        verbose=0,
        callbacks=[ProgressBar()],
    )
    return history.history


def gradient_function(model, gradient, num_steps):
    """`(images, labels) -> (gradients, stats)` of the model's loss, solved with other options."""
    stem, ode, *head = model.layers

    @tf.function
    def function(images, labels):
        with tf.GradientTape() as tape:
            solution = tfsymadj.solve(
                ode.dynamics, stem(images), ode.t, method="rk4", num_steps=num_steps,
                gradient=gradient,
            )  # fmt: skip
            x = solution.y[-1]
            for layer in head:
                x = layer(x)
            loss = keras.losses.sparse_categorical_crossentropy(labels, x, from_logits=True)
            loss = tf.reduce_mean(loss)
        return tape.gradient(loss, model.trainable_variables), solution.stats

    return function


def measure(function, batch):
    """The gradient as one vector, counts, seconds and peak bytes of one call."""
    before = tf.config.experimental.get_memory_info(DEVICE)["current"]
    tf.config.experimental.reset_memory_stats(DEVICE)
    start = time.perf_counter()
    gradients, stats = function(*batch)
    vector = np.concatenate([gradient.numpy().ravel() for gradient in gradients])
    seconds = time.perf_counter() - start
    peak = tf.config.experimental.get_memory_info(DEVICE)["peak"]
    return vector, stats, seconds, peak - before


def compare(model, batch, num_steps, rounds=3):
    """Lines of the table: every method on the same batch, taking turns."""
    copy = build_model(dtype="float64")
    copy.set_weights(model.get_weights())
    exact, *_ = measure(gradient_function(copy, tfsymadj.Backprop(), num_steps), batch)
    functions = {name: gradient_function(model, g, num_steps) for name, g in GRADIENTS.items()}
    results = {name: [] for name in functions}
    for _ in range(1 + rounds):  # the first call traces
        for name, function in functions.items():
            results[name].append(measure(function, batch))
    lines = [
        f"{'gradient':<28}{'time (s)':>10}{'peak (MiB)':>12}{'error':>10}{'evaluations':>14}",
    ]
    for name, [(vector, stats, _, peak), *later] in results.items():
        seconds = statistics.median(m[2] for m in later)
        error = np.linalg.norm(vector - exact) / np.linalg.norm(exact)
        counts = f"{stats.num_evaluations:d} + {stats.num_backward_evaluations:d}"
        lines.append(f"{name:<28}{seconds:>10.2f}{peak / 2**20:>12.1f}{error:>10.1e}{counts:>14}")
    return lines


def measure_memory(model, batch, steps):
    """Peak MiB of one gradient for each method and number of steps."""
    bar = keras.utils.Progbar(len(GRADIENTS) * len(steps), unit_name="measurement")
    peaks = {}
    for name, gradient in GRADIENTS.items():
        peaks[name] = []
        for n in steps:
            function = gradient_function(model, gradient, n)
            *_, peak = measure(function, batch)
            peaks[name].append(peak / 2**20)
            bar.add(1)
    return peaks


# Run by a Python process of its own, which knows nothing of this package.
READ_EXPORTED = """
import sys
import numpy as np
import tensorflow as tf
path, images, predictions = sys.argv[1:]
model = tf.saved_model.load(path)
np.save(predictions, model.serve(tf.constant(np.load(images))))
assert "tfsymadj" not in sys.modules
"""


def check_export(model, images, output):
    """Exports the model; the largest difference of its predictions in a fresh process."""
    paths = [str(output / name) for name in ("digits_model", "images.npy", "predictions.npy")]
    model.export(paths[0], verbose=False)
    np.save(paths[1], images)
    command = [sys.executable, "-c", READ_EXPORTED, *paths]
    read = subprocess.run(command, capture_output=True, text=True)
    if read.returncode:
        sys.exit(read.stderr)
    expected = model.predict(images, batch_size=len(images), verbose=0)
    return float(np.max(np.abs(np.load(paths[2]) - expected)))


#: Those whose names stand above the end of their line, so that none covers another.
ABOVE = "back-propagation", "symplectic adjoint, auto"


def draw(history, steps, peaks, path):
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplot_mosaic(
        [["loss", "memory"], ["error", "memory"]], figsize=(11, 5), layout="constrained"
    )
    curves = ("", "training, shifted images", "#D55E00"), ("val_", "test", "#0072B2")
    for prefix, name, color in curves:
        epochs = np.arange(1, len(history[prefix + "loss"]) + 1)
        errors = 100 * (1 - np.array(history[prefix + "accuracy"]))
        axes["loss"].semilogy(epochs, history[prefix + "loss"], color=color, label=name)
        axes["error"].plot(epochs, errors, color=color)
    axes["loss"].set(title="Training", ylabel="Cross-entropy (nats)")
    axes["loss"].legend(frameon=False)
    # Logarithmic above 1 %, so that the end shows, linear down to 0.
    axes["error"].set_yscale("symlog", linthresh=1)
    axes["error"].set_yticks([0, 1, 10, 100], ["0", "1", "10", "100"])
    axes["error"].set(xlabel="Epoch", ylabel="Wrong answers (%)", ylim=(-0.1, 100))

    memory = axes["memory"]
    for name, values in peaks.items():
        memory.loglog(steps, values, "o-", color=COLORS[name])
        memory.annotate(
            name.replace(", ", ",\n"), (steps[-1], values[-1]), (9, 2), color=COLORS[name],
            textcoords="offset points", va="bottom" if name in ABOVE else "top",
        )  # fmt: skip
    memory.xaxis.set_major_formatter("{x:g}")
    memory.yaxis.set_major_formatter("{x:g}")
    memory.set(
        title="Peak memory of one gradient", xlabel="Number of rk4 steps", ylabel="Memory (MiB)"
    )
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short run, to try it out")
    parser.add_argument(
        "--output", type=pathlib.Path, default="out", help="folder to write to (default: out)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of random numbers (default: 0)")
    arguments = parser.parse_args()
    quick, output = arguments.quick, arguments.output
    output.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(arguments.seed)

    print("Training a neural ODE on handwritten digits")
    data = load_data()
    model = build_model()
    start = time.perf_counter()
    history = train(model, data, epochs=2 if quick else 40)
    accuracy = history["val_accuracy"][-1]
    print(f"\nTest accuracy {accuracy:.2%} after {time.perf_counter() - start:.0f} s\n")

    num_steps = 10 if quick else 100
    print(f"One gradient with N = {num_steps} steps, 32 images")
    batch = tf.constant(data[1][:32]), tf.constant(data[3][:32])
    table = compare(model, batch, num_steps)
    print(*table, sep="\n", end="\n\n")

    print("Memory of one gradient against the number of steps, 32 images")
    steps = [3, 10] if quick else [10, 30, 100, 300]
    peaks = measure_memory(model, batch, steps)

    difference = check_export(model, data[1], output)
    picture = output / "digits.png"
    draw(history, steps, peaks, picture)

    print(f"\nTest accuracy          {accuracy:.2%} of {len(data[1])} images")
    print(f"Exported model         {output / 'digits_model'}, largest difference {difference:.1e}")
    print(f"Picture                {picture}")
    if difference > 1e-5:
        sys.exit("The exported model predicts something else.")
    if accuracy < 0.98 and not quick:
        sys.exit("The test accuracy is below 98 %.")


if __name__ == "__main__":
    main()

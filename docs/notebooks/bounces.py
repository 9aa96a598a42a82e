# %% [markdown]
# # Events: what a ball's bounces tell
#
# The times of a ball's bounces are heard. How much speed it keeps at each, and how fast it
# started, are learned from them by the method of Gauss and Newton. An `Event` ends a solve where
# the height is zero; its time and state are differentiable.

# %%
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

import tfsymadj


def fall(t, y):
    return tf.stack([y[1], tf.constant(-9.81, y.dtype)])


ground = tfsymadj.Event(lambda t, y: y[0], direction=-1)
count = 4


@tf.function
def bounces(speed, restitution):
    """The times of the first bounces, and the speeds after them."""
    t, y = tf.zeros([], tf.float64), tf.stack([tf.zeros_like(speed), speed])
    times, speeds = [], [speed]
    for _ in range(count):
        event = tfsymadj.solve(fall, y, tf.stack([t, t + 3.0]), event=ground, max_steps=64).event
        t, y = event.t, tf.stack([tf.zeros_like(t), -restitution * event.y[1]])
        times.append(t)
        speeds.append(y[1])
    return tf.stack(times), tf.stack(speeds)


# %% [markdown]
# The truth is a speed of 5 m/s and a restitution of 0.8. The times have an error of 5 ms.

# %%
random = np.random.default_rng(0)
true_speed, true_restitution = tf.constant(5.0, tf.float64), tf.constant(0.8, tf.float64)
heard = bounces(true_speed, true_restitution)[0].numpy() + random.normal(size=count) * 0.005

parameters = tf.Variable([3.5, 0.6], dtype=tf.float64)


@tf.function
def step():
    """The Jacobian has a row for each bounce, and is exact through all of them."""
    with tf.GradientTape() as tape:
        errors = bounces(*tf.unstack(parameters))[0] - heard
    jacobian = tape.jacobian(errors, parameters, experimental_use_pfor=False)
    parameters.assign_sub(tf.linalg.lstsq(jacobian, errors[:, None])[:, 0])
    return tf.reduce_mean(errors**2)


guess = parameters.numpy()
for i in range(6):
    print(f"{i}: error {float(step()) ** 0.5:.4f} s, now {parameters.numpy().round(4)}")


# %%
def path(speed, restitution):
    """Times and heights from bounce to bounce."""
    times, speeds = (x.numpy() for x in bounces(*tf.constant([speed, restitution], tf.float64)))
    for start, end, v in zip([0.0, *times], times, speeds):
        s = np.linspace(0.0, end - start, 50)
        yield start + s, v * s - 0.5 * 9.81 * s**2


figure, axes = plt.subplots(figsize=(8, 2.8))
cases = {
    "guess": (guess, "0.7"),
    "truth": ([5.0, 0.8], "k"),
    "fit": (parameters.numpy(), "#0072b2"),
}
for name, (values, colour) in cases.items():
    for i, (s, h) in enumerate(path(*values)):
        axes.plot(
            s, h, color=colour, ls=":" if name == "truth" else "-", label=name if i == 0 else None
        )
axes.plot(heard, np.zeros(count), "v", color="#d55e00", label="heard")
axes.set(xlabel="time, s", ylabel="height, m")
axes.legend()
figure.savefig("bounces.png", dpi=110, bbox_inches="tight")

# %%
assert np.abs(parameters.numpy() - [5.0, 0.8]).max() < 0.05

# %% [markdown]
# # A series observed at irregular times
#
# A damped oscillator is observed 60 times, at random times and with noise. A network learns its
# vector field. The observations' times are the entries of `t`, which lie inside of the solver's
# steps: more of them cost next to nothing. Fitted to all at once, such a model may end in a flat
# line, so that the horizon grows.

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

import tfsymadj

keras.utils.set_random_seed(1)
random = np.random.default_rng(1)


def truth(t):
    return np.exp(-0.1 * t)[:, None] * np.stack([np.cos(2 * t), -np.sin(2 * t)], 1)


times = np.append(0.0, np.sort(random.uniform(0.0, 8.0, 60)))
observed = truth(times) + random.normal(size=(61, 2)) * 0.05

# %% [markdown]
# The start is unknown, too, and trained with the weights. A training step of a system this small
# is compiled as a whole.

# %%
network = keras.Sequential([keras.layers.Dense(32, activation="tanh"), keras.layers.Dense(2)])
network.build((None, 2))
start = tf.Variable(observed[:1].astype("float32"))
weights = [start, *(v.value for v in network.trainable_variables)]
optimizer = tf.keras.optimizers.Adam(0.01)


def solve(t):
    return tfsymadj.odeint(network, start, t, rtol=1e-4, atol=1e-5, max_steps=128)[:, 0]


@tf.function(jit_compile=True)
def gradient(known):
    with tf.GradientTape() as tape:
        errors = tf.reduce_sum((solve(times) - observed.astype("float32")) ** 2, 1)
        loss = tf.reduce_sum(known * errors) / tf.reduce_sum(known)
    return loss, tape.gradient(loss, weights)


for horizon in (1.0, 2.0, 4.0, 8.0):
    for _ in range(300):
        loss, gradients = gradient(tf.constant(times <= horizon, tf.float32))
        optimizer.apply_gradients(zip(gradients, weights))
    print(f"up to t = {horizon}: mean squared error {float(loss):.5f}")

# %% [markdown]
# Where nothing was observed the model goes on by itself.

# %%
grid = np.linspace(0.0, 12.0, 300)
predicted = solve(grid)
figure, axes = plt.subplots(figsize=(8, 3.2))
for i, colour in enumerate(["#0072b2", "#d55e00"]):
    axes.plot(grid, truth(grid)[:, i], color=colour, ls=":", label="truth" if i == 0 else None)
    axes.plot(grid, predicted[:, i], color=colour, label="model" if i == 0 else None)
    axes.plot(times, observed[:, i], "o", ms=3, color=colour)
axes.axvspan(8.0, 12.0, color="0.93", zorder=0)
axes.set(xlabel="time", ylabel="state", xlim=(0, 12))
axes.legend(loc="upper right")
figure.savefig("irregular_series.png", dpi=110, bbox_inches="tight")

# %%
error = np.sqrt(np.mean((predicted.numpy() - truth(grid)) ** 2))
print(f"root mean square error, 50 % beyond the data: {error:.3f}")
assert error < 0.1

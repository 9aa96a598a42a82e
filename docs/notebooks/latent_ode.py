# %% [markdown]
# # A latent ODE
#
# Sine waves of unknown phase, frequency and height are seen for a while, and continued. An
# encoder reads a series backward into a distribution of a latent state at its start, an
# `ODELayer` carries that state to all times, a decoder reads it out (Rubanova, Chen, Duvenaud,
# [arXiv:1907.03907](https://arxiv.org/abs/1907.03907)).

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

import tfsymadj

keras.utils.set_random_seed(0)
random = np.random.default_rng(0)
times = np.linspace(0.0, 4.0, 40)
seen = 20


def waves(count):
    height, frequency, phase = random.uniform([0.5, 1.5, 0.0], [1.0, 2.5, 6.3], (count, 3)).T
    angle = frequency[:, None] * times + phase[:, None]
    return (height[:, None] * np.sin(angle))[..., None].astype("float32")


# %% [markdown]
# The noise of the autoencoder is drawn before the solve: inside of the dynamics it would be
# refused.


# %%
class LatentODE(keras.Model):
    def __init__(self, latent=6, hidden=32):
        super().__init__()
        self.encoder = keras.layers.GRU(hidden, go_backwards=True)
        self.start = keras.layers.Dense(2 * latent)
        dynamics = keras.Sequential(
            [keras.layers.Dense(hidden, activation="tanh"), keras.layers.Dense(latent)]
        )
        self.ode = tfsymadj.ODELayer(
            dynamics, times, return_sequences=True, rtol=1e-3, atol=1e-4, max_steps=64
        )
        self.decoder = keras.layers.Dense(1)
        self.seeds = keras.random.SeedGenerator(0)

    def call(self, x, training=False):
        mean, log_variance = tf.split(self.start(self.encoder(x)), 2, axis=-1)
        noise = keras.random.normal(tf.shape(mean), seed=self.seeds) if training else 0.0
        divergence = tf.reduce_sum(mean**2 + tf.exp(log_variance) - log_variance - 1.0, -1)
        self.add_loss(5e-5 * tf.reduce_mean(divergence))
        return self.decoder(self.ode(mean + tf.exp(0.5 * log_variance) * noise))


series = waves(1024)
model = LatentODE()
model.compile(
    keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.01, 1600)),
    "mse",
    jit_compile=True,
)
history = model.fit(series[:, :seen], series, epochs=200, batch_size=128, verbose=0)
print(f"loss: {history.history['loss'][0]:.3f} to {history.history['loss'][-1]:.3f}")

# %% [markdown]
# The second half of each new series was never shown to the encoder.

# %%
new = waves(256)
predicted = model.predict(new[:, :seen], verbose=0)
figure, axes = plt.subplots(1, 3, figsize=(9, 2.6), sharey=True, layout="constrained")
for i, ax in enumerate(axes):
    ax.plot(times, new[i], "o", ms=2.5, color="0.5", label="series")
    ax.plot(times, predicted[i], color="#0072b2", label="model")
    ax.axvspan(times[seen], 4.0, color="0.93", zorder=0)
    ax.set(xlabel="time", xlim=(0, 4))
axes[0].legend(loc="lower left", fontsize=8)
figure.savefig("latent_ode.png", dpi=110, bbox_inches="tight")

# %%
error = np.mean((predicted - new)[:, seen:] ** 2)
print(
    f"mean squared error of the half that was not seen: {error:.3f}, of zero {np.mean(new**2):.3f}"
)
assert error < 0.3 * np.mean(new**2)

"""What runs in other processes, which import it by its name."""

import keras
import numpy as np
import tensorflow as tf

import tfsymadj
from tfsymadj.layers import ConcatTime, ODELayer


def end_of_decay(rate):
    """Runs in other processes."""
    return float(tfsymadj.odeint(lambda t, y: -rate * y, [1.0], [0.0, 1.0], rtol=1e-6)[-1, 0])


def small_model():
    layer = ODELayer(
        ConcatTime(keras.layers.Dense(2, activation="tanh")), method="heun", num_steps=2
    )
    model = keras.Sequential([keras.Input((2,)), layer])
    model.compile("sgd", "mse")
    return model


def fit_on_data(rate):
    """Runs in other processes: a solve in the data's pipeline, and one that is trained."""

    def advance(y):
        end = tfsymadj.odeint(lambda t, y: -rate * y, y, [0.0, 1.0], rtol=1e-4)[-1]
        return y, end

    x = np.random.default_rng(0).normal(size=[32, 2]).astype("float32")
    data = tf.data.Dataset.from_tensor_slices(x).batch(8).map(advance, num_parallel_calls=2)
    return small_model().fit(data.prefetch(2), epochs=3, verbose=0).history["loss"]


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        x = np.random.default_rng(i).normal(size=[8, 2]).astype("float32")
        return x, 0.5 * x

"""A neural ODE trained by several processes, which survives the death of one of them.

    python examples/distributed_training.py                     # two workers on this machine
    python examples/distributed_training.py --fail-at-step 50   # one of them dies on the way
    python examples/distributed_training.py --worker            # a task of a cluster: TF_CONFIG

Each worker takes its share of every batch of handwritten digits; gradients are summed over the
workers, so that the losses are those of one process with the whole batch. After every epoch the
weights and the optimizer are saved. When a worker dies, all are started again from there.
See docs/distributed.md for real clusters.
"""

import argparse
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

BATCH = 64


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2, help="processes to start (default: 2)")
    parser.add_argument("--epochs", type=int, default=6, help="of training (default: 6)")
    parser.add_argument(
        "--output", type=pathlib.Path, help="folder to write to, shared (default: a temporary one)"
    )
    parser.add_argument(
        "--restarts", type=int, default=3, help="after deaths, at most (default: 3)"
    )
    parser.add_argument("--fail-at-step", type=int, help="kill the last worker once, to try it")
    parser.add_argument("--worker", action="store_true", help="be the task that TF_CONFIG says")
    parser.add_argument("--slurm", action="store_true", help="be the task that Slurm says")
    arguments = parser.parse_args()
    if arguments.worker or arguments.slurm:
        train(arguments)
    elif arguments.output:
        supervise(arguments)
    else:
        with tempfile.TemporaryDirectory() as folder:
            arguments.output = pathlib.Path(folder)
            supervise(arguments)


def supervise(arguments):
    """Starts the workers, and starts them again while one of them dies."""
    for attempt in range(arguments.restarts + 1):
        workers = start(arguments, first=attempt == 0)
        codes = [None]
        try:
            while None in codes and not any(codes):
                time.sleep(0.2)
                codes = [worker.poll() for worker in workers]
        finally:
            for worker in workers:  # those left wait for the dead one, for ever
                worker.kill()
                worker.wait()
        if not any(codes):
            return
        dead = next(i for i, code in enumerate(codes) if code)
        print(f"worker {dead} ended with code {codes[dead]}", flush=True)
    sys.exit(f"gave up after {arguments.restarts} restarts")


def start(arguments, first):
    """The processes of all workers."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(arguments.workers)]
    addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
    for s in sockets:
        s.close()
    command = [sys.executable, __file__, "--worker", "--epochs", str(arguments.epochs)]
    command += ["--output", str(arguments.output)]
    if first and arguments.fail_at_step is not None:
        command += ["--fail-at-step", str(arguments.fail_at_step)]
    workers = []
    for i in range(arguments.workers):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": i}}
        environment = {"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ, "TF_CONFIG": json.dumps(task)}
        workers.append(subprocess.Popen(command, env=environment))
    return workers


def train(arguments):
    """One worker: runs in step with the others."""
    # Not before TF_CONFIG is there.
    import keras
    import tensorflow as tf

    resolver = tf.distribute.cluster_resolver.SlurmClusterResolver() if arguments.slurm else None
    # Before anything else is computed: it connects the workers.
    strategy = tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
    cluster = strategy.cluster_resolver
    rank, workers = cluster.task_id, strategy.num_replicas_in_sync
    share = BATCH // workers
    images, labels, test = load_digits()
    steps = len(images) // BATCH

    with strategy.scope():
        keras.utils.set_random_seed(0)
        model = make_model()
        optimizer = keras.optimizers.Adam(0.003)
        optimizer.build(model.trainable_variables)
    epoch = tf.Variable(0)
    checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer, epoch=epoch)
    # All workers take part in saving; what counts is the chief's.
    folder = arguments.output / ("chief" if rank == 0 else f"copy-{rank}")
    manager = tf.train.CheckpointManager(checkpoint, str(folder), max_to_keep=2)
    latest = tf.train.latest_checkpoint(str(arguments.output / "chief"))
    if latest:
        checkpoint.restore(latest)
        if rank == 0:
            print(f"goes on after epoch {int(epoch)}", flush=True)

    def replica_step(x, y):
        with tf.GradientTape() as tape:
            losses = keras.losses.sparse_categorical_crossentropy(y, model(x, training=True))
            loss = tf.reduce_sum(losses) / BATCH  # of the joint batch: replicas are summed
        weights = model.trainable_variables
        gradients = tape.gradient(loss, [v.value for v in weights])
        optimizer.apply(gradients, weights)  # sums the gradients over the replicas
        return loss

    @tf.function
    def step(x, y):
        return strategy.reduce("SUM", strategy.run(replica_step, (x, y)), axis=None)

    def batches(context, order):
        """This worker's share of each batch, every batch whole on all workers together."""
        first = context.input_pipeline_id * share
        rows = order[: steps * BATCH].reshape(steps, BATCH)[:, first : first + share]
        return tf.data.Dataset.from_tensor_slices((images[rows], labels[rows]))

    while int(epoch) < arguments.epochs:
        order = shuffled(len(images), seed=int(epoch))
        data = strategy.distribute_datasets_from_function(lambda c, o=order: batches(c, o))
        losses = []
        for x, y in data:
            at = int(epoch) * steps + len(losses)
            if at == arguments.fail_at_step and rank == workers - 1 and workers > 1:
                os._exit(1)
            losses.append(float(step(x, y)))
        epoch.assign_add(1)
        manager.save()
        if rank == 0:
            mean = sum(losses) / len(losses)
            print(f"epoch {int(epoch)}: loss {mean:.6f}", flush=True)
    if rank == 0:
        accuracy = (model(test[0]).numpy().argmax(1) == test[1]).mean()
        print(f"test accuracy {accuracy:.4f} with {workers} workers", flush=True)


def make_model():
    """A neural ODE of 64 pixels and a linear classifier."""
    import keras

    import tfsymadj

    dynamics = tfsymadj.layers.ConcatTime(keras.layers.Dense(64, activation="tanh"))
    # Equal steps: adaptive ones would depend on which examples a worker happens to get.
    return keras.Sequential(
        [
            keras.Input((64,)),
            tfsymadj.ODELayer(dynamics, method="rk4", num_steps=4),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )


def load_digits():
    """Training images and labels, and the pair of them for the test."""
    from sklearn.datasets import load_digits as load

    images, labels = load(return_X_y=True)
    images = (images / 16.0).astype("float32")
    order = shuffled(len(images), seed=1000)
    train, test = order[:1347], order[1347:]
    return images[train], labels[train], (images[test], labels[test])


def shuffled(count, seed):
    """A permutation that all workers agree on."""
    import numpy as np

    return np.random.default_rng(seed).permutation(count)


if __name__ == "__main__":
    main()

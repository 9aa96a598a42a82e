"""What `tf.function`s say about themselves."""


def quietly_traced(function):
    """Lets a `tf.function` be traced without TensorFlow's warning of frequent retracing.

    TensorFlow counts by the place in the code where a function is defined. All functions of one
    place count together, so that each of many models traced once looks like one traced many times.
    """
    function._omit_frequent_tracing_warning = True
    return function

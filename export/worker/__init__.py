"""What runs in another interpreter, and what starts it. Only here are Keras and TensorFlow ever imported.

`keras_worker` and `format_worker` are scripts that import only numpy and the standard library when they start, so that
any interpreter with a Keras can run them. `keras_process` and `format_process` start them and read their replies.
"""

"""What runs in another interpreter, and what starts it: the only place where Keras and TensorFlow are imported.

`keras_worker` and `format_worker` are scripts: nothing but numpy and the standard library at import, so that any
Keras can run them. `keras_process` and `format_process` start them and read their answers.
"""

"""The embedded model server, for where TensorFlow Serving is not installed."""

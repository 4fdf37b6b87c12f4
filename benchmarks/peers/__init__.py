"""Other servers, with our encoder, and training loops, as in their tutorials.

The environment variable BENCH_VERSION names the version folder of the SavedModel.
"""

"""Other servers and training loops, written as in their tutorials; all servers encode with our encoder.

The environment variable BENCH_VERSION names the version folder of the SavedModel.
"""

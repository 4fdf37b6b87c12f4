"""What people would use instead, as they usually write it; so that no PNG is larger, all encode with ours.

Each takes the folder of a SavedModel's version from the environment variable BENCH_VERSION.
"""

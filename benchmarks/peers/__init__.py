"""What people would use instead, as they usually write it; all encode with serving.rendering.encoding, so that no PNG is larger.

Each takes the folder of a SavedModel's version from the environment variable BENCH_VERSION.
"""

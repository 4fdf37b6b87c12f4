"""Measurements of speed and memory: `make bench`."""

import os

# All sides compute with oneDNN, which TensorFlow leaves out on processors without AVX-512 VNNI.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

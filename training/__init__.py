"""Train a Keras GAN on photos; export its generator as a SavedModel."""

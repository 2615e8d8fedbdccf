"""A trace ready to be shown: why it stopped, what a judge says of each image, and the settings it was drawn with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from triptych.trace import Trace, Verdict

Stop = Literal["model", "unread", "limit", "interrupted"]
STOPS: dict[Stop, str] = {
    "model": "the model said that no further edit is needed",
    "unread": "the reflection holds no instruction, which counts as a stop",
    "limit": "turn limit reached",
    "interrupted": "interrupted",
}


@dataclass(frozen=True, eq=False)
class TraceView:
    """A trace with what a reader wants to know of it; `verdicts` has one per image, or none without a judge."""

    trace: Trace
    stop: Stop
    turns: int  # the turn limit
    verdicts: tuple[Verdict, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def user_prompt(self) -> str:
        """The prompt as a person typed it; the trace holds the wording that the model was given."""
        return self.settings.get("asked", self.trace.prompt.text)

    @property
    def edits(self) -> int:
        """Images that were made from another image."""
        return sum(turn.drew is not None and turn.instruction is not None for turn in self.trace.turns)

    @property
    def why(self) -> str:
        """Why it stopped, in words."""
        return STOPS[self.stop] + (f" ({self.turns})" if self.stop == "limit" else "")

    @property
    def ending(self) -> str:
        """What went wrong at the end, as a headline; empty where the final image is right or was not judged."""
        if self.verdict is None or self.verdict.score == 1:
            return ""
        judged = (
            f"Judged wrong: {len(self.verdict.failed)} of the checks failed" if self.verdict.failed else "Judged wrong"
        )
        how = {"limit": "ran out of turns", "interrupted": "interrupted"}.get(self.stop, "stopped though wrong")
        return f"{judged}; {how}."

    @property
    def verdict(self) -> Verdict | None:
        """The verdict on the final image."""
        return self.verdicts[-1] if self.verdicts else None

    @property
    def seconds(self) -> float:
        """Model time of the whole trace."""
        return sum(sum(turn.seconds.values()) for turn in self.trace.turns)

    def extra(self) -> dict[str, Any]:
        """What joins the trace's own record in trace.json."""
        return {
            "stop": self.stop,
            "turn_limit": self.turns,
            "verdicts": [verdict.to_record() for verdict in self.verdicts],
            "settings": dict(self.settings),
        }

    def record(self, folder: Path) -> dict[str, Any]:
        """One trace as `--json` prints it; everything else is in the folder's trace.json."""
        return {
            "folder": str(folder),
            "asked": self.user_prompt,
            "prompt": self.trace.prompt.text,
            "seed": self.trace.seed,
            "final": str(folder / "final.png") if self.trace.image is not None else None,
            "edits": self.edits,
            "stop": self.stop,
            "why": self.why,
            "verdict": None if self.verdict is None else self.verdict.to_record(),
            "seconds": [dict(turn.seconds) for turn in self.trace.turns],
        }

    @staticmethod
    def load(folder: Path) -> TraceView:
        """Read back what `output.write_trace` wrote."""
        record = json.loads((Path(folder) / "trace.json").read_text(encoding="utf-8"))
        verdicts = tuple(map(Verdict.from_record, record["verdicts"]))
        return TraceView(Trace.load(folder), record["stop"], record["turn_limit"], verdicts, record["settings"])

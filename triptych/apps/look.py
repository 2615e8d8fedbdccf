"""`triptych judge`: a judge of stickers on one picture, as a record and in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from triptych.apps.inputs import check_text, understand
from triptych.data.captions import seen_text
from triptych.model.config import SKETCH
from triptych.model.pictures import read_picture
from triptych.rewards.world import StickerJudge, verdict
from triptych.trace import Prompt, Spec


def judge(path: Path, text: str, eyes: StickerJudge) -> dict[str, Any]:
    """Score, checks and what was seen. Raises PictureError, PromptError, or JudgeError where it cannot look."""
    prompt = understand(Prompt(check_text(text)), SKETCH)
    image = read_picture(path)
    (scene,) = eyes.scenes([image])
    given = verdict(scene, prompt.spec or Spec("free", ()))
    return {
        "score": given.score,
        "passed": list(given.passed),
        "failed": list(given.failed),
        "seen": seen_text(scene),
        "asked": prompt.text,
        "judge": eyes.name,
    }


def told(record: dict[str, Any]) -> str:
    """The record as lines for a person."""
    asked = len(record["passed"]) + len(record["failed"])
    lines = [f"asked   {record['asked']}", f"seen    {record['seen'] or 'nothing'}"]
    lines += [f"  ✓ {check}" for check in record["passed"]] + [f"  ✗ {check}" for check in record["failed"]]
    lines.append(f"score   {record['score']:.2f} ({len(record['passed'])} of {asked} checks hold)")
    return "\n".join(lines)

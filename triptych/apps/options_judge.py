"""Which judge looks at pictures, and how a vision-language model is asked: the options of `judge` and `eval`.

The sticker world has two judges, `world` and `templates`; open pictures have GenEval's `detector` and a `vlm` at an
address. `auto` is the vlm where an address is given, else what the command finds fitting.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import UseAppendAction, arg

from triptych.errors import ConfigError, JudgeError
from triptych.rewards.judge import Judge, verdicts_of

if TYPE_CHECKING:
    from triptych.rewards.sticker_judge import StickerJudge
    from triptych.rewards.vlm import Vlm
    from triptych.rewards.vlm_prompts import Checks, Form
    from triptych.trace import Trace, Verdict

Kind = Literal["world", "templates", "detector", "vlm"]
Lists = Mapping[tuple[str, str], "Checks"]  # questions by source and text of the prompt
STICKERS = ("world", "templates")  # judges that know the sticker world and nothing else
ENOUGH = 20  # verdicts before the share of missing ones is believed


@dataclass(frozen=True, kw_only=True)
class JudgeChoice:
    """Which judge looks, and how a vision-language model is asked."""

    judge: Literal["auto", "world", "templates", "detector", "vlm"] = "auto"
    """Of stickers: learnt eyes, or silhouettes; of open pictures: GenEval's detector, or a model at an address."""
    address: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="URL")] = ()
    """A server with a vision-language model; repeat it for more."""
    judge_model: str = ""
    """The model's name on those servers."""
    ask: Literal["auto", "strict", "yesno", "tiif"] = "auto"
    """One verdict, right or wrong; the probability of yes; or TIIF's list of questions about each picture."""
    wording: Annotated[Path | None, arg(metavar="FILE")] = None
    """The judge's words instead of ours, with {prompt}, {metadata} or {questions} in their place."""
    key: Annotated[str, arg(metavar="VARIABLE")] = "TRIPTYCH_JUDGE_KEY"
    """Environment variable that holds the API key."""
    cache: Annotated[Path | None, arg(metavar="DIR")] = None
    """Folder of replies: what is there is not asked again; processes may share it."""
    record: Annotated[Path | None, arg(metavar="FILE")] = None
    """A file of replies, for triptych score."""
    concurrency: int = 8
    """Questions under way at once, over all addresses."""
    timeout: float = 60.0
    """Seconds for one answer."""
    tries: int = 5
    """Tries per question, with growing waits between them."""
    max_missing: float = 0.2
    """Stop when more than this share of the verdicts is missing."""

    def kind(self, otherwise: Kind) -> Kind:
        """The judge that was chosen; for auto the vlm where there is an address, and `otherwise` where there is none.

        Raises ConfigError where options contradict each other.
        """
        kind: Kind = self.judge if self.judge != "auto" else "vlm" if self.address else otherwise
        if kind == "vlm" and not (self.address and self.judge_model):
            raise ConfigError("a vlm was chosen; expected --address and --judge-model beside it: where it is, and what")
        given = ", ".join(f"--{name}" for name, value in self.only_vlm().items() if value)
        if kind != "vlm" and given:
            raise ConfigError(f"{given}: of use only with a judge at an --address, not with {kind}; name one, or none")
        if not 0 <= self.max_missing <= 1:
            raise ConfigError(f"--max-missing {self.max_missing:g}: expected a share from 0 to 1")
        return kind

    def only_vlm(self) -> dict[str, bool]:
        """Options that only a vision-language model has, and whether they were given."""
        given = {"address": bool(self.address), "judge-model": bool(self.judge_model), "ask": self.ask != "auto"}
        return given | {name: getattr(self, name) is not None for name in ("wording", "cache", "record")}

    def opened(self, kind: Kind, lists: Lists | None = None, device: str = "auto") -> Judge:
        """The judge itself; `lists` are the questions where it is to be asked TIIF's way."""
        if kind in STICKERS:
            return sticker_judge(kind)
        if kind == "detector":
            from triptych.apps.arguments import device_of
            from triptych.rewards.geneval_detector import GenEvalJudge

            return GenEvalJudge(device=device_of(device))
        return self.vlm(lists)

    def vlm(self, lists: Lists | None = None) -> Vlm:
        """The vision-language model; asked TIIF's way where there are `lists`."""
        from triptych.rewards.vlm import Vlm
        from triptych.rewards.vlm_client import RetryPolicy as Patience

        patience = Patience(timeout=self.timeout, tries=self.tries)
        ask = "tiif" if lists is not None else "strict" if self.ask == "auto" else self.ask
        form = form_of(ask, self.wording, lists or {})
        name, width = self.judge_model, self.concurrency
        return Vlm(self.address, name, form, self.key, width, patience, cache=self.cache, record=self.record)

    def check_missing(self, asked: int, lost: int, cause: str, kept: str) -> None:
        """JudgeError once too many verdicts are missing; `kept` tells where the others are."""
        if asked >= ENOUGH and lost > self.max_missing * asked:
            told = f"{lost} of {asked} verdicts are missing, more than --max-missing {self.max_missing:g}"
            raise JudgeError(f"{told}; {kept}; the last: {cause}")


def sticker_judge(name: str) -> StickerJudge:
    """The judge of stickers of that name: learnt eyes, or silhouettes."""
    from triptych.rewards.sticker_judge import WorldJudge
    from triptych.rewards.template_matching import TemplateJudge

    return WorldJudge() if name == "world" else TemplateJudge()


def form_of(ask: str, wording: Path | None, lists: Lists) -> Form:
    """How the judge is asked: in the words of a file, or in ours. Raises ConfigError for words that will not do."""
    from triptych.rewards.vlm_prompts import Checklist, Strict, YesNo, read_wording

    form = {"tiif": Checklist(lists), "yesno": YesNo(), "strict": Strict()}[ask]
    return form if wording is None else replace(form, wording=read_wording(wording))


@dataclass(frozen=True)
class LoggingJudge:
    """A judge whose missing verdicts are told on stderr as they come, a line each, and counted."""

    judge: Judge
    causes: list[str] = field(default_factory=list)  # of each missing verdict
    asked: list[int] = field(default_factory=list)  # pictures in each call

    @property
    def name(self) -> str:
        return self.judge.name

    def verdicts(self, traces: Sequence[Trace]) -> list[Verdict | JudgeError]:
        """One per trace, in order, or why it is missing."""
        found = verdicts_of(self.judge, traces)
        self.asked.append(len(traces))
        for trace, each in zip(traces, found, strict=True):
            if isinstance(each, JudgeError):
                self.causes.append(" ".join(str(each).split())[:300])
                print(f"missing: {trace.prompt.text[:60]!r}, seed {trace.seed}: {self.causes[-1]}", file=sys.stderr)
        return found

    def __call__(self, traces: Sequence[Trace]) -> list[Verdict]:
        return self.judge(traces)

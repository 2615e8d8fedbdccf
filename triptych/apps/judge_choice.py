"""From the options of `judge` and `eval` to a judge, and the count of its missing verdicts.

The sticker world has two judges, `world` and `templates`; any image can be judged by GenEval's `detector` or by a `vlm`
at an address. `auto` is the vlm where an address is given, else what fits the command.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from triptych.apps.arguments import device_of
from triptych.apps.console import say
from triptych.apps.options import STICKER_JUDGES, JudgeChoice, JudgeKind, VlmChoice
from triptych.errors import ConfigError, JudgeError
from triptych.rewards.judge import Judge, verdicts_of
from triptych.rewards.sticker_judge import StickerJudge, WorldJudge
from triptych.rewards.template_matching import TemplateJudge
from triptych.rewards.vlm_prompts import Checklist, Checks, Strict, YesNo, read_wording
from triptych.trace import Trace, Verdict

if TYPE_CHECKING:  # needs the judge extra
    from triptych.rewards.vlm import Vlm

Checklists = Mapping[tuple[str, str], Checks]  # questions, by source and text of the prompt
MIN_VERDICTS = 20  # with fewer, one lost request would already be a share of 5 %


def judge_kind(choice: JudgeChoice, default: JudgeKind) -> JudgeKind:
    """The judge that was chosen; for auto the vlm where there is an address, and `default` where there is none.

    Raises ConfigError where options contradict each other.
    """
    kind: JudgeKind = choice.judge if choice.judge != "auto" else "vlm" if choice.address else default
    check_vlm(choice, kind)
    return kind


def check_vlm(choice: VlmChoice, kind: str) -> None:
    """ConfigError for a vlm without an address, or an address for another kind of judge."""
    if kind == "vlm" and not (choice.address and choice.judge_model):
        raise ConfigError("judge vlm: expected --address and --judge-model with it, the server and the model's name")
    options = ", ".join(f"--{name}" for name in vlm_options(choice))
    if kind != "vlm" and options:
        raise ConfigError(f"{options}: of use only with a judge at an --address, not with {kind}; leave out either")


def vlm_options(choice: VlmChoice) -> list[str]:
    """The options that were given and that only a vision-language model has; those of `triptych judge` included."""
    unset = {"address": (), "judge_model": "", "ask": "auto", "wording": None, "cache": None, "record": None}
    unset |= {"judge_tokens": 0, "judge_thinking": "auto", "judge_temperature": 0.0, "judge_extra": ""}
    unset |= {"dry_run": False, "self_check": 0}
    # `eval` has no --dry-run and no --self-check, which then count as unset.
    given = [name for name, value in unset.items() if getattr(choice, name, value) != value]
    return [name.replace("_", "-") for name in given]


def open_judge(
    choice: VlmChoice,
    kind: str,
    checklists: Checklists | None = None,
    device: str = "auto",
    strangers: bool = True,
) -> Judge:
    """The judge of a kind; `checklists` are the questions where it is asked in TIIF's format.

    `strangers` says that pictures may be anybody's, so that a judge of stickers refuses those that show none.
    """
    if kind in STICKER_JUDGES:
        return sticker_judge(kind, strangers)
    if kind == "detector":
        from triptych.rewards.geneval_detector import GenEvalJudge

        return GenEvalJudge(device=device_of(device))
    return open_vlm(choice, checklists)


def open_vlm(choice: VlmChoice, checklists: Checklists | None = None) -> Vlm:
    """The vision-language model; asked in TIIF's format where there are `checklists`.

    Raises ConfigError for an unusable file of --wording.
    """
    from triptych.rewards.vlm import Vlm
    from triptych.rewards.vlm_client import RetryPolicy

    retries = RetryPolicy(timeout=choice.timeout, tries=choice.tries)
    ask = "tiif" if checklists is not None else "strict" if choice.ask == "auto" else choice.ask
    form: Checklist | YesNo | Strict = {"tiif": Checklist(checklists or {}), "yesno": YesNo(), "strict": Strict()}[ask]
    if choice.wording is not None:
        form = replace(form, wording=read_wording(choice.wording))
    return Vlm(
        choice.address,
        choice.judge_model,
        form,
        choice.key,
        choice.concurrency,
        retries,
        cache=choice.cache,
        record=choice.record,
        tokens=choice.judge_tokens,
        temperature=choice.judge_temperature,
        extra=extra_fields(choice),
    )


def extra_fields(choice: VlmChoice) -> dict[str, Any]:
    """The further fields of a request. Raises ConfigError for a --judge-extra that is no JSON object."""
    try:
        extra = json.loads(choice.judge_extra or "{}")
    except (ValueError, RecursionError) as error:
        extra = error
    if not isinstance(extra, dict):
        raise ConfigError(f"--judge-extra: expected a JSON object, found {choice.judge_extra[:60]!r}")
    own = {"model", "messages", "max_tokens", "temperature"} & extra.keys()
    if own:
        raise ConfigError(f"--judge-extra names {', '.join(sorted(own))}: expected other fields; these have options")
    if choice.judge_thinking != "auto":
        # The switch of Qwen3-VL's, GLM's and others' chat templates, as vLLM and SGLang take it.
        template = {**extra.get("chat_template_kwargs", {}), "enable_thinking": choice.judge_thinking == "on"}
        extra["chat_template_kwargs"] = template
    return extra


def cut_line(judge: Judge) -> str:
    """What to say of the answers of a judge that were cut; empty where none was."""
    count = len(getattr(judge, "cut", ()))
    return f"{count} answers of the judge were cut; --judge-tokens allows longer ones" if count else ""


def sticker_judge(name: str, strangers: bool = True) -> StickerJudge:
    """The judge of stickers of that name: a trained detector, or template matching."""
    return WorldJudge(strangers=strangers) if name == "world" else TemplateJudge(strangers=strangers)


def check_missing(choice: JudgeChoice, total: int, missing: int, cause: str, remedy: str) -> None:
    """JudgeError once the share of missing verdicts is above --max-missing; `remedy` says where the others are."""
    if total >= MIN_VERDICTS and missing > choice.max_missing * total:
        message = f"{missing} of {total} verdicts are missing, more than --max-missing {choice.max_missing:g}"
        raise JudgeError(f"{message}; {remedy}; the last: {cause}")


@dataclass(frozen=True)
class LoggingJudge:
    """A judge whose missing verdicts are printed to stderr as they come, one line each, and counted."""

    judge: Judge
    causes: list[str] = field(default_factory=list)  # of each missing verdict
    batches: list[int] = field(default_factory=list)  # images in each call

    @property
    def name(self) -> str:
        return self.judge.name

    def verdicts(self, traces: Sequence[Trace]) -> list[Verdict | JudgeError]:
        """One per trace, in order, or why it is missing."""
        verdicts = verdicts_of(self.judge, traces)
        self.batches.append(len(traces))
        for trace, verdict in zip(traces, verdicts, strict=True):
            if isinstance(verdict, JudgeError):
                self.causes.append(" ".join(str(verdict).split())[:300])
                say(f"missing: {trace.prompt.text[:60]!r}, seed {trace.seed}: {self.causes[-1]}", error=True)
        return verdicts

    def __call__(self, traces: Sequence[Trace]) -> list[Verdict]:
        return self.judge(traces)

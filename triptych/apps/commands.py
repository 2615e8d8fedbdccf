"""The typed options of every command, and what each of them runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from triptych.apps.options import Folder, Json, ModelChoice, Open, PlayChoice
from triptych.apps.options_judge import JudgeChoice

PromptText = Annotated[Positional[str], arg(metavar="PROMPT")]
Picture = Annotated[Positional[Path], arg(metavar="IMAGE")]


@dataclass(frozen=True, kw_only=True)
class Draw(PlayChoice):
    """Draw a prompt: plan it, draw it, then look at the picture and mend it."""

    prompt: PromptText = ""
    """What to draw, in quotes."""
    prompts: Annotated[Path | None, arg(metavar="FILE")] = None
    """Many prompts instead: plain lines, or jsonl in GenEval's layout."""
    n: Annotated[int, arg(aliases=["-n"])] = 1
    """Traces per prompt, each with its own seed."""
    plan: bool = True
    """Think before drawing."""

    def run(self, open_model: Open) -> int:
        from triptych.apps import arguments as inputs

        inputs.check_at_least("n", self.n, 1, inputs.MAX_PROMPTS)
        return _play(self, inputs.prompts_of(self.prompt, self.prompts), self.n, self.plan, open_model)


@dataclass(frozen=True, kw_only=True)
class Edit(PlayChoice):
    """Bring a given picture in line with a prompt: reflect and refine."""

    image: Picture
    """The picture to start from."""
    prompt: PromptText
    """What it should show, in quotes."""
    n: Annotated[int, arg(aliases=["-n"])] = 1
    """Traces, each with its own seed."""

    def run(self, open_model: Open) -> int:
        from triptych.apps import arguments as inputs
        from triptych.model.images import read_picture
        from triptych.trace import Prompt

        inputs.check_at_least("n", self.n, 1, inputs.MAX_PROMPTS)
        inputs.check_at_least("turns", self.turns, 1)
        prompt = Prompt(inputs.check_text(self.prompt), image=read_picture(self.image))
        return _play(self, [("", prompt)], self.n, True, open_model)


@dataclass(frozen=True, kw_only=True)
class Ask(ModelChoice):
    """Ask the model about a picture."""

    image: Picture
    """The picture it looks at."""
    question: Annotated[Positional[str], arg(metavar="QUESTION")]
    """What to ask, in quotes."""
    seed: int = 0
    as_json: Json = False
    """Print JSON."""

    def run(self, open_model: Open) -> int:
        from triptych.apps.arguments import check_at_least, check_text
        from triptych.model.images import read_picture
        from triptych.model.templates import CLOSE, parse_answer, parse_thought

        check_at_least("seed", self.seed, 0)
        question, image = check_text(self.question, "question"), read_picture(self.image)
        model = self.load(open_model)
        (said,) = model.answer([image], [question], model.config.fine, [self.seed])
        answer, thought = parse_answer(said.text), parse_thought(said.text) if CLOSE in said.text else None
        if self.as_json:
            _print(json.dumps({"question": question, "answer": answer, "thought": thought}))
        else:
            _print(answer if thought is None else f"({thought})\n{answer}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Evaluate(ModelChoice, JudgeChoice):
    """Play a benchmark: the paper's table, for every number of turns."""

    benchmark: Positional[Literal["genevalpp", "geneval", "tiif", "rehearsal", "ita", "vqa"]]
    """GenEval++ (280 prompts), GenEval (553), TIIF, or 70 prompts that are in neither, to choose settings on; or ITA
    (does a picture fit its prompt?) and VQA (what does it show?), which ask about pictures of a finished run."""
    prompts: Annotated[Path | None, arg(metavar="FILE")] = None
    """Of TIIF: your own copy of its prompts and questions, a jsonl or a folder of them."""
    turns: int = 4
    """Most Reflect-Refine turns; the table has a line for each number up to it."""
    seeds: int = 1
    """Traces per prompt: seeds 0 to N-1."""
    limit: int | None = None
    """Play so many of the prompts, evenly spread; of ita and vqa, ask so many questions a column at most (480)."""
    understanding: FlagCreatePairsOff[bool] = False
    """Then ask ITA and VQA about the pictures, into the folders ita and vqa of --out."""
    drawn: Annotated[Path | None, arg(metavar="RUN")] = None
    """A finished run: ita and vqa ask about its pictures (without one they paint a set), and other benchmarks have them
    judged again by --judge."""
    by: Literal["question", "reflection"] = "question"
    """Of ita: the model is asked whether the picture fits, or reflects and thereby stops."""
    steps: int | None = None
    """Flow steps per picture; the model's own number if not given."""
    guidance: float | None = None
    """Scale of text guidance, 1 is off; the model's own if not given."""
    temperature: float | None = None
    """Of all that the model says, 0 is greedy; the model's own if not given."""
    plan: bool = True
    """Think before drawing."""
    batch: int = 16
    """Traces drawn at once."""
    out: Folder = None
    """Folder of the run: manifest, results, pictures, report; runs/BENCHMARK-MODEL if not given."""
    resume: FlagCreatePairsOff[bool] = False
    """Go on with the run in --out."""
    shard: Annotated[str | None, arg(metavar="I/N")] = None
    """Play part I of N beside the processes that play the others into the same --out; `triptych report` merges."""
    keep_pictures: bool = True
    """Keep every judged picture in the folder, lossless."""
    as_json: Json = False
    """Print report and manifest as JSON on stdout."""

    def run(self, open_model: Open) -> int:
        from triptych.apps import evaluate as measure
        from triptych.apps import understanding as understand

        door = understand if self.benchmark in understand.QUIZZES else measure
        return door.evaluate(self, lambda: self.load(open_model))


@dataclass(frozen=True, kw_only=True)
class Probe(ModelChoice):
    """Examine every skill behind the loop: draw, plan, edit, stop, instruct, answer, mend."""

    suite: Positional[Literal["rehearsal", "genevalpp"]] = "rehearsal"
    """70 prompts that are in no benchmark, to choose settings on; or the 280 of GenEval++."""
    turns: int = 4
    """Most Reflect-Refine turns of a played trace."""
    seeds: int = 1
    """Samples per prompt."""
    limit: int | None = None
    """Take so many of the prompts, evenly spread."""
    steps: int | None = None
    """Flow steps per picture; the model's own number if not given."""
    guidance: float | None = None
    """Scale of text guidance, 1 is off; the model's own if not given."""
    temperature: float | None = None
    """Of all that the model says, 0 is greedy; the model's own if not given."""
    shift: float | None = None
    """Time shift of the flow."""
    judge: Literal["world", "templates"] = "world"
    """Who reads the pictures: learnt eyes, or silhouettes, which are far slower."""
    as_json: Json = False
    """Print JSON on stdout, and the rest on stderr."""

    def run(self, open_model: Open) -> int:
        from triptych.apps import probe as examine

        return examine.run(self, lambda: self.load(open_model))


@dataclass(frozen=True, kw_only=True)
class Info:
    """Tell a model's sizes, parameters and memory, without loading it."""

    model: str = "sketch"
    """A packaged name, a checkpoint folder, or a hub name."""
    as_json: Json = False
    """Print JSON."""

    def run(self, open_model: Open) -> int:
        from triptych.apps import info

        record = info.describe(self.model)
        if self.as_json:
            _print(json.dumps(record))
        else:
            info.show(record)
        return 0


@dataclass(frozen=True, kw_only=True)
class Bench(ModelChoice):
    """Measure a draw beat by beat, the early stop, packed guidance and steps of training, as ratios within one run."""

    draws: int = 7
    """Single draws to take the median of."""
    batch: int = 64
    """Traces in the comparison of stops."""
    train_steps: int = 2
    """Steps of training to measure, Reason and Refine in turn; they change nothing. 0 leaves them out."""
    as_json: Json = False
    """Print JSON."""

    def run(self, open_model: Open) -> int:
        from triptych.apps import bench

        return bench.run(self, open_model)


@dataclass(frozen=True, kw_only=True)
class SFT:
    """Teach a model from nothing, by supervised lessons; they can be interrupted and resumed exactly."""


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train the loop by reinforcement, Tree-RL; it can be interrupted and resumed exactly."""


def _play(choice: Draw | Edit, prompts: Sequence[tuple[str, Any]], count: int, plan: bool, open_model: Open) -> int:
    from triptych.apps import draw

    record, code = draw.run(choice, prompts, count, plan, lambda: choice.load(open_model))
    if choice.as_json:
        _print(json.dumps(record))
    return code


def _print(text: str) -> None:
    print(text, flush=True)

"""The typed options of every command, without behavior: cli.py parses them, the module of the command runs them.

The options of `sft` and `train` are the fields of their recipes, which need torch: see sft.py and train.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Interval
from tyro.conf import Positional, arg

from triptych.apps.options import (
    Count,
    Flag,
    JsonFlag,
    JudgeChoice,
    ModelChoice,
    OutFolder,
    PlayChoice,
    SamplingChoice,
)
from triptych.bounds import NonNegativeInt, PositiveFloat, PositiveInt

PromptText = Annotated[Positional[str], arg(metavar="PROMPT")]
ImageFile = Annotated[Positional[Path], arg(metavar="IMAGE")]


@dataclass(frozen=True, kw_only=True)
class DrawOptions(PlayChoice):
    """Draw a prompt: plan, draw, then reflect on the image and refine it."""

    prompt: PromptText = ""
    """What to draw, in quotes."""
    prompts: Annotated[Path | None, arg(metavar="FILE")] = None
    """File of prompts instead: lines, JSON lines, a JSON array, CSV, TSV or parquet; ids and seeds in it are used."""
    again: Annotated[Path | None, arg(metavar="TRACE")] = None
    """Folder of a trace to repeat exactly, with the rows of its batch; model and settings are the trace's."""
    n: Annotated[Count, arg(aliases=["-n"])] = 1
    """Traces per prompt, each with its own seed."""
    plan: bool = True
    """Write a plan before drawing."""


@dataclass(frozen=True, kw_only=True)
class EditOptions(PlayChoice):
    """Edit a given image until it matches a prompt: reflect and refine."""

    image: ImageFile
    """Image to start from."""
    prompt: PromptText
    """What the image should show, in quotes."""
    n: Annotated[Count, arg(aliases=["-n"])] = 1
    """Number of traces, each with its own seed."""
    force: bool = False
    """Take any picture, also one that a model of the sticker world has never seen the like of."""
    turns: PositiveInt = 4  # at 0 the result would be the given image
    """Maximum number of Reflect-Refine turns; the model may stop earlier."""
    size: str = "auto"
    """Size of the result: input, model, or WxH such as 640x480; auto is input for models of open pictures."""


@dataclass(frozen=True, kw_only=True)
class AskOptions(ModelChoice):
    """Ask the model a question about an image."""

    image: ImageFile
    """Image that the question is about."""
    question: Annotated[Positional[str], arg(metavar="QUESTION")]
    """Question, in quotes."""
    force: bool = False
    """Take any picture, also one that a model of the sticker world has never seen the like of."""
    seed: NonNegativeInt = 0
    """Sampling seed."""
    as_json: JsonFlag = False
    """Print JSON."""


@dataclass(frozen=True, kw_only=True)
class JudgeOptions(JudgeChoice):
    """Judge images against their prompts: one image, a folder in GenEval's layout, or a list in JSON lines."""

    image: Annotated[Positional[Path], arg(metavar="IMAGE|DIR|JSONL")]
    """An image; a folder with 00000/metadata.jsonl and 00000/samples/0000.png; or JSON lines with image and prompt."""
    prompt: PromptText = ""
    """What a single image should show, in quotes."""
    judge_model: Annotated[str, arg(aliases=["--model"])] = ""
    """Name of the vlm on those servers."""
    dry_run: Flag = False
    """Print the number of requests and an estimate of their tokens, and send none."""
    self_check: Annotated[NonNegativeInt, arg(metavar="N")] = 0
    """Instead of judging, send the first N images twice, past the cache, and print how often both verdicts agree."""
    as_json: JsonFlag = False
    """Print JSON on stdout."""


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Make a run of pictures that another system drew: `triptych eval BENCHMARK --drawn RUN` then judges them."""

    pictures: Annotated[Positional[Path], arg(metavar="DIR|LIST")]
    """A folder with 00000/metadata.jsonl and 00000/samples/0000.png, or a list of images and prompts, such as jsonl."""
    run: Annotated[Path, arg(name="as", metavar="RUN")]
    """New folder of the run."""
    benchmark: Literal["auto", "geneval", "genevalpp", "dev"] = "auto"
    """Whose prompts these are; auto is the one that has them all, or else a set of their own."""
    prompts: Annotated[Path | None, arg(metavar="FILE")] = None
    """For TIIF: your own copy of its prompts and questions."""
    name: str = ""
    """Name of the system that drew, for reports."""
    resume: Flag = False
    """Go on with the import in --as; pictures that could not be read are tried again."""
    as_json: JsonFlag = False
    """Print JSON on stdout."""


@dataclass(frozen=True, kw_only=True)
class EvalOptions(SamplingChoice, JudgeChoice):
    """Run a benchmark and print the paper's table, for every number of turns."""

    benchmark: Positional[Literal["genevalpp", "geneval", "tiif", "dev", "ita", "vqa"]]
    """GenEval++ (280 prompts), GenEval (553), TIIF, dev (70 in no benchmark); ita and vqa ask about images."""
    prompts: Annotated[Path | None, arg(metavar="FILE")] = None
    """For tiif: your own copy of its prompts and questions, a JSON-lines file or a folder of them."""
    turns: Annotated[int, Interval(ge=0, le=1_000)] = 4  # run_folder.MOST_TURNS, which needs torch
    """Maximum number of Reflect-Refine turns; the table has a column for each number up to it."""
    seeds: Annotated[int, Interval(ge=1, le=10_000)] = 1  # run_folder.MOST_SEEDS
    """Traces per prompt, with seeds 0 to N-1."""
    limit: PositiveInt | None = None
    """Number of prompts to use, evenly spaced; for ita and vqa the most questions per column, where None is 480."""
    understanding: Flag = False
    """Then run ita and vqa on the drawn images, into the folders ita and vqa of --out."""
    drawn: Annotated[Path | None, arg(metavar="RUN")] = None
    """Finished run: ita and vqa ask about its images instead of a synthetic set; others judge them again."""
    by: Literal["question", "reflection"] = "question"
    """For ita: ask the model whether the image matches, or let it reflect and take its stop as yes."""
    plan: bool = True
    """Write a plan before drawing."""
    batch: PositiveInt = 16
    """Traces drawn in one batch."""
    out: OutFolder = None
    """Folder for manifest, results, images and report; None is runs/BENCHMARK-MODEL."""
    resume: Flag = False
    """Resume the run in --out."""
    shard: Annotated[str | None, arg(metavar="I/N")] = None
    """Run part I of N; other processes run the other parts into the same --out, and `triptych report` merges them."""
    keep_pictures: bool = True
    """Save every judged image in the folder, as PNG."""
    as_json: JsonFlag = False
    """Print report and manifest as JSON on stdout."""


@dataclass(frozen=True, kw_only=True)
class ProbeOptions(SamplingChoice):
    """Probe every skill of the loop separately: draw, plan, edit, stop, write instructions, answer questions."""

    suite: Positional[Literal["dev", "genevalpp"]] = "dev"
    """70 prompts that are in no benchmark, for choosing settings; or the 280 of GenEval++."""
    turns: PositiveInt = 4
    """Maximum number of Reflect-Refine turns of a trace."""
    seeds: PositiveInt = 1
    """Samples per prompt."""
    limit: PositiveInt | None = None
    """Number of prompts to use, evenly spaced."""
    shift: PositiveFloat | None = None
    """Time shift of the flow, where 1 is off; None is the model's own."""
    judge: Literal["world", "templates"] = "world"
    """What reads the images: world (a trained detector) or templates (template matching, slow)."""
    as_json: JsonFlag = False
    """Print JSON on stdout, and progress on stderr."""


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """Score recorded verdicts: GenEval detections or results, TIIF replies, GenEval++ verdicts."""

    benchmark: Positional[Literal["geneval", "tiif", "genevalpp"]]
    """Benchmark whose scoring rules apply."""
    files: Annotated[Positional[tuple[Path, ...]], arg(metavar="FILE...")] = ()
    """JSON lines, one image each, optionally gzipped; several files are scored together and one by one."""
    missing: Literal["exclude", "fail"] = "exclude"
    """Images without a verdict: exclude and list them, or refuse to score; they never count as wrong."""
    duplicates: Literal["last", "first", "fail"] = "last"
    """Of several verdicts on one image of a file: the last (a resumed run's newest), the first, or refuse to score."""
    incomplete: Literal["tell", "fail"] = "tell"
    """A set that lacks prompts, tags or images of the benchmark: say so beside the score, or refuse to score."""
    as_json: JsonFlag = False
    """Print JSON on stdout."""


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Merge the folder of a run into its table and page, or compare runs prompt by prompt."""

    folders: Annotated[Positional[tuple[Path, ...]], arg(metavar="DIR...")] = ()
    """One folder of `triptych eval`, or several: the others are compared with the first."""
    check: Annotated[Path | None, arg(metavar="MANIFEST")] = None
    """List the differences from another run's manifest.json; exit code 1 if they rule out a comparison."""
    turn: int | None = None
    """Compare the images after at most this many edits; None is the last turn that all runs have."""
    anyway: Flag = False
    """Compare runs on the same prompts although another setting rules it out."""
    as_json: JsonFlag = False
    """Print JSON on stdout, and the table on stderr."""


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Plot training curves over samples, and fill the paper's table from evaluations."""

    runs: Annotated[Positional[tuple[str, ...]], arg(metavar="[NAME=]DIR...")] = ()
    """Folders of `triptych train` and `triptych eval`; the names sft, reason-only and r3 fill the paper's rows."""
    out: Annotated[Path, arg(metavar="DIR")] = Path("study")
    """New folder for curves.svg, curves.png, study.md and study.json."""
    as_json: JsonFlag = False
    """Print study.json on stdout."""


@dataclass(frozen=True, kw_only=True)
class InfoOptions:
    """Print a model's sizes, parameter counts and memory, without loading its weights."""

    model: str = "sketch"
    """Name of packaged weights, a checkpoint folder, or a Hugging Face name."""
    as_json: JsonFlag = False
    """Print JSON."""


@dataclass(frozen=True, kw_only=True)
class BenchOptions(ModelChoice):
    """Time a draw by beat, early stopping, packed guidance and training steps, compared within one process."""

    draws: PositiveInt = 7
    """Single draws of which the median is taken."""
    batch: PositiveInt = 64
    """Traces per batch in the comparison of early stopping with all turns."""
    train_steps: NonNegativeInt = 2  # one step of each stage
    """Training steps to time, Reason and Refine in turn, at learning rate 0; 0 skips them."""
    as_json: JsonFlag = False
    """Print JSON."""


@dataclass(frozen=True, kw_only=True)
class SFTCommand:
    """Train a model from random weights by supervised fine-tuning; it can be interrupted and resumed exactly."""


@dataclass(frozen=True, kw_only=True)
class TrainCommand:
    """Train the loop by reinforcement learning (Tree-RL); it can be interrupted and resumed exactly."""

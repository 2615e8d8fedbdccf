"""Checks of what a user passes in, before any work is done: prompts, questions, devices, folders, shards.

Plain ranges stand beside the options (options.py, commands.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.apps.commands import EvalOptions
from triptych.apps.options import MAX_TRACES, ModelChoice, OpenModel, SamplingChoice
from triptych.apps.output import slug
from triptych.data.prompt_checks import check_text
from triptych.data.prompt_files import PromptEntry, read_entries, told_faults
from triptych.errors import ConfigError, PromptError
from triptych.eval.run_folder import WHOLE, Shard
from triptych.files import check_writable, unused_name
from triptych.loop import choose_sampling
from triptych.model.config import BagelConfig, Sampling
from triptych.trace import Prompt

if TYPE_CHECKING:
    from triptych.model.bagel import Bagel

SMALL_MODEL = 100_000_000  # parameters; SKETCH has 13 million, BAGEL-7B 14 billion


def prompts_of(text: str, file: Path | None) -> list[PromptEntry]:
    """The prompts of a run: the one that was typed (with no place), or those of a file (data/prompt_files.py)."""
    if file is None:
        return [PromptEntry("", Prompt(check_text(text)))]
    if text:
        raise ConfigError("both a prompt and --prompts were given; expected one of them")
    entries = read_entries(file)
    if len(entries) > MAX_TRACES:
        raise PromptError(f"{file} holds {len(entries):,} prompts; expected at most {MAX_TRACES:,}: split it")
    return each_or_all_faults(entries, lambda prompt: replace(prompt, text=check_text(prompt.text)), file)


def each_or_all_faults(
    entries: Sequence[PromptEntry], change: Callable[[Prompt], Prompt], file: Path | None
) -> list[PromptEntry]:
    """The entries with changed prompts. Raises one PromptError about every prompt that `change` refuses."""
    changed: list[PromptEntry] = []
    faults: list[tuple[str, str]] = []
    for entry in entries:
        try:
            changed.append(replace(entry, prompt=change(entry.prompt)))
        except PromptError as error:
            if file is None:
                raise
            faults.append((entry.where.removeprefix(f"{file}, "), str(error)))
    if faults and file is not None:
        raise PromptError(told_faults(file, faults, len(entries)))
    return changed


def sampling_of(config: BagelConfig, choice: SamplingChoice) -> Sampling:
    """The model's own sampling settings, with those that were chosen in their place."""
    return choose_sampling(config.sampling, choice.steps, choice.guidance, choice.temperature)


def load_model(choice: ModelChoice, open_model: OpenModel) -> Bagel:
    """The chosen model, in memory. Raises ConfigError for a device that is absent, ModelError for a bad checkpoint."""
    import torch

    dtype = None if choice.dtype == "auto" else getattr(torch, choice.dtype)  # None leaves the choice to the loader
    whole = torch.get_num_threads()
    torch.set_num_threads(choice.threads or 1)  # a file is read no faster by more, and threads that are up spin
    try:
        model = open_model(choice.model, device_of(choice.device), dtype, *filter(None, [choice.base]))
    finally:
        torch.set_num_threads(whole)
    set_threads(model, choice.threads)
    return model


def set_threads(model: Any, threads: int) -> None:
    """Let torch compute with so many CPU threads; 0 is `default_threads`, or no change for what is no network."""
    import torch

    if not threads and isinstance(model, torch.nn.Module):
        threads = default_threads(sum(weight.numel() for weight in model.parameters())) or 0
    if threads:
        torch.set_num_threads(threads)


def default_threads(parameters: int) -> int | None:
    """How many CPU threads a model of so many parameters is given, or None for torch's own number."""
    # Products of a small model are too short to share: a second thread gains a fifth on an idle machine, and on a busy
    # one its spinning made a draw fifteen times as slow (docs/speed.md).
    return 1 if parameters <= SMALL_MODEL else None


def device_of(name: str) -> str:
    """A device as torch names it; "auto" is the first GPU, or the CPU where there is none. ConfigError if absent."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()  # refuses "meta", too, which holds no numbers
    except (RuntimeError, AssertionError) as error:
        gpus = torch.cuda.device_count()
        raise ConfigError(f"--device {name}: no such device here; expected auto, cpu, or one of {gpus} GPUs") from error
    return name


def folder_of(choice: EvalOptions) -> tuple[Path, Shard]:
    """The folder of the run, and which shard of it to play.

    Raises ConfigError where a resumed or shared folder is not named, OutputError where a new one cannot be made.
    """
    folder = choice.out
    if folder is None:
        # A default name is always that of a new folder, so it would neither resume nor join anything.
        if choice.resume:
            raise ConfigError("--resume needs the folder of the run to go on with: name it with --out")
        if choice.shard is not None:
            raise ConfigError("--shard needs the folder that all shards of the run share: name it with --out")
        folder = unused_name(Path("runs") / f"{choice.benchmark}-{slug(choice.model)}")
    shard = shard_of(choice.shard)
    if not choice.resume and not (shard != WHOLE and folder.exists()):  # a shard joins the folder of the others
        check_writable(folder)
    return folder, shard


def shard_of(text: str | None) -> Shard:
    """(1, 2) of "1/2". Raises ConfigError for what names no part."""
    if text is None:
        return WHOLE
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise ConfigError(f"--shard {text}: expected I/N with I from 1 to N, such as 1/2")
    return int(index), int(count)

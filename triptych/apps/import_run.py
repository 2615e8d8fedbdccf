"""`triptych import`: pictures that another system drew, as a run that `eval --drawn` judges again and asks about.

The pictures are those that `triptych judge` reads (eval/submissions.py). Their prompts are matched with a benchmark's,
by sentence or by spec. Nothing is judged here: every verdict of the run is missing, and `triptych eval BENCHMARK
--drawn RUN` makes a run that has them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from triptych.apps.commands import ImportOptions
from triptych.apps.console import open_console, progress_bar, say
from triptych.apps.options import OpenModel
from triptych.errors import ConfigError, PictureError
from triptych.eval import suites
from triptych.eval.benchmark import Benchmark
from triptych.eval.results import Row
from triptych.eval.run_folder import EvalJob, JobResult, RunFolder, code_settings, pixels_sha256, play_jobs
from triptych.eval.run_folder import prompts_sha256 as fingerprint_of
from triptych.eval.submissions import Entry, Fault, folder_notes, list_notes, list_pictures
from triptych.eval.tiif import load_tiif
from triptych.model.images import read_image
from triptych.text import printable
from triptych.trace import Prompt

IMPORTED = "imported"  # the model of a manifest, where no name is given
MAX_FAULT_LINES = 20  # lines about gaps and unreadable pictures; all are in the result of --json


def run(options: ImportOptions, open_model: OpenModel) -> int:
    """Copy the pictures into a new run; returns the exit code, 1 where a prompt lacks pictures or some are unreadable.

    Raises ConfigError where no prompt is one of the benchmark, OutputError where the run exists without --resume.
    """
    entries = list_pictures(options.pictures)
    faults = [f"{fault.name}:{fault.line}: {fault.why}" for fault in entries if isinstance(fault, Fault)]
    pictures = [entry for entry in entries if isinstance(entry, Entry)]
    if not pictures:
        raise PictureError(f"{printable(options.pictures)}: no picture can be read, such as {faults[0]}")
    notes = folder_notes(options.pictures) if options.pictures.is_dir() else list_notes(entries)
    benchmark = source_benchmark(options, [entry.prompt for entry in pictures])
    by_prompt, strangers = matched(benchmark, pictures)
    faults += [f"{each.name}: its prompt is none of {benchmark.name}: {each.prompt.text[:60]!r}" for each in strangers]
    # Prompts with fewer pictures than others have jobs without one, since a run has as many seeds for every prompt.
    seeds = range(max(map(len, by_prompt.values())))
    manifest = {
        "benchmark": benchmark.name,
        "columns": list(benchmark.titles),
        "prompts": len(benchmark.prompts),
        "prompts_sha256": fingerprint_of(benchmark.prompts),
        "model": options.name or IMPORTED,
        "judge": "",  # nobody has judged them
        "turns": 0,  # one picture each
        "seeds": list(seeds),
        **code_settings(),
    }
    folder = RunFolder.open(options.run, manifest, options.resume)
    console, unread = open_console(options.as_json), []

    def work(jobs: Sequence[EvalJob]) -> Iterator[JobResult]:
        for index, seed in jobs:
            prompt, own = benchmark.prompts[index], by_prompt.get(index, [])
            image, lost = None, "no picture was given"
            if seed < len(own):
                try:
                    image, lost = read_image(own[seed].picture), ""
                except PictureError as error:
                    lost = str(error)
                    unread.append(f"{own[seed].name}: {lost}")
            pixels = () if image is None else (image,)
            # A row without a picture has no verdict that could ever be given; it is lost, and told as missing.
            hashes = tuple(map(pixels_sha256, pixels))
            column = benchmark.column(prompt)
            yield Row(index, prompt.text, column, seed, (None,), False, (), 0.0, hashes, lost=lost), pixels

    # What an earlier import has read stays; a row that was lost is tried again.
    done = {(row.prompt, row.seed) for row in folder.rows() if row.pictures}
    jobs, kept = [job for job in folder.jobs if job not in done], len(done)
    with progress_bar(console) as progress:
        bar = progress.add_task(benchmark.name, total=len(jobs), right="")
        for row in play_jobs(jobs, work, folder):
            kept += bool(row.pictures)
            progress.advance(bar)
    gaps = [f"{prompt.text[:60]!r}" for index, prompt in enumerate(benchmark.prompts) if index not in by_prompt]
    faults += unread
    faults += [f"no picture: {gap}" for gap in gaps]
    for line in [*notes, *faults[:MAX_FAULT_LINES]]:
        say(line, error=True)
    if len(faults) > MAX_FAULT_LINES:
        say(f"... and {len(faults) - MAX_FAULT_LINES} more", error=True)
    total = f"{len(by_prompt)} of {len(benchmark.prompts)} prompts"
    console.print(f"{kept} pictures of {total} in {options.run}")
    if options.as_json:
        record = {"folder": str(options.run), "benchmark": benchmark.name, "pictures": kept, "faults": faults}
        print(json.dumps({**record, "notes": notes}), flush=True)
    return 1 if faults else 0


def source_benchmark(options: ImportOptions, prompts: Sequence[Prompt]) -> Benchmark:
    """The benchmark that was named, or the first one that holds every prompt. Raises ConfigError where none does."""
    if options.prompts is not None:
        return load_tiif(options.prompts)
    known = {"geneval": suites.GENEVAL, "genevalpp": suites.GENEVAL_PLUS, "dev": suites.dev_set()}
    if options.benchmark != "auto":
        return known[options.benchmark]
    for benchmark in known.values():
        if all(places_of(benchmark, prompt) for prompt in prompts):
            return benchmark
    fitting = {name: sum(bool(places_of(benchmark, prompt)) for prompt in prompts) for name, benchmark in known.items()}
    raise ConfigError(
        f"no benchmark has all {len(prompts)} prompts: {', '.join(f'{name} has {n}' for name, n in fitting.items())}; "
        "expected --benchmark NAME, which leaves the others out, or `triptych judge` for a set of your own"
    )


def places_of(benchmark: Benchmark, prompt: Prompt) -> list[int]:
    """Where a benchmark has a prompt: where its sentence is the same, or else its spec."""
    table = _places(benchmark)
    return table.get(prompt.text.casefold()) or table.get(json.dumps(prompt.spec and prompt.spec.to_metadata()), [])


_tables: dict[int, tuple[Benchmark, dict[str, list[int]]]] = {}  # with the benchmark, so that its id stays its own


def _places(benchmark: Benchmark) -> dict[str, list[int]]:
    if id(benchmark) not in _tables:
        places: dict[str, list[int]] = defaultdict(list)
        for index, prompt in enumerate(benchmark.prompts):
            places[prompt.text.casefold()].append(index)
            if prompt.spec is not None:
                places[json.dumps(prompt.spec.to_metadata())].append(index)
        _tables[id(benchmark)] = benchmark, dict(places)
    return _tables[id(benchmark)][1]


def matched(benchmark: Benchmark, pictures: Sequence[Entry]) -> tuple[dict[int, list[Entry]], list[Entry]]:
    """The pictures of each prompt of a benchmark, in order, and those whose prompt it does not have."""
    by_prompt: dict[int, list[Entry]] = defaultdict(list)
    strangers: list[Entry] = []
    folders: dict[tuple[str, Path], int] = {}
    taken: dict[str, int] = defaultdict(int)
    for entry in pictures:
        places = places_of(benchmark, entry.prompt)
        if not places:
            strangers.append(entry)
            continue
        # GenEval has one sentence twice, in two folders: the second folder is the second of these prompts.
        key = entry.prompt.text, entry.picture.parent
        if key not in folders:
            folders[key] = places[min(taken[entry.prompt.text], len(places) - 1)]
            taken[entry.prompt.text] += 1
        by_prompt[folders[key]].append(entry)
    if not by_prompt:
        raise ConfigError(f"no prompt of these pictures is one of {benchmark.name}; expected another --benchmark")
    return dict(by_prompt), strangers

"""What `triptych draw` and `triptych edit` do: read, load, draw, tell, hang."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from triptych.apps import inputs, terminal
from triptych.apps.draw import Job, Judge, Manner, exhibits
from triptych.apps.wall import Wall
from triptych.errors import OutputError
from triptych.eval.fingerprints import fingerprint, versions
from triptych.loop import Policy
from triptych.rewards.world import WorldJudge
from triptych.trace import Prompt

if TYPE_CHECKING:
    from triptych.apps.cli import Draw, Edit

SMALL_MODEL = 500_000_000  # bytes of weights that are hashed for every draw's record; more would make the draw wait


def play(
    choice: Draw | Edit, placed: Sequence[tuple[str, Prompt]], count: int, plan: bool, load: Callable[[], Policy]
) -> tuple[dict[str, Any], int]:
    """Draw `count` traces of each prompt (of `inputs.prompts_of`); returns what `--json` prints, and the exit code.

    What can be refused is refused before the model is loaded.
    """
    inputs.check_at_least("turns", choice.turns, 0)
    inputs.check_at_least("batch", choice.batch, 1)
    inputs.check_at_least("best-of", choice.best_of, 1, inputs.MAX_PROMPTS)
    seeds = inputs.seeds_of(choice.seed, count * choice.best_of)
    prompts = [prompt for _, prompt in placed]
    title = prompts[0].text if len(prompts) == 1 else f"{len(prompts)} prompts"
    wall = Wall.open(choice.out, title, choice.seed, many=len(prompts) * count > 1)
    policy = load()
    manner = Manner(
        choice.turns,
        inputs.sampling_of(policy.config, choice.steps, choice.guidance, choice.temperature),
        plan,
        choice.batch,
        choice.best_of,
    )
    jobs: list[Job] = []
    for where, prompt in placed:
        with inputs.placed(where):
            told = inputs.understand(prompt, policy.config)
        jobs += [Job(prompt.text, told, seed) for seed in seeds]
    judge = WorldJudge() if policy.config.world == "stickers" else None
    console = terminal.open_console(choice.as_json)
    if len(prompts) == 1:
        terminal.show_prompt(console, jobs[0].asked, jobs[0].prompt)
    code = 0
    try:
        narrator = partial(terminal.Narrator, console)
        for exhibit in exhibits(policy, jobs, manner, judge, narrator, settings(choice, policy, manner, judge)):
            folder = wall.hang(exhibit)
            if wall.many:
                terminal.show_row(console, exhibit, folder)
            else:
                terminal.show_end(console, exhibit)
    except KeyboardInterrupt:
        console.print(f"\n  interrupted; {len(wall.hung)} of {len(prompts) * count} kept", style="yellow")
        code = 130
    except OutputError:  # a full disk, perhaps: what hangs stays, and its index is worth a try
        console.print(f"\n  {len(wall.hung)} of {len(prompts) * count} kept", style="yellow")
        with suppress(OutputError):
            wall.close()
        raise
    wall.close()
    if wall.hung:
        terminal.show_folder(console, wall.folder, wall.page)
    return wall.record(), code


def settings(choice: Draw | Edit, policy: Policy, manner: Manner, judge: Judge | None) -> dict[str, Any]:
    """What would have to be the same for the same traces, for trace.json and the page."""
    weights = sum(tensor.nbytes for tensor in policy.parameters()) if isinstance(policy, nn.Module) else 0
    return {
        "model": choice.model,
        "weights": fingerprint(policy) if weights < SMALL_MODEL else policy.config.name,
        "device": str(getattr(policy, "device", "cpu")),
        "dtype": str(getattr(policy, "dtype", "float32")).removeprefix("torch."),
        "judge": getattr(judge, "name", None),
        "turns": manner.turns,
        "plan": manner.plan,
        "steps": choice.steps,
        "guidance": choice.guidance,
        "temperature": choice.temperature,
        "batch": manner.batch,
        "sampling": asdict(manner.sampling),
        "versions": versions(),
    }

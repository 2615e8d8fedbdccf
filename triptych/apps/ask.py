"""`triptych ask`: one question about one image."""

from __future__ import annotations

import json

from triptych.apps.arguments import load_model
from triptych.apps.commands import AskOptions
from triptych.apps.console import say
from triptych.apps.options import OpenModel
from triptych.apps.terminal import read_picture
from triptych.data.prompt_checks import check_text
from triptych.model.templates import CLOSE, parse_answer, parse_thought
from triptych.rewards.sticker_judge import check_sticker_input


def run(options: AskOptions, open_model: OpenModel) -> int:
    """Print the answer, after its thought where the model wrote one; returns the exit code."""
    question, image = check_text(options.question, "question"), read_picture(options.image)
    model = load_model(options, open_model)
    if model.config.world == "stickers" and not options.force:
        check_sticker_input(image)
    (completion,) = model.answer([image], [question], model.config.sampling, [options.seed])
    answer, thought = parse_answer(completion.text), None
    if CLOSE in completion.text:
        thought = parse_thought(completion.text)
    if options.as_json:
        print(json.dumps({"question": question, "answer": answer, "thought": thought}), flush=True)
    else:
        say(answer if thought is None else f"({thought})\n{answer}")
    return 0

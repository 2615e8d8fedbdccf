"""Draw one prompt and watch the loop: each turn says something, then draws something, until the model is content."""

from pathlib import Path

from triptych import Prompt, Trace, load, parse_prompt, play

TEXT = "A photo of three clocks on the left and one cats on the right"


def main(policy, folder: Path) -> Trace:
    prompt = Prompt(TEXT, parse_prompt(TEXT))  # with the spec, a judge can check the picture later
    trace = Trace(prompt)
    for (trace,) in play(policy, [prompt], seeds=[0], turns=4):
        said = trace.turns[-1].said
        print(f"turn {len(trace.turns) - 1}: {said.text if said else ''}")
    print("stopped by the model" if trace.finished else "out of turns")
    trace.save(folder)  # trace.json, turn-0.png, turn-1.png, ..., final.png
    return trace


if __name__ == "__main__":
    main(load("sketch"), Path("traces/example-1"))

"""Start from a picture that is wrong: a prompt that brings a picture begins with Reflect instead of Reason."""

from pathlib import Path

from triptych import Item, Prompt, Scene, Spec, Trace, load, play, render

TEXT = "A photo of three clocks and two cats"
WANTED = Spec("multi_object_count_attr", (Item("clock", 3), Item("cat", 2)))
DRAWN = Spec("multi_object_count_attr", (Item("clock", 3), Item("cat", 1)))  # one cat is missing


def main(policy, folder: Path) -> Trace:
    picture = render([Scene.sample(DRAWN, seed=0)])[0].numpy()
    prompt = Prompt(TEXT, WANTED, image=picture)
    *_, (trace,) = play(policy, [prompt], seeds=[0], turns=3)
    for turn in trace.turns:
        print(turn.instruction or "stop")
    trace.save(folder)  # with input.png
    return trace


if __name__ == "__main__":
    main(load("sketch"), Path("traces/example-3"))

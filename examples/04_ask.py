"""Ask the same model about a picture: what it draws with is also what it sees with."""

from pathlib import Path

from triptych import Item, Scene, Spec, load, parse_answer, render

SCENE = Spec("two_object", (Item("clock", 2, color="red"), Item("cat", 1, color="black")))
QUESTIONS = ["how many clocks are there?", "is there a cat?", "what color is the cat?"]


def main(policy, folder: Path) -> list[str]:
    picture = render([Scene.sample(SCENE, seed=0)])[0].numpy()
    answers = policy.answer([picture] * len(QUESTIONS), QUESTIONS, policy.config.sampling, seeds=[0, 1, 2])
    words = [parse_answer(answer.text) for answer in answers]
    for question, word in zip(QUESTIONS, words, strict=True):
        print(question, word)
    return words


if __name__ == "__main__":
    main(load("sketch"), Path())

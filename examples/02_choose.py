"""Draw a prompt eight times in one batch, and let the judge of the sticker world choose."""

from pathlib import Path

from triptych import Prompt, Trace, WorldJudge, load, parse_prompt, play

TEXT = "A photo of two red apples and four blue cups"


def main(policy, folder: Path) -> Trace:
    prompt = Prompt(TEXT, parse_prompt(TEXT))
    *_, traces = play(policy, [prompt] * 8, seeds=range(8))
    verdicts = WorldJudge()(traces)
    for trace, verdict in zip(traces, verdicts, strict=True):
        print(f"seed {trace.seed}: {verdict.score:.2f} {'; '.join(verdict.failed)}")
    best = max(range(8), key=lambda index: verdicts[index].score)
    traces[best].save(folder)
    return traces[best]


if __name__ == "__main__":
    main(load("sketch"), Path("traces/example-2"))

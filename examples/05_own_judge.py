"""A benchmark of your own: prompts, a judge that is any callable with a name, and the table."""

from collections.abc import Sequence
from pathlib import Path

from rich import print

from triptych import Benchmark, Prompt, Trace, Verdict, load
from triptych.eval.benchmark import run_benchmark
from triptych.eval.results import Report, report_table

TEXTS = ["A photo of a red bus", "A photo of a red clock", "A photo of a red cat"]


class Redness:
    """Right if something red covers a fiftieth of the picture."""

    name = "redness-1"

    def __call__(self, traces: Sequence[Trace]) -> list[Verdict]:
        return [self.look(trace) for trace in traces]

    def look(self, trace: Trace) -> Verdict:
        red, green, blue = trace.image.astype(int).transpose(2, 0, 1)
        share = ((red > 150) & (green < 90) & (blue < 90)).mean()
        fact = (f"{share:.0%} is red",)
        return Verdict(1.0, passed=fact) if share > 0.02 else Verdict(0.0, failed=fact)


def main(policy, folder: Path) -> Report:
    benchmark = Benchmark("Red things", tuple(Prompt(text) for text in TEXTS), columns={"all": "Red"})
    rows = list(run_benchmark(benchmark, policy, Redness(), turns=2, seeds=range(2), out=folder))
    report = benchmark.report(rows, turns=2)
    print(report_table(report))
    return report


if __name__ == "__main__":
    main(load("sketch"), Path("runs/example-5"))

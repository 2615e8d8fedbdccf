"""What the answers to a quiz show: the share of right ones by column, beside what can be had without eyes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from triptych.eval.quiz import Quiz, read_reply, reply_of
from triptych.eval.report import OVERALL, Estimate, Report, Row, summarize


@dataclass(frozen=True)
class Standing:
    """A column: the share of right answers, beside what can be had without eyes.

    `coin` is what one expects of choosing among the options by chance, `constant` what the best single answer gets when
    it is given to every question (in "which is larger": always the first, or always the second).
    """

    accuracy: Estimate
    coin: float | None
    constant: float | None
    asked: int
    unreadable: int


def standings(quiz: Quiz, rows: Iterable[Row]) -> dict[str, Standing]:
    """Each column of the quiz in order, then OVERALL: the mean of the columns that are not missing.

    Intervals are 95 % bootstraps over the prompts that were drawn: all questions about pictures of one prompt are drawn
    together.
    """
    rows = list(rows)
    accuracy = {column: estimates[0] for column, estimates in quiz_report(quiz, rows).accuracy.items()}
    lost = Counter(row.column for row in rows if _unreadable(quiz, row))
    asked = Counter(row.column for row in rows)
    found = {
        column: Standing(
            accuracy=accuracy[column],
            coin=_mean([1 / len(one.options) for one in quiz.of(column)]),
            constant=_commonest([one.options.index(one.answer) for one in quiz.of(column)]),
            asked=asked[column],
            unreadable=lost[column],
        )
        for column in quiz.columns
    }
    known = [each for each in found.values() if each.coin is not None and each.constant is not None]
    found[OVERALL] = Standing(
        accuracy=accuracy[OVERALL],
        coin=_mean([each.coin for each in known if each.coin is not None]),
        constant=_mean([each.constant for each in known if each.constant is not None]),
        asked=sum(asked.values()),
        unreadable=sum(lost.values()),
    )
    return found


def quiz_report(quiz: Quiz, rows: Iterable[Row]) -> Report:
    """The report of a quiz's rows; their `group` is the prompt that was drawn."""
    rows = sorted(rows, key=lambda row: row.prompt)
    return summarize(quiz.name, rows, quiz.columns, turns=0, open_jobs=len(quiz.questions) - len(rows))


def _unreadable(quiz: Quiz, row: Row) -> bool:
    return read_reply(quiz.by, quiz.questions[row.prompt], reply_of(row)) is None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _commonest(values: Sequence[Hashable]) -> float | None:
    return Counter(values).most_common(1)[0][1] / len(values) if values else None


# --- shown ------------------------------------------------------------------------------------------------------------


def table(quiz: Quiz, found: Mapping[str, Standing]) -> Table:
    """Accuracy by column, beside what needs no eyes."""
    printed = Table(title=f"{quiz.name}: {found[OVERALL].asked} questions", caption="\n".join(caption(quiz, found)))
    printed.add_column("column")
    for title in ("right", "95 %", "coin", "one answer", "asked", "unread"):
        printed.add_column(title, justify="right", no_wrap=True)
    for column, each in found.items():
        if column == OVERALL:
            printed.add_section()
        low, high = each.accuracy.low, each.accuracy.high
        interval = "-" if low is None else f"{share(low)} to {share(high)}"
        blind = (share(each.coin), share(each.constant))
        printed.add_row(column, share(each.accuracy.value), interval, *blind, str(each.asked), str(each.unreadable))
    return printed


def caption(quiz: Quiz, found: Mapping[str, Standing]) -> list[str]:
    """Who drew, whose word is the truth, what is missing, and what is still to be asked."""
    parts = [f"drawn by {quiz.about['drawn'].get('model')}, judged by {quiz.about.get('judge')}"]
    missing = [column for column, each in found.items() if column != OVERALL and each.coin is None]
    if missing:
        why = "no picture fits, or every one does" if quiz.name.startswith("ITA") else "nothing can be asked"
        parts.append(f"missing, and not in Overall: {', '.join(missing)} ({why})")
    left = len(quiz.questions) - found[OVERALL].asked
    return parts + ([f"still to be asked: {left}"] if left else [])


def share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"

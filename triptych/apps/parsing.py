"""Command lines: tyro reads them by the fields of a record, and what it refuses is said in one line.

Tyro's own answers are boxes that search all commands at once; here an option is told from those of its own command.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from io import StringIO
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, Suppress, UseAppendAction, subcommand

from triptych.errors import ConfigError

MAX_NEAREST = 3  # options that are named instead of a mistyped one: one line holds no more


class UsageError(ConfigError):
    """A command line, or a file of settings, that asks for what there is not."""


@dataclass(frozen=True)
class Option:
    """One option of a record: its name without dashes, such as "tree.kind", and the type of its value."""

    name: str
    hint: Any
    aliases: tuple[str, ...] = ()
    appended: bool = False  # given once for each value
    one_way: bool = False  # a switch that has no `--no-` form

    @property
    def is_switch(self) -> bool:
        return self.hint is bool

    @property
    def spellings(self) -> tuple[str, ...]:
        """As it can be typed."""
        group, dot, last = self.name.rpartition(".")
        off = (f"--{group}{dot}no-{last}",) if self.is_switch and not self.one_way else ()
        return (f"--{self.name}", *off, *self.aliases)


def options_of(kind: type, record: Any = None, group: str = "") -> Iterator[tuple[Option, Any]]:
    """Every option of a record's class as tyro names it, in order, with its value in `record` (None without one).

    What is positional or suppressed is none.
    """
    hints = get_type_hints(kind, include_extras=True)
    for each in fields(kind):
        hint, marks = hints[each.name], []
        while get_origin(hint) is Annotated:
            hint, *more = get_args(hint)
            marks += more
        if {_mark(Positional), _mark(Suppress)} & {mark for mark in marks if mark.__hash__}:
            continue
        named = [mark for mark in marks if hasattr(mark, "aliases")]  # what `arg` gives
        name = next((mark.name for mark in named if mark.name is not None), each.name.replace("_", "-"))
        value = getattr(record, each.name, None)
        # By the value first: a recipe's class has more fields than the base class in the hint.
        inner = type(value) if is_dataclass(value) else hint
        if isinstance(inner, type) and is_dataclass(inner):
            yield from options_of(inner, value, f"{group}{name}." if name else group)
            continue
        aliases = tuple(alias for mark in named for alias in mark.aliases or ())
        appended, one_way = _mark(UseAppendAction) in marks, _mark(FlagCreatePairsOff) in marks
        yield Option(f"{group}{name}", hint, aliases, appended, one_way), value


def _mark(marker: Any) -> Any:
    """What `Annotated` holds where a field is `marker[...]`."""
    return get_args(marker[int])[1]


def parse_options(kind: type, arguments: Sequence[str], program: str, default: Any = None) -> Any:
    """The record that a command line gives. Raises UsageError, or SystemExit after --help."""
    refusal = StringIO()
    given = {} if default is None else {"default": default}
    try:
        with redirect_stderr(refusal):
            options, unknown = tyro.cli(kind, args=list(arguments), prog=program, return_unknown_args=True, **given)
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        raise UsageError(f"{_sentence(refusal.getvalue())} (all: {program} --help)") from None
    if unknown:
        raise UsageError(_unknown(unknown, [option for option, _ in options_of(kind, default)], program))
    return options


def parse_recipe(
    kind: type, arguments: Sequence[str], command: str, about: str, recipes: Mapping[str, tuple[Any, str]]
) -> Any:
    """A recipe by its name, then options that override its fields. `recipes` holds records and their descriptions."""
    program = f"triptych {command}"
    if not arguments or arguments[0] in ("-h", "--help"):
        choices = [
            Annotated[kind, subcommand(name, default=record, description=text)]
            for name, (record, text) in recipes.items()
        ]
        if arguments:
            union = Union[tuple(choices)]  # noqa: UP007  (built from a table)
            tyro.cli(union, args=["--help"], prog=program, description=about)  # pyright: ignore
        raise UsageError(f"no recipe; expected {program} and one of {', '.join(recipes)}")
    name, rest = first_word(arguments, recipes, "recipe", program)
    return parse_options(kind, rest, f"{program} {name}", recipes[name][0])


def first_word(
    arguments: Sequence[str], known: Mapping[str, Any], what: str, program: str
) -> tuple[str, Sequence[str]]:
    """The command or recipe that a line begins with, and the rest of the line. Raises UsageError for another word."""
    name, *rest = arguments
    if name in known:
        return name, rest
    if name.startswith("-"):
        # The value of an option may be the name of a command, hence the last: "--out draw draw PROMPT" is rare.
        where = next((index for index, word in enumerate(arguments) if word in known), None)
        remedy = f"{what.upper()}, one of {', '.join(known)}"
        if where is not None:
            remedy = " ".join([arguments[where], *arguments[:where], *arguments[where + 1 :]])
        raise UsageError(f"{name}: options stand behind the {what}; expected {program} {remedy}")
    near = get_close_matches(name.lower(), known, 1, cutoff=0.7)
    raise UsageError(
        f"{name}: no such {what}; {f'did you mean {near[0]}?' if near else 'expected one of ' + ', '.join(known)}"
    )


def nearest(name: str, known: Sequence[str]) -> list[str]:
    """The options that a mistyped one may stand for, nearest first; none where nothing is near.

    Dashes and capitals do not count: `-N` is near `-n`, `-seed` and `--SEED` are near `--seed`.
    """
    by_name = {option.strip("-"): option for option in known}
    wanted = name.strip("-").replace("_", "-").lower()
    if close := get_close_matches(wanted, by_name, 1):
        return [by_name[close[0]]]
    # A field without its groups, such as `--kl-coef`, may be that of any of them.
    close = get_close_matches(wanted, {text.rpartition(".")[2] for text in by_name}, 1)
    return [option for text, option in by_name.items() if close and text.rpartition(".")[2] == close[0]][:MAX_NEAREST]


def _unknown(words: Sequence[str], options: Sequence[Option], program: str) -> str:
    """A sentence about words that no option has taken."""
    typed = [word.partition("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word)]
    if not typed:  # values are told only where no option is, since those of a mistyped option are among them
        return f"unexpected {' '.join(words)!r}: a text of several words stands in quotes (all: {program} --help)"
    spellings = [spelling for option in options for spelling in option.spellings]
    parts = []
    for name in typed:
        near = nearest(name, spellings)
        parts.append(f"{name}: no option of {program}" + (f", did you mean {' or '.join(near)}?" if near else ""))
    return f"{'; '.join(parts)} (all: {program} --help)"


def _sentence(box: str) -> str:
    """What tyro says in a box, in one line, with the nearest choice where one was mistyped."""
    # The first line is a title; rules divide the rest. Where stdout is no UTF-8, the box is of plain dashes.
    paragraphs = [""]
    for line in box.splitlines()[1:]:
        words = line.strip("│ ")
        if set(words) <= {*"─-╭╮╰╯"}:
            paragraphs.append("")
        else:
            paragraphs[-1] += f" {words}"
    text = next(filter(None, map(str.strip, paragraphs)), " ".join(box.split()))
    if match := re.fullmatch(r"invalid choice '(.*)' for argument '(.*)'\. Expected one of \((.*)\)\.?", text):
        value, option, listed = match.groups()
        choices = re.findall(r"'([^']*)'", listed)
        near = get_close_matches(value.lower(), choices, 1)
        return f"{option} {value}: expected one of {', '.join(choices)}" + (
            f"; did you mean {near[0]}?" if near else ""
        )
    if match := re.fullmatch(r"Error parsing (\S+): .*(int\(\)|to float).*: ('.*')", text):
        option, kind, value = match.groups()
        return f"{option} {value.strip(chr(39))}: expected a {'whole ' if kind == 'int()' else ''}number"
    return text.replace(" (required)", "").rstrip(".")

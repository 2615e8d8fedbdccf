"""Recipes as files: `--print-config` writes the resolved options of `train` or `sft` as YAML, `--config` reads them.

    recipe: sketch
    steps: 200
    tree:
      selection: uniform

Keys are the names of options, and a key that is left out is the recipe's. Values are read by the command line's own
parser, so that `lr: 1e-4` is a number (to YAML 1.1 it is a text) and `judge_thinking: off` is no false.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import yaml

from triptych.apps.parsing import Option, UsageError, first_word, nearest, options_of, parse_options, parse_recipe
from triptych.errors import ConfigError

# Where a run is written and whether it goes on belongs to one run, not to its recipe.
OF_ONE_RUN = ("out", "resume", "config", "print-config")


class _Texts(yaml.SafeLoader):
    """Leaves every value but null a text, and refuses keys that stand twice."""

    yaml_implicit_resolvers = {  # noqa: RUF012  (as the base class has it)
        first: [(tag, pattern) for tag, pattern in rules if tag.endswith(":null")]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(problem=f"{twice[0]} stands twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def recipe_yaml(name: str, options: Any) -> str:
    """Every option but those of one run, as YAML that `parse` reads back to the same values."""
    record: dict[str, Any] = {"recipe": name}
    for option, value in options_of(type(options), options):
        if option.name in OF_ONE_RUN:
            continue
        *groups, last = option.name.replace("-", "_").split(".")
        group = record
        for each in groups:
            group = group.setdefault(each, {})
        group[last] = _plain(value)
    return yaml.safe_dump(record, sort_keys=False, allow_unicode=True, width=1_000)


def parse(
    kind: type, arguments: Sequence[str], command: str, about: str, recipes: Mapping[str, tuple[Any, str]]
) -> Any:
    """A recipe by its name, or by a file that `--config` names; options of the command line override both.

    Raises UsageError for what is no option, ConfigError where the file cannot be read.
    """
    file, rest = _without_config(arguments)
    if file is None or {"-h", "--help"} & {*rest}:
        return parse_recipe(kind, rest, command, about, recipes)
    settings = read_settings(file)
    program, name = f"triptych {command}", settings.pop("recipe", None)
    if rest and (name is None or not rest[0].startswith("-")):
        typed, rest = first_word(rest, recipes, "recipe", program)
        if name not in (None, typed):
            raise UsageError(f"{file} is of the recipe {name}, the command line names {typed}: leave one of them out")
        name = typed
    if name is None:
        raise UsageError(
            f"{file} names no recipe; expected `recipe: NAME` in it, with NAME one of {', '.join(recipes)}"
        )
    try:
        name, _ = first_word([str(name)], recipes, "recipe", program)
        default = recipes[name][0]
        words = [*_words(settings, [option for option, _ in options_of(kind, default)])]
        default = parse_options(kind, words, program, default)
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from None
    return parse_options(kind, rest, f"{program} {name}", default)


def read_settings(path: Path) -> dict[str, Any]:
    """A file of settings: texts, lists and groups. Raises ConfigError for what is none."""
    try:
        settings = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_Texts)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; expected a file as of --print-config") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is no YAML ({error}); expected a file as of --print-config") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} holds no settings; expected `recipe: NAME` and options, as of --print-config")
    return settings


def _without_config(arguments: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The file of `--config`, and the other words."""
    file, rest, words = None, [], iter(arguments)
    for word in words:
        option, equals, value = word.partition("=")
        if option != "--config":
            rest.append(word)
            continue
        if not equals and not (value := next(words, "")):
            raise UsageError("--config: expected a file behind it")
        if file is not None:
            raise UsageError("--config is given twice; expected one file")
        file = Path(value)
    return file, rest


def _words(settings: Mapping[Any, Any], options: Sequence[Option]) -> Iterator[str]:
    """The settings as words of a command line. Raises UsageError for a key that is no option."""
    known = {option.name: option for option in options if option.name not in ("config", "print-config")}
    for name, value in _flat(settings):
        option = known.get(name)
        if option is None:
            near = [each.replace("-", "_") for each in nearest(name, [*known])]
            raise UsageError(f"{name}: no such setting" + (f", did you mean {' or '.join(near)}?" if near else ""))
        if option.is_switch:
            yield from _switch(option, value)
        elif isinstance(value, list):
            if wrong := [each for each in value if not isinstance(each, str)]:
                raise UsageError(f"{name}: a list holds {wrong[0]!r}; expected plain values")
            if option.appended:
                yield from (f"--{name}={each}" for each in value)
            else:
                yield from (f"--{name}", *value)
        elif not option.appended or value is not None:
            yield f"--{name}={value}"  # None is tyro's word for null, too


def _switch(option: Option, value: Any) -> Iterator[str]:
    if str(value).lower() not in ("true", "false"):
        raise UsageError(f"{option.name} {value}: expected true or false")
    on, off = option.spellings[0], option.spellings[1:2]
    yield from [on] if str(value).lower() == "true" else off  # without an off form it is off


def _flat(settings: Mapping[Any, Any], group: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        name = f"{group}{key}".replace("_", "-")
        if isinstance(value, dict):
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def _plain(value: Any) -> Any:
    """A value as YAML has it."""
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, PurePath) else value

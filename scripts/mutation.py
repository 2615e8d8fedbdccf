"""Mutation testing: small faults are put into the code one by one, and each should fail a test of its module.

    OMP_NUM_THREADS=1 nice -n 10 python scripts/mutation.py /tmp/mutation
    OMP_NUM_THREADS=1 nice -n 10 python scripts/mutation.py /tmp/mutation --modules model/flow rl/losses --samples 40

It works on a clone of the last commit in `/tmp/mutation/tree`, never on this tree. Results are lines of
`/tmp/mutation/mutants.jsonl`; mutants that are there already are not run again. A mutant survives if the tests of
`TESTS` pass with it. Survivors are for reading: some are equivalent, such as `<` for `<=` where equality cannot be.

Of the libraries, cosmic-ray starts Python for every mutant, and to import torch takes longer here than the tests do:
this script imports it once and forks. mutmut calls functions through trampolines, which have other signatures than
beartype and jaxtyping check in our tests, and leaves constants and defaults of dataclasses as they are.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
# Modules and the tests that should see their faults: their own, and quick ones that use them.
TESTS = {
    "model/flow": ["model/test_flow.py", "model/test_sampler.py"],
    "model/templates": ["model/test_templates.py"],
    "rl/losses": ["rl/test_losses.py"],
    "rl/advantages": ["rl/test_advantages.py"],
    "eval/statistics": ["eval/test_statistics.py", "eval/test_compare.py"],
    "data/scene": ["data/test_scene.py", "data/test_edits.py"],
    "data/layout": ["data/test_scene.py", "data/test_render.py", "sft/test_vae.py"],
    "data/render": ["data/test_render.py"],
    "data/edits": ["data/test_edits.py", "data/test_scene.py"],
    "data/specs": ["data/test_specs.py", "data/test_prompts.py", "data/test_scene.py"],
    "data/language": ["data/test_language.py", "data/test_lexicon.py"],
    "data/lexicon": ["data/test_lexicon.py"],
    "data/sft_samples": ["data/test_sft_samples.py"],
    "data/annotations": ["data/test_annotations.py", "data/test_sft_samples.py"],
    "data/prompts": ["data/test_prompts.py"],
    "rewards/rewards": ["rewards/test_rewards.py"],
    "rewards/geneval_rules": ["rewards/test_geneval_rules.py"],
    "rewards/sticker_judge": ["rewards/test_sticker_judge.py"],
    "loop": ["test_loop.py"],
}
MARGIN = 3.0  # a mutant may take so many times as long as the tests without one, and never less than LEAST seconds
LEAST = 20.0
# What the children need not import again: all but the code under test.
PREIMPORTED = ("pytest", "torch", "scipy.stats", "beartype", "jaxtyping", "hypothesis", "tokenizers", "PIL.Image")
SWAPS: dict[type, type] = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult},
    **{ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.USub: ast.UAdd},
}
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "rsplit": "split", "rpartition": "partition"}
UNWRAPPED = {"lower", "strip", "casefold", "abs", "sorted", "reversed", "clamp", "detach"}


class Mutant(NamedTuple):
    """One replacement in a file: characters `start` to `end` become `text`."""

    start: int
    end: int
    text: str


def mutants(source: str) -> list[Mutant]:
    """All faults of a file that this script knows, in their order."""
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))

    def place(line: int, column: int) -> int:  # columns of `ast` are bytes of UTF-8
        return starts[line - 1] + len(lines[line - 1].encode()[:column].decode())

    found = []
    for node in _code(ast.parse(source)):
        span = place(node.lineno, node.col_offset), place(node.end_lineno, node.end_col_offset)
        found += [Mutant(*span, text) for text in _faults(node)]
    return sorted(set(found))


def _code(node: ast.AST) -> Iterator[ast.AST]:
    """The statements and expressions that decide what is computed: no annotations, docstrings, words of errors."""
    if isinstance(node, ast.expr | ast.stmt):
        yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "format_spec") or isinstance(node, ast.JoinedStr):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.keyword) and child.arg == "strict":
                continue  # of zip: a check that no right code ever fails
            docstring = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
            words = docstring or isinstance(child, ast.Raise | ast.Import | ast.ImportFrom)
            if isinstance(child, ast.AST) and not words and not _names_type(child):
                yield from _code(child)


def _names_type(node: ast.AST) -> bool:
    """Whether a node is a type in capitals with brackets, such as `Float[Tensor, "batch"]`, or a cast."""
    if isinstance(node, ast.If):  # `if TYPE_CHECKING:`
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    head = node.value if isinstance(node, ast.Subscript) else None
    return isinstance(head, ast.Name) and head.id[0].isupper() and not head.id.isupper()


def _faults(node: ast.AST) -> Iterator[str]:
    """What a node could be by mistake."""
    match node:
        case ast.Compare(left, ops, comparators):
            for index, op in enumerate(ops):
                if type(op) in SWAPS:
                    other = [*ops[:index], SWAPS[type(op)](), *ops[index + 1 :]]
                    yield _text(ast.Compare(left, other, comparators))
        case ast.BoolOp(op, values):
            yield _text(ast.BoolOp(SWAPS[type(op)](), values))
        case ast.BinOp(left, op, right) if type(op) in SWAPS:
            yield _text(ast.BinOp(left, SWAPS[type(op)](), right))
        case ast.AugAssign(target, op, value) if type(op) in SWAPS:
            yield ast.unparse(ast.AugAssign(target, SWAPS[type(op)](), value))
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield _text(operand)
        case ast.IfExp(test, body, orelse):
            yield _text(ast.IfExp(test, orelse, body))
        case ast.Constant(bool() as value):
            yield str(not value)
        case ast.Constant(int() as value):
            yield str(value + 1)
        case ast.Constant(float() as value):
            yield str(value * 2 or 1.0)
        case ast.Constant(str() as value) if value:
            yield repr(value + "~")
        case ast.Name(name) if name in NAMES:
            yield NAMES[name]
        case ast.Call(ast.Attribute(value, name), arguments, keywords) if name in UNWRAPPED | NAMES.keys():
            changed = ast.Call(ast.Attribute(value, NAMES.get(name, name)), arguments, keywords)
            yield _text(changed if name in NAMES else value)
        case ast.Call(ast.Name(name), [first, *_], _) if name in UNWRAPPED:
            yield _text(first)
        case ast.Continue():
            yield "break"
        case ast.Break():
            yield "continue"
        case ast.Expr(ast.Call()):
            yield "pass"
        case ast.Return(ast.expr() as value) if not (isinstance(value, ast.Constant) and value.value is None):
            yield "return None"


def _text(node: ast.expr) -> str:
    return f"({ast.unparse(node)})"


def _mutated(source: str, mutant: Mutant) -> str:
    return source[: mutant.start] + mutant.text + source[mutant.end :]


def _compiles(source: str) -> bool:
    with suppress(SyntaxError):
        compile(source, "mutant", "exec")
        return True
    return False


def passes(tree: Path, tests: list[str], limit: float) -> tuple[str, float]:
    """`survived` if the tests pass, else `killed` or `timeout`; and the seconds that it took."""
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        os.chdir(tree)
        import pytest

        options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--no-header"]
        code = 1
        with suppress(BaseException):
            code = int(pytest.main([*options, *(str(tree / "tests" / test) for test in tests)]))
        os._exit(code)
    while time.monotonic() - start < limit:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "killed" if status else "survived", time.monotonic() - start
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timeout", limit


def main() -> None:
    """Run a sample of the mutants of each module, and print how many are killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--modules", nargs="+", default=list(TESTS), choices=list(TESTS))
    parser.add_argument("--samples", type=int, default=40, help="mutants of each module")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    tree, log = arguments.folder.resolve() / "tree", arguments.folder.resolve() / "mutants.jsonl"
    if not tree.exists():
        subprocess.run(["git", "clone", "--quiet", "--shared", ROOT, tree], check=True)
    # No bytecode: a file that changes twice in a second would be taken from its cache.
    sys.dont_write_bytecode = True
    os.environ |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    sys.path[:] = [str(tree), *(path for path in sys.path if Path(path).resolve() not in (ROOT, ROOT / "scripts"))]
    for name in PREIMPORTED:
        importlib.import_module(name)

    seen = {}
    if log.exists():
        for record in map(json.loads, log.read_text(encoding="utf-8").splitlines()):
            seen[record["module"], record["line"], record["before"], record["after"]] = record["result"]
    for module in arguments.modules:
        path, counts = tree / "triptych" / f"{module}.py", {"killed": 0, "timeout": 0, "survived": 0}
        source = subprocess.run(
            ["git", "show", f"HEAD:triptych/{module}.py"], cwd=tree, capture_output=True, text=True, check=True
        ).stdout
        path.write_text(source, encoding="utf-8")  # what a kill has left
        result, seconds = passes(tree, TESTS[module], 600.0)
        if result != "survived":
            print(f"{module}: its tests fail without a mutant", flush=True)
            continue
        every = [mutant for mutant in mutants(source) if _compiles(_mutated(source, mutant))]
        # The head of one order, so that a larger sample goes on from a smaller one.
        chosen = random.Random(f"{arguments.seed} {module}").sample(every, len(every))[: arguments.samples]
        for mutant in sorted(chosen):
            line, before = source.count("\n", 0, mutant.start) + 1, source[mutant.start : mutant.end]
            key = (module, line, before, mutant.text)
            if key not in seen:
                path.write_text(_mutated(source, mutant), encoding="utf-8")
                try:
                    seen[key], _ = passes(tree, TESTS[module], max(LEAST, MARGIN * seconds))
                finally:
                    path.write_text(source, encoding="utf-8")
                record = dict(zip(("module", "line", "before", "after"), key, strict=True)) | {"result": seen[key]}
                with log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
            counts[seen[key]] += 1
            if seen[key] == "survived":
                print(f"{module}:{line}: {before} -> {mutant.text}", flush=True)
        dead = counts["killed"] + counts["timeout"]
        print(f"{module}: {dead} of {len(chosen)} killed, of {len(every)} mutants; {seconds:.1f} s a run", flush=True)


if __name__ == "__main__":
    main()

"""Make triptych/data/geneval.json and genevalpp.json from the benchmarks' own files.

    python scripts/benchmark_facts.py FOLDER    with geneval.jsonl and genevalpp.jsonl (metadata and sentence a line)

Only the specs are kept, one a line. A sentence that `language.prompt_text` does not give to the letter is an error.
"""

import json
import sys
from pathlib import Path
from typing import get_args

from triptych.data.language import Wording, prompt_text
from triptych.trace import Spec

DATA = Path(__file__).parents[1] / "triptych" / "data"


def specs_json(path: Path, name: Wording) -> str:
    """The specs of a benchmark as JSON, after each one has given its sentence."""
    lines = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        record = json.loads(line)
        spec = Spec.from_metadata(record)
        if prompt_text(spec, name) != record["prompt"]:
            sys.exit(f"{path}, line {number}: the rules say {prompt_text(spec, name)!r}, the file {record['prompt']!r}")
        lines.append(json.dumps(spec.to_metadata()))
    return "[\n" + ",\n".join(lines) + "\n]\n"


if __name__ == "__main__":
    for name in get_args(Wording):
        (DATA / f"{name}.json").write_text(specs_json(Path(sys.argv[1]) / f"{name}.jsonl", name))

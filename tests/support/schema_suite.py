"""JSON-Schema-Test-Suite against the masks: `python -m tests.support.schema_suite DIRECTORY [--verbose]`.

DIRECTORY is a copy of https://github.com/json-schema-org/JSON-Schema-Test-Suite. Each schema in the required
parts of draft 2020-12 is refused at once, or takes no invalid instance. Valid ones that are not taken are
counted apart: a mask may be narrower, since keys have one order and numbers one spelling.
"""

import collections
import json
import sys
from pathlib import Path
from typing import Any

from jllama.errors import JllamaError
from tests.support.schema_matching import matcher_of, takes_value

DRAFT = "tests/draft2020-12"


def main(directory: str, verbose: bool) -> int:
    """Prints the counts and invalid instances that are taken; returns how many these are."""
    counts: collections.Counter[str] = collections.Counter()
    for path in sorted((Path(directory) / DRAFT).glob("*.json")):
        for group in json.loads(path.read_text(encoding="utf-8")):
            counts.update(judged(path.stem, group, verbose))
    for name, count in counts.most_common():
        print(f"{count:5} {name}")
    return counts["invalid instances taken"]


def judged(file: str, group: dict[str, Any], verbose: bool) -> list[str]:
    """What became of one schema and its instances."""
    where = f"{file}: {group['description']}"
    try:
        matcher = matcher_of(group["schema"])
    except JllamaError as error:
        if verbose:
            print(f"refused {where}: {str(error)[:150]}")
        return ["schemas refused"]
    found = ["schemas taken"]
    for test in group["tests"]:
        taken = takes_value(matcher, test["data"])
        if taken != test["valid"]:
            kind = "INVALID TAKEN" if taken else "valid not taken"
            if taken or verbose:
                print(f"{kind} {where}: {test['description']}: {json.dumps(test['data'])[:90]}")
        kind = "valid" if test["valid"] else "invalid"
        found.append(f"{kind} instances {'taken' if taken else 'not taken'}")
    return found


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1], "--verbose" in sys.argv) else 0)

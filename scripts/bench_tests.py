"""The names of `bench.py`'s tests. Knows no jax: a wrong name is refused before a model is loaded."""

import dataclasses
import re

from jllama.errors import JllamaError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Test:
    """`pp512`: a prompt of 512 tokens. `tg128@d1024`: 128 tokens generated behind 1024 others."""

    kind: str  # "pp" or "tg"
    count: int
    depth: int
    batch: int

    @property
    def name(self) -> str:
        depth = f" @ d{self.depth}" if self.depth else ""
        return f"{self.kind}{self.count}{depth}"


def parse_tests(names: list[str], batches: list[int]) -> list[Test]:
    """The tests of `--tests`; batch sizes multiply the generation tests, prompts run alone.

    Raises:
      JllamaError: a name that is no test.
    """
    tests = []
    for name in names:
        match = re.fullmatch(r"(pp|tg)(\d{1,7})(?:@d(\d{1,7}))?", name)
        if not match or int(match[2]) < 2:
            raise JllamaError(f"--tests: {name[:40]!r} is no test; write pp512, tg128 or tg128@d1024")
        for batch in batches if match[1] == "tg" else [1]:
            tests.append(Test(kind=match[1], count=int(match[2]), depth=int(match[3] or 0), batch=batch))
    return tests

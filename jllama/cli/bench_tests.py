"""The names of `bench.py`'s tests. Knows no jax: a wrong name is refused before a model is loaded."""

import dataclasses
import re

from jllama.errors import JllamaError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Test:
    """`pp512`: a prompt of 512 tokens. `tg128@d1024`: 128 tokens generated behind 1024 others. `en128@d512`:
    an engine answers `batch` prompts of 512 tokens, 128 tokens each, that come at once. `js128`: `tg128` of
    rows that must match a JSON schema.
    """

    kind: str  # "pp", "tg", "en" or "js"
    count: int
    depth: int
    batch: int
    sampling: dict[str, float] = dataclasses.field(default_factory=dict)  # what is not neutral; none: greedy

    @property
    def name(self) -> str:
        depth = f" @ d{self.depth}" if self.depth else ""
        return f"{self.kind}{self.count}{depth}"

    @property
    def choice(self) -> str:
        """How its tokens are chosen, for people."""
        if self.kind == "pp":
            return ""
        return ", ".join(f"{name} {value:g}" for name, value in self.sampling.items()) or "greedy"


def parse_tests(names: list[str], batches: list[int], sampling: dict[str, float]) -> list[Test]:
    """The tests of `--tests`; batch sizes multiply the generation tests, prompts run alone.

    With settings in `sampling` each generation test runs twice: greedily, then with them.

    Raises:
      JllamaError: a name that is no test.
    """
    tests = []
    for name in names:
        match = re.fullmatch(r"(pp|tg|en|js)(\d{1,7})(?:@d(\d{1,7}))?", name)
        if not match or int(match[2]) < 2:
            known = "pp512, tg128, tg128@d1024, en128@d512 or js128"
            raise JllamaError(f"--tests: {name[:40]!r} is no test; write {known}")
        generates = match[1] != "pp"
        for batch in batches if generates else [1]:
            for kind in ({}, sampling) if generates and sampling else ({},):
                count, depth = int(match[2]), int(match[3] or 0)
                tests.append(Test(kind=match[1], count=count, depth=depth, batch=batch, sampling=kind))
    return tests

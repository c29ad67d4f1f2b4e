"""transformers' side of `compare_cpu.py`: `python -m cpu_comparison.transformers_side FILE THREADS`.

Requests come on standard input. The weights of the GGUF file run in the type that they have there.
"""

import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from cpu_comparison.side import answer


class Peer:
    def __init__(self, path: Path, threads: int) -> None:
        logging.disable_progress_bar()
        torch.set_num_threads(threads)
        dtype = torch.float32 if path.stem.endswith("F32") else torch.bfloat16
        self.model: Any = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=dtype)
        self.model.eval()

    def run(self, tokens: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        """The likeliest next token of each row `[B, 1]`, and the cache."""
        out = self.model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits.argmax(-1), out.past_key_values

    def decode(self, rows: int, count: int) -> float:
        """Seconds a step, greedy."""
        token, cache = self.run(torch.ones((rows, 1), dtype=torch.long), None)
        start = time.perf_counter()
        for _ in range(count):
            token, cache = self.run(token, cache)
        return (time.perf_counter() - start) / count

    def prefill(self, count: int) -> float:
        """Seconds until the logits of the last token are there."""
        tokens = 7 * torch.arange(count)[None] % self.model.config.vocab_size
        start = time.perf_counter()
        self.run(tokens, None)
        return time.perf_counter() - start


def main() -> None:
    peer = Peer(Path(sys.argv[1]), int(sys.argv[2]))
    with torch.inference_mode():
        answer(peer.decode, peer.prefill)


if __name__ == "__main__":
    main()

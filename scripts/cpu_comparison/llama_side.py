"""llama.cpp's side of `compare_cpu.py`: `python -m cpu_comparison.llama_side FILE THREADS`.

Requests come on standard input.
"""

import ctypes
import sys
import time
from typing import Any

import llama_cpp as lc
import numpy as np

from cpu_comparison.side import answer


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def quiet(level, text, user):
    """llama.cpp's own messages are not for the reader of a table."""


class Peer:
    def __init__(self, path: str, threads: int) -> None:
        lc.llama_log_set(quiet, None)
        lc.llama_backend_init()
        self.model = lc.llama_model_load_from_file(path.encode(), lc.llama_model_default_params())
        self.threads = threads
        self.contexts: dict[int, Any] = {}
        self.vocab = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(self.model))

    def context(self, rows: int):
        if rows not in self.contexts:
            settings = lc.llama_context_default_params()
            settings.n_ctx, settings.n_batch, settings.n_ubatch, settings.n_seq_max = (
                1024 * rows,
                512,
                512,
                rows,
            )
            settings.n_threads = settings.n_threads_batch = self.threads
            self.contexts[rows] = lc.llama_init_from_model(self.model, settings)
        lc.llama_memory_clear(lc.llama_get_memory(self.contexts[rows]), True)
        return self.contexts[rows]

    def run(self, context, tokens, position: int, rows: int) -> None:
        """One call: `tokens` of one row, or one token of each row."""
        batch = lc.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.n_seq_id[i] = token, 1
            batch.pos[i] = position if rows > 1 else position + i
            batch.seq_id[i][0] = i if rows > 1 else 0
            batch.logits[i] = rows > 1 or i == len(tokens) - 1
        if lc.llama_decode(context, batch):
            raise SystemExit("llama_decode failed")
        lc.llama_batch_free(batch)

    def best(self, context, place: int) -> int:
        logits = lc.llama_get_logits_ith(context, place)
        return int(np.ctypeslib.as_array(logits, (self.vocab,)).argmax())

    def decode(self, rows: int, count: int) -> float:
        """Seconds a step, greedy."""
        context, tokens = self.context(rows), [1] * rows
        self.run(context, tokens, 0, rows)
        start = time.perf_counter()
        for position in range(1, count + 1):
            tokens = [self.best(context, i if rows > 1 else -1) for i in range(rows)]
            self.run(context, tokens, position, rows)
        lc.llama_synchronize(context)
        return (time.perf_counter() - start) / count

    def prefill(self, count: int) -> float:
        """Seconds until the logits of the last token are there."""
        context, tokens = self.context(1), [7 * i % self.vocab for i in range(count)]
        start = time.perf_counter()
        self.run(context, tokens, 0, 1)
        self.best(context, -1)
        return time.perf_counter() - start


def main() -> None:
    peer = Peer(sys.argv[1], int(sys.argv[2]))
    answer(peer.decode, peer.prefill)


if __name__ == "__main__":
    main()

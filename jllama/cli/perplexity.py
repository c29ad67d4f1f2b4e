"""Measures how well a model predicts a text, with weights of each kind."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

from absl import flags

from jllama.cli import command_line, flag_groups, ready_made, streams
from jllama.cli.command_line import FLAGS, say
from jllama.errors import JllamaError
from jllama.loading import QUANTIZE_MODES

flags.DEFINE_string("text", None, "A UTF-8 text file, read as it is; - for standard input.")
flags.DEFINE_list(
    "modes",
    ["none", "int8", "int4"],
    "Values of --quantize to compare, the first with the rest.",
)
flags.DEFINE_integer("window", 512, "Tokens of each independent piece of the text.", lower_bound=8)
flags.DEFINE_bool(
    "rounding",
    False,
    "Also run each mode's weights expanded to float32: what the kernels and --dtype round.",
)
flags.DEFINE_bool("json", False, "Print one JSON object.")
flag_groups.define_model_flags()

PLACES = ("model", "text")
HELP = {"What is measured": ("model", "text", "modes", "window", "rounding", "dtype", "device", "json")}


def main() -> None:
    """A row for each mode."""
    text = read_text()
    check_modes()
    rows: list[dict[str, Any]] = []
    reference = None
    for mode in FLAGS.modes:
        model = command_line.load_model(mode)
        ids = model.need_tokenizer().encode(text)
        if len(ids) < 16:
            name = "standard input" if FLAGS.text == "-" else FLAGS.text
            raise JllamaError(f"{name} has {len(ids)} tokens: too short to measure anything")
        window = min(FLAGS.window, model.config.context_length)
        losses, best = measure(model, ids, window)
        reference = best if reference is None else reference
        rows.append(row(mode, model, losses, agreement(best, reference)))
        rows[-1] |= rounding(model, ids, window) if FLAGS.rounding else {}
        say(f"{mode}: perplexity {rows[-1]['perplexity']:.3f}")
        del model
    report = {"text": FLAGS.text, "tokens": len(ids), "rows": [finite(r) for r in rows]}
    print(json.dumps(report) if FLAGS.json else table(rows))


def check_modes() -> None:
    """Before the first is measured, for minutes.

    Raises:
      JllamaError: none, one that does not exist, or one that would change what is quantised already.
    """
    unknown = [mode for mode in FLAGS.modes if mode not in QUANTIZE_MODES]
    if unknown or not FLAGS.modes:
        raise JllamaError(f"--modes={','.join(FLAGS.modes)}: choose among {', '.join(QUANTIZE_MODES)}")
    if FLAGS.model:
        ready_made.check(FLAGS.model)
    if FLAGS.model and set(FLAGS.modes) != {"auto"} and is_quantized(FLAGS.model):
        raise JllamaError(f"{FLAGS.model} is quantised already: give --modes=auto")


def is_quantized(model: str) -> bool:
    """Whether the model is a directory of `quantize.py`'s."""
    from jllama.hub.references import resolve

    files = resolve(model, sha256=FLAGS.model_sha256)
    from jllama.checkpoint.formats.saved import is_saved

    return is_saved(files)


def read_text() -> str:
    """The file of `--text`.

    Raises:
      JllamaError: none is given, or it can't be read as UTF-8.
    """
    if not FLAGS.text:
        raise JllamaError("no text: give --text=FILE")
    return streams.read_text(FLAGS.text)


def measure(model: Any, ids: list[int], window: int) -> tuple[list[float], list[int]]:
    """For each token but a piece's first: its negative log-probability, and the most probable token there."""
    losses: list[float] = []
    best: list[int] = []
    for piece, count in pieces(ids, window):
        token_losses, token_best = _piece(model, piece)
        losses += token_losses[: count - 1].tolist()
        best += token_best[: count - 1].tolist()
    return losses, best


def pieces(ids: list[int], window: int) -> Iterator[tuple[list[int], int]]:
    """Padded to one length, so that one program serves all; a last piece of one token predicts nothing."""
    for start in range(0, len(ids), window):
        piece = ids[start : start + window]
        if len(piece) > 1:
            yield piece + [0] * (window - len(piece)), len(piece)


def rounding(model: Any, ids: list[int], window: int) -> dict[str, float]:
    """What the run dtype and the kernels round, beside the same weights and all else in float32: the error of
    all logits as a part of them (2-norms), and how often the most probable token is the same.
    """
    exact = expanded(model)
    error = size = same = count = 0.0
    for piece, length in pieces(ids, window):
        ours, theirs = (_run(of, piece, _logits)[:length] for of in (model, exact))
        error += float(((ours - theirs) ** 2).sum(dtype="float64"))
        size += float((theirs**2).sum(dtype="float64"))
        same += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        count += length
    return {"logit_error": math.sqrt(error / size) if size else 0.0, "same_top1": same / count}


def expanded(model: Any) -> Any:
    """The model with its very weights in float32."""
    import jax

    from jllama.layers.qtensor import QTensor, dequantize

    def widened(leaf: Any) -> Any:
        return dequantize(leaf) if isinstance(leaf, QTensor) else leaf.astype("float32")

    params = jax.tree.map(widened, model.params, is_leaf=lambda leaf: isinstance(leaf, QTensor))
    return dataclasses.replace(model, params=params, dtype="float32")


def _piece(model: Any, piece: list[int]) -> tuple[Any, Any]:
    return _run(model, piece, _score)


def _run(model: Any, piece: list[int], work: Callable[..., Any]) -> Any:
    """What `work` makes of a piece, as NumPy arrays."""
    import jax
    import numpy as np

    from jllama.kernels.target import target_of
    from jllama.layers.cache import KVCache

    cache = KVCache.empty(model.config, batch=1, max_len=len(piece), dtype=model.dtype)
    run = jax.jit(work, static_argnums=(0, 1))
    made = run(model.config, target_of(model.params), model.params, np.asarray([piece], np.int32), cache)
    return jax.tree.map(np.asarray, made)


def _logits(config: Any, target: Any, params: Any, tokens: Any, cache: Any) -> Any:
    """`[T, V]`, by the kernels that the engine would run."""
    import jax.numpy as jnp

    from jllama import kernels

    n_valid = jnp.full((1,), tokens.shape[1], jnp.int32)
    logits, _ = kernels.forward(
        config, params, tokens, cache, n_valid=n_valid, last_only=False, target=target
    )
    return logits[0]


def _score(config: Any, target: Any, params: Any, tokens: Any, cache: Any) -> tuple[Any, Any]:
    """Losses and most probable tokens, `[T - 1]`."""
    import jax
    import jax.numpy as jnp

    logits = _logits(config, target, params, tokens, cache)[:-1]
    picked = jnp.take_along_axis(logits, tokens[0, 1:, None], axis=1)[:, 0]
    return jax.nn.logsumexp(logits, axis=1) - picked, jnp.argmax(logits, axis=1)


def agreement(best: list[int], reference: list[int]) -> float:
    """Share of the places where both find the same token the most probable."""
    return sum(a == b for a, b in zip(best, reference, strict=True)) / len(best)


def row(mode: str, model: Any, losses: list[float], top1: float) -> dict[str, Any]:
    """The perplexity with its standard error, and the size of the weights."""
    import jax

    mean = sum(losses) / len(losses)
    spread = math.sqrt(sum((loss - mean) ** 2 for loss in losses) / len(losses) / max(len(losses) - 1, 1))
    return {
        "mode": mode,
        "dtype": model.dtype,
        "loss": mean,
        "perplexity": exponential(mean),
        "standard_error": exponential(mean) * spread,
        "top1_agreement": top1,
        "weights_mib": sum(leaf.nbytes for leaf in jax.tree.leaves(model.params)) / 2**20,
    }


def exponential(loss: float) -> float:
    """`math.exp`, infinite where that overflows."""
    return math.inf if loss >= 709 else math.exp(loss)


def finite(r: dict[str, Any]) -> dict[str, Any]:
    """The row with None for what is infinite or no number: JSON has neither."""
    return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in r.items()}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for a person."""
    heading = "mode   dtype      perplexity  ± std. error  vs first  same top-1  weights MiB"
    lines = [heading + ("  rounding: logits  same top-1" if "logit_error" in rows[0] else "")]
    first = rows[0]["loss"]
    lines += [
        f"{r['mode']:6} {r['dtype']:9} {r['perplexity']:11.3f}  {r['standard_error']:12.3f}  "
        f"{exponential(r['loss'] - first) - 1:+8.2%}  {r['top1_agreement']:10.1%}  {r['weights_mib']:11.1f}"
        f"{rounded(r)}"
        for r in rows
    ]
    return "\n".join(lines)


def rounded(r: dict[str, Any]) -> str:
    """The columns of `rounding`, if it was measured."""
    return f"  {r['logit_error']:16.1e}  {r['same_top1']:10.2%}" if "logit_error" in r else ""

"""How the makers of a checkpoint would have it sampled, where they say so."""

from collections.abc import Mapping
from typing import Any

from jllama.errors import JllamaError
from jllama.settings import build_settings

NAME = "generation_config.json"
PENALTY = "repetition_penalty"  # takes effect whether or not tokens are drawn
SAMPLING = ("temperature", "top_k", "top_p", "min_p", PENALTY)
FALLBACK = {"temperature": 0.7, "top_p": 0.95}  # greedy, a small model soon repeats itself in a conversation


def conversation_sampling(
    given: Mapping[str, Any], fallback: Mapping[str, Any] = FALLBACK
) -> tuple[dict[str, Any], list[str]]:
    """The settings of `GenerationSettings` that a conversation starts with.

    `do_sample: false` is temperature 0.

    Args:
      given: what generation_config.json holds; nothing if there is none.
      fallback: the settings where that says nothing of sampling.

    Returns:
      The settings, and remarks on values that can't be used.
    """
    usable, remarks = {}, []
    for name in SAMPLING:
        if given.get(name) is None:
            continue
        try:
            usable[name] = getattr(build_settings(**{name: given[name]}), name)
        except JllamaError as error:
            remarks.append(f"{NAME}: {error}; it is left out")
    if given.get("do_sample") is False:
        return {name: usable[name] for name in usable if name == PENALTY} | {"temperature": 0.0}, remarks
    if given.get("do_sample") or usable.keys() - {PENALTY}:
        return {"temperature": 1.0, **usable}, remarks
    return {**fallback, **usable}, remarks

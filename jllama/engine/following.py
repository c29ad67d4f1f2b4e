"""A process that follows: it does to its devices what process 0 does to its own."""

from typing import Any

from jllama import sharding
from jllama.config import ModelConfig
from jllama.engine.leading import Follower
from jllama.engine.slots import Slots
from jllama.engine.state import DecodeState
from jllama.layers.cache import KVCache
from jllama.model import Params


def follow(config: ModelConfig, params: Params, dtype: str) -> None:
    """Runs the programs of process 0 until it ends. Parameters and `dtype` are those that it has, too."""

    def make(cache: KVCache | None, slots: int, max_len: int, stops: int) -> Slots:
        room: Any = dict(max_len=max_len, dtype=dtype)
        if slots:
            return Slots.empty(config, params, slots=slots, stops=stops, **room)
        one = sharding.empty_cache(config, params, batch=1, **room) if cache is None else cache
        return Slots(config, params, DecodeState.of_one(one))

    Follower(make).run()

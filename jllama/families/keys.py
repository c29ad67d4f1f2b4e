"""Keys of a `config.json` or of GGUF metadata, with the files' own defaults; what was read is known."""

from collections.abc import Collection, Mapping
from typing import Any

from jllama.errors import JllamaError
from jllama.families.checks import check_layers


class HfKeys:
    """The keys of a `config.json`, of which null means the default."""

    def __init__(self, keys: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self.all, self.defaults, self.read = dict(keys), defaults, set[str]()

    def get(self, key: str, default: Any = None) -> Any:
        """The key's value; where it is missing or null, what the family's own class says, else `default`."""
        self.read.add(key)
        value = self.all.get(key)
        return self.defaults.get(key, default) if value is None else value

    def nullable(self, key: str) -> Any:
        """The key's value as it stands there, null included; where it is missing, what the class says."""
        self.read.add(key)
        return self.all.get(key, self.defaults.get(key))

    def ignore(self, *keys: str) -> None:
        """These change nothing in the family."""
        self.read.update(keys)

    def layers(self) -> int:
        """The number of layers.

        Raises:
          JllamaError: it is none that a model has.
        """
        count = self.get("num_hidden_layers", 32)
        check_layers(count)
        return count


class GgufKeys:
    """Metadata under an architecture's prefix, and the names of the file's tensors."""

    def __init__(
        self,
        metadata: Mapping[str, Any],
        architecture: str,
        tensors: Collection[str],
        factors: Mapping[str, tuple[float, ...]],
    ) -> None:
        self.metadata, self.prefix, self.tensors, self.factors = metadata, architecture, tensors, factors
        self.read = set[str]()

    def layers(self) -> int:
        """The number of layers.

        Raises:
          JllamaError: it is missing, or none that a model has.
        """
        count = self.need("block_count")
        check_layers(count)
        return count

    def head_dim(self) -> int:
        """H; what an absurd file makes of it is refused with the configuration."""
        hidden, heads = self.need("embedding_length"), self.need("attention.head_count")
        return self.get("attention.key_length", hidden // heads if heads else 0)

    def get(self, key: str, default: Any = None) -> Any:
        """The key's value, one number where a list repeats it for each layer.

        Raises:
          JllamaError: the list does not fit the layers, or its numbers differ.
        """
        value = self._value(key, default)
        return self._of_all_layers(key, value) if isinstance(value, list) else value

    def each(self, key: str) -> Any:
        """The key's value as it is: a list may say something of each layer."""
        return self._value(key, None)

    def _value(self, key: str, default: Any) -> Any:
        self.read.add(key)
        return self.metadata.get(f"{self.prefix}.{key}", default)

    def ignore(self, *keys: str) -> None:
        """These change nothing in the file."""
        self.read.update(keys)

    def unread(self) -> dict[str, Any]:
        """The keys of the architecture, without its prefix, that nothing has asked for."""
        start = f"{self.prefix}."
        stated = {
            key.removeprefix(start): value for key, value in self.metadata.items() if key.startswith(start)
        }
        return {key: value for key, value in stated.items() if key not in self.read}

    def _of_all_layers(self, key: str, values: list[Any]) -> Any:
        layers = self.metadata.get(f"{self.prefix}.block_count")
        if len(values) != layers:
            raise JllamaError(
                f"GGUF: {self.prefix}.{key} has {len(values)} values for {layers} layers; download it again"
            )
        if any(value != values[0] for value in values):
            raise JllamaError(
                f"GGUF: {self.prefix}.{key} differs from layer to layer, which is not supported: {values}"
            )
        return values[0]

    def need(self, key: str) -> Any:
        """The key's value.

        Raises:
          JllamaError: it is missing.
        """
        value = self.get(key)
        if value is None:
            raise JllamaError(f"GGUF metadata lacks {self.prefix}.{key}; convert or download the file again")
        return value

    def allow_only(self, supported: Mapping[str, Any]) -> None:
        """Refuses every key that has another value than the one given here."""
        for key, only in supported.items():
            if self.get(key, only) != only:
                raise JllamaError(f"GGUF: {self.prefix}.{key}={self.get(key)} is not supported (only {only})")

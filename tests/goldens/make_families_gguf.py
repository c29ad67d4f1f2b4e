"""Remakes `families_gguf.json`: what llama.cpp's own converter makes of the models of `families.json`.

    pip install torch transformers safetensors gguf
    python tests/goldens/make_families_gguf.py --llama_cpp=DIR [--keep=DIR]

Of each model: the metadata but for the tokenizer, and of each tensor the shape and a checksum of its float32
numbers. `--keep` keeps the files, so that llama.cpp can run them. Made with the converter of
llama-cpp-python 0.3.36. What the converter does not take is left out, and printed.
"""

import argparse
import json
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from tests.support.checkpoint_generator import named_tensors  # noqa: E402

TOKENIZER = {"model": {"vocab": {f"w{index}": index for index in range(97)}}, "added_tokens": []}
WORDS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(10, 11)), "<|endoftext|>", "▁"]


def set_vocab(self) -> None:
    """No tokenizer can be converted without its own files: words that stand for nothing."""
    count = self.hparams["vocab_size"]
    words = [*WORDS, *(f"w{index}" for index in range(len(WORDS), count))]
    self.gguf_writer.add_tokenizer_model("llama")
    self.gguf_writer.add_tokenizer_pre("default")
    self.gguf_writer.add_token_list(words)
    self.gguf_writer.add_token_scores([-float(index) for index in range(count)])
    self.gguf_writer.add_token_types([2, 3, 3, 6, 3, *(1 for _ in words[5:])])


def convert(directory: Path, output: Path) -> None:
    import gguf
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

    settings = ModelBase.load_hparams(directory, False)
    architecture = get_model_architecture(settings, ModelType.TEXT)
    kind = get_model_class(architecture, mmproj=False)
    kind = type(kind.__name__, (kind,), {"set_vocab": set_vocab, "model_arch": kind.model_arch})
    model = kind(directory, gguf.LlamaFileType.ALL_F32, output)
    if hasattr(model, "impl"):  # a front for several architectures
        type(model.impl).set_vocab = set_vocab
    model.write()


def described(path: Path) -> dict:
    from gguf import GGUFReader

    reader = GGUFReader(path)
    fields = {
        name: field.contents()
        for name, field in reader.fields.items()
        if not name.startswith(("tokenizer.", "GGUF."))
    }
    tensors = {
        tensor.name: [
            *map(int, reversed(tensor.shape)),
            zlib.crc32(np.ascontiguousarray(tensor.data).tobytes()),
        ]
        for tensor in reader.tensors
    }
    return {"fields": fields, "tensors": tensors}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--llama_cpp", type=Path, required=True)
    parser.add_argument("--keep", type=Path)
    flags = parser.parse_args()
    sys.path[:0] = [str(flags.llama_cpp), str(flags.llama_cpp / "gguf-py")]
    models, made = json.loads((HERE / "families.json").read_text()), {}
    for name, model in models.items():
        with tempfile.TemporaryDirectory() as directory:
            source = Path(directory, name)
            source.mkdir()
            save_file(named_tensors(model["shapes"]), source / "model.safetensors", metadata={"format": "pt"})
            (source / "config.json").write_text(json.dumps(model["config"]))
            (source / "tokenizer.json").write_text(json.dumps(TOKENIZER))  # Gemma 3 looks at it
            output = (flags.keep or source) / f"{name}.gguf"
            try:
                convert(source, output)
            except Exception as error:
                print(f"{name}: {type(error).__name__}: {error}")
                continue
            made[name] = described(output)
    (HERE / "families_gguf.json").write_text(json.dumps(made, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()

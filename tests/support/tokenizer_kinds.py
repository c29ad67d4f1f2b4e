"""One small tokenizer of every kind, all with the same turn tokens, marked in different ways."""

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from jllama.text.tokenizer import Tokenizer
from jllama.text.vocabularies.spm import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED
from jllama.text.vocabularies.spm_file import read_model
from tests.support.tokenizer_helpers import GOLDENS, SPM, spm_directory, write_directory

START, END, EOS = "<|im_start|>", "<|im_end|>", "</s>"
SPECIALS = (START, END, EOS)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LETTERS = [*map(chr, range(97, 123)), *"<>|_/ !"]
# Pieces that spell a special token if nothing keeps them from it.
MERGED = ["</", "</s", "s>", "<|", "|>", "im", "<|im", "<|im_", "en", "end", "end|>"]
HOW = {"control": CONTROL, "user-defined": USER_DEFINED, "normal": NORMAL}


def gguf_spm(how):
    learnt = ["▁", *LETTERS, *MERGED]
    pieces = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), *learnt, *SPECIALS]
    types = [UNKNOWN, CONTROL, *[BYTE] * 256, *[NORMAL] * len(learnt), *[HOW[how]] * 3]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": [-float(at) for at in range(len(pieces))],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.eos_token_id": len(pieces) - 1,
        "tokenizer.chat_template": CHATML,
    }


def gguf_bpe(how, pre="smollm"):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *MERGED, "<|im_", *SPECIALS]
    merges = ["< /", "</ s", "s >", "< |", "| >", "i m", "<| im", "<|im _", "e n", "en d", "end |>"]
    if how == "normal":
        merges += ["</s >", "<|im_ end|>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": list(dict.fromkeys(tokens)),
        "tokenizer.ggml.token_type": [NORMAL] * (len(set(tokens)) - 3) + [HOW[how]] * 3,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": len(set(tokens)) - 1,
        "tokenizer.chat_template": CHATML,
    }


def json_model(kind):
    """A `tokenizers` model in which all special tokens are ordinary entries, easily reached."""
    pieces = ["<unk>", "▁", *LETTERS, *MERGED, *SPECIALS, *("▁" + text for text in SPECIALS)]
    if kind == "unigram":
        return models.Unigram([(piece, -5.0) for piece in pieces], unk_id=0, byte_fallback=False)
    if kind == "wordlevel":
        return models.WordLevel({piece: at for at, piece in enumerate(pieces)}, unk_token="<unk>")
    merges = [("<", "/"), ("</", "s"), ("</s", ">"), ("<", "|"), ("|", ">"), ("i", "m"), ("<|", "im")]
    merges += [("<|im", "_"), ("e", "n"), ("en", "d"), ("end", "|>"), ("<|im_", "end|>")]
    vocab = {piece: at for at, piece in enumerate(pieces)}
    return models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=False)


def json_directory(path, kind, scheme, special):
    inner = tokenizers.Tokenizer(json_model(kind))
    if kind == "wordlevel":
        inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    else:
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    inner.decoder = decoders.Metaspace(prepend_scheme=scheme)
    inner.add_special_tokens([AddedToken("<unk>", special=True)])
    if special is not None:  # None: they are entries of the model and nothing else
        inner.add_tokens([AddedToken(text, special=special, normalized=False) for text in SPECIALS])
    ids = [inner.token_to_id(text) for text in SPECIALS]
    return write_directory(
        path,
        tokenizer__json=inner.to_str(),
        tokenizer_config={"chat_template": CHATML, "eos_token": EOS},
        generation_config={"eos_token_id": ids[1:]},
    )


def byte_level_directory(path, special):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(models.BPE({letter: at for at, letter in enumerate(letters)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_tokens([AddedToken(text, special=special, normalized=True) for text in SPECIALS])
    config = {"chat_template": CHATML, "eos_token": EOS}
    return write_directory(path, tokenizer__json=inner.to_str(), tokenizer_config=config)


def model_directory(path, name):
    """A SentencePiece model; what it lacks of the turn tokens stands in a file beside it."""
    known = read_model(GOLDENS / f"{name}.model").pieces
    added = {text: len(known) + at for at, text in enumerate(t for t in SPECIALS if t not in known)}
    return spm_directory(path, name, added_tokens=added, tokenizer_config={"chat_template": CHATML})


KINDS = {
    **{
        f"model-{name}": (lambda path, name=name: Tokenizer.from_dir(model_directory(path, name)))
        for name in SPM
    },
    **{f"gguf-llama-{how}": (lambda _, how=how: Tokenizer.from_gguf(gguf_spm(how))) for how in HOW},
    **{f"gguf-gpt2-{how}": (lambda _, how=how: Tokenizer.from_gguf(gguf_bpe(how))) for how in HOW},
    "gguf-whole-words": lambda _: Tokenizer.from_gguf(gguf_bpe("normal", "llama-bpe")),
    **{
        f"json-{kind}-{scheme}-{special}": (
            lambda path, given=(kind, scheme, special): Tokenizer.from_dir(json_directory(path, *given))
        )
        for kind in ("unigram", "wordlevel", "bpe")
        for scheme in ("first", "always")
        for special in (True, False, None)
    },
    **{
        f"json-bytes-{special}": (
            lambda path, special=special: Tokenizer.from_dir(byte_level_directory(path, special))
        )
        for special in (True, False)
    },
}


def spelt(tokenizer):
    """The ids of the turn tokens, by text."""
    return {text: tokenizer.special_id(text) for text in SPECIALS}

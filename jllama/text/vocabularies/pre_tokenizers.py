r"""How each `tokenizer.ggml.pre` of a GGUF cuts a text into words, within which alone pieces are merged.

The names are llama.cpp's (`src/llama-vocab.cpp`). The patterns are those of the tokenizers themselves, which
llama.cpp comes near to where its own expressions lack `\p{Lu}` and the like.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from tokenizers import Regex, pre_tokenizers

_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BLANKS = r"|\s+(?!\S)|\s+"
_LINES = r"|\s*[\r\n]+" + _BLANKS
_MARKS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+" + _BLANKS
_LLAMA3 = rf"{_SUFFIX}|{_WORD}|\p{{N}}{{1,3}}" + _MARKS + _LINES
_QWEN2 = rf"{_SUFFIX}|{_WORD}|\p{{N}}" + _MARKS + _LINES
_QWEN35 = (
    rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*"
    + _LINES
)
_JAIS2 = (
    rf"{_SUFFIX}|{_WORD}|\p{{N}}{{1,3}}{_MARKS}|\s*[\r\n]+"
    + "".join(rf"|\s{{{count}}}(?!\S)" for count in ("512", "256", "128", "64", "32", "16", "8", "4", "1,2"))
    + r"|\s{1}"
)
_BAILING = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]" + _BLANKS
)
_EXAONE_MOE = (
    rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]" + _BLANKS
)

# Words in which capitals may only stand in front: tiktoken's `o200k`, and Mistral's tekken without suffixes.
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"


def _cased(suffix: str, upper: str = f"[{_UPPER}]", lower: str = f"[{_LOWER}]") -> str:
    first = r"[^\r\n\p{L}\p{N}]?"
    return f"{first}{upper}*{lower}+{suffix}|{first}{upper}+{lower}*{suffix}"


_SLASHES = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*"
_TEKKEN = _cased("") + r"|\p{N}" + _SLASHES + _LINES
_O200K = _cased(_SUFFIX + "?") + r"|\p{N}{1,3}" + _SLASHES + _LINES
_YOUTU = _cased(_SUFFIX + "?") + r"|\p{N}" + _SLASHES + _LINES
_KIMI = (
    r"\p{Han}+|"
    + _cased(_SUFFIX + "?", rf"[{_UPPER}&&[^\p{{Han}}]]", rf"[{_LOWER}&&[^\p{{Han}}]]")
    + r"|\p{N}{1,3}"
    + _MARKS
    + _LINES
)

# DeepSeek's, and those made after them: several patterns, one after the other.
_ASCII_MARK = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
_V3_WORD = rf"{_ASCII_MARK}|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
_V3_MAIN = _V3_WORD + r"| ?[\p{P}\p{S}]+[\r\n]*" + _LINES
_CJK = "[一-龥぀-ゟ゠-ヿ]+"
_EAST_ASIAN = "[一-龥ࠀ-一가-퟿]+"
_CASED_LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώ"
    "ᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏"
    "𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
_THREES = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"  # digits by threes, counted from the right
_ASIAN_SCRIPTS = "[一-鿿㐀-䶿豈-﫿぀-ゟ゠-ヿ･-ﾟ⼀-⿟เ-๿຀-໿ក-៿က-႟ꩠ-ꩿꧠ-꧿가-힯ᄀ-ᇿ]+"
_BLOOM = " ?[^(\\s|.,!?…。，、।۔،)]+"
_PUNCTUATION = r"[\p{P}\$\+<=>\^~\|`]+"


@dataclass(frozen=True)
class PreTokenizer:
    """Patterns that cut a text one after the other, and what else hangs on the name."""

    patterns: tuple[str, ...]
    whole_words: bool = False  # a word that is a token stays whole, whatever the merges say
    add_bos: bool = False  # a text begins with BOS unless the file says otherwise
    insists_on_bos: bool = False  # whatever the file says: early Gemma 4 files are wrong
    byte_level: bool = True  # False: raw text with ▁ for blanks, and tokens such as <0x0A> for other bytes

    def build(self) -> pre_tokenizers.PreTokenizer:
        """As a step of the `tokenizers` library."""
        steps: list = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self.patterns]
        if self.byte_level:
            steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        return pre_tokenizers.Sequence(steps)


def _table() -> Iterator[tuple[str, PreTokenizer]]:
    for names, patterns in _PATTERNS.items():
        for name in names.split():
            yield (
                name,
                PreTokenizer(
                    patterns,
                    whole_words=name in _WHOLE_WORDS,
                    add_bos=name in _BOS,
                    insists_on_bos=name in _GEMMA4,
                    byte_level=name not in _RAW_TEXT,
                ),
            )


_PATTERNS: dict[str, tuple[str, ...]] = {
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
    "gpt-2 gpt2 phi-2 mpt olmo jais trillion granite-docling exaone4 gigachat a.x-4.0 mellum modern-bert": (
        _GPT2,
    ),
    "jina-es jina-de jina-v1-en jina-v2-es jina-v2-de jina-v2-code roberta-bpe": (_GPT2,),
    "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2": (r"\p{N}", _GPT2),
    "falcon": (_PUNCTUATION, _GPT2, "[0-9][0-9][0-9]"),
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano": (_LLAMA3,),
    "dbrx smaug-bpe chatglm-bpe glm4 glm5": (_LLAMA3,),
    "jais-2": (_JAIS2,),
    "minicpm5": (r"\p{N}{1,3}", rf"{_SUFFIX}|{_WORD}|\p{{N}}+" + _MARKS + _LINES),
    "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2": (_QWEN2,),
    "qwen35": (_QWEN35,),
    "laguna": (r"[^\n]+|[\n]+", _QWEN2),
    "seed-coder": (rf"{_SUFFIX}|{_WORD}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+" + _LINES,),
    "ufakzeka": (rf"{_WORD}|\p{{N}}" + _MARKS + _LINES,),
    "bailingmoe bailingmoe2 llada-moe": (_BAILING,),
    "exaone-moe": (_EXAONE_MOE,),
    "tekken": (_TEKKEN,),
    "gpt-4o llama4 kanana2 talkie minimax-m2 granite-embed-multi-97m": (_O200K,),
    "tiny_aya cohere2moe": (r"\d{1,3}(?=(?:\d{3})*\b)", _O200K),
    "youtu": ("[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+", _YOUTU),
    "kimi-k2": (_KIMI,),
    "deepseek-llm": (
        r"[\r\n]",
        rf"\s?[{_CASED_LETTERS}]+",
        r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
        r"\s+$",
        _EAST_ASIAN,
        r"\p{N}+",
    ),
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _EAST_ASIAN, r"\p{N}"),
    "deepseek-v3 hunyuan-dense joyai-llm hy_v4": (r"\p{N}{1,3}", _CJK, _V3_MAIN),
    "spark2_5": (r"\p{N}{1,3}", _CJK, _V3_WORD + r"| ?[\p{P}\p{S}]+|[\r\n]" + _BLANKS, r"\p{N}"),
    "afmoe": (_THREES, _ASIAN_SCRIPTS, _V3_MAIN),
    "superbpe": (r"\p{N}+", r"(?=(\d{3})+(?!\d))"),
    "poro-chat bloom gpt3-finnish": (_BLOOM,),
    "viking": (_BLOOM, r"\p{N}"),
    "chameleon": (
        "<sentinel:[0-9]+>",
        "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
        r"([\t\n]|    |  )",
        r"\p{N}",
        r"[\p{P}!-/:-@\[-`{-~]",
        _GPT2,
    ),
    "gemma4 granite-embed-multi-311m sarvam-moe": (r"[^\n]+|[\n]+",),
}
_LLAMA3_LIKE = {
    *"llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano tekken".split()
}
_GEMMA4 = {"gemma4", "granite-embed-multi-311m"}
_WHOLE_WORDS = {*_LLAMA3_LIKE, "minicpm5", "glm4", "glm5", "youtu", "granite-embed-multi-97m"}
_BOS = {*_LLAMA3_LIKE, "chameleon"}
_RAW_TEXT = {*_GEMMA4, "sarvam-moe"}
PRE_TOKENIZERS = dict(_table())

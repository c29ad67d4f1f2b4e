"""Makes tests/goldens/tokenizers/: small SentencePiece models and the ids their library gives.

Needs `sentencepiece` and `tokenizers`; SmolLM2's ids also need `gguf` and the model's GGUF file:

    python tests/goldens/make_tokenizers.py [SmolLM2-135M-Instruct.Q4_1.gguf]

text.txt is our own writing, mixed by a fixed seed. smollm2.json holds the ids of a tokenizer put
together from the GGUF's tokens and merges in the way SmolLM2's own tokenizer.json has it: digits
one by one, then GPT-2's byte-level cut.
"""

import json
import random
import sys
from pathlib import Path

HERE = Path(__file__).parent / "tokenizers"

SENTENCES = """
The quick brown fox jumps over the lazy dog, doesn't it? I'll say: we've seen 1,234.5 of them!
Once upon a time there was a little girl who lived in a small house by the sea.
"Why?" she asked. "Because," he said, "it's 7:45 a.m. and nobody's up yet..."
Le cœur a ses raisons ; l'été à Nîmes était déjà très chaud, n'est-ce pas ?
Über den Flüssen schweben große weiße Möwen, während das Mädchen süße Brötchen isst.
El niño pequeño comió piñas mañana por la mañana. ¿Verdad? ¡Claro que sí!
Amanhã não haverá pão nem maçãs, só limões e uma porção de corações.
Perché no? Così è, se vi pare: città, virtù, caffè.
Wszystkie żółte łódki płyną wśród śniegu, gęś kąsa źdźbło.
Příliš žluťoučký kůň úpěl ďábelské ódy.
Az árvíztűrő tükörfúrógép öt hűtőházból kért színhúst.
Съешь же ещё этих мягких французских булок, да выпей чаю.
Українська мова: ґанок, їжак, єнот, і ще щось.
Ο γρήγορος αλεπού πηδάει πάνω από το τεμπέλικο σκυλί· καλημέρα!
Şu köşe yaz köşesi, şu köşe kış köşesi; ığdır ılık.
שלום עולם, מה שלומך היום? בְּרֵאשִׁית
مرحبا بالعالم، كيف حالك اليوم؟ ١٢٣ كِتَابٌ
سلام دنیا، امروز چطوری؟ می‌خواهم بروم.
नमस्ते दुनिया, आज आप कैसे हैं? क्षत्रिय ज्ञान
বাংলা ভাষা খুব সুন্দর, তাই না?
தமிழ் மொழி மிகவும் பழமையானது.
สวัสดีชาวโลก วันนี้เป็นอย่างไรบ้าง
Xin chào thế giới, hôm nay bạn có khỏe không? Đường phố rất đẹp.
今天天气很好，我们去公园散步吧。你觉得怎么样？
我住在北京，他住在上海；一二三四五六七八九十。
今日はとても良い天気ですね。散歩に行きましょう！カタカナとひらがな。
ﾊﾝｶｸ ｶﾀｶﾅ ＡＢＣ１２３ ① ② ㈱ ﬁ ﬂ ½ ² Ⅷ
안녕하세요 세계, 오늘 기분이 어떠세요? 한국어는 재미있어요.
გამარჯობა მსოფლიო, Բարեւ աշխարհ, ሰላም ልዑል
🙂 🙃 👍🏽 👩‍👩‍👧‍👦 🇫🇷🇯🇵 ❤️ ☕ 🏳️‍🌈 so many!!! 😀😀😀
e\u0301 a\u0308 n\u0303 o\u0302\u0323 \u1112\u1161\u11ab
Z\u0351\u036b\u0343a\u0323\u0308l\u0327g\u030ao
def fib(n):⏎    return n if n < 2 else fib(n - 1) + fib(n - 2)  # O(2**n)
for (int i = 0; i < 10; ++i) { printf("%d\\t%s\\n", i, argv[i]); }
<div class="a">&nbsp;<b>x</b></div> {"key": [1, 2.5e-10, null]} https://example.org/?q=a%20b&c=d#e
    four spaces\tand\ttabs  two   three    four \r⏎ windows \u00a0 nbsp \u3000 wide \u200b zero
0 1 12 123 1234 12345 123456 3.14159 1/2 1e10 0x1F ٣٤ ௧௨ ⅓
<s> </s> <unk> <0x41> <|im_end|> <|endoftext|> [INST] ▁▁ ▁a
ALL CAPS TEXT and CamelCaseIdentifiers and snake_case_names and kebab-case-names
aaaaaaaaaaaa ======== ---------- ........ !!!!!! hahahahaha lololol tototot
Don't can't I'd YOU'RE WE'LL it'S O'Clock 'tis
"""


def lines(count: int = 400) -> list[str]:
    """Every sentence, then mixtures of their pieces and of random characters."""
    sentences = [line.replace("⏎", "\n") for line in SENTENCES.strip("\n").split("\n")]
    draw = random.Random(20240607)
    mixed = list(sentences)
    words = [word for sentence in sentences for word in sentence.split(" ")]
    while len(mixed) < count:
        kind = draw.randrange(3)
        if kind == 0:
            mixed.append(" ".join(draw.choices(words, k=draw.randrange(3, 30))))
        elif kind == 1:
            mixed.append("".join(draw.choices("".join(sentences), k=draw.randrange(3, 60))))
        else:
            codes = [draw.choice((0x7F, 0x7FF, 0xFFFF, 0x1FFFF)) for _ in range(12)]
            mixed.append("".join(_character(draw, top) for top in codes))
    return mixed


def _character(draw: random.Random, top: int) -> str:
    code = draw.randrange(1, top)
    return "?" if 0xD800 <= code < 0xE000 else chr(code)


def train(kind: str, **options: object) -> None:
    import sentencepiece

    source = Path("/tmp") / "jllama_spm_source.txt"
    text = [line for line in lines() if "\n" not in line and "\0" not in line]
    source.write_text("\n".join(text * 4), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(source),
        model_prefix=str(HERE / kind),
        minloglevel=2,
        num_threads=1,
        **options,
    )
    (HERE / f"{kind}.vocab").unlink()
    source.unlink()
    forget_paths(HERE / f"{kind}.model")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(HERE / f"{kind}.model"))
    save(kind, [processor.encode(line) for line in lines()])


def forget_paths(path: Path) -> None:
    """The trainer notes where it ran; that is nobody's business."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(path.read_bytes())
    for field in ("input", "model_prefix"):
        model.trainer_spec.ClearField(field)
    model.normalizer_spec.ClearField("normalization_rule_tsv")
    path.write_bytes(model.SerializeToString())


def rules() -> Path:
    """A few normalisation rules in place of NFKC's, whose table alone takes 240 KB."""
    pairs = [("\t", " "), ("\n", " "), ("\u3000", " "), ("\u00a0", " "), ("\u200b", "")]
    pairs += [(chr(0xFF01 + at), chr(0x21 + at)) for at in range(94)]
    pairs += [("ﬁ", "fi"), ("½", "1/2"), ("e\u0301", "é"), ("가나", "x"), ("①", " 1 ")]
    path = Path("/tmp") / "jllama_rules.tsv"
    rows = ["\t".join(" ".join(f"{ord(c):X}" for c in side) for side in pair) for pair in pairs]
    path.write_text("\n".join(rows) + "\n")
    return path


def save(name: str, ids: list[list[int]]) -> None:
    rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in ids)
    (HERE / f"{name}.json").write_text(f"[\n{rows}\n]\n")


def smollm2(path: str) -> None:
    import gguf
    from tokenizers import Tokenizer, models, pre_tokenizers

    fields = gguf.GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"].contents()]
    vocab = {token: at for at, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    save("smollm2", [tokenizer.encode(line).ids for line in lines()])


def main() -> None:
    HERE.mkdir(exist_ok=True)
    text = json.dumps(lines(), ensure_ascii=False, indent=0)
    (HERE / "text.json").write_text(text + "\n", encoding="utf-8")
    # In the manner of Llama-2's: no normalisation, byte fallback, digits apart.
    train(
        "bpe",
        model_type="bpe",
        vocab_size=1500,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        character_coverage=0.98,
    )
    # The trainer's own squeezing of blanks, no byte fallback, symbols of a user.
    train(
        "bpe_symbols",
        model_type="bpe",
        vocab_size=1200,
        normalization_rule_name="identity",
        character_coverage=0.98,
        user_defined_symbols=["<|im_end|>", "lol"],
    )
    train(
        "unigram",
        model_type="unigram",
        vocab_size=1400,
        hard_vocab_limit=False,
        normalization_rule_tsv=str(rules()),
        character_coverage=0.98,
    )
    train(
        "unigram_bytes",
        model_type="unigram",
        vocab_size=1400,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=0.98,
    )
    for path in sys.argv[1:]:
        smollm2(path)


if __name__ == "__main__":
    main()

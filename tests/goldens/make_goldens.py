"""Remakes the goldens with Hugging Face transformers: fp32, eager attention, on the CPU.

    pip install torch transformers gguf
    python tests/goldens/make_goldens.py --story=DIR --smollm2=FILE.gguf [--only=small,story,smollm2]

Made with transformers 5.23.0 and torch 2.13.0.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from tests.support.checkpoint_generator import random_tensors, random_tokens  # noqa: E402
from tests.support.small_models import LENGTH, SMALL_MODELS  # noqa: E402

GREEDY = 200
STORY_PROMPTS = (
    "Once upon a time",
    "Lily and Tom went to the park. They saw a big",
    "The dog was sad because",
)
CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
SMOLLM2_PROMPTS = (
    CHAT.format("Explain why the sky is blue."),
    CHAT.format("Write a short story about a lighthouse keeper."),
    "The history of mathematics begins with counting. In the ancient world, numbers were",
)


def small_logits(keys: dict) -> np.ndarray:
    """`[LENGTH, V]`."""
    kind = dict(llama=("LlamaConfig", "LlamaForCausalLM"), mistral=("MistralConfig", "MistralForCausalLM"))
    config_class, model_class = (getattr(transformers, name) for name in kind[keys["model_type"]])
    settings = {key: value for key, value in keys.items() if key != "model_type"}
    config = config_class(**settings, attn_implementation="eager")
    model = model_class(config).float().eval()
    weights = {name: torch.from_numpy(tensor) for name, tensor in random_tensors(keys).items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected, unexpected
    assert set(missing) <= ({"lm_head.weight"} if keys["tie_word_embeddings"] else set()), missing
    with torch.no_grad():
        return model(torch.from_numpy(random_tokens(keys["vocab_size"], LENGTH))[None]).logits[0].numpy()


def make_small() -> None:
    """Every sixth position is kept, and the last: the file stays small and every length is met."""
    kept = {name: small_logits(keys)[5::6].astype(np.float32) for name, keys in SMALL_MODELS.items()}
    np.savez_compressed(HERE / "small.npz", **kept)


def run_real(model, tokenizer, prompts: tuple[str, ...], stride: int) -> dict[str, np.ndarray]:
    """Prompt ids with their greedy continuation, and at 12 positions the logits of each `stride`-th token.

    The log-sum-exp stands for the logits that are left out.
    """
    kept = {"stride": stride}
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    model.eval()
    for index, prompt in enumerate(prompts):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        text, logits = greedy(model, ids)
        places = np.linspace(0, len(text) - 1, 12).astype(int)
        kept |= {f"tokens{index}": text.astype(np.int32), f"prompt_length{index}": ids.shape[1]}
        kept |= {f"positions{index}": places, f"logits{index}": logits[places, ::stride]}
        kept[f"logsumexp{index}"] = torch.logsumexp(torch.from_numpy(logits[places]), dim=-1).numpy()
        top = np.sort(logits[ids.shape[1] - 1 : -1], axis=-1)
        print(f"smallest margin of a greedy choice: {(top[:, -1] - top[:, -2]).min():.4f}")
        print(tokenizer.decode(text))
    return kept


@torch.no_grad()
def greedy(model, ids: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The prompt and 200 tokens more `[T]`, and the logits `[T, V]` of one forward over them."""
    text, cache = ids, None
    for _ in range(GREEDY):
        out = model(text[:, -1:] if cache else text, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        text = torch.cat([text, out.logits[:, -1:].argmax(-1)], dim=1)
    return text[0].numpy(), model(text).logits[0].numpy()


def make_story(directory: str) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager")
    np.savez_compressed(HERE / "story.npz", **run_real(model, tokenizer, STORY_PROMPTS, stride=2))


def make_smollm2(file: str) -> None:
    """transformers dequantises the GGUF itself, and turns the rows of q and k back."""
    place = dict(pretrained_model_name_or_path=str(Path(file).parent), gguf_file=Path(file).name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(**place)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        **place, dtype=torch.float32, attn_implementation="eager"
    )
    np.savez_compressed(HERE / "smollm2.npz", **run_real(model, tokenizer, SMOLLM2_PROMPTS, stride=16))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="small,story,smollm2")
    parser.add_argument("--story")
    parser.add_argument("--smollm2")
    options = parser.parse_args()
    for name in options.only.split(","):
        {
            "small": make_small,
            "story": lambda: make_story(options.story),
            "smollm2": lambda: make_smollm2(options.smollm2),
        }[name]()


if __name__ == "__main__":
    main()

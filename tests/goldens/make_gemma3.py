"""Remakes `gemma3.npz`: Gemma 3 270M, its weights dequantised by transformers, fp32, greedy.

    pip install torch transformers gguf accelerate
    python tests/goldens/make_gemma3.py FILE.gguf

The file is `gemma-3-270m-q4_k_m.gguf` (docs/models.md says where it is to be had). Of each text: the ids
of the prompt, as transformers' tokenizer has them, and 200 tokens more.
Made with transformers 5.24.0 and torch 2.13.0; no choice was closer than 0.0026 in the logits.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from tests.support.gemma3 import NEW, prompts  # noqa: E402


@torch.no_grad()
def greedy(model, ids: torch.Tensor) -> tuple[np.ndarray, float]:
    """The prompt and `NEW` tokens more `[T]`; the smallest distance of a choice from the next best one."""
    text = model.generate(ids, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
    top = model(text).logits[0, ids.shape[1] - 1 : -1].topk(2).values
    return text[0].numpy().astype(np.int32), float((top[:, 0] - top[:, 1]).min())


def main() -> None:
    file = Path(sys.argv[1]).resolve()
    options = {"gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, **options, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **options)
    kept = {}
    for index, prompt in enumerate(prompts()):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        kept[f"tokens{index}"], margin = greedy(model, ids)
        kept[f"prompt_length{index}"] = ids.shape[1]
        print(
            f"{ids.shape[1]} tokens, smallest margin {margin:.4f}: {tokenizer.decode(kept[f'tokens{index}'])}"
        )
    np.savez_compressed(HERE / "gemma3.npz", **kept)


if __name__ == "__main__":
    main()

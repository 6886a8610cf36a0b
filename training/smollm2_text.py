"""Text for SmolLM2's autoencoder, written by SmolLM2: each token is drawn from the model's own distribution.

    python training/smollm2_text.py --out build/smollm2_text        # about half an hour; resumes if killed

No corpus has to be downloaded, none has to be licensed, and the text is exactly what the model believes in, so that
(lesson 08) the expected ΔCE on it *is* a KL. Sequences are 128 tokens, BOS first, drawn at temperature 1 from the
whole vocabulary. Each file holds one batch and is a function of its number alone. The
first is for evaluation and drawn in float32; the others are for training, in bfloat16, which is twice as fast.
"""

from __future__ import annotations

import argparse
import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from course_utils.models.smollm2 import folder

LENGTH = 128
ROWS = 128  # sequences that are written together


@lru_cache(maxsize=1)
def language_model(dtype: torch.dtype):
    """SmolLM2 as `transformers` has it: it generates with a key-value cache."""
    model = AutoModelForCausalLM.from_pretrained(folder(), dtype=dtype).eval()
    model.generation_config.eos_token_id = None  # a conversation goes on after the end of a turn
    return model


@torch.no_grad()
def write(model, seed: int) -> np.ndarray:
    """One batch: [ROWS, LENGTH] token ids."""
    torch.manual_seed(seed)
    bos = model.config.bos_token_id
    start = torch.full((ROWS, 1), bos)
    tokens = model.generate(
        start, attention_mask=torch.ones_like(start), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
        max_new_tokens=LENGTH - 1, pad_token_id=bos,
    )
    return tokens.numpy().astype(np.uint16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/smollm2_text"))
    parser.add_argument("--batches", type=int, default=28, help=f"of {ROWS} × {LENGTH} tokens each")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for seed in tqdm(range(args.batches), desc="writing", unit="batch"):
        file = args.out / f"{seed:04d}.npy"
        if not file.exists():
            model = language_model(torch.float32 if seed == 0 else torch.bfloat16)
            with open(file.with_suffix(".tmp"), "wb") as out:
                np.save(out, write(model, seed))
            os.replace(file.with_suffix(".tmp"), file)


if __name__ == "__main__":
    main()

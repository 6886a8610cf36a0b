"""Train the autoencoders that the course ships. Each run resumes if it is killed.

    python training/train_saes.py                                   # all of them: under an hour on two cores
    python training/train_saes.py tiny/topk-2 tiny/relu-2           # some
    python training/train_saes.py --export course_utils/weights/saes

Those of `tiny` learn from stories; the one of SmolLM2 from text that SmolLM2 wrote: make that first, with
training/smollm2_text.py.
"""

from __future__ import annotations

import argparse
import json
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from course_utils.faithfulness import evaluate_sae
from course_utils.language import stream
from course_utils.models import load_model
from course_utils.sae import SparseAutoencoder
from course_utils.sae_training import TrainingConfig, train_sae
from course_utils.text import sample_text

STORY_ROWS = 8000  # of 128 tokens: a million activations


def tiny(kind: str, **other) -> TrainingConfig:
    return TrainingConfig(d_sae=768, kind=kind, steps=4000, batch=1024, **other)


RECIPES = {  # name: (hook, how to train)
    "tiny/topk-1": ("blocks.1.hook_resid_pre", tiny("topk", k=24)),
    "tiny/topk-2": ("blocks.2.hook_resid_pre", tiny("topk", k=24)),
    "tiny/topk-3": ("blocks.3.hook_resid_pre", tiny("topk", k=24)),
    "tiny/relu-2": ("blocks.2.hook_resid_pre", tiny("relu", sparsity=1.4)),
    "tiny/relu-normalized-2": (
        "blocks.2.hook_resid_pre", tiny("relu", sparsity=1.4, normalize="constant_norm_rescale")),
    "tiny/jumprelu-2": ("blocks.2.hook_resid_pre", tiny("jumprelu", sparsity=1.2)),
    "tiny/gated-2": ("blocks.2.hook_resid_pre", tiny("gated", sparsity=2.2)),
    "smollm2-135m/topk-15": ("blocks.15.hook_resid_pre", TrainingConfig(
        d_sae=2304, kind="topk", k=48, steps=3000, batch=1024, lr=1e-3)),
}


def training_tokens(model_name: str, text: Path) -> Tensor:
    """What the model reads while its activations are collected. Raises FileNotFoundError without SmolLM2's text."""
    if model_name == "tiny":
        return torch.tensor(list(islice(stream(2001, 128), STORY_ROWS)))
    files = sorted(text.glob("*.npy"))[1:]                                  # the first is for evaluation
    if not files:
        raise FileNotFoundError(f"no text in {text}: run training/smollm2_text.py first")
    return torch.from_numpy(np.concatenate([np.load(file) for file in files]).astype(np.int64))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=[], help=f"of {', '.join(RECIPES)}")
    parser.add_argument("--out", type=Path, default=Path("build/saes"), help="checkpoints and finished autoencoders")
    parser.add_argument("--text", type=Path, default=Path("build/smollm2_text"))
    parser.add_argument("--export", type=Path, help="copy what is finished here")
    args = parser.parse_args()
    if unknown := set(args.names) - set(RECIPES):
        parser.error(f"there is no recipe {', '.join(sorted(unknown))}")
    for name in args.names or ([] if args.export else RECIPES):
        model_name, hook_name = name.split("/")[0], RECIPES[name][0]
        model = load_model(model_name, device="cpu")
        sae = train_sae(model, hook_name, training_tokens(model_name, args.text), RECIPES[name][1],
                        folder=args.out / "runs" / name)
        sae.save(args.out / name)
        report = evaluate_sae(model, sae, sample_text(model, n=64, seed=5), resamples=0)
        line = {each: round(getattr(report, each), 4) for each in
                ("reconstruction_score", "l0", "explained_variance", "kl", "delta_ce", "dead_fraction")}
        print(name, json.dumps(line), flush=True)
    if args.export:
        export(args.out, args.text, args.export)


def to_16_bits(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """float32 numbers rounded to 16 significant bits, an error of at most 2⁻¹⁶; their last byte is zero."""
    return ((x.view(torch.int32) + 0x80) & ~0xFF).view(torch.float32)


def export(out: Path, text: Path, target: Path) -> None:
    """Copy the finished autoencoders, and SmolLM2's text for evaluation.

    SmolLM2's is by far the largest. Its decoder gets 16 significant bits: the wheel packs it in 0.9 MB less.
    """
    for name in RECIPES:
        if (out / name).exists():
            sae = SparseAutoencoder.load(out / name)
            if name.startswith("smollm2"):
                sae.W_dec.data = to_16_bits(sae.W_dec)
            sae.save(target / name)
    if (first := text / "0000.npy").exists():
        (target / "smollm2-135m").mkdir(parents=True, exist_ok=True)
        tokens = torch.from_numpy(np.load(first).astype(np.int32))
        save_file({"tokens": tokens}, target / "smollm2-135m" / "text.safetensors")


if __name__ == "__main__":
    main()

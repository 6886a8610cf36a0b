"""Train transcoders: those that the course ships, one for each MLP of `tiny`, or of SmolLM2. A run resumes if killed.

    python training/train_transcoders.py                            # all four: a quarter of an hour on one busy core
    python training/train_transcoders.py tiny/0 tiny/3              # some
    python training/train_transcoders.py --report                   # measure those that are finished, train none
    python training/train_transcoders.py --export course_utils/weights/transcoders
    python training/train_transcoders.py smollm2-135m/15            # of SmolLM2, any layer from 0 to 29; none ships

They learn from what the model writes, `tiny` stories, SmolLM2 its own text (make that first, with
training/smollm2_text.py), and from random tokens twice.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from train_saes import training_tokens

from course_utils.language import stream
from course_utils.metrics import delta_cross_entropy, explained_variance, kl_divergence
from course_utils.models import load_model
from course_utils.passes import all_but_first
from course_utils.repeated_tokens import generate_repeated_tokens
from course_utils.sae_training import TrainingConfig
from course_utils.text import sample_text
from course_utils.transcoders import Transcoder, mlp_inputs_and_outputs, replaced_logits, train_transcoder

STORY_ROWS, REPEATED_ROWS = 1500, 500           # of 127 tokens: a quarter of a million positions
SHIPPED = tuple(f"tiny/{layer}" for layer in range(4))
RECIPES = {  # model: how to train
    "tiny": TrainingConfig(d_sae=512, kind="topk", k=20, steps=1500, batch=1024, lr=3e-3),
    "smollm2-135m": TrainingConfig(d_sae=2304, kind="topk", k=48, steps=3000, batch=1024, lr=1e-3),
}


def texts(model_name: str, model, written: Path) -> Tensor:
    """What the model reads while it is watched, [n, 127]: its own text, and random tokens twice."""
    own = (torch.tensor(list(islice(stream(2002, 128), STORY_ROWS))) if model_name == "tiny"
           else training_tokens(model_name, written)[:STORY_ROWS])
    return torch.cat([own[:, :127], generate_repeated_tokens(model, 63, REPEATED_ROWS, seed=2002).cpu()])


class Mean(torch.nn.Module):
    """Writes the same whatever it reads."""

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.mean = mean

    def forward(self, x: Tensor) -> Tensor:
        return self.mean.to(x).expand_as(x)


@torch.no_grad()
def report(model, transcoders: dict[int, Transcoder]) -> list[dict]:
    """How good they are on text that they have not learned from.

    One line for each layer alone and one for all; below them, as a control, all MLPs at their means over the text.
    """
    rows = 64 if model.cfg.d_vocab < 5000 else 8                                    # the logits fill the memory
    held_out = {"text": sample_text(model, n=rows, seed=5)[:, :127],
                "repeats": generate_repeated_tokens(model, 63, rows, seed=5).to(model.cfg.device)}
    lines = []
    for name, tokens in held_out.items():
        clean, counted = model(tokens), all_but_first(tokens)
        for layers in [*([layer] for layer in transcoders), list(transcoders)]:
            patched = replaced_logits(model, {layer: transcoders[layer] for layer in layers}, tokens)
            line = {"text": name, "layers": layers,
                    "delta_ce": delta_cross_entropy(clean, patched, tokens)[:, 1:].mean(),
                    "kl": kl_divergence(clean, patched)[:, 1:].mean()}           # in nats, but after BOS
            if len(layers) == 1:
                x, y = mlp_inputs_and_outputs(model, layers[0], tokens, counted)
                features = transcoders[layers[0]].encode(x)
                line |= {"explained_variance": explained_variance(y, transcoders[layers[0]].decode(features, x)),
                         "l0": (features != 0).sum(1).float().mean(), "dead": (features == 0).all(0).float().mean()}
            lines.append({key: value if key in ("text", "layers") else round(float(value), 4)
                          for key, value in line.items()})
        means = {layer: Mean(mlp_inputs_and_outputs(model, layer, tokens, counted)[1].mean(0)) for layer in transcoders}
        patched = replaced_logits(model, means, tokens)
        lines.append({"text": name, "means": list(means),
                      "delta_ce": round(float(delta_cross_entropy(clean, patched, tokens)[:, 1:].mean()), 4),
                      "kl": round(float(kl_divergence(clean, patched)[:, 1:].mean()), 4)})
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=[], help=f"model/layer, the model of {', '.join(RECIPES)}; else "
                                                             f"{', '.join(SHIPPED)}")
    parser.add_argument("--skip", action="store_true", help="with a linear path from what is read; none that ships has")
    parser.add_argument("--out", type=Path, default=Path("build/transcoders"), help="checkpoints, and what is finished")
    parser.add_argument("--text", type=Path, default=Path("build/smollm2_text"))
    parser.add_argument("--steps", type=int, help="fewer steps than the recipe, to try it")
    parser.add_argument("--report", action="store_true", help="train none, measure those that are finished")
    parser.add_argument("--export", type=Path, help="copy those of tiny that are finished here")
    args = parser.parse_args()
    if unknown := [name for name in args.names
                   if not (name.partition("/")[0] in RECIPES and name.partition("/")[2].isdigit())]:
        parser.error(f"there is no recipe {', '.join(unknown)}")
    for name in args.names or ([] if args.export or args.report else SHIPPED):
        model_name, _, layer = name.partition("/")
        model = load_model(model_name, device="cpu")
        tokens, recipe = texts(model_name, model, args.text), RECIPES[model_name]
        transcoder = train_transcoder(
            model, int(layer), tokens, replace(recipe, steps=args.steps or recipe.steps), skip=args.skip,
            folder=args.out / "runs" / name, mask=all_but_first(tokens))
        transcoder.save(args.out / name)
    for model_name in RECIPES:
        layers = sorted(int(file.parent.name) for file in args.out.glob(f"{model_name}/*/cfg.json"))
        finished = {layer: Transcoder.load(args.out / model_name / str(layer)) for layer in layers}
        if args.export and model_name == "tiny":
            for layer, transcoder in finished.items():
                transcoder.save(args.export / "tiny" / str(layer))
        elif finished and not args.export:
            for line in report(load_model(model_name, device="cpu"), finished):
                print(model_name, json.dumps(line), flush=True)


if __name__ == "__main__":
    main()

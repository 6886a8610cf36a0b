"""Train the transcoders that the course ships, one for each MLP of `tiny`. Each run resumes if it is killed.

    python training/train_transcoders.py                            # all four: a quarter of an hour on one busy core
    python training/train_transcoders.py tiny/0 tiny/3              # some
    python training/train_transcoders.py --report                   # measure those that are finished, train none
    python training/train_transcoders.py --export course_utils/weights/transcoders

They learn from what `tiny` learned from: stories, and random tokens twice.
"""

from __future__ import annotations

import argparse
import json
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from course_utils.language import stream
from course_utils.metrics import delta_cross_entropy, explained_variance, kl_divergence
from course_utils.models import load_model
from course_utils.passes import all_but_first
from course_utils.repeated_tokens import generate_repeated_tokens
from course_utils.sae_training import TrainingConfig
from course_utils.text import sample_text
from course_utils.transcoders import Transcoder, mlp_inputs_and_outputs, replaced_logits, train_transcoder

STORY_ROWS, REPEATED_ROWS = 1500, 500           # of 127 tokens: a quarter of a million positions
RECIPE = TrainingConfig(d_sae=512, kind="topk", k=20, steps=1500, batch=1024, lr=3e-3)
NAMES = tuple(f"tiny/{layer}" for layer in range(4))


def texts(model, story_rows: int, repeated_rows: int, seed: int) -> dict[str, Tensor]:
    """Stories and random tokens twice, each [n, 127]."""
    stories = torch.tensor(list(islice(stream(seed, 128), story_rows)))[:, :127]
    return {"stories": stories, "repeats": generate_repeated_tokens(model, 63, repeated_rows, seed=seed).cpu()}


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
    held_out = {"stories": sample_text(model, n=64, seed=5)[:, :127],
                "repeats": generate_repeated_tokens(model, 63, 64, seed=5).to(model.cfg.device)}
    lines = []
    for name, tokens in held_out.items():
        clean = model(tokens)
        for layers in [*([layer] for layer in transcoders), list(transcoders)]:
            patched = replaced_logits(model, {layer: transcoders[layer] for layer in layers}, tokens)
            line = {"text": name, "layers": layers,
                    "delta_ce": delta_cross_entropy(clean, patched, tokens)[:, 1:].mean(),
                    "kl": kl_divergence(clean, patched)[:, 1:].mean()}           # in nats, but after BOS
            if len(layers) == 1:
                x, y = mlp_inputs_and_outputs(model, layers[0], tokens)
                features = transcoders[layers[0]].encode(x)
                line |= {"explained_variance": explained_variance(y, transcoders[layers[0]].decode(features, x)),
                         "l0": (features != 0).sum(1).float().mean(), "dead": (features == 0).all(0).float().mean()}
            lines.append({key: value if key in ("text", "layers") else round(float(value), 4)
                          for key, value in line.items()})
        means = {layer: Mean(mlp_inputs_and_outputs(model, layer, tokens)[1].mean(0)) for layer in transcoders}
        patched = replaced_logits(model, means, tokens)
        lines.append({"text": name, "means": list(means),
                      "delta_ce": round(float(delta_cross_entropy(clean, patched, tokens)[:, 1:].mean()), 4),
                      "kl": round(float(kl_divergence(clean, patched)[:, 1:].mean()), 4)})
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=[], help=f"of {', '.join(NAMES)}")
    parser.add_argument("--skip", action="store_true", help="with a linear path from what is read; none that ships has")
    parser.add_argument("--out", type=Path, default=Path("build/transcoders"), help="checkpoints, and what is finished")
    parser.add_argument("--report", action="store_true", help="train none, measure those that are finished")
    parser.add_argument("--export", type=Path, help="copy what is finished here")
    args = parser.parse_args()
    if unknown := set(args.names) - set(NAMES):
        parser.error(f"there is no recipe {', '.join(sorted(unknown))}")
    model = load_model("tiny", device="cpu")
    for name in args.names or ([] if args.export or args.report else NAMES):
        tokens = torch.cat(list(texts(model, STORY_ROWS, REPEATED_ROWS, seed=2002).values()))
        transcoder = train_transcoder(model, int(name.partition("/")[2]), tokens, RECIPE, skip=args.skip,
                                      folder=args.out / "runs" / name, mask=all_but_first(tokens))
        transcoder.save(args.out / name)
    finished = {int(name.partition("/")[2]): Transcoder.load(args.out / name)
                for name in NAMES if (args.out / name).exists()}
    if args.export:
        for layer, transcoder in finished.items():
            transcoder.save(args.export / "tiny" / str(layer))
        return
    for line in report(model, finished):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()

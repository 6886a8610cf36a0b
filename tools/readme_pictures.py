"""Draw six of the README's ten pictures from the shipped model: python tools/readme_pictures.py

The others are outputs of lessons, saved from a browser: facts.png and dashboard.png of lesson 06, circuit.png of 10,
attribution_graph.png of 12.
"""

from __future__ import annotations

from pathlib import Path

import torch

from course_utils.ablation import head_ablation_scores
from course_utils.baselines import noise_floor
from course_utils.heads import best_head, induction_scores, is_pattern, previous_token_scores, top_heads
from course_utils.models import checkpoint_steps, load_model
from course_utils.path_patching import path_patching
from course_utils.repeated_tokens import generate_repeated_tokens, repeated_token_report
from course_utils.sae_files import load_shipped_sae, shipped_saes
from course_utils.splicing import spliced
from course_utils.text import sample_text
from course_utils.viz import plot_attention, plot_bars, plot_by_position, plot_head_scores

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "images"


def induction_head():
    """The best induction head of `tiny` on ten random words, twice."""
    model = load_model("tiny")
    layer, head = best_head(induction_scores(model, generate_repeated_tokens(model, 50, 10, seed=0), 50))
    tokens = generate_repeated_tokens(model, 10, seed=3)
    words = [model.tokenizer.decode([token]) for token in tokens[0].tolist()]
    _, cache = model.run_with_cache(tokens, names_filter=is_pattern)
    pattern = cache[f"blocks.{layer}.attn.hook_pattern"][0, head]
    return plot_attention(pattern, words, f"induction head {layer}.{head} on ten random words, twice")


def formation():
    """The best score of each kind at every checkpoint."""
    rows = []
    for step in checkpoint_steps("tiny"):
        model = load_model("tiny", step=step)
        tokens = generate_repeated_tokens(model, 50, 10, seed=0)
        rows.append(
            [
                induction_scores(model, tokens, 50).max().item(),
                previous_token_scores(model, tokens).max().item(),
            ]
        )
    induction, previous = torch.tensor(rows).T
    return plot_by_position(
        {"best induction score": induction, "best previous-token score": previous},
        "mean attention probability",
        x=torch.tensor(checkpoint_steps("tiny")),
        xlabel="training step",
        title="Two kinds of head form",
    )


def paths():
    """Through what do the two heads of layer 0 act that the model cannot do without?"""
    model = load_model("tiny")
    tokens = generate_repeated_tokens(model, 50, 10, seed=0)
    strong = [head for head, score in top_heads(induction_scores(model, tokens, 50), 9) if score > 0.3]
    _, cache = model.run_with_cache(tokens[:2], names_filter=["blocks.0.attn.hook_pattern"])
    own = int(cache["blocks.0.attn.hook_pattern"].diagonal(0, -2, -1).mean(dim=(0, 2)).argmax())
    senders = {"previous-token head": best_head(previous_token_scores(model, tokens)), "own-position head": (0, own)}
    shares = {f"through {words}": {
        f"{label} {layer}.{head}": path_patching(model, tokens, 50, (layer, head), strong, into=words[0]).share
        for label, (layer, head) in senders.items()} for words in ("keys", "queries", "values")}
    return plot_bars(shares, "share of the head's effect", title="What the induction heads read, by path patching")


def ablations():
    """The heads that the model cannot do without on repeated tokens."""
    model = load_model("tiny")
    tokens = generate_repeated_tokens(model, 50, 10, seed=0)
    scores = head_ablation_scores(model, tokens, "mean", seq_len=50)
    return plot_head_scores(scores, "Silence one head", vmax=None, unit="change of the loss (nats)", diverging=True)


def in_the_way():
    """Repeated tokens, with the residual stream passing through an autoencoder of layer 1, 2 or 3."""
    model, curves = load_model("tiny"), {}
    curves["clean"] = repeated_token_report(model).log_probs.mean(0)
    for name in ("topk-1", "topk-2", "topk-3"):
        with spliced(model, load_shipped_sae("tiny", name)):
            curves[f"through {name}"] = repeated_token_report(model).log_probs.mean(0)
    return plot_by_position(curves, "log-probability (nats)", boundary=50, title="An autoencoder in the circuit's way")


def noise():
    """The harm of each shipped autoencoder's error, over that of a random error of the same length."""
    model = load_model("tiny")
    ratios: dict[str, dict[str, float]] = {"in any direction": {}, "varying as activations do": {}}
    for name in shipped_saes("tiny"):
        floor = noise_floor(model, load_shipped_sae("tiny", name), sample_text(model, 32, seed=5),
                            ("epsilon_random", "covariance_random"))
        for label, ratio in zip(ratios, list(floor.ratio.values())[1:]):
            ratios[label][name] = ratio
    return plot_bars(ratios, "KL of the reconstruction / KL of a random error as long", title="Worse than noise?")


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for draw in (induction_head, formation, ablations, paths, in_the_way, noise):
        draw().savefig(FOLDER / f"{draw.__name__}.png", dpi=90)
        print("wrote", FOLDER / f"{draw.__name__}.png")

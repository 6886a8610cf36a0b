"""Edge scores held against two libraries, auto-circuit (Miller et al., 2024) and EAP-IG (Hanna et al., 2024): `tiny`.

    PY=.venv-peers/bin/python
    $PY -m pip install --no-deps --target FOLDER auto-circuit==1.0.1 git+https://github.com/hannamw/EAP-IG@795f560
    $PY -m pip install --no-deps --target FOLDER attrs blobfile lxml ordered-set pycryptodomex word2word==1.0.0
    $PY -m benchmarks.edge_peers FOLDER

Both need TransformerLens before 4, whose HookedTransformer they read, and so the second environment (make peers); the
second line holds what auto-circuit imports and that environment lacks. (PyPI's EAP is about asset prices.) Where one of
them is not in the folder, the other is compared alone. Status 1 if something disagrees.

EAP-IG takes its gradients where the pieces of the way from the corrupted text begin, `attribution_scores` at their
middles. "50 gradients": each at its own places, to a hundredth; "50, its places": the course's slopes taken at those of
the library, which must agree like all the rest. "by position": one gradient, each edge at each position by itself.

Columns: the largest score; the largest difference of scores; Spearman's correlation of the edges' sizes, and the same
of the hundred largest; how many of these hundred are among the library's. The last edges tie at nearly nothing, and so
the first of these is not quite 1.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from course_utils.edges import _slopes, attribution_scores, exact_scores, graph_of, run_edges
from course_utils.models import _source, load_model
from course_utils.pairs import Pairs, sex_pairs

N_PAIRS, STEPS, LARGEST = 4, 50, 100
ITS_PLACES, BY_POSITION = f"{STEPS}, its places", "by position"
TOLERANCE, OTHER_PLACES = 1e-5, 1e-2      # as shares of the largest score
Scores = Float[Tensor, "receiver sender *pos"]


def hooked(model):
    """The same weights as a HookedTransformer, with the inputs that both libraries hook."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights

    original, cfg = _source("tiny").load(None)[0], model.cfg                    # before any weight is folded
    config = HookedTransformerConfig(
        n_layers=cfg.n_layers, d_model=cfg.d_model, n_ctx=cfg.n_ctx, d_head=cfg.d_head, n_heads=cfg.n_heads,
        d_mlp=original.config.n_inner or 4 * cfg.d_model, d_vocab=cfg.d_vocab, act_fn="gelu_new",
        normalization_type="LN", eps=original.config.layer_norm_epsilon, device="cpu")
    other = HookedTransformer(config)
    other.load_state_dict(convert_gpt2_weights(original, config), strict=False)
    other.set_use_attn_result(True)
    other.set_use_split_qkv_input(True)
    other.set_use_hook_mlp_in(True)
    return other


def of_auto_circuit(model, pairs: Pairs) -> dict[str, Scores]:
    """Exact patching; edge attribution patching: the gradient of the mask that mixes both texts, at 0."""
    import types

    import transformer_lens
    from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache as Cache

    transformer_lens.HookedTransformerKeyValueCache = Cache                     # its name and place in version 2
    sys.modules["transformer_lens.past_key_value_caching"] = types.SimpleNamespace(HookedTransformerKeyValueCache=Cache)
    from auto_circuit.data import PromptDataLoader, PromptDataset
    from auto_circuit.prune_algos.mask_gradient import mask_gradient_prune_scores
    from auto_circuit.utils.ablation_activations import src_ablations
    from auto_circuit.utils.graph_utils import patch_mode, patchable_model

    data = PromptDataset(pairs.clean, pairs.corrupted, list(pairs.right[:, None]), list(pairs.wrong[:, None]))
    loader = PromptDataLoader(data, seq_len=pairs.clean.shape[1], diverge_idx=0, batch_size=len(pairs))
    patchable, by_position = (
        patchable_model(hooked(model), factorized=True, slice_output="last_seq", separate_qkv=True, seq_len=seq_len)
        for seq_len in (None, pairs.clean.shape[1]))
    exact = patchable.new_prune_scores()
    with torch.no_grad():
        before, corrupted = difference(patchable(pairs.clean), pairs), src_ablations(patchable, pairs.corrupted)
        for edge in patchable.edges:
            with patch_mode(patchable, corrupted, [edge]):
                change = difference(patchable(pairs.clean), pairs) - before
            exact[edge.dest.module_name][edge.patch_idx] = change.mean()

    def gradients(patchable) -> dict[str, Tensor]:
        found = mask_gradient_prune_scores(patchable, loader, None, "logit", "avg_diff", mask_val=0.0)
        return {name: -each for name, each in found.items()}                    # its loss is minus the difference

    def ours(found: dict[str, Tensor], *positions: int) -> Scores:
        scores = torch.zeros(*graph_of(model).edges.shape, *positions)
        for row, receiver in zip(scores, graph_of(model).receivers):
            name = {"mlp": f"blocks.{receiver.layer}.hook_mlp_in",
                    "logits": f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"}.get(
                receiver.part, f"blocks.{receiver.layer}.hook_{receiver.part}_input")
            own = found[name][..., receiver.head, :] if receiver.part in "qkv" else found[name]
            row[:receiver.senders] = own.movedim(-1, 0)                         # [sender *pos]
        return scores

    return {"exact": ours(exact), "one gradient": ours(gradients(patchable)),
            BY_POSITION: ours(gradients(by_position), pairs.clean.shape[1])}


def of_eap(model, pairs: Pairs) -> dict[str, Scores]:
    """Exact patching, one gradient, and integrated gradients."""
    import eap.attribute
    import eap.evaluate
    from eap.graph import Graph

    def as_given(_, tokens, max_length=None):
        return tokens, torch.ones_like(tokens), None, tokens.shape[1]

    eap.attribute.tokenize_plus = eap.evaluate.tokenize_plus = as_given         # tokens in place of strings
    zeros = torch.zeros
    torch.zeros = lambda *args, **kwargs: zeros(*args, **{k: v for k, v in kwargs.items() if k != "device"})  # "cuda"
    other, loader = hooked(model), [(pairs.clean, pairs.corrupted, torch.arange(len(pairs)))]

    def metric(logits, clean_logits, lengths, rows):
        return difference(logits, pairs).sum()

    def ours(scores) -> Scores:
        """Its matrix [sender, layer by layer: q of each head, k, v, MLP; logits]: the course's order, transposed."""
        return scores.detach().float().cpu().T

    graph, eap_ig = Graph.from_model(other), eap.attribute.get_scores_eap_ig
    slow = ours(eap_ig(other, graph, loader, metric, STEPS, quiet=True))
    return {
        "exact": ours(eap.attribute.get_scores_exact(
            other, Graph.from_model(other), loader, lambda *given: metric(*given)[None] / len(pairs), quiet=True)),
        "one gradient": ours(eap.attribute.get_scores_eap(other, graph, loader, metric, quiet=True)),
        f"{STEPS} gradients": slow, ITS_PLACES: slow}


def course(model, pairs: Pairs) -> dict[str, Scores]:
    def metric(logits: Float[Tensor, "batch pos vocab"]) -> Float[Tensor, "batch"]:
        return difference(logits, pairs)

    texts = pairs.clean, pairs.corrupted
    own, other = (run_edges(model, tokens)[1].detach() for tokens in texts)
    its = [_slopes(model, pairs.clean, other[0] + step / STEPS * (own[0] - other[0]), metric) for step in range(STEPS)]
    return {"exact": exact_scores(model, *texts, metric).mean(-1),
            "one gradient": attribution_scores(model, *texts, metric).mean(-1),
            BY_POSITION: attribution_scores(model, *texts, metric, by_position=True).mean(-1),
            f"{STEPS} gradients": attribution_scores(model, *texts, metric, steps=STEPS).mean(-1),
            ITS_PLACES: torch.einsum("rbpd,sbpd->rs", torch.stack(its).mean(0), other - own) / len(pairs)}


def difference(logits: Float[Tensor, "batch *pos vocab"], pairs: Pairs) -> Float[Tensor, "batch"]:
    """Of the right answer's logit and the wrong one's, at the last position if there are several."""
    last, rows = logits[:, -1] if logits.ndim == 3 else logits, torch.arange(len(pairs))
    return last[rows, pairs.right] - last[rows, pairs.wrong]


def rank_correlation(a: Float[Tensor, "edge"], b: Float[Tensor, "edge"]) -> float:
    """Spearman's."""
    return torch.corrcoef(torch.stack([each.argsort().argsort().double() for each in (a, b)]))[0, 1].item()


def compared(ours: Float[Tensor, "edge"], theirs: Float[Tensor, "edge"]) -> tuple[float, float, float, float, int]:
    """What the columns say."""
    sizes, their_sizes = ours.abs(), theirs.abs()
    top, their_top = (each.topk(LARGEST).indices for each in (sizes, their_sizes))
    return (sizes.max().item(), (ours - theirs).abs().max().item(), rank_correlation(sizes, their_sizes),
            rank_correlation(sizes[top], their_sizes[top]), len({*top.tolist()} & {*their_top.tolist()}))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the libraries are installed")
    sys.path.append(str(parser.parse_args(arguments).folder))                   # behind the environment's own
    model = load_model("tiny")
    pairs, edges = sex_pairs(model, N_PAIRS), graph_of(model).edges
    own, agree = course(model, pairs), True
    libraries: list[tuple[str, str, Callable]] = [
        ("auto-circuit", "auto_circuit", of_auto_circuit), ("EAP-IG", "eap", of_eap)]
    present = [(name, scores) for name, module, scores in libraries if importlib.util.find_spec(module)]
    if not present:
        parser.error("neither auto_circuit nor eap is in this folder: see --help")
    print(f"{int(edges.sum())} edges, {N_PAIRS} pairs\n{'library':14}{'scores':16}{'largest':>9}"
          f"{'difference':>12}{'Spearman':>11}{'of 100':>11}{'in common':>11}")
    for name, scores in present:
        for kind, theirs in scores(model, pairs).items():
            largest, away, all_ranks, top_ranks, common = compared(own[kind][edges].flatten(), theirs[edges].flatten())
            fine = away < (OTHER_PLACES if kind == f"{STEPS} gradients" else TOLERANCE) * largest
            agree &= fine
            print(f"{name:14}{kind:16}{largest:9.4f}{away:12.1e}{all_ranks:11.6f}{top_ranks:11.6f}{common:11}"
                  f"{'' if fine else '  DISAGREES'}", flush=True)
    print("Everything agrees." if agree else "Something disagrees.")
    sys.exit(not agree)


if __name__ == "__main__":
    main()

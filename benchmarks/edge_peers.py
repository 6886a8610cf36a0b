"""Edge scores held against two libraries, auto-circuit (Miller et al., 2024) and EAP-IG (Hanna et al., 2024): `tiny`.

    .venv-peers/bin/python -m benchmarks.edge_peers --auto-circuit FOLDER --eap FOLDER

FOLDER is the library's source, the folder that holds the package: `pip download --no-deps auto-circuit` and unpack it;
https://github.com/hannamw/EAP-IG, folder src. Both need TransformerLens before 4, whose HookedTransformer they read,
and so the second environment (make peers); auto-circuit also imports attrs, ordered-set, blobfile and word2word.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from course_utils.edges import attribution_scores, exact_scores, graph_of
from course_utils.models import _source, load_model
from course_utils.pairs import Pairs, sex_pairs

N_PAIRS, STEPS = 4, 50
Scores = Float[Tensor, "receiver sender"]


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
    """Edge attribution patching: the gradient of the mask that mixes both texts, at 0."""
    import types

    import transformer_lens
    from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache as Cache

    transformer_lens.HookedTransformerKeyValueCache = Cache                     # its name and place in version 2
    sys.modules["transformer_lens.past_key_value_caching"] = types.SimpleNamespace(HookedTransformerKeyValueCache=Cache)
    from auto_circuit.data import PromptDataLoader, PromptDataset
    from auto_circuit.prune_algos.mask_gradient import mask_gradient_prune_scores
    from auto_circuit.utils.graph_utils import patchable_model

    data = PromptDataset(pairs.clean, pairs.corrupted, list(pairs.right[:, None]), list(pairs.wrong[:, None]))
    loader = PromptDataLoader(data, seq_len=pairs.clean.shape[1], diverge_idx=0, batch_size=len(pairs))
    patchable = patchable_model(hooked(model), factorized=True, slice_output="last_seq", separate_qkv=True)
    found = mask_gradient_prune_scores(patchable, loader, None, "logit", "avg_diff", mask_val=0.0)
    scores = torch.zeros(graph_of(model).edges.shape)
    for row, receiver in enumerate(graph_of(model).receivers):
        name = {"mlp": f"blocks.{receiver.layer}.hook_mlp_in",
                "logits": f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"}.get(
            receiver.part, f"blocks.{receiver.layer}.hook_{receiver.part}_input")
        values = found[name][receiver.head] if receiver.part in "qkv" else found[name]
        scores[row, : receiver.senders] = -values                               # its loss is minus the difference
    return {"one gradient": scores}


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

    def difference(logits, clean_logits, lengths, rows):
        last = logits[:, -1]
        return (last[rows, pairs.right] - last[rows, pairs.wrong]).sum()

    def ours(scores) -> Scores:
        """Its matrix [sender, layer by layer: q of each head, k, v, MLP; logits]: the course's order, transposed."""
        return scores.detach().float().cpu().T

    graph = Graph.from_model(other)
    return {
        "one gradient": ours(eap.attribute.get_scores_eap(other, graph, loader, difference, quiet=True)),
        f"{STEPS} gradients": ours(
            eap.attribute.get_scores_eap_ig(other, graph, loader, difference, STEPS, quiet=True)),
        "exact": ours(eap.attribute.get_scores_exact(
            other, Graph.from_model(other), loader,
            lambda *given: difference(*given)[None] / len(pairs), quiet=True)),
    }


def course(model, pairs: Pairs) -> dict[str, Scores]:
    rows = torch.arange(len(pairs))

    def metric(logits: Float[Tensor, "batch pos vocab"]) -> Float[Tensor, "batch"]:
        return logits[rows, -1, pairs.right] - logits[rows, -1, pairs.wrong]

    texts = pairs.clean, pairs.corrupted
    return {"exact": exact_scores(model, *texts, metric).mean(-1),
            "one gradient": attribution_scores(model, *texts, metric).mean(-1),
            f"{STEPS} gradients": attribution_scores(model, *texts, metric, steps=STEPS).mean(-1)}


def ranks(values: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    return values.argsort().argsort().double()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--auto-circuit", type=Path)
    parser.add_argument("--eap", type=Path)
    options = parser.parse_args(arguments)
    model = load_model("tiny")
    pairs, edges = sex_pairs(model, N_PAIRS), graph_of(model).edges
    own = course(model, pairs)
    libraries: list[tuple[str, Path | None, Callable]] = [
        ("auto-circuit", options.auto_circuit, of_auto_circuit), ("EAP-IG", options.eap, of_eap)]
    print(f"{'library':14}{'scores':16}{'largest':>10}{'largest difference':>20}{'rank correlation':>18}")
    for name, folder, scores in libraries:
        if folder is None:
            continue
        sys.path.insert(0, str(folder))
        for kind, theirs in scores(model, pairs).items():
            a, b = own[kind][edges], theirs[edges]
            correlation = torch.corrcoef(torch.stack([ranks(a.abs()), ranks(b.abs())]))[0, 1]
            print(f"{name:14}{kind:16}{float(a.abs().max()):10.4f}{float((a - b).abs().max()):20.1e}"
                  f"{float(correlation):18.6f}")


if __name__ == "__main__":
    main()

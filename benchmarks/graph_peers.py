"""Attribution graphs held against circuit-tracer 0.5.0 (Hanna et al., 2025), on `tiny`.

    .venv-peers/bin/python -m benchmarks.graph_peers --circuit-tracer FOLDER

FOLDER holds the package: `pip download --no-deps circuit-tracer==0.5.0` and unpack it. No environment can have both by
pip, for it asks for transformers before 4.58, and TransformerLens 3.9 for 5.9 or later; its backend for TransformerLens
runs all the same in the second environment (make peers). nnsight is not needed. Status 1 if something disagrees.

In its graphs an embedding node is the token's embedding alone; what a learned position adds is a constant, like a bias.
In the course's it is what enters block 0, token and position. "as it is": its graphs, unchanged; all edges but those of
embeddings must agree, the rest is shown. "+ position": its embedding nodes write both; all must agree.

Its TopK, which its loaders never use, keeps numbers below 0 among the k largest; the shipped transcoders learned with
them at 0, and so a ReLU follows it here.

The shipped transcoders are topk. Random ones, which explain little, try what those leave out: jumprelu, relu, and a
linear path from what is read to what is written. Answers: the most probable tokens, as each side chooses them, or the
difference of two.

Columns: active features; the largest difference of edges, as a share of the largest edge: of all, and of those that do
not come from embeddings; the largest difference of influence; both scores, the course's and its; nodes and edges that
pruning keeps, and how many are kept on one side alone.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from benchmarks.edge_peers import hooked
from course_utils.attribution_graphs import Answer, AttributionGraph, Node, attribution_graph, pruned
from course_utils.models import load_model
from course_utils.pairs import sex_pairs
from course_utils.transcoders import Transcoder, load_shipped_transcoder

N_PROMPTS, TOLERANCE, SHARES = 3, 1e-3, (0.8, 0.98)
Transcoders = dict[int, Transcoder]


@dataclass(frozen=True)
class Peer:
    """A graph of the library's, its nodes named as the course names them; `edges` [target, source]."""

    nodes: list[Node]
    answers: list[Answer]
    edges: Float[Tensor, "node node"]
    influence: Float[Tensor, "node"]
    scores: tuple[float, float]
    kept: Bool[Tensor, "node"]
    kept_edges: Bool[Tensor, "node node"]


@dataclass(frozen=True)
class Comparison:
    """What the table's columns say. `same`: the same nodes and answers in both graphs."""

    same: bool
    features: int
    edges: float
    other_edges: float
    influence: float
    scores: tuple[float, float, float, float]
    kept: tuple[int, int]
    kept_edges: tuple[int, int]

    def agrees(self, positions: bool) -> bool:
        """Whether everything does; if its embeddings lack positions, whether all edges from other nodes do."""
        ours, its = self.scores[:2], self.scores[2:]
        differences = [self.other_edges, *(
            (self.edges, self.influence, *(abs(a - b) for a, b in zip(ours, its))) if positions else ())]
        alone = self.kept[1] + self.kept_edges[1] if positions else 0
        return self.same and max(differences) < TOLERANCE and alone == 0


# --- the library's side -----------------------------------------------------------------------------------------------


def replacement_model(model, transcoders: Transcoders):
    """The library's replacement model with the course's weights."""
    import huggingface_hub.constants

    huggingface_hub.constants.HF_HUB_ENABLE_HF_TRANSFER = False                 # imported, and gone since version 1
    from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel
    from circuit_tracer.transcoder import SingleLayerTranscoder, TranscoderSet
    from circuit_tracer.transcoder.activation_functions import JumpReLU, TopK

    each = {}
    for layer, ours in transcoders.items():
        act = {"relu": nn.ReLU, "topk": lambda: nn.Sequential(TopK(ours.k), nn.ReLU()),     # if positive
               "jumprelu": lambda: JumpReLU(ours.threshold.data)}[ours.kind]()
        each[layer] = SingleLayerTranscoder(ours.d_in, ours.d_sae, act, layer, ours.skip, dtype=torch.float32)
        weights = {"W_enc": ours.W_enc.T, "b_enc": ours.b_enc, "W_dec": ours.W_dec, "b_dec": ours.b_dec}
        for name, value in (weights | ({"W_skip": ours.W_skip} if ours.skip else {})).items():
            getattr(each[layer], name).data.copy_(value)
    plain = hooked(model)                                       # weights of norms not folded: read before them
    other = TransformerLensReplacementModel(plain.cfg)
    other.load_state_dict(plain.state_dict())
    other._configure_replacement_model(TranscoderSet(each, "ln2.hook_normalized", "hook_mlp_out"))
    for switch in (other.set_use_attn_result, other.set_use_split_qkv_input, other.set_use_hook_mlp_in):
        switch(False)                                           # of no use here, and slow
    other.tokenizer = model.tokenizer
    return other


def add_positions(other) -> None:
    """From now on its embedding nodes write token and position."""
    plain = other.setup_attribution

    def setup(tokens):
        context = plain(tokens)
        context.token_vectors = context.token_vectors + other.W_pos[: len(context.token_vectors)].detach()
        return context

    other.setup_attribution = setup


def its_graph(other, tokens: Int[Tensor, "pos"], pair: tuple[int, int] | None) -> Peer:
    """Graph, influence, scores and masks, by the library alone: of a difference, or of the tokens that it chooses."""
    from circuit_tracer.attribution.attribute import attribute
    from circuit_tracer.graph import compute_graph_scores, compute_node_influence, prune_graph

    targets = [(str(pair), 1.0, other.W_U[:, pair[0]] - other.W_U[:, pair[1]])] if pair else None
    found = attribute(tokens, other, attribution_targets=targets, batch_size=64)
    n_layers, n_answers, edges = other.cfg.n_layers, len(found.logit_targets), found.adjacency_matrix
    nodes = [Node("feature", *each) for each in found.active_features.tolist()]
    nodes += [Node("error", layer, at) for layer in range(n_layers) for at in range(len(tokens))]
    nodes += [Node("embedding", -1, at, token) for at, token in enumerate(found.input_tokens.tolist())]
    nodes += [Node("logit", n_layers, len(tokens) - 1, i) for i in range(n_answers)]
    weights = torch.cat([torch.zeros(len(nodes) - n_answers), found.logit_probabilities])
    kept = prune_graph(found, *SHARES)
    return Peer(nodes, [pair] if pair else found.logit_token_ids.tolist(), edges,
                compute_node_influence(edges, weights), compute_graph_scores(found), kept.node_mask, kept.edge_mask)


# --- both sides -------------------------------------------------------------------------------------------------------


def masks(graph: AttributionGraph) -> tuple[Bool[Tensor, "node"], Bool[Tensor, "node node"]]:
    """What `pruned` keeps of a graph."""
    small = pruned(graph, *SHARES)
    remain = set(small.nodes)
    kept = torch.tensor([node in remain for node in graph.nodes])
    kept_edges = torch.zeros_like(graph.edges, dtype=torch.bool)
    kept_edges[kept.nonzero(), kept.nonzero()[:, 0]] = small.edges != 0
    return kept, kept_edges


def compared(ours: AttributionGraph, its: Peer) -> Comparison:
    """The same nodes on both sides. It also counts errors at the first position, and sets them to 0: without edges."""
    place = {node: number for number, node in enumerate(its.nodes)}
    silent = torch.tensor([node.kind == "error" and node.position == 0 for node in its.nodes])
    same = set(its.nodes) == set(ours.nodes) | {its.nodes[i] for i in silent.nonzero()[:, 0]}
    here, there = (torch.tensor(each) for each in zip(*(
        (number, place[node]) for number, node in enumerate(ours.nodes) if node in place)))
    mine, theirs = ours.edges[here][:, here], its.edges[there][:, there]
    kept, kept_edges = masks(ours)
    difference = (mine - theirs).abs() / mine.abs().max()
    return Comparison(
        same=same and list(ours.answers) == its.answers and not (
            its.edges[silent].any() or its.edges[:, silent].any()),
        features=int(ours.of_kind("feature").sum()),
        edges=difference.max().item(), other_edges=difference[:, ~ours.of_kind("embedding")[here]].max().item(),
        influence=(ours.influence()[here] - its.influence[there]).abs().max().item(),
        scores=(*ours.scores(), *its.scores),
        kept=(int(kept.sum()), int((kept[here] != its.kept[there]).sum())),
        kept_edges=(int(kept_edges.sum()),
                    int((kept_edges[here][:, here] != its.kept_edges[there][:, there]).sum())))


def random_transcoders(model, kind: str) -> Transcoders:
    """Of each layer one with unit directions, a linear path, and some dozen features active; nothing learned."""
    found = {}
    for layer in range(model.cfg.n_layers):
        found[layer] = Transcoder(model.cfg.d_model, 2 * model.cfg.d_model, kind, skip=True, seed=layer)
        rng = torch.Generator().manual_seed(layer)
        for name, size in (("b_enc", 0.3), ("b_dec", 0.1), ("W_skip", 0.02)):
            weight = getattr(found[layer], name).data
            weight.copy_(size * torch.randn(weight.shape, generator=rng))
        found[layer].threshold.data.fill_(2.0) if kind == "jumprelu" else found[layer].b_enc.data.sub_(2.0)
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--circuit-tracer", type=Path, required=True)
    sys.path.insert(0, str(parser.parse_args(arguments).circuit_tracer))
    logging.disable(logging.WARNING)                                            # each graph's: no name to upload it by
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    warnings.filterwarnings("ignore", message="HookedTransformer is deprecated")
    model = load_model("tiny")
    pairs, agree = sex_pairs(model, N_PROMPTS), True
    shipped = {layer: load_shipped_transcoder("tiny", layer) for layer in range(model.cfg.n_layers)}
    given = [("shipped, topk", shipped, N_PROMPTS)]
    given += [(f"random, {kind}", random_transcoders(model, kind), 1) for kind in ("jumprelu", "relu")]
    print(f"{'transcoders':17}{'its nodes':11}{'prompt':6} {'answers':11}{'features':>8}{'edges':>8}{'others':>8}"
          f"{'influence':>11}{'replacement':>18}{'completeness':>18}{'kept nodes':>13}{'kept edges':>12}")
    for name, transcoders, n_prompts in given:
        other = replacement_model(model, transcoders)
        for positions in (False, True):
            if positions:
                add_positions(other)
            for row, kind in product(range(n_prompts), ("tokens", "difference")):
                tokens, pair = pairs.clean[row], (int(pairs.right[row]), int(pairs.wrong[row]))
                explained = pair if kind == "difference" else None
                found = compared(attribution_graph(model, transcoders, tokens, [explained] if explained else None),
                                 its_graph(other, tokens, explained))
                agree &= found.agrees(positions)
                print(f"{name:17}{'+ position' if positions else 'as it is':11}{row:6} {kind:11}{found.features:8}"
                      f"{found.edges:8.0e}{found.other_edges:8.0e}{found.influence:11.0e}"
                      f"{found.scores[0]:10.5f}{found.scores[2]:8.5f}{found.scores[1]:10.5f}{found.scores[3]:8.5f}"
                      f"{found.kept[0]:9},{found.kept[1]:3}{found.kept_edges[0]:8},{found.kept_edges[1]:3}"
                      f"{'' if found.agrees(positions) else '  DISAGREES'}", flush=True)
    print(f"Everything that must agree does, to {TOLERANCE:g}." if agree else "Something disagrees.")
    sys.exit(not agree)


if __name__ == "__main__":
    main()

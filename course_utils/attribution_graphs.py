"""Attribution graphs: which features of one prompt made which, down to the logits.

Replace each MLP by a transcoder and add what it misses as an *error*. On one prompt freeze what the rest of the model
does that is not linear: attention patterns and the scales of norms. What remains is linear between the features'
activations: each feature's pre-activation is a sum of what the embeddings, earlier features and errors wrote, and so is
each logit. A term of such a sum is an *edge*, the direct effect of its source; it is found by one backward pass for
each target, in which nothing flows through another feature.

What the graph holds fixed it does not explain: why heads attend where they do, and which features are active at all.

Sources: Ameisen et al., "Circuit tracing: revealing computational graphs in language models" (2025); the definitions of
influence, pruning and both scores are those of circuit-tracer (Hanna et al., 2025). One choice is not: an embedding
node writes what enters block 0; in circuit-tracer it writes the token alone, and a learned position is a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from course_utils.house import NotForThisModel
from course_utils.passes import CleanRun, centred, head_weights, mlp_out, output_factor, require_plain_blocks
from course_utils.transcoders import Transcoder, check_blocks, logits_with_mlps, mlp_in

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Answer = int | tuple[int, int]      # a token: its logit less the mean of all; two: the difference of their logits
AT_ONCE = 32                        # backward passes, or patched passes, that run together


class FrozenModel:
    """A model on one prompt, its MLPs replaced by transcoders, with attention patterns and scales of norms as they are.

    At the first position nothing is replaced: no transcoder has learned from it, and what is written there depends on
    the first token alone.

    Attributes:
        embedded: what enters block 0, [pos, d_model]: token and position.
        features: of each layer, [pos, d_sae], 0 at the first position.
        errors: of each layer, [pos, d_model]: what the MLP wrote less what the transcoder gives for what it read.
        logits: the model's own, [pos, vocab].
        W_U, b_U: the unembedding, times what the model multiplies its logits by at the end.
    """

    @torch.no_grad()
    def __init__(
        self, model: TransformerBridge, transcoders: Mapping[int, Transcoder], tokens: Int[Tensor, "pos"]
    ) -> None:
        """
        Raises:
            ValueError: if there is not one transcoder for each layer, or the prompt is not two tokens or more.
            NotForThisModel: for blocks that are not the sum of heads and an MLP, each behind a norm of its own.
        """
        require_plain_blocks(model, "an attribution graph", "logits", "unembedding", "patterns", "zero")
        layers = range(model.cfg.n_layers)
        if sorted(transcoders) != list(layers) or any(each.d_in != model.cfg.d_model for each in transcoders.values()):
            raise ValueError(f"an attribution graph needs a transcoder of width {model.cfg.d_model} for each layer, "
                             f"{{layer: transcoder}} for 0 to {model.cfg.n_layers - 1}")
        if tokens.ndim != 1 or len(tokens) < 2:
            raise ValueError(f"tokens are {list(tokens.shape)}; an attribution graph is of one prompt, [pos], of two "
                             "tokens or more")
        self.model, self.transcoders = model, transcoders
        patterns = [f"blocks.{layer}.attn.hook_pattern" for layer in layers]
        run = CleanRun(model, tokens[None], [name for layer in layers
                                             for name in (patterns[layer], mlp_in(layer), mlp_out(layer))])
        self.run, self.logits, self.embedded = run, run.logits(run.residuals[-1])[0], run.residuals[0][0]
        self.patterns = [run.activations[name][0] for name in patterns]             # [head, query, key]
        heads = [[head_weights(model, layer, head) for head in range(model.cfg.n_heads)] for layer in layers]
        self.heads = [{name: torch.stack([head[name] for head in each]) for name in each[0]} for each in heads]
        self.W_U, self.b_U = (output_factor(model) * each for each in (model.W_U, model.b_U))
        self.scales = [_scale(model, residual[0]) for residual in run.residuals]    # before attention, unembedding
        self.mlp_scales, self.features, self.errors = [], [], []
        for layer, transcoder in sorted(transcoders.items()):
            read, written = run.activations[mlp_in(layer)][0], run.activations[mlp_out(layer)][0]
            after = run.residuals[layer] if model.cfg.parallel_attn_mlp else run.residuals[layer + 1] - written
            self.mlp_scales.append(_scale(model, after[0]))
            if (centred(model, after[0]) / self.mlp_scales[-1] - read).norm() > 1e-3 * read.norm():
                raise NotForThisModel(f"an attribution graph is not for this model ({model.cfg.model_name}): MLP "
                                      f"{layer} does not read the norm of the stream, without weights of its own")
            self.features.append(self.encode(layer, read))
            self.errors.append(written - transcoder.write(self.features[-1], read))
        if (self.unembedded(centred(model, run.residuals[-1][0]) / self.scales[-1]) - self.logits).norm() > (
                1e-3 * self.logits.norm()):
            raise NotForThisModel(f"an attribution graph is not for this model ({model.cfg.model_name}): its logits "
                                  "are capped, and so are not a sum of what its parts write")

    def encode(self, layer: int, read: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos d_sae"]:
        """A layer's features; none at the first position."""
        features = self.transcoders[layer].encode(read)
        return torch.cat([torch.zeros_like(features[:1]), features[1:]])

    def attention(self, layer: int, x: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos d_model"]:
        """What a layer's heads write if each gathers, by its frozen pattern, what stands in the stream x."""
        heads, normed = self.heads[layer], centred(self.model, x) / self.scales[layer]
        values = torch.einsum("kd,hde->hke", normed, heads["V"])                # b_V is 0 in the models that fit
        return torch.einsum("hqk,hke,hed->qd", self.patterns[layer], values, heads["O"]) + heads["b_O"][0]

    def reads(
        self, embedded: Float[Tensor, "pos d_model"], write: Callable[[int, Tensor], Tensor]
    ) -> list[Float[Tensor, "pos d_model"]]:
        """What each MLP reads, and at the end the unembedding, if the MLP of a layer writes write(layer, its read)."""
        x, reads = embedded, []
        for layer, scale in enumerate(self.mlp_scales):
            middle = x + self.attention(layer, x)
            reads.append(centred(self.model, x if self.model.cfg.parallel_attn_mlp else middle) / scale)
            x = middle + write(layer, reads[-1])
        return [*reads, centred(self.model, x) / self.scales[-1]]

    @torch.no_grad()
    def replaced_logits(self, errors: bool = True) -> Float[Tensor, "pos vocab"]:
        """Logits of the replacement model: the model's own; without the errors, what the features alone make."""
        def write(layer: int, read: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos d_model"]:
            error = self.errors[layer] if errors else self.at_first(layer)
            return self.transcoders[layer].write(self.encode(layer, read), read) + error

        return self.unembedded(self.reads(self.embedded, write)[-1])

    def unembedded(self, read: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos vocab"]:
        """Logits of what the unembedding reads."""
        return read @ self.W_U + self.b_U

    def at_first(self, layer: int) -> Float[Tensor, "pos d_model"]:
        """A layer's errors at the first position, where they are all that the MLP writes; 0 at the others."""
        return torch.cat([self.errors[layer][:1], torch.zeros_like(self.errors[layer][1:])])


def _scale(model: TransformerBridge, x: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos 1"]:
    """What a norm divides by."""
    return (centred(model, x).pow(2).mean(dim=-1, keepdim=True) + model.cfg.eps).sqrt()


# --- the graph --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    """One node: `kind` is "feature", "error", "embedding" or "logit".

    `index`: of a feature, its number in the transcoder; of an embedding, its token; of a logit, which answer.
    An embedding's layer is −1, a logit's the number of layers.
    """

    kind: str
    layer: int
    position: int
    index: int = 0

    def __str__(self) -> str:
        layer = {"feature": f" {self.layer}/{self.index}", "error": f" {self.layer}", "logit": f" {self.index}"}
        return f"{self.kind}{layer.get(self.kind, '')} at {self.position}"


@dataclass(frozen=True)
class AttributionGraph:
    """The nodes of a prompt and their direct effects on each other.

    Attributes:
        nodes: features, errors, embeddings, logits, in this order; none but embeddings at the first position.
        edges: [target, source], what the source adds to the target: to a feature's pre-activation, or to a logit.
        values: a feature's activation, a logit's value (both in their own units), the norm of an error or embedding.
        constants: what no node adds: biases, on all ways, and what the MLPs write at the first position (but for what
            goes there along a skip connection).
        written: [node, d_model], what a node adds to the residual stream; 0 for logits.
        weights: of each node in what is to be explained: a token's probability, 1 for a difference, 0 if not a logit.
        tokens: [pos]; answers: what the logits are.
    """

    nodes: tuple[Node, ...]
    edges: Float[Tensor, "node node"]
    values: Float[Tensor, "node"]
    constants: Float[Tensor, "node"]
    written: Float[Tensor, "node d_model"]
    weights: Float[Tensor, "node"]
    tokens: Int[Tensor, "pos"]
    answers: tuple[Answer, ...]

    def of_kind(self, kind: str) -> Bool[Tensor, "node"]:
        """Which nodes are of this kind."""
        return torch.tensor([node.kind == kind for node in self.nodes], device=self.edges.device)

    def influence(self) -> Float[Tensor, "node"]:
        """See the function of this name."""
        return influence(self.edges, self.weights)

    def influence_of_edges(self) -> Float[Tensor, "node node"]:
        """Share of the answer's influence that comes through each edge, with the edge's sign; float64."""
        through = normalized(self.edges) * (self.influence() + self.weights)[:, None]
        return through * self.edges.sign() / self.weights.sum()

    def scores(self) -> tuple[float, float]:
        """Replacement score and completeness score: see the function `graph_scores`."""
        return graph_scores(self.edges, self.weights, self.of_kind("embedding"), self.of_kind("error"))

    def top(self, n: int = 10, kind: str = "feature") -> list[tuple[int, Node, float]]:
        """The n nodes of a kind with the largest influence: (number, node, influence)."""
        found = self.influence().where(self.of_kind(kind), -1).sort(descending=True)
        return [(i, self.nodes[i], value) for i, value in zip(found.indices[:n].tolist(), found.values[:n].tolist())
                if value >= 0]


@torch.no_grad()
def attribution_graph(
    model: TransformerBridge, transcoders: Mapping[int, Transcoder], tokens: Int[Tensor, "pos"],
    answers: Sequence[Answer] | None = None,
) -> AttributionGraph:
    """The attribution graph of a prompt for what is predicted after its last token.

    Args:
        transcoders: {layer: transcoder}, one for each layer.
        answers: tokens, or pairs of tokens whose difference of logits is explained; None: the most probable tokens that
            together have 95 % of the probability, ten at most.
    Raises:
        ValueError, NotForThisModel: as `FrozenModel` does; ValueError also if there is no answer.
    """
    frozen, n_layers = FrozenModel(model, transcoders, tokens.to(model.cfg.device)), model.cfg.n_layers
    probabilities = frozen.logits[-1].softmax(-1)
    if answers is None:
        p, order = probabilities.topk(min(10, len(probabilities)))
        answers = order[: int((p.cumsum(0) < 0.95).sum()) + 1].tolist()
    if not answers:
        raise ValueError("answers is empty: a graph explains at least one logit")
    nodes: list[Node] = []
    written, values, directions, biases = [], [], [], []                        # of each node, group by group
    for layer, features in enumerate(frozen.features):
        at, number = features.nonzero(as_tuple=True)
        nodes += [Node("feature", layer, *each) for each in zip(at.tolist(), number.tolist())]
        values.append(features[at, number])
        written.append(values[-1][:, None] * transcoders[layer].W_dec[number])
        directions.append(transcoders[layer].W_enc.T[number])
        biases.append(transcoders[layer].b_enc[number])
    nodes += [Node("error", layer, at) for layer in range(n_layers) for at in range(1, len(tokens))]
    nodes += [Node("embedding", -1, at, token) for at, token in enumerate(tokens.tolist())]
    others = torch.cat([*(error[1:] for error in frozen.errors), frozen.embedded])
    nodes += [Node("logit", n_layers, len(tokens) - 1, i) for i in range(len(answers))]
    written += [others, others.new_zeros(len(answers), model.cfg.d_model)]
    values += [others.norm(dim=-1), answer_values(frozen.logits[-1], answers)]
    directions += [torch.zeros_like(others), answer_values(frozen.W_U, answers).T]
    biases += [torch.zeros_like(values[-2]), answer_values(frozen.b_U, answers)]
    each_written = torch.cat(written)                                           # [node, d_model]
    edges, constants = _direct_effects(frozen, nodes, each_written, torch.cat(directions), torch.cat(biases))
    weights = torch.zeros_like(constants)
    weights[-len(answers):] = torch.stack([
        probabilities.new_ones(()) if isinstance(each, tuple) else probabilities[each] for each in answers])
    return AttributionGraph(tuple(nodes), edges, torch.cat(values), constants, each_written, weights, tokens,
                            tuple(answers))


def _direct_effects(
    frozen: FrozenModel, nodes: Sequence[Node], written: Float[Tensor, "node d_model"],
    directions: Float[Tensor, "node d_model"], biases: Float[Tensor, "node"],
) -> tuple[Float[Tensor, "node node"], Float[Tensor, "node"]]:
    """Edges and constants of a graph: what each target reads in its direction, by one backward pass each."""
    layers, places = (torch.tensor([getattr(node, name) for node in nodes]) for name in ("layer", "position"))
    kinds = torch.tensor([node.kind in ("feature", "logit") for node in nodes])
    edges, constants, n_layers = written.new_zeros(len(nodes), len(nodes)), torch.zeros_like(biases), len(frozen.errors)
    with torch.enable_grad():                                   # what nodes write: embeddings, MLP 0, …; so far nothing
        added = written.new_zeros(n_layers + 1, *frozen.embedded.shape, requires_grad=True)
        reads = frozen.reads(added[0], lambda layer, read: added[layer + 1] + frozen.at_first(layer) +
                             frozen.transcoders[layer].write(torch.zeros_like(frozen.features[layer]), read))
    sources: dict[tuple[int, int], list[int]] = {}              # those that write at one place have a slope in common
    for number, node in enumerate(nodes):
        if node.layer < n_layers:
            sources.setdefault((node.layer, node.position), []).append(number)
    for layer, read in enumerate(reads):
        for some in (kinds & (layers == layer)).nonzero()[:, 0].split(AT_ONCE):
            if len(some):
                asked = read.new_zeros(len(some), *read.shape)                  # [target, pos, d_model]
                asked[torch.arange(len(some)), places[some]] = directions[some]
                slopes, = torch.autograd.grad(read, added, asked, is_grads_batched=True, retain_graph=True)
                for (source_layer, position), those in sources.items():
                    if source_layer < layer:
                        edges[some[:, None], torch.tensor(those)] = (
                            slopes[:, source_layer + 1, position] @ written[those].T)       # [target, source]
                constants[some] = (read[places[some]] * directions[some]).sum(-1) + biases[some]
    return edges, constants


def answer_values(logits: Float[Tensor, "... vocab"], answers: Sequence[Answer]) -> Float[Tensor, "... answer"]:
    """A token's logit less the mean over all tokens; for two tokens the difference of their logits."""
    return torch.stack([logits[..., each[0]] - logits[..., each[1]] if isinstance(each, tuple)
                        else logits[..., each] - logits.mean(dim=-1) for each in answers], dim=-1)


# --- influence --------------------------------------------------------------------------------------------------------


def normalized(edges: Float[Tensor, "node node"]) -> Float[Tensor, "node node"]:
    """The size of each edge as a share of all edges into its target; float64."""
    sizes = edges.double().abs()
    return sizes / sizes.sum(dim=1, keepdim=True).clamp_min(1e-10)


def influence(edges: Float[Tensor, "node node"], weights: Float[Tensor, "node"]) -> Float[Tensor, "node"]:
    """How much of what is weighted comes through each node, over paths of every length; float64.

    weights · B, where B = A + A² + … = (I − A)⁻¹ − I and A is `normalized(edges)`.
    """
    A = normalized(edges)
    identity = torch.eye(len(A), dtype=A.dtype, device=A.device)
    return torch.linalg.solve((identity - A).T, weights.double()) - weights.double()


def graph_scores(
    edges: Float[Tensor, "node node"], weights: Float[Tensor, "node"], embeddings: Bool[Tensor, "node"],
    errors: Bool[Tensor, "node"],
) -> tuple[float, float]:
    """Two shares, from 0 to 1, that say how much of a graph is features rather than errors.

    The replacement score: of the influence that comes from where paths begin, embeddings and errors, the share of the
    embeddings. The completeness score: of the edges into each node the share that does not come from errors, averaged
    over the nodes, each by its influence (a logit by its weight).
    """
    flow = influence(edges, weights)
    replacement = flow[embeddings].sum() / (flow[embeddings].sum() + flow[errors].sum())
    explained = 1 - normalized(edges)[:, errors].sum(dim=1)
    flow = flow + weights.double()
    return replacement.item(), ((explained * flow).sum() / flow.sum()).item()


def pruned(graph: AttributionGraph, nodes: float = 0.8, edges: float = 0.98) -> AttributionGraph:
    """The graph's most influential nodes, and the edges between them that carry most; other edges are 0.

    Kept are the fewest nodes that have this share of all influence, with all embeddings and logits; then the fewest
    edges with this share, each edge counted by its target's influence times its share of what enters the target; then
    whatever feature still has an edge in and an edge out (an error needs one out).

    Raises:
        ValueError: if one of the shares is not between 0 and 1.
    """
    if not (0 <= nodes <= 1 and 0 <= edges <= 1):
        raise ValueError(f"nodes is {nodes} and edges {edges}; both are shares, from 0 to 1")
    ends, features = graph.of_kind("embedding") | graph.of_kind("logit"), graph.of_kind("feature")
    keep = _largest(graph.influence(), nodes) | ends
    among = torch.where(keep[:, None] & keep, graph.edges, 0)
    carried = normalized(among) * (influence(among, graph.weights) + graph.weights)[:, None]
    used = _largest(carried.flatten(), edges).reshape(among.shape) & (among != 0)
    before = None
    while before is None or not torch.equal(keep, before):
        before, used = keep, used & keep[:, None] & keep
        keep = keep & (ends | used.any(0)) & (~features | used.any(1))
    return replace(
        graph, nodes=tuple(node for node, kept in zip(graph.nodes, keep.tolist()) if kept),
        edges=torch.where(used, graph.edges, 0)[keep][:, keep],
        **{name: getattr(graph, name)[keep] for name in ("values", "constants", "written", "weights")})


def _largest(scores: Float[Tensor, "n"], share: float) -> Bool[Tensor, "n"]:
    """The fewest entries whose sum has this share of the whole."""
    ordered = scores.sort(descending=True).values
    enough = int((ordered.cumsum(0) < share * ordered.sum()).sum())
    return scores >= ordered[min(enough, len(ordered) - 1)]


# --- interventions ----------------------------------------------------------------------------------------------------


def total_effects(graph: AttributionGraph) -> Float[Tensor, "answer node"]:
    """What the answers would gain if a node wrote twice what it writes, in the frozen linear model; float64.

    Over all paths: a feature that gains a tenth of its activation passes on a tenth of each edge that leaves it. The
    same features stay active.
    """
    edges, features = graph.edges.double(), graph.of_kind("feature")
    relative = torch.where(features[:, None], edges / graph.values.double()[:, None], 0)       # [target, source]
    identity = torch.eye(len(edges), dtype=edges.dtype, device=edges.device)
    return torch.linalg.solve((identity - relative).T, edges[graph.of_kind("logit")].T).T


@torch.no_grad()
def interventions(
    model: TransformerBridge, graph: AttributionGraph, features: Sequence[int], factor: float = 0.0
) -> tuple[Float[Tensor, "feature answer"], Float[Tensor, "feature answer"]]:
    """What each answer changes by when one feature writes `factor` times what it writes: (predicted, measured).

    Predicted by the graph (`total_effects`). Measured in the model itself: its MLP writes so much more or less in the
    feature's direction, and all that follows is computed anew, attention, norms and MLPs. In logits.

    Args:
        features: numbers of nodes, each changed by itself. The graph should not be pruned: a prediction from fewer
            edges is another one.
    Raises:
        ValueError: if one of the nodes is not a feature or an error.
    """
    if wrong := [each for each in features if graph.nodes[each].kind not in ("feature", "error")]:
        raise ValueError(f"node {wrong[0]} is {graph.nodes[wrong[0]]}; only what an MLP writes can be changed here")
    run = CleanRun(model, graph.tokens[None].to(model.cfg.device))
    before = answer_values(run.logits(run.residuals[-1][:, -1]), graph.answers)                # [1, answer]
    measured = graph.values.new_zeros(len(features), len(graph.answers))
    for layer in range(model.cfg.n_layers):
        of_layer = [row for row, each in enumerate(features) if graph.nodes[each].layer == layer]
        for some in torch.tensor(of_layer, dtype=torch.long).split(AT_ONCE):
            if not len(some):
                continue
            residual = run.residuals[layer + 1].repeat(len(some), 1, 1)
            for row, which in zip(residual, (features[each] for each in some.tolist())):
                row[graph.nodes[which].position] += (factor - 1) * graph.written[which]
            after = run.continue_from(layer + 1, residual)[:, -1]
            measured[some] = answer_values(run.logits(after), graph.answers) - before
    return (factor - 1) * total_effects(graph)[:, list(features)].T, measured


@torch.no_grad()
def run_features(
    model: TransformerBridge, transcoders: Mapping[int, Transcoder], tokens: Int[Tensor, "batch pos"],
    change: Callable[[int, Float[Tensor, "batch pos d_sae"]], Float[Tensor, "batch pos d_sae"]],
) -> Float[Tensor, "batch pos vocab"]:
    """Logits when each MLP writes what it writes with change(layer, its features) in the place of its features.

    Features are encoded from what the MLP reads in this pass, so that they answer to changes below; errors are those of
    this pass, too, and nothing is frozen. A `change` that gives its features back is the model itself. At the first
    position there is no feature.
    Raises:
        NotForThisModel: see `transcoders.check_blocks`.
    """
    check_blocks(model, "features that are changed")

    def write(layer: int, x: Tensor, y: Tensor) -> Float[Tensor, "batch pos d_model"]:
        features = transcoders[layer].encode(x)
        features[:, 0] = 0
        changed = change(layer, features.clone()) - features
        changed[:, 0] = 0
        return y + changed @ transcoders[layer].W_dec

    return logits_with_mlps(model, tokens, transcoders, write)

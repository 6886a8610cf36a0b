# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 12 · Attribution graphs
#
# **The question.** Lesson 10 found circuits of heads and MLPs. An MLP does many things at once; a *feature* of it does
# one. Can a prediction be traced from feature to feature, back to the words of the prompt? And is that picture
# faithful?
#
# You will train a transcoder, put four in the place of `tiny`'s MLPs, follow one edge by hand, draw the graph behind a
# pronoun, and try to refute it: with features nearest in size to those that it names, rivals that need no graph, a
# second fact, and transcoders that have learned nothing.
#
# **You need:** lessons 06 and 10.

# %% tags=["parameters"]
import os
from collections.abc import Callable

import pandas as pd
import torch
from IPython.display import display
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from course_utils.attribution_graphs import (
    FrozenModel,
    Node,
    attribution_graph,
    interventions,
    pruned,
    run_features,
    total_effects,
)
from course_utils.claims import claim, estimate
from course_utils.edges import attribution_scores, best_edges, graph_of, run_circuit
from course_utils.exercises import exercise, hint, predict, progress, reveal, solution
from course_utils.language import StoryLanguage
from course_utils.latents import story_labels
from course_utils.measured import measured
from course_utils.metrics import delta_cross_entropy, explained_variance, kl_divergence
from course_utils.models import load_model, load_real_model
from course_utils.pairs import Pairs, giver_pairs, number_pairs, sex_pairs
from course_utils.passes import centred
from course_utils.repeated_tokens import generate_repeated_tokens
from course_utils.sae_training import TrainingConfig, fit
from course_utils.text import sample_text
from course_utils.transcoders import Transcoder, load_shipped_transcoder, mlp_inputs_and_outputs, shipped_transcoders
from course_utils.viz import (
    interactive_attribution_graph,
    latent_dashboard,
    plot_attribution_graph,
    plot_by_position,
    plot_scatter,
)

Metric = Callable[[Float[Tensor, "n pos vocab"]], Float[Tensor, "n"]]

MODEL = os.environ.get("COURSE_MODEL", "tiny")

# %%
if not shipped_transcoders(MODEL):
    print(f"no transcoders are shipped for {MODEL}: this lesson takes tiny")
    MODEL = "tiny"
model = load_model(MODEL, device="cpu")          # as transcoders and what they read
LAYERS = list(range(model.cfg.n_layers))
words = StoryLanguage()

# %% [markdown]
# ## 1 · A transcoder
#
# An autoencoder (lesson 06) reconstructs what it read. A **transcoder** reads what an MLP reads, x, and gives what the
# MLP *writes*, y, as a sum of few features (Dunefsky et al., 2024):
#
# $$f = \mathrm{TopK}(x W_\mathrm{enc} + b_\mathrm{enc}), \qquad y \approx f W_\mathrm{dec} + b_\mathrm{dec}$$
#
# TopK keeps the k largest entries of each token, if they are above 0. Each feature reads one direction and writes one,
# so it can be followed back and forward.

# %%
@exercise("12.transcode")
def transcode(
    x: Float[Tensor, "n d_model"], W_enc: Float[Tensor, "d_model d_sae"], b_enc: Float[Tensor, "d_sae"],
    W_dec: Float[Tensor, "d_sae d_model"], b_dec: Float[Tensor, "d_model"], k: int
) -> tuple[Float[Tensor, "n d_sae"], Float[Tensor, "n d_model"]]:
    """The features f, of which at most k are not 0, and y, what the transcoder writes."""
    raise NotImplementedError


# %% [markdown]
# Train one for layer 1, for some seconds: the loss is the squared error of y. Its rivals are the mean of y, and
# **random features**: an encoder that has learned nothing, with the decoder that suits it best (least squares).

# %%
def fitted(features, y, ridge=1e-4):
    """W_dec and b_dec with the least squared error for these features."""
    x = torch.cat([features, torch.ones(len(features), 1)], dim=1)
    gram = x.T @ x
    weights = torch.linalg.solve(gram + ridge * gram.diagonal().mean() * torch.eye(len(gram)), x.T @ y)
    return weights[:-1], weights[-1]


def with_random_features(x, y, d_sae=512, k=20, seed=0, ridge=1e-4):
    """A transcoder with a random encoder, and the decoder that suits it."""
    found = Transcoder(x.shape[1], d_sae, "topk", k=k, seed=seed).requires_grad_(False)
    found.W_dec.data, found.b_dec.data = fitted(found.encode(x), y, ridge)
    return found


learn, judge = sample_text(model, 64, 96, seed=7), sample_text(model, 16, 96, seed=8)
READ = {layer: mlp_inputs_and_outputs(model, layer, learn) for layer in LAYERS}         # (x, y) of each layer
x, y = (each.cpu() for each in READ[1])
new_x, new_y = (each.cpu() for each in mlp_inputs_and_outputs(model, 1, judge))
config = TrainingConfig(d_sae=256, kind="topk", k=20, steps=120, batch=512, lr=5e-3, warm_up=10)
mine = fit(Transcoder(model.cfg.d_model, 256, "topk", k=20), x, config, targets=y)
rivals = {"trained for a moment": mine, "random features": with_random_features(x, y, 256)}
for name, each in rivals.items():
    f, written = transcode(new_x, each.W_enc, each.b_enc, each.W_dec, each.b_dec, 20)
    print(f"{name:21} explains {explained_variance(new_y, written):.2f} of the variance of y, with "
          f"{(f > 0).sum(1).float().mean():.1f} features of 256; {(f == 0).all(0).float().mean():.2f} are never active")

# %% [markdown]
# ## 2 · All MLPs replaced
#
# The course ships a transcoder for each layer, trained longer on stories and on random tokens that come twice. Put it
# in the MLP's place and look at the loss. The first position keeps its MLP: what is written there depends on BOS alone.

# %%
@exercise("12.replaced_logits")
def replaced_logits(
    model: TransformerBridge, transcoders: dict[int, Transcoder], tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos vocab"]:
    """Logits when some layers' MLPs write what their transcoders give for what they read, but at the first position.

    `transcoders` is {layer: transcoder}; `transcoder(x)` is what it writes. All else is computed as usual, from what
    is written now. An MLP reads at `blocks.{layer}.mlp.hook_in` and writes at `blocks.{layer}.hook_mlp_out`.
    """
    raise NotImplementedError


# %%
class Mean(torch.nn.Module):
    """Writes the same whatever it reads."""

    def __init__(self, mean):
        super().__init__()
        self.register_buffer("mean", mean)

    def forward(self, x):
        return self.mean.expand_as(x)


shipped = {layer: load_shipped_transcoder(MODEL, layer).to(model.cfg.device) for layer in LAYERS}
random_features = {layer: with_random_features(*READ[layer], seed=layer) for layer in LAYERS}
means = {layer: Mean(y.mean(dim=0)) for layer, (_, y) in READ.items()}


@torch.no_grad()
def costs(transcoders, tokens):
    """ΔCE and KL(model‖replaced) of each text (nats) without BOS."""
    p_logits, q_logits = model(tokens), replaced_logits(model, transcoders, tokens)
    return [each[:, 1:].mean(dim=1) for each in (delta_cross_entropy(p_logits, q_logits, tokens),
                                                 kl_divergence(p_logits, q_logits))]


repeats = generate_repeated_tokens(model, 30, 16, seed=5)
TEXTS, table = {"stories": judge, "random tokens twice": repeats}, {}
for text, tokens in TEXTS.items():
    for layer, transcoder in shipped.items():
        new_x, new_y = mlp_inputs_and_outputs(model, layer, tokens)
        f = transcoder.encode(new_x)
        ce, kl = costs({layer: transcoder}, tokens)
        table[text, f"layer {layer}"] = {
            "EV": f"{explained_variance(new_y, transcoder.decode(f, new_x)):.2f}",
            "EV of random features": f"{explained_variance(new_y, random_features[layer](new_x)):.2f}",
            "L0": f"{(f > 0).sum(1).float().mean():.0f}", "never active here": f"{(f == 0).all(0).float().mean():.2f}",
            "ΔCE (nats)": f"{ce.mean():.4f}", "KL (nats)": f"{kl.mean():.4f}"}
    for name, each in (("all, shipped", shipped), ("all, random features", random_features), ("all, means", means)):
        table[text, name] = {label: f"{estimate(cost)}" for label, cost in zip(("ΔCE (nats)", "KL (nats)"),
                                                                              costs(each, tokens))}
display(pd.DataFrame(table).T.fillna(""))
all_four = {name: costs(each, judge)[0] for name, each in (("shipped", shipped), ("random features", random_features))}
claim("four transcoders cost less than a twentieth of what random features cost", all_four["shipped"], "<",
      all_four["random features"] / 20, unit="nats")

# %% [markdown]
# With transcoders in place of all MLPs the model tells the same stories. On random tokens ΔCE is even below 0, perhaps since
# with simpler MLPs the model is less confident where nothing can be known. The KL cannot be, for it asks what the *model*
# would have said; a loss that does not rise says nothing of that. (The random features' decoders were fitted to stories
# alone, the shipped transcoders to both: on random tokens the rivals are no fair ones, and are worse than the mean.)
#
# ## 3 · A linear model of one prompt
#
# For one prompt, add to each transcoder what it misses: its **error**, a constant. Freeze what else is not linear,
# the attention patterns and the scales of the norms (Ameisen et al., 2025). With the errors the logits are the
# model's own. Without them they are what the features alone make.

# %%
pairs = sex_pairs(model, 8)


def difference_of(pairs):
    """The metric: the right answer's logit minus the wrong one's, at the last position, for each text."""
    return lambda logits: (logits[torch.arange(len(pairs)), -1, pairs.right]
                           - logits[torch.arange(len(pairs)), -1, pairs.wrong])


metric = difference_of(pairs)
frozen = [FrozenModel(model, shipped, tokens) for tokens in pairs.clean]
with torch.no_grad():
    own = model(pairs.clean)
    at_clean, at_corrupted = metric(own), metric(model(pairs.corrupted))
off = (torch.stack([each.replaced_logits() for each in frozen]) - own).abs().max()
without_errors = metric(torch.stack([each.replaced_logits(errors=False) for each in frozen]))
print(f"with errors the logits are the model's own to within 1e-4: {bool(off < 1e-4)}")
print(f"logit difference {estimate(at_clean)}, without errors {estimate(without_errors)}")
claim("who acts: the features alone make the logit difference to within a tenth", without_errors / at_clean, "≈", 1.0, within=0.1,
      unit="share")

# %% [markdown]
# Now everything is a sum. A feature's pre-activation is linear in what enters its MLP; that is the sum of the
# embeddings and of what earlier features and errors wrote, each carried along by the frozen heads. One term of the sum
# is an **edge**: the direct effect of a source on a target, through no other feature.
#
# Compute one. `frozen.attention(layer, x)` is what a layer's heads write, by their frozen patterns, if x
# stands in the stream, [pos, d_model]; it includes a constant bias. The MLP reads
# `centred(model, stream) / frozen.mlp_scales[layer]`; a feature reads that along a column of `W_enc`.

# %%
@exercise("12.edge")
def edge(frozen: FrozenModel, written: Float[Tensor, "d_model"], source: Node, target: Node) -> float:
    """What `written`, added to the stream by `source`, adds to the pre-activation of the feature `target`.

    A node has a `layer` (−1 for an embedding), a `position` and an `index`. A feature of layer l writes after the heads
    of layer l, and reads after them, too. The model is `frozen.model`, its transcoders are `frozen.transcoders[layer]`.
    """
    raise NotImplementedError


# %%
def graphs_of(these, transcoders=shipped):
    """The graph of each clean text; the answer is the right token's logit minus the wrong one's."""
    return [attribution_graph(model, transcoders, *each) for each in
            zip(these.clean, [[each] for each in zip(these.right.tolist(), these.wrong.tolist())])]


graphs = graphs_of(pairs)
graph = graphs[0]
story = words.decode(pairs.clean[0].tolist()).split()
found = [(t, int(graph.edges[t].abs().argmax())) for t, _, _ in graph.top(6) if graph.nodes[t].layer > 0]
for target, source in found:
    by_hand = edge(frozen[0], graph.written[source], graph.nodes[source], graph.nodes[target])
    print(f"{graph.nodes[source]} → {graph.nodes[target]}: {by_hand:.4f} by hand, "
          f"{graph.edges[target, source]:.4f} in the graph")
features = graph.of_kind("feature")
left_over = (graph.edges.sum(dim=1) + graph.constants - graph.values)[features].abs().max() / graph.values[features].max()
print(f"{len(graph.nodes)} nodes; edges + constants are each feature's activation to within 1e-5 of the largest: "
      f"{bool(left_over < 1e-5)}")

# %% [markdown]
# The sum is exact by construction, so no evidence: a graph over meaningless features adds up as well. What could be
# wrong is what a graph *leaves out*, and what it is taken to say.
#
# ## 4 · Influence, pruning, pictures
#
# Seven hundred nodes cannot be read, so keep the most influential. Let A be the edges as shares: the size of each over
# the sum of all sizes into its target. A node's **influence** is the sum over all paths from it to the answer, where a
# path counts as the product of its shares.

# %%
@exercise("12.influence")
def influence(edges: Float[Tensor, "node node"], weights: Float[Tensor, "node"]) -> Float[Tensor, "node"]:
    """The sum over all paths from each node to what is weighted; a path counts as the product of its shares.

    edges is [target, source] and has no cycles; weights says how much each answer counts, 0 for other nodes. A path
    has one edge at least. The share of an edge is its size over the sum of the sizes of all edges into its target; a
    row of zeros has shares of 0.
    """
    raise NotImplementedError


# %%
flow = influence(graph.edges.double(), graph.weights.double())
ordered = flow.sort(descending=True).values.cumsum(0) / flow.sum()
print("; ".join(f"{share:.2f} of the influence: {int((ordered < share).sum()) + 1} nodes" for share in (0.5, 0.8, 0.95)))
small = pruned(graph, nodes=0.72, edges=0.9)            # the fewest nodes with this share, then the fewest edges
print(f"drawn: {len(small.nodes)} nodes, {int((small.edges != 0).sum())} edges")

# %% [markdown]
# What does each feature stand for? As in lesson 06: the word that stands most often where it is strongest, and the
# label of the language that it tells best.

# %%
sample = StoryLanguage(3).sample(64, 96, truth=False)
labels, known = story_labels(sample)
SEEN = {}
for layer, transcoder in shipped.items():
    x = mlp_inputs_and_outputs(model, layer, sample.tokens.to(model.cfg.device))[0]
    SEEN[layer] = torch.nn.functional.pad(transcoder.encode(x).unflatten(0, (64, 95)), (0, 0, 1, 0)).cpu()


def where_active(node):
    """{label: (its share where this feature is active, its share anywhere)}, where the label has an answer."""
    active, found = SEEN[node.layer][..., node.index] > 0, {}
    for name, label in labels.items():
        where = known.get(name, torch.ones_like(label)) & (torch.arange(96) > 0)
        if (where & active).any():
            found[name] = label[where & active].float().mean().item(), label[where].float().mean().item()
    return found


def describe(node):
    """(the word where it is strongest, the word that it promotes most, the label that it tells most of)."""
    strongest = sample.tokens.flatten()[SEEN[node.layer][..., node.index].flatten().topk(30).indices]
    effect = shipped[node.layer].W_dec[node.index].to(model.W_U) @ model.W_U
    name, (share, base) = max(where_active(node).items(), key=lambda item: abs(item[1][0] - item[1][1]))
    return (words.vocabulary[int(strongest.mode().values)], words.vocabulary[int(effect.argmax())],
            f"{name} in {share:.2f} of its places, {base:.2f} of all")


names, notes = {}, {}
for number, node, value in small.top(len(small.nodes)):
    where, promotes, label = describe(node)
    names[node] = f"{node.layer}/{node.index}\n{promotes}"
    notes[node] = f"strongest at {where!r}, promotes {promotes!r}; {label}"
for number, node, value in small.top(8):
    print(f"{str(node):22} influence {value:.2f}: {notes[node]}")
plot_attribution_graph(small, story, names, "Which features make She, not He?")

# %% [markdown]
# Point at a node to see its edges and what is known of it.

# %%
interactive_attribution_graph(small, story, title="Which features make She, not He?", notes=notes)

# %%
first = small.top(1)[0][1]
latent_dashboard(model, shipped[first.layer], SEEN[first.layer].to(model.cfg.device), sample.tokens.to(model.cfg.device),
                 first.index, k=4)

# %% [markdown]
# Under each number is the word that the feature promotes most. It reads well: the name acts on features at the full
# stop that tell of a woman, and the largest of these promote "herself" and "her". Whether it is *true* is another
# question.
#
# ## 5 · Does the graph predict what silencing does?
#
# Silence a feature in the model itself: its MLP writes that much less in the feature's direction, and everything after
# it is computed anew, nothing frozen. The graph predicts the effect as a sum over paths (`total_effects`). Published
# checks of this kind compare the most influential features with random ones, whose effects are nearly 0; that can
# hardly refute anything. A harder control is the feature **nearest in size**: of those that write at the same layer and
# position, the one whose vector is nearest in length.

# %%
@exercise("12.equally_large")
def equally_large(
    sizes: Float[Tensor, "node"], places: Int[Tensor, "node"], chosen: list[int]
) -> list[int]:
    """For each chosen node, in order, the one nearest in size at the same place that is not chosen or taken yet.

    `places` has a number for each layer and position. A chosen node for which none is free has none.
    """
    raise NotImplementedError


# %% [markdown]
# Three rivals need no graph. **Attribution patching** (lesson 10) multiplies what a feature writes by the slope of the
# logit difference in the whole model. The **last norm alone** says that silencing changes the length of the last stream
# and nothing else. And there is **no effect** at all.
#
# **Predict:** for the features nearest in size to the 20 most influential: how well does the graph's prediction
# correlate with what is measured? (For the 20 it is about 0.96.)

# %%
predict("12.as_large", None, unit="(correlation)")

# %%
def by_slope(graph, chosen):
    """What silencing each node would change, by the slope of the whole model."""
    (right, wrong), = graph.answers
    zeros = torch.zeros(len(LAYERS), len(graph.tokens), model.cfg.d_model, device=graph.tokens.device, requires_grad=True)
    added = [(f"blocks.{layer}.hook_mlp_out", lambda y, hook, layer=layer: y + zeros[layer]) for layer in LAYERS]
    last = model.run_with_hooks(graph.tokens[None], fwd_hooks=added)[0, -1]
    slope, = torch.autograd.grad(last[right] - last[wrong], zeros)                      # [layer, pos, d_model]
    return -torch.stack([slope[graph.nodes[k].layer, graph.nodes[k].position] @ graph.written[k] for k in chosen])


@torch.no_grad()
def by_last_norm(graph, chosen):
    """The same, if silencing changed the length of the last stream and nothing else."""
    name = f"blocks.{LAYERS[-1]}.hook_resid_post"
    stream = centred(model, model.run_with_cache(graph.tokens[None], names_filter=name)[1][name][0, -1])
    at_end = torch.tensor([graph.nodes[k].position == len(graph.tokens) - 1 for k in chosen]).to(stream)
    silent = stream - at_end[:, None] * centred(model, graph.written[chosen])
    return graph.values[-1] * (stream.norm() / silent.norm(dim=1) - 1)


def chosen_and_control(graph):
    """The 20 most influential features, and for each the one nearest in size at the same place."""
    top = [number for number, _, _ in graph.top(20)]
    places = torch.tensor([100 * node.layer + node.position if node.kind == "feature" else -1 for node in graph.nodes])
    return top, equally_large(graph.written.norm(dim=1), places, top)


def correlation(a, b):
    return torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1]


plural = number_pairs(model, 6)                                 # the second fact: was or were?
FACTS = {"who acts": (pairs, graphs), "one or many": (plural, graphs_of(plural))}
LABELS = ("the graph's 20", "nearest in size")
chosen_in = {fact: [chosen_and_control(each) for each in its_graphs] for fact, (_, its_graphs) in FACTS.items()}
found, points = {}, []
for fact, (_, its_graphs) in FACTS.items():
    for graph_i, both in zip(its_graphs, chosen_in[fact]):
        for label, chosen in zip(LABELS, both):
            by_graph, effect = (each[:, 0] for each in interventions(model, graph_i, chosen))
            fewer = effect.abs().argsort()[:-3]
            numbers = {"length": graph_i.written[chosen].norm(dim=1).mean(), "correlation": correlation(by_graph, effect),
                       "without the 3 largest effects": correlation(by_graph[fewer], effect[fewer]),
                       "direct edges": correlation(-graph_i.edges[-1, chosen], effect)}
            for rival, guess in {"graph": by_graph, "slope of the model": by_slope(graph_i, chosen),
                                 "last norm alone": by_last_norm(graph_i, chosen), "no effect": 0 * effect}.items():
                numbers[f"error, {rival}"] = (guess - effect).square().mean().sqrt()
            for name, number in numbers.items():
                found.setdefault((fact, label, name), []).append(number.double().cpu())
            points += [(by_graph, effect)] if (fact, label) == ("who acts", LABELS[0]) else []
found = {key: torch.stack(each) for key, each in found.items()}
reveal("12.as_large", found["who acts", "nearest in size", "correlation"].mean())
columns = [(fact, label) for fact in FACTS for label in LABELS]
display(pd.DataFrame({f"{fact}, {label}": {name: f"{found[fact, label, name].mean():.2f}" for name in numbers}
                      for fact, label in columns}).rename_axis("mean over texts"))
plot_scatter(*map(torch.cat, zip(*points)), "logit difference, change predicted by the graph",
             "measured change", title="Silencing each of the 20 most influential features")

# %%
own, near = (lambda name, fact="who acts", label=label: found[fact, label, name] for label in LABELS)
claim("who acts: the graph predicts the effects of its most influential features", own("correlation"), ">", 0.9,
      unit="correlation")
claim("who acts: direct edges to the answer alone do as well as all paths, to within 0.05", own("direct edges"), "≈",
      own("correlation"), within=0.05, unit="correlation")
for fact in FACTS:
    claim(f"{fact}: the graph errs by more on its own features than on those nearest in size", own("error, graph", fact),
          ">", near("error, graph", fact), unit="logits")
    here, graph_errs = f"{fact}, nearest in size:", near("error, graph", fact)
    claim(f"{here} the graph saves less than a fifth of the error of 'no effect'", graph_errs, ">",
          0.8 * near("error, no effect", fact), unit="logits")
    claim(f"{here} the last norm alone errs by less than the graph", near("error, last norm alone", fact), "<", graph_errs,
          unit="logits")
    claim(f"{here} one slope of the whole model errs by least", near("error, slope of the model", fact), "<",
          near("error, last norm alone", fact), unit="logits")
measured("graph, its 20 features, predicted against measured", own("correlation").mean(), at_least=0.9)
measured("graph, features nearest in size", near("correlation").mean())

# %% [markdown]
# By correlation the graph is right for its own features and hardly knows others. By error it is further off for its
# own, on both facts: their effects are so large that 0.96 does not show it (without each text's three largest it is
# 0.83). For the others it is no better than "no effect". They are shorter, too, by a third and more, since the largest
# at each place are the graph's own; that is too little to make effects four or five times smaller.
#
# Why? A feature that has nothing to do with the answer still makes the stream longer, and the last norm then divides
# all else by more. The graph has that frozen. For "who acts" the last norm alone errs by less than half as much, for
# "one or many" by a little less. One backward pass through the whole model errs by least.
#
# Nor does 0.96 speak for the *paths*: for "who acts" direct edges to the answer have it, too.
#
# So test the edges themselves. Silence a feature, and see how the 20 most influential ones change above it, in shares
# of their activation. Two controls: sources nearest in size, and what the graph says of another target.

# %%
def changes_above(graph, sources, targets):
    """Changes of the targets above each silenced source: by paths, by direct edges, of the next target, measured."""
    relative = torch.where(graph.of_kind("feature")[:, None], graph.edges.double() / graph.values.double()[:, None], 0)
    through = torch.linalg.inv(torch.eye(len(relative)).to(relative) - relative)         # [target, source]
    found, seen = {}, []

    def silence(layer, f):
        for row, source in enumerate(sources):
            if graph.nodes[source].layer == layer:
                f[row, graph.nodes[source].position, graph.nodes[source].index] = 0
        found[layer] = f
        return f

    run_features(model, shipped, graph.tokens.expand(len(sources), -1), silence)
    for row, source in enumerate(sources):
        above = [target for target in targets if graph.nodes[target].layer > graph.nodes[source].layer]
        for target, following in zip(above, above[1:] + above[:1]):
            node = graph.nodes[target]
            change = found[node.layer][row, node.position, node.index] / graph.values[target] - 1
            seen.append((-through[target, source], -relative[target, source], -through[following, source], change))
    return torch.tensor(seen).T


true_edges = {}
for fact, (_, its_graphs) in FACTS.items():
    for graph_i, both in zip(its_graphs, chosen_in[fact]):
        for label, sources in zip(LABELS, both):
            *guesses, effect = changes_above(graph_i, sources, both[0])
            for name, guess in zip(("all paths", "direct edges", "another target's paths"), guesses):
                true_edges.setdefault((fact, label, name), []).append(correlation(guess, effect))
true_edges = {key: torch.stack(each) for key, each in true_edges.items()}
for fact, label in columns:
    print(f"{fact:11} silenced: {label:15} the 20's changes correlate with " + ", ".join(
        f"{name} {each.mean():.2f}" for (*which, name), each in true_edges.items() if which == [fact, label]))
for fact, label in columns:
    claim(f"{fact}, {label}: direct edges tell what targets do better than another target's paths",
          true_edges[fact, label, "direct edges"], ">", true_edges[fact, label, "another target's paths"],
          unit="correlation")

# %% [markdown]
# The edges are true, on both facts and for sources that the graph does not name. All paths together hardly predict
# better.
#
# ## 6 · Does it name the right features?
#
# Between the two stories only the name differs, so a feature that carries "who
# acts" should change the pronoun, and leave all else. Silence the n most influential features; the *rest* is the
# prediction without both answers and the two words that differ.

# %%
@torch.no_grad()
def all_features(tokens):
    """Each layer's features on these texts, {layer: [n, pos, d_sae]}."""
    noted = {}
    run_features(model, shipped, tokens, noted.setdefault)
    return noted


def on_the_grid(values_of, graphs):
    """Numbers of nodes as {layer: [n, pos, d_sae]}, 0 where there is no node."""
    grid = {layer: torch.zeros(len(graphs), len(graphs[0].tokens), shipped[layer].d_sae) for layer in LAYERS}
    for i, each in enumerate(graphs):
        for node, value in zip(each.nodes, values_of(each).tolist()):
            if node.kind == "feature":
                grid[node.layer][i, node.position, node.index] = value
    return grid


def largest(grid, n):
    """The n largest of each text, {layer: mask}."""
    flat = torch.cat([grid[layer].flatten(1) for layer in LAYERS], dim=1)
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask.scatter_(1, flat.topk(n, dim=1).indices, n > 0)
    return {layer: part.reshape(grid[layer].shape) for layer, part in
            zip(LAYERS, mask.split([grid[layer][0].numel() for layer in LAYERS], dim=1))}


class Fact:
    """Pairs of texts, what the model makes of both, and the influence of the clean texts' features."""

    def __init__(self, pairs, graphs):
        self.pairs, self.difference = pairs, difference_of(pairs)
        self.clean, self.twin = all_features(pairs.clean), all_features(pairs.corrupted)
        self.influence = on_the_grid(lambda each: each.influence(), graphs)
        self.sizes = {layer: f.cpu() * shipped[layer].W_dec.norm(dim=1).cpu() for layer, f in self.clean.items()}
        with torch.no_grad():
            self.logits, self.twin_logits = model(pairs.clean), model(pairs.corrupted)
        differs = (pairs.clean != pairs.corrupted).int().argmax(dim=1, keepdim=True)
        self.apart = torch.cat([pairs.right[:, None], pairs.wrong[:, None], pairs.clean.gather(1, differs),
                                pairs.corrupted.gather(1, differs)], dim=1)             # both answers, and what differs

    def rest_moved(self, logits, reference):
        """KL of the rest of the prediction (nats), for each text."""
        return kl_divergence(*(each[:, -1].scatter(1, self.apart, -1e9) for each in (reference, logits)))

    def nearest(self, mask):
        """As many features, nearest in size at the same places, but not among the 20 most influential."""
        chosen_ones, top = {layer: torch.zeros_like(each) for layer, each in mask.items()}, largest(self.influence, 20)
        for layer in LAYERS:
            for text, position in mask[layer].any(dim=2).nonzero().tolist():
                here, size = mask[layer][text, position], self.sizes[layer][text, position]
                barred = ((size == 0) | top[layer][text, position]) & ~here
                controls = equally_large(size, torch.where(barred, -1, 0), here.nonzero()[:, 0].tolist())
                chosen_ones[layer][text, position, controls] = True
        return chosen_ones

    def length(self, mask):
        """The mean length of what these features write."""
        return torch.cat([self.sizes[layer][mask[layer]] for layer in LAYERS]).mean()

    @torch.no_grad()
    def silenced(self, mask):
        """The share of the logit difference that is left, and how far the rest moves."""
        logits = run_features(model, shipped, self.pairs.clean, lambda layer, f: torch.where(mask[layer], 0, f))
        return self.difference(logits) / self.difference(self.logits).mean(), self.rest_moved(logits, self.logits)

    @torch.no_grad()
    def steered(self, mask):
        """The share of the way from the twin to the clean text, and how far the rest moves."""
        logits = run_features(model, shipped, self.pairs.corrupted,
                              lambda layer, f: torch.where(mask[layer], self.clean[layer], f))
        start, end, got = map(self.difference, (self.twin_logits, self.logits, logits))
        return (got - start) / (end - start).mean(), self.rest_moved(logits, self.twin_logits)


def nodes_in(mask, text):
    return [Node("feature", layer, *place) for layer in LAYERS for place in mask[layer][text].nonzero().tolist()]


def known_to(mask):
    """How far "a woman acts" is from its usual share where these features are active, for each text."""
    far = [[abs(share - base) for node in nodes_in(mask, text) for share, base in [where_active(node)["a woman acts"]]]
           for text in range(len(pairs))]
    return torch.tensor([sum(each) / len(each) for each in far])


facts = {name: Fact(*each) for name, each in FACTS.items()}
who = facts["who acts"]
three = largest(who.influence, 3)
claim("where the 3 most influential features are active, who acts is more certain than where the 3 nearest in size are",
      known_to(three), ">", known_to(who.nearest(three)), unit="distance from the usual share of women")
left, moved = {}, {}
for name, fact in facts.items():
    answers = fact.logits[:, -1].softmax(-1).gather(1, fact.apart[:, :2]).sum(1).mean()
    print(f"{name}: the two answers have a probability of {answers:.2f}")
    for n in (3, 5, 20):
        mask = largest(fact.influence, n)
        for label, which in (("most influential", mask), ("nearest in size", fact.nearest(mask))):
            left[name, n, label], moved[name, n, label] = fact.silenced(which)
            print(f"   the {n:2} {label:16}, mean length {fact.length(which):4.1f}, silenced: "
                  f"{estimate(left[name, n, label])} is left; the rest moves by {moved[name, n, label].mean():.3f} nats")
    claim(f"{name}: without the 3 most influential features less than half of the difference is left",
          left[name, 3, "most influential"], "<", 0.5, unit="share")
    claim(f"{name}: without the 3 nearest in size more is left", left[name, 3, "nearest in size"], ">",
          left[name, 3, "most influential"], unit="share")
claim("who acts: the 3 leave the rest of the prediction as it is, to within 0.02 nats",
      moved["who acts", 3, "most influential"], "<", 0.02, unit="nats")
claim("who acts: the 20 do not, for what they carry is not the pronoun alone", moved["who acts", 20, "most influential"],
      ">", moved["who acts", 20, "nearest in size"], unit="nats")

# %% [markdown]
# For "who acts" the names are true: three features hold more than half of the difference, they are active where a woman
# acts, or a man, and without them nothing else changes. Three others, four fifths as long, do nothing to it but raise
# it a little, by the norm. For "one or many" three hold nearly all, and three others, half as long, nothing; the two
# answers leave the rest no probability.
#
# Farther down it falls apart. Without twenty features *no less* is left than without five, and for "who acts" the rest
# of the prediction is destroyed. Influence asks what the two logits are made of, and both are made of "a sentence
# begins here" as much as of "a woman acts". A graph of a difference is not a graph of what differs.
#
# Now **steer**: in the twin story, about a person of the other sex, set the n most influential features of the clean
# story's graph to the values that they have there.
#
# **Predict:** with *all* of the graph's features set (seven hundred), how far does the logit difference go from the
# twin's to the clean story's? 0: not at all, 1: all the way.

# %%
predict("12.steered", None, unit="(share)")

# %%
way = {}
for name, fact in facts.items():
    in_graph = {layer: each > 0 for layer, each in fact.clean.items()}
    for label, mask in {"the 3 most influential": largest(fact.influence, 3),
                        "the 3 nearest in size": fact.nearest(largest(fact.influence, 3)), "all of the graph": in_graph,
                        "all that there are": {layer: each | True for layer, each in in_graph.items()}}.items():
        way[name, label], _ = fact.steered(mask)
        print(f"{name:11} {label:22} set: {estimate(way[name, label])} of the way")
inactive = way["who acts", "all that there are"] - way["who acts", "all of the graph"]
print(f"who acts: features that are not active in the clean story add {estimate(inactive)}; embedding and heads "
      f"{estimate(1 - way['who acts', 'all that there are'])}")
reveal("12.steered", way["who acts", "all of the graph"].mean())
for name in facts:
    claim(f"{name}: 3 features go more of the way than the 3 nearest in size", way[name, "the 3 most influential"], ">",
          way[name, "the 3 nearest in size"], unit="share of the way")
claim("who acts: all features of the graph go less of it than all features that there are",
      way["who acts", "all of the graph"], "<", way["who acts", "all that there are"], unit="share of the way")
claim("one or many: all features of the graph go farther than for who acts", way["one or many", "all of the graph"], ">",
      way["who acts", "all of the graph"], unit="share of the way")

# %% [markdown]
# For "who acts" three features go two fifths of the way, and all seven hundred little farther: half. Two fifths of what
# is missing are features that are not *active* in the clean story: the twin's own still say He, and a graph lists what
# is there, not what would have to be absent. The rest is the embedding and the heads, still the twin's. For "one or
# many" the graph's features go nearly all of the way.
#
# ## 7 · Beside the circuit of lesson 10
#
# How many nodes for how much of the logit difference? As for edges: the clean text, with all features outside the
# circuit as on the corrupted text. Embeddings, heads and errors stay as they come.

# %%
@exercise("12.features_kept")
def features_kept(
    model: TransformerBridge, transcoders: dict[int, Transcoder], clean: Int[Tensor, "n pos"],
    corrupted: Int[Tensor, "n pos"], kept: dict[int, Bool[Tensor, "n pos d_sae"]], metric: Metric
) -> Float[Tensor, "n"]:
    """What each text keeps when all features outside `kept` have the activation of the corrupted text.

    0: no more than the corrupted text; 1: what the clean text adds to that, on average over texts. `kept` is
    {layer: mask}; what is kept is computed anew, from what its MLP reads now.
    `run_features(model, transcoders, tokens, change)` is a pass in which a layer's MLP has the features
    `change(layer, features)` instead of its own, [n, pos, d_sae]; its logits are returned.
    """
    raise NotImplementedError


# %% [markdown]
# Four rankings, averaged over the eight stories: influence; **effect times change**, the total effect times the
# share by which the twin's activation differs; the length of that change alone, without a graph; chance, among those
# that change. Beside them the edges of lesson 10. Each circuit is chosen once and judged on sixteen other stories. One
# control: influence in the four stories about women.

# %%
effects, rng = on_the_grid(lambda each: total_effects(each)[0], graphs), torch.Generator().manual_seed(0)
ranks = {"effect times change": {}, "influence": who.influence, "influence, women's stories": {}, "change alone": {},
         "random": {}}
for layer in LAYERS:
    here, there = who.clean[layer].cpu(), who.twin[layer].cpu()
    change = here - there
    ranks["effect times change"][layer] = (effects[layer] * change / here.clamp(min=1e-9)).abs()
    ranks["influence, women's stories"][layer] = who.influence[layer][::2]             # every second story
    ranks["change alone"][layer] = change.abs() * shipped[layer].W_dec.norm(dim=1).cpu()
    ranks["random"][layer] = torch.rand(here[:1].shape, generator=rng) * (change.abs() > 1e-3).any(dim=0)
several = sex_pairs(model, 40, seed=1)
judged = several[torch.tensor([not (row == pairs.clean).all(1).any() for row in several.clean])][:16]
kept_of = difference_of(judged)
SIZES = [0, 2, 5, 10, 20, 50, 200]
kept = {}
with torch.no_grad():
    for name, rank in ranks.items():
        for n in SIZES:
            mask = largest({layer: each.mean(dim=0).expand(len(judged), -1, -1) for layer, each in rank.items()}, n)
            kept[name, n] = features_kept(model, shipped, judged.clean, judged.corrupted, mask, kept_of)
    active = {layer: each > 0 for layer, each in all_features(judged.clean).items()}
    own_active = features_kept(model, shipped, judged.clean, judged.corrupted, active, kept_of)
    low, high = kept_of(model(judged.corrupted)), kept_of(model(judged.clean))
edge_scores = attribution_scores(model, pairs.clean, pairs.corrupted, metric, steps=10).cpu().mean(-1)
for n in SIZES:
    with torch.no_grad():
        mask = best_edges(edge_scores, n, graph_of(model).edges)
        kept["edges of lesson 10", n] = (kept_of(run_circuit(model, judged.clean, judged.corrupted, mask)) - low) / (
            high - low).mean()
curves = {name: torch.stack([kept[name, n].mean() for n in SIZES]) for name in (*ranks, "edges of lesson 10")}
figure = plot_by_position(curves, "share of the logit difference kept", x=torch.tensor(SIZES), markers=True,
                          xlabel="features, or edges, in the circuit (logarithmic above 1)", title="What k features keep")
figure.axes[0].set_xscale("symlog", linthresh=1)
display(figure)

# %%
either = sum(((who.clean[layer] > 0) | (who.twin[layer] > 0)).sum() for layer in LAYERS) / len(pairs)
print(f"of {either:.0f} features, active in one text of a pair, and {int(graph_of(model).edges.sum())} edges:")
for name in curves:
    means_kept = {n: round(kept[name, n].mean().item(), 2) + 0 for n in (0, 10, 20, 50)}            # no minus before a zero
    print(f"{name:26} " + ", ".join(f"{n:2} keep {mean:.2f}" for n, mean in means_kept.items()))
claim("10 features by effect times change keep more than all that are active in the clean text",
      kept["effect times change", 10], ">", own_active, unit="share")
claim("20 features by influence, from stories of both kinds, keep more than 50 from stories about women",
      kept["influence", 20], ">", kept["influence, women's stories", 50], unit="share")
claim("10 by effect times change keep more than the 10 that change most", kept["effect times change", 10], ">",
      kept["change alone", 10], unit="share")
claim("10 random features that change keep no more than none, to within 0.05", kept["random", 10], "≈",
      kept["random", 0], within=0.05, unit="share")
claim("10 features keep more than 10 edges", kept["effect times change", 10], ">", kept["edges of lesson 10", 10],
      unit="share")
measured("kept by 10 features chosen on eight stories", kept["effect times change", 10].mean(), at_least=0.8)

# %% [markdown]
# Ten features keep nearly all, in stories that had no say in the choice; ten edges three tenths. (The counts are not of
# one kind: embeddings, heads and errors stay as they come, which keeps 0.3 without a feature; and a feature is counted
# at one position, an edge at all.) Plain influence gets there with twenty, if its stories are of *both* kinds; from the
# women's alone fifty keep no more than ten. A contrast needs graphs of both sides. A plain rival comes close: the ten
# features that change most keep nine tenths, without a graph.
#
# ## 8 · What the graph leaves out
#
# **Where heads look** is frozen. How much of a fact's effect runs through them?
# Ask the model: let it read the corrupted text, but attend as on the clean one.

# %%
@exercise("12.with_patterns_of")
def with_patterns_of(
    model: TransformerBridge, tokens: Int[Tensor, "n pos"], others: Int[Tensor, "n pos"]
) -> Float[Tensor, "n pos vocab"]:
    """Logits of a pass on `tokens` in which all heads attend as they do on `others`."""
    raise NotImplementedError


# %% [markdown]
# Two facts of the stories, and two changes of a text that repeats: BOS, ten random tokens, the first five of them
# again. The next token is the sixth of the ten. Replace that where it stands (the **value**), or replace the text's
# last token by another of the ten (the **query**): then another token follows.
#
# **Predict:** with the clean text's patterns, what share of the query's effect is left?

# %%
predict("12.query", None, unit="(share)")

# %%
def repeating(change, n=16, seed=0):
    """Pairs of texts that repeat; in the twin the value or the query is another."""
    rng = torch.Generator().manual_seed(seed)
    rows = torch.stack([2 + torch.randperm(model.cfg.d_vocab - 2, generator=rng)[:11] for _ in range(n)])
    first, another = rows[:, :10], rows[:, 10]
    clean = torch.cat([pairs.clean[:1, :1].cpu().expand(n, 1), first, first[:, :5]], dim=1)
    corrupted, wrong = clean.clone(), another if change == "value" else first[:, 8]
    corrupted[:, 6 if change == "value" else -1] = another if change == "value" else first[:, 7]
    return Pairs(*(each.to(model.cfg.device) for each in (clean, corrupted, first[:, 5], wrong)))


changes = {"who acts": sex_pairs(model, 16, seed=3), "one or many": number_pairs(model, 16, seed=3),
           "repeats, value": repeating("value"), "repeats, query": repeating("query")}
not_by_patterns = {}
for name, these in changes.items():
    with torch.no_grad():
        start, end, held = (difference_of(these)(logits) for logits in (
            model(these.clean), model(these.corrupted), with_patterns_of(model, these.corrupted, these.clean)))
    not_by_patterns[name] = (start - held) / (start - end).mean()
    print(f"{name:15} logit difference {start.mean():5.1f} → {end.mean():5.1f}; with the clean text's patterns "
          f"{estimate(not_by_patterns[name])} of the effect is left")
reveal("12.query", not_by_patterns["repeats, query"].mean())
claim("who acts: all of the effect is left, to within 0.1", not_by_patterns["who acts"], "≈", 1.0, within=0.1,
      unit="share")
claim("one or many: some of it runs through patterns", not_by_patterns["one or many"], "<", 1.0, unit="share")
claim("the query of a repeated token: less than a tenth is left", not_by_patterns["repeats, query"], "<", 0.1,
      unit="share")

# %% [markdown]
# Look at the graph of such a text: which word does it name?

# %%
again = changes["repeats, query"]
again_graphs = graphs_of(again[:4])
shares = {}
for place, position in (("value", 6), ("query", again.clean.shape[1] - 1)):
    at = [next(k for k, node in enumerate(each.nodes) if node.kind == "embedding" and node.position == position)
          for each in again_graphs]
    shares[place] = torch.stack([(total_effects(each)[0, k] / each.values[-1]).float() for each, k in zip(again_graphs, at)])
    print(f"{place}: its embedding has {torch.stack([each.influence()[k] for each, k in zip(again_graphs, at)]).mean():.2f} "
          f"of the influence; without it the graph says {estimate(shares[place])} of the difference would be gone")
claim("the graph gives more of the answer to the value than to the query", shares["value"], ">", shares["query"],
      unit="share of the difference")
again_words = words.decode(again.clean[0].tolist()).split()
plot_attribution_graph(pruned(again_graphs[0], 0.5, 0.6), again_words, None, f"Why {words.vocabulary[int(again.right[0])]!r}?")

# %% [markdown]
# The token that is *looked for* decides everything, and the graph gives it nothing. It names the value, and the heads
# carry that; why they looked there, at the token after the query's first copy, is frozen. For induction that is the
# whole mechanism (lesson 05). The same kind of graph is complete for "who acts" and blind for the query, and nothing in
# it tells you which case you are in. The experiment does.
#
# **Inhibition.** Influence is made of sizes. It cannot tell a feature that raises the answer from one that lowers it.

# %%
against = torch.stack([(total_effects(each)[0, [k for k, _, _ in each.top(20)]] < 0).double().mean() for each in graphs])
print(f"of the 20 most influential features {estimate(against)} speak against the answer")
claim("some of the most influential features speak against the answer", against, ">", 0.05, unit="share of 20")

# %% [markdown]
# ## 9 · What the scores say
#
# Two numbers are reported with graphs. The **replacement score**: of the influence that comes from embeddings and
# errors, the share of embeddings. The **completeness score**: of what enters each node, the share that is no error, by
# influence. What would they be for transcoders that mean nothing? Take random features with the decoder that suits
# them; the shipped transcoders with the rows of each decoder shuffled; and no feature at all, only the best linear
# map from x to y (a skip connection: Paulo et al., 2025).
#
# **Predict:** the completeness score with shuffled decoders?

# %%
predict("12.shuffled", None, unit="(score)")

# %%
def shuffled(layer):
    found = load_shipped_transcoder(MODEL, layer).to(model.cfg.device)
    order = torch.randperm(found.d_sae, generator=torch.Generator().manual_seed(layer))
    found.W_dec.data = found.W_dec.data[order]
    return found


def linear(layer):
    found = Transcoder(model.cfg.d_model, 1, "relu", skip=True).requires_grad_(False)
    slope, found.b_dec.data = fitted(*READ[layer])
    found.W_skip.data, found.b_enc.data = slope.T.contiguous(), torch.tensor([-1e9])
    return found


kinds = {"shipped": shipped, "random features": random_features,
         "shuffled decoders": {layer: shuffled(layer) for layer in LAYERS},
         "linear map, no feature": {layer: linear(layer) for layer in LAYERS}}
scores = {}
for name, kind in kinds.items():
    made = graphs if name == "shipped" else graphs_of(pairs[:4], kind)
    for which, number in zip(("replacement", "completeness"), zip(*(each.scores() for each in made))):
        scores[name, which] = torch.tensor(number)
    errors_missing = metric(torch.stack([FrozenModel(model, kind, tokens).replaced_logits(errors=False)
                                         for tokens in pairs.clean])) / at_clean.mean()
    print(f"{name:23} replacement {estimate(scores[name, 'replacement'])}, completeness "
          f"{estimate(scores[name, 'completeness'])}; without errors {estimate(errors_missing)} of the difference")
reveal("12.shuffled", scores["shuffled decoders", "completeness"].mean())
for which in ("replacement", "completeness"):
    claim(f"{which}: trained transcoders score higher than random features", scores["shipped", which][:4], ">",
          scores["random features", which], unit="score")
claim("shuffled decoders, which give nonsense, have a completeness above 0.7", scores["shuffled decoders", "completeness"],
      ">", 0.7, unit="score")
claim("a graph without a feature has a replacement score above 0.4", scores["linear map, no feature", "replacement"], ">",
      0.4, unit="score")

# %% [markdown]
# Trained transcoders score highest and shuffled ones lowest. Between them both scores put random features above the
# linear map, which without errors makes as much of the difference. Nor is their zero at 0: with shuffled decoders,
# which write nonsense, almost four fifths of what enters a node is still no error, since embeddings reach everything
# through the frozen heads. Report both beside such a control.
#
# ## 10 · A real language model

# %%
real_model = load_real_model()

# %%
if real_model is not None:
    real_pairs = giver_pairs(real_model, 8)
    decode = real_model.tokenizer.decode
    print(f"{decode(real_pairs.clean[0, 1:])} …{decode(real_pairs.right[:1])}")
    with torch.no_grad():
        real_start, real_end, real_held = (difference_of(real_pairs)(logits) for logits in (
            real_model(real_pairs.clean), real_model(real_pairs.corrupted),
            with_patterns_of(real_model, real_pairs.corrupted, real_pairs.clean)))
    real_left = (real_start - real_held) / (real_start - real_end).mean()
    claim("SmolLM2, who gives decides who receives: with frozen patterns less than three quarters of the effect is left",
          real_left, "<", 0.75, unit="share")
    measured("SmolLM2: effect of who gives that is left with frozen patterns", real_left.mean(), unit="share")

# %% [markdown]
# More than half of the effect runs through patterns, which an attribution graph of this prompt would not show. Graphs
# of large models need transcoders that cost weeks; here is what a minute buys, on the model's own text: one layer, some
# thousand features.

# %%
if real_model is not None:
    REAL_LAYER, real_text = 12, sample_text(real_model, 96, 96)
    real_learn, real_judge = real_text[:84], real_text[84:]
    real_x, real_y = mlp_inputs_and_outputs(real_model, REAL_LAYER, real_learn)
    real_config = TrainingConfig(d_sae=1024, kind="topk", k=32, steps=250, batch=512, lr=2e-3, warm_up=20)
    real_width = real_model.cfg.d_model
    real_kinds = {"trained": fit(Transcoder(real_width, 1024, "topk", k=32), real_x, real_config, targets=real_y).cpu(),
                  "random features": with_random_features(real_x, real_y, 1024, 32, ridge=0.03), "mean": Mean(real_y.mean(dim=0))}
    new_x, new_y = mlp_inputs_and_outputs(real_model, REAL_LAYER, real_judge)
    with torch.no_grad():
        real_logits = real_model(real_judge)
        explained = {name: 1 - (each(new_x) - new_y).unflatten(0, (12, -1)).square().sum((1, 2))
                     / (new_y - new_y.mean(dim=0)).unflatten(0, (12, -1)).square().sum((1, 2))
                     for name, each in real_kinds.items()}
        for name, each in real_kinds.items():
            replaced = replaced_logits(real_model, {REAL_LAYER: each.to(real_model.cfg.device)}, real_judge)
            cost = delta_cross_entropy(real_logits, replaced, real_judge)[:, 1:].mean(dim=1)
            print(f"layer {REAL_LAYER}, {name:15} explains {estimate(explained[name])}, "
                  f"ΔCE {cost.mean():.2f} ± {2 * cost.std() / len(cost) ** 0.5:.2f} nats")
    claim("SmolLM2: a transcoder trained for a minute explains more of what the MLP writes than random features",
          explained["trained"], ">", explained["random features"], unit="share of each text's variance")

# %% [markdown]
# It explains more than random features do, and the loss hardly notices: one MLP of thirty costs little, whatever stands
# in its place (look at the mean's ΔCE). Most of the variance is missing, too: in a graph over this transcoder the
# errors would dominate.
#
# ## On your own
#
# Eight short stories named a few features. Do these do the same work in stories that no graph has seen, with a sentence
# between (`sex_pairs(…, then="The PLACE was foggy and big .")`)? Hand in a claim; a number with its interval; the
# control; what would have refuted you; and what your experiment does not show.

# %% tags=["solution-only"]
longer = sex_pairs(model, 16, seed=9, then="The PLACE was foggy and big .")
named = sorted({(node.layer, node.index) for text in range(len(pairs)) for node in nodes_in(three, text)})
there, controls = all_features(longer.clean), []
for layer in LAYERS:
    size = there[layer][:, -1].mean(dim=0).cpu() * shipped[layer].W_dec.norm(dim=1).cpu()
    chosen = [index for at, index in named if at == layer]
    controls += [(layer, index) for index in equally_large(size, torch.where(size > 0, 0, -1), chosen)]


@torch.no_grad()
def without(these):
    """The share of the logit difference that is left when these features are silent at the last position."""
    def silence(layer, f):
        f[:, -1, [index for at, index in these if at == layer]] = 0
        return f

    here = difference_of(longer)
    return here(run_features(model, shipped, longer.clean, silence)) / here(model(longer.clean)).mean()


print(f"the {len(named)} named features: " + ", ".join(f"{layer}/{index}" for layer, index in named))
claim("on longer stories less is left without the named features than without those nearest in size", without(named),
      "<", without(controls), unit="share of the logit difference")

# %% [markdown] tags=["solution-only"]
# *A model answer.* The claim stands above, with its interval; the control is as many features of the same layers, those
# nearest in size there. An interval that reached 0 would have refuted me. It does not show that these features are all
# that carries the fact in longer stories, nor that they carry nothing else.

# %% [markdown]
# ## What this does not show
#
# - A graph is of one prompt, for one answer. Where the two facts tried here disagree, a third may differ from both.
# - Features are those of these transcoders. Others, as good, would name others (lesson 11).
# - The patterns, the norms' scales and which features are active are held. Where those move, the graph is wrong, and
#   does not say so.
# - Silenced features leave activations that the model has never seen.
# - `tiny`'s transcoders miss next to nothing. On large models errors are a large share of most graphs.
# - Cross-layer transcoders, which Ameisen et al. use, were not tried.
#
# ## Summary
#
# - A transcoder gives what an MLP writes, from what it reads. Hold it against random features with a fitted decoder,
#   and put it into the model.
# - With errors, frozen patterns and frozen norms, everything is a sum; an edge is one term. That it adds up is no
#   evidence.
# - Its edges between features are true here, on both facts: silenced sources move their targets as they say.
# - Of effects on the answer it misses what runs through the norms. A correlation hides errors where effects are large:
#   print both. Choose a control that could refute you: random features have no effect to be wrong about.
# - Its top features carry the fact. How far the whole graph steers depends on the fact: try two.
# - One graph knows what is active, not what is absent. For a contrast take graphs of texts of both kinds.
# - It cannot say why heads look where they do. Measure how much runs through patterns before you believe it.
# - Influence has no sign, and scores have no zero at 0. Put a graph over nonsense beside yours.
#
# Sources: Dunefsky et al., [Transcoders Find Interpretable LLM Feature Circuits](https://arxiv.org/abs/2406.11944)
# (2024); Ameisen et al., [Circuit Tracing: Revealing Computational Graphs in Language
# Models](https://transformer-circuits.pub/2025/attribution-graphs/methods.html) (2025); Paulo et al., [Transcoders Beat
# Sparse Autoencoders for Interpretability](https://arxiv.org/abs/2501.18823) (2025); Marks et al., [Sparse Feature
# Circuits](https://arxiv.org/abs/2403.19647) (2024), for what a set of features keeps; the library
# [circuit-tracer](https://github.com/safety-research/circuit-tracer) (Hanna et al., 2025), whose definitions of
# influence, pruning and both scores are used here.

# %% tags=["exercise-only"]
progress("12")

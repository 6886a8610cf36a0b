# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 10 · Is a circuit faithful?
#
# **The question.** Lesson 05 named a circuit. What would it take to show that it *is* the circuit: that these parts
# do the work, that nothing else does, and that none of them could be left out? And would another metric, another
# ablation or another text have given the same verdict?
#
# You will take two texts that differ in one fact, find where in the model the fact stands, and then go from places
# to **edges**: what one part reads of another. `tiny` is so small that all its edges can be patched one by one. So
# the fast methods that everybody uses on large models, which estimate all edges from a gradient, can be held
# against the truth. Circuits of k edges are then judged by what they keep. At the end the circuit of lesson 05
# stands trial.
#
# **You need:** lessons 00 to 05.

# %% tags=["parameters"]
import os
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from course_utils.claims import claim, estimate
from course_utils.edges import (
    attribution_scores,
    best_edges,
    exact_scores,
    graph_of,
    run_circuit,
    run_edges,
    without_subsets,
    worst_subset,
)
from course_utils.exercises import exercise, hint, predict, progress, reveal, solution
from course_utils.heads import best_head, induction_scores, previous_token_scores, top_heads
from course_utils.house import NotForThisModel
from course_utils.measured import measured
from course_utils.metrics import kl_divergence
from course_utils.models import load_model, load_real_model
from course_utils.pairs import giver_pairs, number_pairs, own_pairs, sex_pairs
from course_utils.passes import key_value_head
from course_utils.planted import planted_induction_model
from course_utils.repeated_tokens import generate_repeated_tokens
from course_utils.text import reads_stories
from course_utils.viz import (
    interactive_circuit,
    new_axes,
    plot_bars,
    plot_by_position,
    plot_circuit,
    plot_head_scores,
    plot_scatter,
)

Metric = Callable[[Float[Tensor, "n pos vocab"]], Float[Tensor, "n"]]


def small_enough(model):
    """Whether all edges can be patched, one by one."""
    try:
        return graph_of(model).edges.sum() < 2000
    except NotForThisModel as reason:
        print(reason)
        return False


MODEL = os.environ.get("COURSE_MODEL", "tiny")      # or the name of another small model

# %%
model = load_model(MODEL)
if not small_enough(model):
    print(f"the edges of {MODEL} cannot all be patched one by one here: this lesson takes tiny")
    MODEL, model = "tiny", load_model("tiny")
graph = graph_of(model)
N_EDGES = int(graph.edges.sum())
print(f"{MODEL}: {len(graph.senders)} senders, {len(graph.receivers)} receivers, {N_EDGES} edges")

# %% [markdown]
# ## 1 · Two texts, one fact
#
# A text and its twin, position by position the same but for one fact. In the course's language, *who acts* decides
# whether the next sentence may begin with She or with He, and *one or many* decides between was and were. The text
# whose answer we follow is called **clean**, its twin **corrupted**. (For a model that does not read the stories,
# `own_pairs` changes one token of the model's own text.)

# %%
def who(n, seed=0, then=""):
    return sex_pairs(model, n, seed, then=then) if reads_stories(model) else own_pairs(model, n, 10, seed)


def how_many(n, seed=0):
    return number_pairs(model, n, seed) if reads_stories(model) else own_pairs(model, n, 15, seed + 50)


def two(x):
    """A number with two decimals, and no minus before a zero."""
    return f"{round(float(x), 2) + 0:.2f}"


def words(ids):
    return " ".join(model.tokenizer.convert_ids_to_tokens(ids.tolist()))


few, test, number = who(8), who(16, seed=1), how_many(8)
for pairs in (few, number):
    print(f"clean:     {words(pairs.clean[0])} … {words(pairs.right[:1])}\n"
          f"corrupted: {words(pairs.corrupted[0])} … {words(pairs.wrong[:1])}")

# %% [markdown]
# The number to watch is the **logit difference**: the logit of the clean text's answer, minus that of the corrupted
# text's, at the last position. The logits are linear in what the parts write, once the last norm's scale is held; so
# the logit difference of two parts is the sum of theirs.

# %%
@exercise("10.answer_difference")
def answer_difference(
    logits: Float[Tensor, "n pos vocab"], right: Int[Tensor, "n"], wrong: Int[Tensor, "n"]
) -> Float[Tensor, "n"]:
    """How far the right answer's logit lies above the wrong one's, at the last position of each text."""
    raise NotImplementedError


# %%
def difference_of(pairs):
    """The metric of these pairs: logits -> one number for each text."""
    return lambda logits: answer_difference(logits, pairs.right, pairs.wrong)


def log_probability_of(pairs):
    """The right answer's log-probability (nats): minus the loss."""
    return lambda logits: logits[:, -1].log_softmax(-1).gather(1, pairs.right[:, None])[:, 0]


@torch.no_grad()
def both_ends(pairs, metric):
    """The metric on clean and on corrupted: [n] each."""
    return metric(model(pairs.clean)), metric(model(pairs.corrupted))


for name, pairs in (("who acts", few), ("one or many", number)):
    clean, corrupted = both_ends(pairs, difference_of(pairs))
    print(f"{name}: clean {estimate(clean)}, corrupted {estimate(corrupted)}")
    claim(f"{name}: the fact decides", clean, ">", corrupted, unit="logit difference")

# %% [markdown]
# ## 2 · Where does the fact stand?
#
# **Activation patching.** Run one text, but let one layer read, at one position, the stream of the other text. From
# clean to corrupted (*denoising*): is what stands here **enough** to bring the answer back? From corrupted to clean
# (*noising*): is it **needed**? It is one experiment with its texts exchanged. Layers are at
# `blocks.{layer}.hook_resid_pre`, what the layer reads.

# %%
@exercise("10.patch_map")
def patch_map(
    model: TransformerBridge, base: Int[Tensor, "n pos"], source: Int[Tensor, "n pos"], metric: Metric,
    layers: list[int], positions: list[int]
) -> Float[Tensor, "layer position"]:
    """The mean metric of passes on `base` in which one layer reads, at one position, the stream of `source`."""
    raise NotImplementedError


# %%
@torch.no_grad()
def both_ways(pairs, metric, layers, positions):
    """Shares of the whole change: brought back by denoising, destroyed by noising; [layer, position] each."""
    clean, corrupted = (end.mean().item() for end in both_ends(pairs, metric))
    back = patch_map(model, pairs.corrupted, pairs.clean, metric, layers, positions) - corrupted
    gone = clean - patch_map(model, pairs.clean, pairs.corrupted, metric, layers, positions)
    return back / (clean - corrupted), gone / (clean - corrupted)


def first_change(pairs):
    """The first position at which the texts differ: before it there is nothing to patch."""
    return (pairs.clean != pairs.corrupted).any(dim=0).nonzero()[0].item()


LAYERS = list(range(model.cfg.n_layers))
for name, pairs in (("who acts", few), ("one or many", number)):
    places = list(range(first_change(pairs), pairs.clean.shape[1]))
    back, gone = both_ways(pairs, difference_of(pairs), LAYERS, places)
    picture = plot_head_scores(back, f"{MODEL}, {name}: share of the logit difference brought back by one place",
                               vmax=1, unit="share", diverging=True, columns="position, with the first text's words")
    picture.axes[0].set_xticks(range(len(places)), words(pairs.clean[0]).split()[places[0]:])
    display(picture)
    print(f"denoising and noising differ by at most {(back - gone).abs().max():.2f}")

# %% [markdown]
# The fact stands at one word until some layer carries it to the last position, where the answer is given: in `tiny`
# the sex of the name moves in layers 0 and 1, the number of the animals in layer 2. Nothing lies in between.
# And both directions say nearly the same.
#
# Now the same with another metric, the right answer's log-probability (the loss, but for its sign).
#
# **Predict:** at layer 1, by the logit difference, about a quarter of the fact has arrived at the last position of
# "who acts". By the log-probability, what share does denoising the last position bring back?

# %%
predict("10.denoised", None, unit="(share)")

# %%
places, at_layer = [first_change(few), few.clean.shape[1] - 1], [min(1, model.cfg.n_layers - 1)]
for label, metric in (("logit difference", difference_of(few)), ("log-probability", log_probability_of(few))):
    back, gone = both_ways(few, metric, at_layer, places)
    for i, place in enumerate(("where the fact is given", "the last position")):
        print(f"{label:16} {place:23}: brings back {back[0, i]:.2f}, destroys {gone[0, i]:.2f}")
reveal("10.denoised", back[0, 1])
each_text = []


def noted(logits):
    each_text.append(log_probability_of(few)(logits))
    return each_text[-1]


with torch.no_grad():
    clean, corrupted = both_ends(few, log_probability_of(few))
    patch_map(model, few.corrupted, few.clean, noted, at_layer, places[1:])
    patch_map(model, few.clean, few.corrupted, noted, at_layer, places[1:])
claim("by log-probability, the last position brings back more than it destroys",
      (each_text[0] - corrupted) / (clean - corrupted).mean(), ">", (clean - each_text[1]) / (clean - corrupted).mean(),
      unit="share")

# %% [markdown]
# Two places carry the fact at layer 1, so noising one *is* denoising the other: what the first destroys is 1 minus
# what the second brings back. Both directions agree only if the two shares add up to 1, as by the logit difference
# they nearly do. A log-probability saturates: the first steps away from certainly wrong count most, and once the
# right answer is ahead, more barely shows. So its shares add up to a third more than 1, and at the last position
# denoising finds more than three times the effect that noising finds. "Enough" and "needed" are two questions; which of
# them a metric lets you see depends on where it is steep.
#
# ## 3 · Edges
#
# A place holds what all parts before it wrote. An **edge** is finer: what one receiver (a head's queries, keys or
# values, an MLP, the logits) reads of one sender (the embedding, a head, an MLP). `exact_scores` gives each edge
# alone, at all positions, the corrupted text's value, and says how the metric changes. That is the truth about
# single edges, and takes a pass for each.
#
# **Edge attribution patching** estimates all of them from one gradient (Syed et al., 2023). To first order, the
# metric changes by what the sender's output changes by, times the metric's slope at what the receiver reads:
#
# $$\mathrm{score}(s \to r) = \sum_{\mathrm{pos}} \big(x_s^{\mathrm{corrupted}} - x_s^{\mathrm{clean}}\big) \cdot
# \frac{\partial m}{\partial\, \mathrm{input}_r}$$
#
# `run_edges(model, tokens, added)` makes a pass and returns the logits and what each sender wrote, [sender, n, pos,
# d_model]. On the way it calls `added(receiver, outputs)` once for each receiver, that is for each entry of
# `graph_of(model).receivers`, and adds what comes back, [n, pos, d_model], to what this receiver reads. (`outputs` is
# what the senders before it wrote; you do not need it here.) Slopes at an input are slopes at zeros that you add to it.

# %%
@exercise("10.edge_attribution")
def edge_attribution(
    model: TransformerBridge, clean: Int[Tensor, "n pos"], corrupted: Int[Tensor, "n pos"], metric: Metric
) -> Float[Tensor, "receiver sender n"]:
    """For every edge: what the sender's output changes by, times the metric's slope at what the receiver reads.

    The slope is that of the clean pass; summed over positions, not over texts. 0 where there is no edge:
    `graph_of(model).edges`, [receiver, sender].
    """
    raise NotImplementedError


# %%
metric = difference_of(few)
exact = exact_scores(model, few.clean, few.corrupted, metric).cpu()             # [receiver, sender, n]
one_gradient = edge_attribution(model, few.clean, few.corrupted, metric).cpu()
on_the_way = attribution_scores(model, few.clean, few.corrupted, metric, steps=10).cpu()
scores = {"exact": exact, "one gradient": one_gradient, "10 gradients": on_the_way}


def name_of(receiver, sender):
    return f"{graph.senders[sender]} → {graph.receivers[receiver]}"


def error_of(estimated, truth=exact):
    """Root mean square over edges, for each text: [n]."""
    return (estimated - truth)[graph.edges].square().mean(dim=0).sqrt()


for label, found in scores.items():
    both = torch.stack([each.mean(-1)[graph.edges] for each in (found, exact)])
    together, small = torch.corrcoef(both)[0, 1], both[:, both[1].abs().argsort()[:-10]]
    best = found.mean(-1).abs().flatten().topk(3).indices.tolist()
    print(f"{label:12}: correlation with exact {together:.3f}, without the 10 largest {torch.corrcoef(small)[0, 1]:.2f};"
          f" error {error_of(found).mean():.2f}; largest: " + ", ".join(name_of(*divmod(i, len(graph.senders))) for i in best))
    if label != "exact":
        measured(f"correlation with exact, {label}", together, at_least=0.8 if MODEL == "tiny" else None)
claim("ten gradients on the way are nearer to exact than one", error_of(on_the_way), "<", error_of(one_gradient),
      unit="logit difference")
plot_scatter(exact.mean(-1)[graph.edges], on_the_way.mean(-1)[graph.edges], "exact score (logit difference)",
             "estimate from 10 gradients", title=f"{MODEL}: every edge")

# %% [markdown]
# One gradient finds the largest edges and misjudges their sizes. The third row takes its slopes not at the clean
# text alone, but as the mean over mixtures of both texts' embeddings: **integrated gradients** (Hanna et al.,
# 2024). It has these sizes right. A correlation over all edges is made by some ten of them, though: without these,
# in `tiny`, the many gradients are no better than the one.
#
# What does theory promise? Not that these scores become the exact ones. Integrated gradients are **complete**: the
# scores of all edges that leave the embedding add up to the whole change from clean to corrupted, up to the error
# of replacing an integral by a sum of middle values, which falls with the *square* of the number of steps. A single
# edge's exact score is another quantity: one input changed, all else clean. Watch both.

# %%
some = few[:4]
with torch.no_grad():
    clean, corrupted = (end.cpu() for end in both_ends(some, difference_of(some)))
whole, steps, incomplete, from_exact = corrupted - clean, [10, 16, 32], {}, {}
for n in steps:
    found = on_the_way[:, :, :4] if n == 10 else attribution_scores(
        model, some.clean, some.corrupted, difference_of(some), steps=n).cpu()
    incomplete[n] = ((found[:, 0].sum(dim=0) - whole) / whole).abs()            # [n]; sender 0 is the embedding
    from_exact[n] = error_of(found, exact[:, :, :4])
    print(f"{n:2} steps: {incomplete[n].mean():.0e} of the change is missing; "
          f"error against exact {from_exact[n].mean():.3f}")
claim("ten gradients are complete to 1 %, in every text", incomplete[10].max(), "<", 0.01, unit="share of the change")
claim("from 16 steps to 32, what is missing falls to a quarter", incomplete[32], "≈", incomplete[16] / 4, within=5e-6,
      unit="share of the change")
claim("more steps do not bring single edges nearer to exact", from_exact[32], "≈", from_exact[10], within=0.01,
      unit="logit difference")

# %% [markdown]
# The scores are complete, and a thousand steps would not make them exact. The sum is right; how it is shared among
# edges is a convention. (Hanna et al. take the mixtures at the pieces' ends; the middles converge faster.) The
# libraries auto-circuit and EAP-IG give the same scores on these pairs (one gradient, and exact), to a
# millionth of the largest: `python -m benchmarks.edge_peers`.
#
# ## 4 · What k edges keep
#
# A circuit is a set of edges. Run the clean text with all *other* edges carrying what they carry on the corrupted
# text: `run_circuit`. If the circuit does the work, the answer stays. **Faithfulness** is the share that is kept, 0
# for no edges and 1 for all.

# %%
@exercise("10.circuit_kept")
def circuit_kept(
    model: TransformerBridge, clean: Int[Tensor, "n pos"], corrupted: Int[Tensor, "n pos"],
    circuit: Bool[Tensor, "receiver sender"], metric: Metric
) -> Float[Tensor, "n"]:
    """What each text keeps when all edges outside the circuit carry the corrupted text's values.

    0: no more than the corrupted text. 1: what the whole model adds to that, on average over texts.
    """
    raise NotImplementedError


# %% [markdown]
# And the control: circuits of equally many edges, drawn at random.

# %%
@exercise("10.random_circuits")
def random_circuits(
    edges: Bool[Tensor, "receiver sender"], k: int, n: int, seed: int = 0
) -> Bool[Tensor, "n receiver sender"]:
    """n circuits of k of the model's edges each, every set of k equally likely.

    The same seed gives the same circuits, another seed others.
    """
    raise NotImplementedError


# %%
@torch.no_grad()
def kept(circuit, pairs=test):
    """What a circuit keeps of the logit difference, on texts that were not used to find it: [n]."""
    return circuit_kept(model, pairs.clean, pairs.corrupted, circuit, difference_of(pairs)).cpu()


def keeps_on(clean, corrupted, metric):
    """circuit -> what these texts keep on average; passes that do not depend on the circuit run once."""
    with torch.no_grad():
        whole, nothing = metric(model(clean)).mean(), metric(model(corrupted)).mean()
        outside = run_edges(model, corrupted)[1]
    return lambda circuit: ((metric(run_circuit(model, clean, corrupted, circuit, outside=outside)).mean() - nothing)
                            / (whole - nothing)).item()


SIZES = [max(1, round(share * N_EDGES)) for share in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)]
shares = torch.tensor([*SIZES, N_EDGES]) / N_EDGES
curves = {label: torch.tensor([*(kept(best_edges(found.mean(-1), k, graph.edges)).mean() for k in SIZES), 1])
          for label, found in scores.items()}
draws = [random_circuits(graph.edges, k, 4, seed=k) for k in SIZES]
keeps = keeps_on(test.clean, test.corrupted, difference_of(test))
by_chance = torch.tensor([[keeps(circuit) for circuit in each] for each in draws])                # [k, draw]
by_chance = torch.cat([by_chance, torch.ones(1, 4)])

# %%
ax = new_axes(3.6)
ax.fill_between(shares, by_chance.amin(dim=1), by_chance.amax(dim=1), color="0.6", alpha=0.4,
                label="random edges: lowest to highest of 4")
ax.set_xscale("log")
plot_by_position(curves, "share of the logit difference kept", x=shares, markers=True, ax=ax,
                 xlabel="share of the edges in the circuit (logarithmic)", title=f"{MODEL}: what k edges keep")

# %% [markdown]
# Two numbers sum such a curve up (Mueller et al., 2025). **CPR** is the area under it: high if the circuit
# performs. **CMD** is the area under $|1 - \mathrm{kept}|$: low if the circuit does what the model does, no less
# *and no more*. Both by the trapezoid rule, from these values at the given shares of edges. (Their shares begin at
# 0.001, which is less than one edge of `tiny`.)

# %%
@exercise("10.areas")
def areas(shares: Float[Tensor, "k"], kept: Float[Tensor, "k"]) -> tuple[float, float]:
    """CPR and CMD: the areas under what is kept and under |1 − kept|, over the share of edges."""
    raise NotImplementedError


# %%
for label, curve in (curves | {"random edges": by_chance.mean(dim=1)}).items():
    cpr, cmd = areas(shares, curve)
    print(f"{label:12}: CPR {cpr:.2f}, CMD {cmd:.2f}; kept by "
          + ", ".join(f"{k} edges {two(x)}" for k, x in zip(SIZES[2:], curve[2:])))
    measured(f"CMD, {label}", cmd)
K = SIZES[3]                                                                    # a tenth of the edges
circuit = best_edges(on_the_way.mean(-1), K, graph.edges)
found, by_exact = kept(circuit), kept(best_edges(exact.mean(-1), K, graph.edges))
claim(f"{K} edges keep more than the best of {len(draws[3])} times {K} random ones", found, ">",
      round(by_chance[3].max().item(), 2), unit="share")
sizes = (on_the_way.mean(-1).abs() * graph.edges).flatten()
rng, weighted = torch.Generator().manual_seed(0), []
for _ in range(8):
    drawn = torch.zeros_like(sizes, dtype=torch.bool)
    drawn[torch.multinomial(sizes, K, generator=rng)] = True
    weighted.append(kept(drawn.reshape(graph.edges.shape)))
print(f"{K} edges drawn in proportion to their scores' sizes, 8 times: "
      + ", ".join(two(each.mean()) for each in weighted))
claim("they keep more than the best of these draws", found, ">", max(weighted, key=torch.mean), unit="share")
claim(f"they keep more than the {K} edges with the largest exact scores", found, ">", by_exact, unit="share")

# %% [markdown]
# A tenth of the edges keeps nearly everything, and half of them, drawn at random, hardly anything. But that control
# is easy: a random tenth hardly ever holds a whole path from the name to the answer. Draws that follow the scores
# keep 0.79 to 0.91, so choosing exactly these 48 is worth a tenth, not all. In `tiny` ten gradients misjudge single
# edges and still pick a slightly better circuit than the exact scores do. Areas over a *linear* axis hardly see the
# part of the curve where methods differ; look at the curve.
#
# Here are the largest edges as a picture. The numbers are what an edge contributes, minus its score: by how much the
# logit difference falls when it is corrupted.

# %%
shown = best_edges(on_the_way.mean(-1), SIZES[2], graph.edges)
weights = {(graph.senders[s], str(graph.receivers[r])): -on_the_way[r, s].mean().item()
           for r, s in shown.nonzero().tolist()}
title = f"{MODEL}, who acts: the {SIZES[2]} largest of {N_EDGES} edges"
plot_circuit(weights, title, unit="logit difference")

# %% [markdown]
# The same to play with: point at a part to see its edges alone, and move the slider to hide the small ones.

# %%
interactive_circuit(weights, title, unit="logit difference")

# %% [markdown]
# In `tiny` you can read it: head 0.3, which looks at its own position (lesson 04), writes the name's sex; head 1.0
# carries it to the last position through its *values*; MLPs 1 to 3 turn it into the answer. That the queries and keys
# of 1.0 are missing does not mean that they do nothing. They do the same on both texts: where to look is not what
# the two texts differ in.
#
# ## 5 · Complete? Minimal?
#
# Faithful is one of three criteria (Wang et al., 2022). A circuit is **complete** if nothing of the work is done
# outside: corrupt the circuit's own edges, keep all others clean, and nothing should be left. It is **minimal** if
# every edge is needed: without it the circuit keeps less.

# %%
rest = kept(graph.edges & ~circuit)
rest_of_random = torch.stack([kept(graph.edges & ~each) for each in draws[3]]).mean(dim=0)
print(f"left without {K} random edges: {two(rest_of_random.mean())}")
largest = {k: best_edges(on_the_way.mean(-1), k, graph.edges) for k in (1, 3, 8)}
left = {k: kept(graph.edges & ~each) for k, each in largest.items()} | {K: rest}
print("left without the k largest: " + ", ".join(f"k = {k}: {two(each.mean())}" for k, each in left.items()))
claim("without random edges more is left than without the circuit's", rest_of_random, ">", round(rest.mean().item(), 2),
      unit="share")
claim(f"the 8 largest edges are as complete as all {K}", left[8], "≈", rest, within=0.02, unit="share")
claim("but they are not faithful", kept(largest[8]), "<", found, unit="share")

# %% [markdown]
# The circuit is complete, but the test is easy to pass: without one edge, from the embedding into the values of head
# 0.3, only a fifth is left, and without eight, which alone keep a fifth, nothing. One bottleneck is enough.
#
# Wang et al. ask more: remove *any* part of the circuit, from the circuit and from the model, and both should be left
# with the same. There are $2^k$ parts; `worst_subset` looks for a bad one. Eight times it draws ten edges and removes
# the one without which the two differ most. It searches on four texts, and the others judge. The control: as many edges
# at random.

# %%
chosen_on, judged_on = test[:4], test[4:]
FEW = min(8, K // 2)
worst = worst_subset(model, chosen_on.clean, chosen_on.corrupted, circuit, FEW, difference_of(chosen_on))
subsets = torch.stack([worst, *random_circuits(circuit, FEW, 6, seed=0)])
clean_end, corrupted_end = (end.mean().cpu() for end in both_ends(judged_on, difference_of(judged_on)))
of_circuit, of_model = ((each.cpu() - corrupted_end) / (clean_end - corrupted_end) for each in without_subsets(
    model, judged_on.clean, judged_on.corrupted, circuit, subsets, difference_of(judged_on)))     # [subset, n]
print(f"without the {FEW} that the search found the circuit keeps {two(of_circuit[0].mean())}, "
      f"the model {two(of_model[0].mean())}")
print("model minus circuit: " + ", ".join(two(gap) for gap in (of_model - of_circuit).mean(dim=1))
      + f" (found, then {len(subsets) - 1} at random)")
claim(f"without the {FEW} edges found, model and circuit differ more than without random ones",
      (of_model - of_circuit)[0], ">", (of_model - of_circuit)[1:].mean(dim=0), unit="share")

# %% [markdown]
# Without the eight that the search found the model keeps a third of the answer, and the circuit less than a quarter. A
# tenth is then the work of edges outside: three times what the circuit lacks as it stands, and twice what it lacks
# without eight at random. By this measure it is *not* complete, and random parts would hardly have shown it.

# %%
@exercise("10.cost_of_each")
def cost_of_each(
    keeps: Callable[[Bool[Tensor, "receiver sender"]], float], circuit: Bool[Tensor, "receiver sender"]
) -> Float[Tensor, "receiver sender"]:
    """How much less the circuit keeps without each of its edges alone; 0 where it has no edge.

    `keeps(circuit)` says what a circuit keeps.
    """
    raise NotImplementedError


# %% [markdown]
# **Predict:** in a circuit of a tenth of `tiny`'s edges that keeps nearly everything, how many edges cost less than
# 0.02 when they are removed one at a time? And if these are all removed together, how much will still be kept?

# %%
predict("10.cheap_edges", None, unit="edges")
predict("10.pruned", None, unit="(share)")

# %%
costs = cost_of_each(keeps_on(chosen_on.clean, chosen_on.corrupted, difference_of(chosen_on)), circuit)
cheap = circuit & (costs < 0.02)
pruned, one_by_one = circuit & ~cheap, costs[cheap].sum().item()
together = (kept(circuit, chosen_on) - kept(pruned, chosen_on)).mean()
reveal("10.cheap_edges", int(cheap.sum()), unit="edges")
of_pruned = kept(pruned, judged_on)
reveal("10.pruned", of_pruned.mean())
print(f"{int(cheap.sum())} of {K} edges cost less than 0.02 each, {one_by_one:.2f} one by one and {together:.2f} together; "
      f"on other texts {estimate(of_pruned)} is kept without them, {estimate(kept(circuit, judged_on) - of_pruned)} less")
print("costliest: " + ", ".join(f"{name_of(*divmod(i, len(graph.senders)))} {costs.flatten()[i]:.2f}"
                                for i in costs.flatten().topk(5).indices.tolist()))
same_size = best_edges(on_the_way.mean(-1), int(pruned.sum()), graph.edges)
claim(f"the {int(pruned.sum())} edges with the largest scores keep as much", kept(same_size, judged_on), "≈", of_pruned,
      within=0.05, unit="share")

# %% [markdown]
# Minimal is a matter of the threshold. More than half of the edges cost next to nothing alone; such costs add up, here
# to nearly three tenths of the answer. "This edge is hardly needed" holds of each, and not of all. Nor did pruning find
# a better circuit than the scores alone.
#
# ## 6 · The verdict depends on what you ask
#
# Everything so far was one metric (the logit difference), one ablation (the corrupted text's value) and one kind of
# text. Miller et al. (2024) found that the scores of published circuits depend strongly on such choices. Take our
# circuit of a tenth of the edges; replace the other edges by the corrupted text's values, by means over texts, by
# those of *another* text, or by zero; and measure by the logit difference, by the right answer's log-probability,
# and by the KL to the whole model's prediction.

# %%
several = who(32, seed=2)
with torch.no_grad():
    written = run_edges(model, several.clean)[1]                                # [sender, n, pos, d_model]
    whole_logits = model(test.clean)
ablations = {"corrupted": run_edges(model, test.corrupted)[1].detach(), "mean": written.mean(dim=1, keepdim=True),
             "another text": written[:, 1:1 + len(test)], "zero": torch.zeros_like(written[:, :1])}
metrics = {"logit difference": difference_of(test), "log-probability": log_probability_of(test),
           "minus KL": lambda logits: -kl_divergence(whole_logits[:, -1], logits[:, -1])}
table = {label: {} for label in metrics}
for ablation, values in ablations.items():
    none, some = (run_circuit(model, test.clean, test.corrupted, mask, outside=values)
                  for mask in (circuit & False, circuit))
    for label, metric in metrics.items():
        floor, top = metric(none), metric(whole_logits)
        table[label][ablation] = estimate((metric(some) - floor) / (top - floor).mean())
    print(f"{ablation:13}" + "; ".join(f"{label} {table[label][ablation]}" for label in metrics))
plot_bars(table, f"share kept by {K} of {N_EDGES} edges, 95 % interval", title=f"{MODEL}: one circuit, twelve verdicts")

# %%
by_zero, by_corrupted = (table["logit difference"][name] for name in ("zero", "corrupted"))
claim("the same circuit keeps less when the other edges are zero", by_zero, "<", by_corrupted, unit="share")

# %% [markdown]
# By the logit difference three ablations call the circuit faithful. With zeros it keeps half of it (0.17 to 0.80),
# and a prediction that is worse than that of no edges at all. Why zero? The circuit has no edge that says where its
# heads look, for that is the same in both texts. The other three ablations put it there for nothing; zero takes it
# away. Give it back: the edges into the queries and keys of the heads whose *values* are among the eight largest edges.

# %%
rows = {str(receiver): row for row, receiver in enumerate(graph.receivers)}
values_of = [name for name, row in rows.items() if name.endswith(".v") and largest[8][row].any()]
looks = graph.edges & False
for row in (rows.get(name[:-1] + part) for name in values_of for part in "qk"):
    if row is not None:
        looks[row] = graph.edges[row]
given_back = {"where its heads look": looks}
drawn = random_circuits(graph.edges & ~circuit, int((looks & ~circuit).sum()), 3, seed=1)
given_back |= {f"random edges, draw {i + 1}": each for i, each in enumerate(drawn)}
with_zeros = {}
for name, extra in given_back.items():
    with torch.no_grad():
        none, some = (run_circuit(model, test.clean, test.corrupted, mask, outside=ablations["zero"])
                      for mask in (circuit & False, circuit | extra))
    with_zeros[name] = {}
    for label in ("logit difference", "log-probability"):
        floor, top = (metrics[label](each) for each in (none, whole_logits))
        with_zeros[name][label] = (metrics[label](some) - floor) / (top - floor).mean()
    print(f"zero, with {int((extra & ~circuit).sum())} more edges, {name}: " + "; ".join(
        f"{label} {two(value.mean())}" for label, value in with_zeros[name].items()))
claim("with zeros, edges that say where its heads look bring back more than random ones",
      with_zeros["where its heads look"]["logit difference"], ">",
      round(max(each["logit difference"].mean().item() for name, each in with_zeros.items() if "random" in name), 2),
      unit="share")

# %% [markdown]
# So by the logit difference the circuit did not break: it was blind. (The log-probability stays bad. Zero is a value
# that the model never sees, and the rest of its prediction does break.) A share above 1 is no better than one below: the
# circuit then does *more* than the model. Say which metric, which ablation; give the numbers that you did not choose, too.
#
# And the text? The circuit was found on one kind of sentence. Try it on stories with a second sentence, and on the
# other fact.

# %%
texts = {"as found": test, "a sentence between": who(16, 3, "The PLACE was foggy and big ."),
         "one or many": how_many(16, seed=3)}
number_scores = attribution_scores(model, number.clean, number.corrupted, difference_of(number), steps=10).cpu()
circuits = {"who acts": circuit, "one or many": best_edges(number_scores.mean(-1), K, graph.edges)}
on_text = {name: {text: kept(each, pairs) for text, pairs in texts.items()} for name, each in circuits.items()}
for name, row in on_text.items():
    print(f"circuit of {name:11}: " + "; ".join(f"{text} {two(value.mean())}" for text, value in row.items()))
common = (circuits["who acts"] & circuits["one or many"]).nonzero().tolist()
print(f"the two circuits share {len(common)} of {K} edges: " + ", ".join(name_of(*each) for each in common))
claim("who acts: the circuit keeps as much on longer stories", on_text["who acts"]["a sentence between"], "≈",
      on_text["who acts"]["as found"], within=0.1, unit="share")
claim("one or many: its own circuit keeps more than that of who acts", on_text["one or many"]["one or many"], ">",
      round(on_text["who acts"]["one or many"].mean().item(), 2), unit="share")

# %% [markdown]
# Here the verdict *does* carry over: a sentence that the search never saw changes nothing, and each fact has a
# circuit of its own. A quarter of their edges is the same, mostly the embedding's into the first layer and those of the
# last MLPs, through which everything passes; and still each is useless for the other.
#
# ## 7 · Where the answer is known
#
# In the planted model (lesson 02) *we* set the circuit. A pair of texts "… A B … A" and its twin changes either the
# last A (the **query**), the first A (the **key**) or B (the **value**). For each, we know which edges carry the
# change. A method finds an edge if its score is at least a tenth of the largest. **Precision**: what share of the
# found edges is true? **Recall**: what share of the true ones was found?
#
# A fourth case has a **backup**: heads 1.0 and 1.1 do the same, and either is enough for the right answer's
# log-probability.

# %%
def planted_pairs(place, n=3, length=8):
    """BOS, different tokens, the fourth of them again; in the twin one is replaced. -> clean, corrupted, two metrics."""
    rng = torch.Generator().manual_seed(0)
    rows = torch.stack([1 + torch.randperm(28, generator=rng) for _ in range(n)])
    clean = torch.cat([torch.zeros(n, 1, dtype=torch.long), rows[:, :length], rows[:, 3:4]], dim=1)
    corrupted = clean.clone()
    corrupted[:, {"query": -1, "key": 4, "value": 5}[place]] = rows[:, length]
    right, wrong = clean[:, 5], rows[:, length + 1]
    return clean, corrupted, lambda logits: answer_difference(logits, right, wrong), lambda logits: (
        logits[:, -1].log_softmax(-1).gather(1, right[:, None])[:, 0])


def score_of(found, truth):
    """Precision and recall of the edges whose score is at least a tenth of the largest."""
    big = found.mean(-1).abs() >= 0.1 * found.mean(-1).abs().max()
    names = {(planted_graph.senders[s], str(planted_graph.receivers[r])) for r, s in big.nonzero().tolist()}
    return len(names & truth) / len(names), len(names & truth) / len(truth)


single, backed = planted_induction_model(), planted_induction_model(backup=True)
planted_graph = graph_of(single)
key = {("embed", "0.0.v"), ("0.0", "1.0.k"), ("1.0", "logits")}
known = {"query": (single, "query", 0, {("embed", "1.0.q"), ("1.0", "logits")}), "key": (single, "key", 0, key),
         "value": (single, "value", 0, {("embed", "1.0.v"), ("1.0", "logits")}),
         "key, backup, difference": (backed, "key", 0, key | {("0.0", "1.1.k"), ("1.1", "logits")}),
         "key, backup, log-prob.": (backed, "key", 1, key | {("0.0", "1.1.k"), ("1.1", "logits")})}
recall, precision, sums = {}, [], {}
for name, (planted, place, which, truth) in known.items():
    clean, corrupted, *of_these = planted_pairs(place)
    metric = of_these[which]
    methods = {"exact": exact_scores(planted, clean, corrupted, metric),
               "one gradient": edge_attribution(planted, clean, corrupted, metric)}
    methods |= {f"{n} gradients": attribution_scores(planted, clean, corrupted, metric, steps=n) for n in (10, 15, 30)}
    change = (metric(planted(corrupted)) - metric(planted(clean))).mean().item()
    for method, found in methods.items():
        high, recall[name, method] = score_of(found, truth)
        precision.append(high)
        sums[name, method] = found.mean(-1)[:, 0].sum().item() / change
    print(f"{name:23} recall: " + "; ".join(f"{method} {recall[name, method]:.2f}" for method in methods))
print(f"lowest precision: {min(precision):.2f}. Key: the embedding's edges add up to this share of the change: "
      + "; ".join(f"{n} gradients {two(sums['key', f'{n} gradients'])}" for n in (10, 15, 30)))
claim("one gradient misses edges of the key's circuit that exact patching finds", recall["key", "one gradient"], "<",
      recall["key", "exact"], unit="recall")
claim("exact patching of single edges misses a backup, by log-probability",
      recall["key, backup, log-prob.", "exact"], "<", recall["key, backup, difference", "exact"], unit="recall")

# %% [markdown]
# No method is safe. The planted attention is so sharp that its gradient is zero almost everywhere: one gradient
# sees the values and nothing of queries and keys, ten steps straddle the jump, fifteen and more meet it. And exact
# single-edge patching, "the truth", is blind to a backup when the metric saturates: break one of two equal edges, and
# nothing happens. With a metric that does not saturate, it finds both. By log-probability fifteen gradients do, and
# thirty do not: with a jump, and a metric that is flat but for a short way, a larger number of steps is another draw,
# not a better answer. Does the sum warn? At ten and at fifteen it is far from 1, though fifteen find everything. A sum
# that is off says that the integral is not done; it does not say that the edges are wrong, nor a good sum that they are
# right. Truth about *single* edges is not the truth about a circuit.
#
# A backup is also what completeness is about. Take the half of the key's circuit that goes through head 1.0, and search
# for the edge without which half and model differ most (section 5). The control is the circuit with both halves.
#
# **Predict:** both heads write the right token as strongly. Remove one edge of the half: what does the circuit lose of the
# right answer's log-probability, and what does the model?

# %%
predict("10.half_loses", None, unit="nats")
predict("10.backed_loses", None, unit="nats")

# %%
clean, corrupted, _, log_probability = planted_pairs("key")
names = [str(receiver) for receiver in planted_graph.receivers]
halves = []
for head in ("1.0", "1.1"):
    half = planted_graph.edges & False
    for sender, receiver in (("embed", "0.0.v"), ("0.0", f"{head}.k"), ("embed", f"{head}.v"), (head, "logits")):
        half[names.index(receiver), planted_graph.senders.index(sender)] = True
    halves.append(half)
planted_circuits, losses, gaps = {"half of it": halves[0], "both halves": halves[0] | halves[1]}, {}, {}
for name, mask in planted_circuits.items():
    worst = worst_subset(backed, clean, corrupted, mask, 1, log_probability)
    (all_of_it, less), (model_clean, model_less) = without_subsets(
        backed, clean, corrupted, mask, torch.stack([mask & False, worst]), log_probability)
    losses[name], gaps[name] = (all_of_it - less, model_clean - model_less), (model_less - less).round(decimals=2)
    print(f"{name}: {(model_clean - all_of_it).abs().max():.2f} nats from the model; without the edge found the circuit "
          f"loses {two(losses[name][0].mean())} nats, the model {two(losses[name][1].mean())}")
reveal("10.half_loses", losses["half of it"][0].mean(), unit="nats")
reveal("10.backed_loses", round(losses["half of it"][1].mean().item(), 2), unit="nats")
claim("one edge sets model and circuit farther apart if the circuit lacks the backup than if it has it",
      gaps["half of it"], ">", gaps["both halves"], unit="nats")

# %% [markdown]
# The half keeps every nat, so it is faithful. Without one edge it loses twelve, and the model nothing, for head 1.1
# stands in: it is not complete. The circuit with both halves is. Faithfulness asks what a circuit does as it stands, an
# exact score what one edge does alone; where the metric saturates, neither sees a backup. Break the same part of both,
# and it shows. (The edges from the embedding into the heads' values carry the same in both texts, so that faithfulness
# has no need of them. Leave them out and run the cell again: has completeness?)
#
# ## 8 · The circuit of lesson 05, judged
#
# Lesson 05: the previous-token head feeds the induction heads' keys, and the head that looks at its own position
# feeds their queries and values. As edges: from the embedding into these two heads, from them into the induction
# heads, and from there to the logits. Clean: a text twice. Corrupted: another text twice. Each part is then
# replaced by what it does in an equally repetitive text of other tokens.
#
# **Predict:** what share of the right token's logit (above the mean of all logits) does this circuit keep?

# %%
predict("10.induction", None, unit="(share)")

# %%
SEQ_LEN = 20
tokens, other = (generate_repeated_tokens(model, SEQ_LEN, 6, seed=seed) for seed in (0, 1))
later = induction_scores(model, tokens, SEQ_LEN)
strong = {head for head, score in top_heads(later, model.cfg.n_heads) if score > 0.3} | {best_head(later)}
induction = sorted(head for head in strong if head[0] > 0) or [(model.cfg.n_layers - 1, 0)]
previous = best_head(previous_token_scores(model, tokens)[:induction[0][0]])
_, cache = model.run_with_cache(tokens, names_filter=["blocks.0.attn.hook_pattern"])
own = (0, int(cache["blocks.0.attn.hook_pattern"].diagonal(0, -2, -1)[..., 1:].mean(dim=(0, 2)).argmax()))


def edge(sender, head, part):
    """The row and column of an edge from a sender into a head's queries, keys or values."""
    layer, at = head
    at = key_value_head(at, model.cfg.n_heads, len(getattr(model.blocks[layer].attn, f"W_{part.upper()}")))
    return rows[f"{layer}.{at}.{part}"], graph.senders.index(sender)


textbook = graph.edges & False
parts = [edge("embed", head, part) for head in {previous, own} for part in "qkv"]
for head in induction:
    parts += [edge("{}.{}".format(*previous), head, "k"), *(edge("{}.{}".format(*own), head, part) for part in "qv")]
    parts.append((rows["logits"], graph.senders.index("{}.{}".format(*head))))
for row, column in parts:
    textbook[row, column] = graph.edges[row, column]
with_mlps, written_by = textbook.clone(), [graph.senders.index("{}.{}".format(*head)) for head in induction]
mlps = [layer for layer in range(model.cfg.n_layers) if layer >= induction[0][0]]
for layer in mlps:
    row, column = rows[f"mlp {layer}"], graph.senders.index(f"mlp {layer}")
    with_mlps[row, written_by] = graph.edges[row, written_by]
    with_mlps[[rows["logits"], *(rows[f"mlp {above}"] for above in mlps if above > layer)], column] = True
print(f"previous-token head {previous}, own-position head {own}, induction heads {induction}")

# %%
def right_logit(logits):
    """The right token's logit above the mean of all, in the second copy without its first token: [n]."""
    second = logits[:, SEQ_LEN + 1:-1]
    return (second.gather(2, tokens[:len(logits), SEQ_LEN + 2:, None])[..., 0] - second.mean(dim=-1)).mean(dim=1)


def right_log_probability(logits):
    """Minus the second copy's loss, without its first token: [n]."""
    return logits[:, SEQ_LEN + 1:-1].log_softmax(-1).gather(2, tokens[:, SEQ_LEN + 2:, None])[..., 0].mean(dim=1)


with torch.no_grad():
    top = model(tokens)
    written = run_edges(model, tokens)[1]
average = written.clone()                                                       # BOS keeps its own
average[:, :, 1:] = written[:, :, 1:].mean(dim=(1, 2), keepdim=True)
random_edges = random_circuits(graph.edges, int(textbook.sum()), 1, seed=0)[0]
judged = {"lesson 05": textbook, "with the MLPs after it": with_mlps,
          "all edges but lesson 05's": graph.edges & ~textbook, "as many random edges": random_edges}
shares_kept = {}
for ablation, values in {"another text": run_edges(model, other)[1].detach(), "mean": average}.items():
    none = run_circuit(model, tokens, other, textbook & False, outside=values)
    print(f"no edges, {ablation}: log-probability {right_log_probability(none).mean():.1f} nats")
    for name, mask in judged.items():
        logits = run_circuit(model, tokens, other, mask, outside=values)
        for label, metric in (("logit", right_logit), ("log-prob.", right_log_probability)):
            kept_here = (metric(logits) - metric(none)) / (metric(top) - metric(none)).mean()
            shares_kept[name, ablation, label] = kept_here.cpu()
for name, mask in judged.items():
    print(f"{name:26} {int(mask.sum()):3} edges: " + "; ".join(
        f"{ablation}, {label} {two(value.mean())}"
        for (which, ablation, label), value in shares_kept.items() if which == name))
for part in "qk":
    less = textbook.clone()
    less[edge("embed", previous, part)] = False
    without = right_logit(run_circuit(model, tokens, other, less, outside=average)) - right_logit(none)
    without = (without / (right_logit(top) - right_logit(none)).mean()).mean()
    print(f"means, without the embedding's edge into {previous}'s {'queries' if part == 'q' else 'keys'}: {two(without)}")
bottleneck, keeps = {}, keeps_on(tokens[:2], other[:2], right_logit)
for place in textbook.nonzero().tolist():
    less = graph.edges.clone()
    less[tuple(place)] = False
    bottleneck[name_of(*place)] = keeps(less)
narrow = sorted(bottleneck, key=bottleneck.get)[:2]
print("left without one edge alone: " + ", ".join(f"{name} {two(bottleneck[name])}" for name in narrow))
reveal("10.induction", shares_kept["lesson 05", "another text", "logit"].mean())
claim("lesson 05's edges keep more of the right logit than equally many random ones",
      shares_kept["lesson 05", "another text", "logit"], ">",
      round(shares_kept["as many random edges", "another text", "logit"].mean().item(), 2), unit="share")
claim("they keep more of the log-probability than of the logit",
      shares_kept["lesson 05", "another text", "log-prob."], ">", shares_kept["lesson 05", "another text", "logit"],
      unit="share")
claim("with the MLPs that read the induction heads, more is kept",
      shares_kept["with the MLPs after it", "another text", "logit"], ">",
      shares_kept["lesson 05", "another text", "logit"], unit="share")

# %%
induction_costs = cost_of_each(keeps_on(tokens[:2], other[:2], right_logit), textbook)
unneeded = textbook & (induction_costs < 0.005)
print(f"{int(unneeded.sum())} of {int(textbook.sum())} edges cost less than 0.005: "
      + ", ".join(name_of(*place) for place in unneeded.nonzero().tolist()))

# %% [markdown]
# The verdict on `tiny`. **Sufficient?** By log-probability and against another repeated text, almost (0.95). By the
# logit, three fifths; with means in place of the other edges, less than half. The log-probability flatters, with means
# (0.82) no less than with another text: it saturates (section 2). The MLPs that read the induction heads do most of what
# is missing against another text, and two fifths of it against means. **Complete?** By the logit nothing is left without
# these edges. But one edge, from the embedding into the values of head 0.2 or of 0.3, would do: it is the bottleneck that
# is complete (section 5). **Minimal?** No, against another text: the queries and keys of the previous-token head read
# *positions*, which are the same in every text of this length. The comparison cannot see them, just as it could not see
# where head 1.0 looks. With means they cost nearly all that the circuit keeps.
#
# Lesson 05 asked whether each path is needed, and whether it is enough *for the sender's effect*. Both answers
# stand. Neither said that these edges are enough for the prediction.
#
# ## 9 · Would other prompts have found the same circuit?
#
# The scores of section 3 are means over 8 prompts. A bootstrap would draw from the prompts that defined the circuit;
# take three disjoint sets of 8 instead.

# %%
fresh = who(24, seed=10)
in_common = int((fresh.clean[:, None] == few.clean).all(dim=2).sum())
fresh_scores = attribution_scores(model, fresh.clean, fresh.corrupted, difference_of(fresh), steps=10).cpu()
found_again = [best_edges(each.mean(-1), K, graph.edges) for each in fresh_scores.split(8, dim=-1)]
overlap = torch.tensor([(each & circuit).sum() / K for each in found_again])
order = (on_the_way.mean(-1).abs() * graph.edges).flatten().argsort(descending=True).tolist()
lost = {order.index(i) + 1 for each in found_again for i in (circuit & ~each).flatten().nonzero()[:, 0].tolist()}
print(f"ranks of the edges that some prompts did not find: {', '.join(map(str, sorted(lost)))}")
print(f"{in_common} prompts in common; share of the circuit's edges found again: " + ", ".join(map(two, overlap)))
claim("disjoint prompts find the same edges more often than chance", overlap, ">", round(K / N_EDGES, 2),
      unit="share of the edges")

# %% [markdown]
# In `tiny` more than nine tenths of the circuit are found again; what changes is its smallest edges. So the *search*
# is stable under prompts of this kind. Other kinds of text were section 6.
#
# ## 10 · A real language model

# %%
real_model = load_real_model()

# %%
if real_model is not None:
    real_pairs, real_test = giver_pairs(real_model, 4), giver_pairs(real_model, 4, seed=1)
    real_graph = graph_of(real_model)
    decode = real_model.tokenizer.decode
    print(f"{decode(real_pairs.clean[0, 1:])} …{decode(real_pairs.right[:1])}\n"
          f"{decode(real_pairs.corrupted[0, 1:])} …{decode(real_pairs.wrong[:1])}\n"
          f"{len(real_graph.senders)} senders, {len(real_graph.receivers)} receivers, "
          f"{int(real_graph.edges.sum())} edges")
    real_metric = difference_of(real_pairs)
    with torch.no_grad():
        real_clean, real_corrupted = (
            real_metric(real_model(each)) for each in (real_pairs.clean, real_pairs.corrupted))
    claim("SmolLM2: who gives decides who receives", real_clean, ">", real_corrupted, unit="logit difference")
    real_layers, real_places = [0, 12, 18, 21, 24, 27], [10, 11, real_pairs.clean.shape[1] - 1]
    with torch.no_grad():
        real_map = patch_map(real_model, real_pairs.corrupted, real_pairs.clean, real_metric, real_layers, real_places)
    real_map = (real_map - real_corrupted.mean().item()) / (real_clean - real_corrupted).mean().item()
    picture = plot_head_scores(real_map, "SmolLM2: share of the logit difference brought back", vmax=1, unit="share",
                               diverging=True, columns="position")
    picture.axes[0].set_xticks(range(3), ["the giver", "gave", "last: to"])
    picture.axes[0].set_yticks(range(6), real_layers)
    display(picture)

# %% [markdown]
# The giver's name keeps the fact for eighteen layers; then it moves to the last position, within a few. There are
# seventy thousand edges: exact patching would take hours, and gradients take seconds.

# %%
if real_model is not None:
    pair = real_pairs[:2]
    these = real_model, pair.clean, pair.corrupted, difference_of(pair)
    real_scores = {"one gradient": edge_attribution(*these).mean(-1),
                   "5 gradients": attribution_scores(*these, steps=5).mean(-1)}
    real_whole = (real_corrupted - real_clean)[:2].mean().item()
    for label, found in real_scores.items():
        print(f"{label}: the embedding's edges add up to {found[:, 0].sum().item() / real_whole:.1f} of the change")
    size, real_kept = 700, {}
    masks = {label: best_edges(found, size, real_graph.edges) for label, found in real_scores.items()}
    masks["random edges"] = random_circuits(real_graph.edges, size, 1, seed=0)[0]
    for label, mask in masks.items():
        with torch.no_grad():
            real_kept[label] = circuit_kept(real_model, real_test.clean, real_test.corrupted, mask,
                                            difference_of(real_test)).cpu()
        print(f"{size} of the edges, {label}: {two(real_kept[label].mean())} is kept")
    claim("SmolLM2: one edge in a hundred, found by 5 gradients, keeps more than as many random ones",
          real_kept["5 gradients"], ">", round(real_kept["random edges"].mean().item(), 2), unit="share")
    claim("SmolLM2: 5 gradients' edges keep more than one gradient's", real_kept["5 gradients"], ">",
          real_kept["one gradient"], unit="share")
    measured("SmolLM2: kept by 1 % of the edges, 5 gradients", real_kept["5 gradients"].mean(), unit="share",
             at_least=0.3)

# %% [markdown]
# One edge in a hundred keeps most of the answer on prompts that the search never saw, if the scores come from
# gradients on the way; one gradient at the clean text does much worse. Both sums are off: five steps are few, and find
# the circuit all the same. Four prompts are few, too, as the interval says.
#
# ## On your own
#
# Take *one or many* in place of *who acts*. Is its circuit of a tenth of the edges complete? Hand in a claim; a
# number with its interval; the control; what would have refuted you; and what your experiment does not show.

# %% tags=["solution-only"]
number_circuit, number_test = circuits["one or many"], how_many(16, seed=3)
rest = kept(graph.edges & ~number_circuit, number_test)
others = torch.stack([kept(graph.edges & ~each, number_test) for each in random_circuits(graph.edges, K, 4, seed=9)])
one = kept(graph.edges & ~best_edges(number_scores.mean(-1), 1, graph.edges), number_test)
print(f"left without the circuit {two(rest.mean())}, without its largest edge alone {two(one.mean())}, "
      f"without {K} random edges {two(others.mean())}")
claim("one or many: without random edges more is left than without the circuit's", others.mean(dim=0), ">",
      round(rest.mean().item(), 2), unit="share")

# %% [markdown] tags=["solution-only"]
# *A model answer.* It is complete by this measure: without its edges nothing of the difference is left, while
# without as many random ones most of it stays. An interval that reached the control's would have refuted me. It
# does not show that the circuit needs 48 edges: without one of them, from the embedding into the values of head 0.3,
# less than a tenth is left. Nor does it say anything of other texts in which number matters.

# %% [markdown]
# ## What this does not show
#
# - A circuit of edges is one for *this* contrast. What both texts share, such as where a head looks, is not in it.
# - Edges were replaced at all positions at once. A finer graph has an edge for each position.
# - Exact scores are exact for one edge at a time; they say nothing about two. A backup is invisible to them.
# - A high share kept says that the circuit reproduces the metric, not that it computes it in the model's way.
# - That nothing is left without a circuit shows that it holds a bottleneck, not that it holds all of the work.
#
# ## Summary
#
# - Patch in both directions: denoising asks what is enough, noising what is needed. With a metric that saturates
#   they disagree.
# - One gradient estimates all edges, and is blind where attention is sharp. Integrated gradients are complete, given
#   enough steps. They do not converge to exact single-edge scores, which are another quantity.
# - Report the curve of what k edges keep beside edges drawn uniformly and by score; CPR and CMD sum it up.
# - Faithful, complete and minimal are three questions; metric, ablation and text are part of each answer.
#
# Sources: Wang et al., [Interpretability in the Wild](https://arxiv.org/abs/2211.00593) (2022); Syed et al.,
# [Attribution Patching Outperforms Automated Circuit Discovery](https://arxiv.org/abs/2310.10348) (2023); Hanna et
# al., [Have Faith in Faithfulness](https://arxiv.org/abs/2403.17806) (2024); Miller et al., [Transformer Circuit
# Faithfulness Metrics are not Robust](https://arxiv.org/abs/2407.08734) (2024); Mueller et al., MIB: A Mechanistic
# Interpretability Benchmark (2025): CPR and CMD.

# %% tags=["exercise-only"]
progress("10")

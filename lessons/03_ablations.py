# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 03 · Ablations
#
# **The question.** Lesson 02 found heads that *look* at the right place. Which parts of the model does the prediction
# *need*? An **ablation** replaces a part's output and measures what the loss does.
#
# Everything depends on the replacement. Our article patches MLP outputs, sees hardly any change, and concludes
# that MLP layers may not matter much here. You will repeat that experiment exactly, find out why its numbers would
# look small even for an MLP that matters, and ask again in better ways. Two shortcuts, attribution patching and
# direct logit attribution, can mislead, and you will repair the first.
#
# **You need:** lessons 00 to 02.

# %% tags=["parameters"]
import os
import time

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from course_utils.ablation import (gradients, head_ablation_scores, head_attribution_scores, mlp_ablation_scores,
                                   mlp_patch_sweep, some_layers)
from course_utils.claims import claim, estimate
from course_utils.exercises import exercise, hint, predict, progress, reveal, solution
from course_utils.heads import best_head, induction_scores, previous_token_scores, top_heads
from course_utils.logit_attribution import capped, direct_logit_attribution
from course_utils.measured import measured
from course_utils.models import load_model, load_real_model
from course_utils.passes import hook_z, mlp_out
from course_utils.repeated_tokens import generate_repeated_tokens
from course_utils.text import sample_text
from course_utils.viz import plot_bars, plot_by_position, plot_head_scores, plot_scatter

MODEL = os.environ.get("COURSE_MODEL", "tiny")      # or write a name here, such as "smollm2-135m"

# %%
model = load_model(MODEL)
SEQ_LEN, BATCH = (50, 10) if MODEL == "tiny" else (20, 4)
LAYERS = some_layers(model)                         # all of a small model's; four of a large one's
tokens = generate_repeated_tokens(model, SEQ_LEN, BATCH, seed=0)
print(f"{MODEL}: tokens {tuple(tokens.shape)}; layers to look into: {LAYERS}")

# %% [markdown]
# ## 1 · The number to watch
#
# Every experiment here asks how the **loss of the second copy** changes, the boundary token included, as in the
# article.
#
# The article's code cuts logits and tokens at the same places, `[:, seq_len:max_len]`, and passes both to a loss
# function that it does not show. Unless that function shifts them, it asks the logits at each position for the token
# that is *already there*.

# %%
@exercise("03.second_copy_loss")
def second_copy_loss(
    logits: Float[Tensor, "batch pos vocab"], tokens: Int[Tensor, "batch pos"], seq_len: int
) -> Float[Tensor, ""]:
    """Mean cross-entropy (nats) of the tokens of the second copy, its first token included.

    Tokens are BOS, then two equal copies of seq_len tokens. `F.cross_entropy` wants [N, vocab] and [N]. Keep the
    result differentiable: section 5 takes its gradient.
    """
    raise NotImplementedError


# %%
@torch.no_grad()
def loss_at(places, of, *hooks):
    """Mean loss (nats) of each sequence: logits at `places` against tokens at `of`, with some activations replaced."""
    logits = model.run_with_hooks(tokens, fwd_hooks=list(hooks))
    return F.cross_entropy(logits[:, places].mT, tokens[:, of], reduction="none").mean(dim=1).cpu()


def losses(*hooks):
    """The loss (nats) of each sequence's second copy: [batch]."""
    return loss_at(slice(SEQ_LEN, -1), slice(SEQ_LEN + 1, None), *hooks)


logits = model(tokens)
clean_loss = second_copy_loss(logits, tokens, SEQ_LEN)
clean, boundary = losses(), loss_at([SEQ_LEN], [SEQ_LEN + 1])           # of each sequence: their mean is clean_loss
assert torch.allclose(clean.mean(), clean_loss.cpu(), atol=1e-4)
first_copy, second_copy = slice(1, SEQ_LEN), slice(SEQ_LEN + 1, -1)
later = loss_at(second_copy, slice(SEQ_LEN + 2, None))
print(f"second copy {clean_loss:.3f} nats, without its first token {later.mean():.4f}; "
      f"first copy {loss_at(slice(SEQ_LEN), slice(1, SEQ_LEN + 1)).mean():.2f}; "
      f"chance {torch.tensor(model.cfg.d_vocab).log():.2f}")
print(f"share of the boundary token in the second copy's loss: {boundary.sum() / SEQ_LEN / clean.sum():.2f}")
claim("without the shift, the second copy looks harder than the first",
      loss_at(second_copy, second_copy), ">", loss_at(first_copy, first_copy), unit="nats")

# %% [markdown]
# A model that has understood repetition gives the *present* token almost no probability, so without the shift the
# loss is worst where the model is best. With it, three quarters of `tiny`'s clean loss is the one token that nobody
# can know. The other 49 are as good as certain, so much can be removed before the loss notices.
#
# ## 2 · The article's experiment
#
# For each layer and each position of the second copy, replace the MLP's output by its output *at the same token's
# first occurrence*, and note how much the loss of the second copy rises (one pass of the model for each).
#
# `mlp_out(layer)` is the hook's name. A hook function may change its activation, and returns it.

# %%
@exercise("03.mlp_patch_loop")
def mlp_patch_loop(
    model: TransformerBridge, tokens: Int[Tensor, "batch 1+2*seq_len"], seq_len: int, layers: list[int]
) -> Float[Tensor, "layer seq_len"]:
    """Change of `second_copy_loss` when position seq_len + 1 + i gets a layer's MLP output of position 1 + i.

    Patched minus clean, for every layer in `layers` (in this order) and i from 0 to seq_len − 1.
    """
    raise NotImplementedError


# %%
one = tokens[:1]                                    # one sequence, as in the article
start = time.perf_counter()
by_loop = mlp_patch_loop(model, one, SEQ_LEN, LAYERS)
middle = time.perf_counter()
sweep = mlp_patch_sweep(model, one, SEQ_LEN, layers=LAYERS)
times = middle - start, time.perf_counter() - middle
assert torch.allclose(by_loop.float(), sweep, atol=1e-5)

# %% tags=["exercise-only"]
print(f"by the loop {times[0]:.2f} s, by the course's function {times[1]:.2f} s")

# %% [markdown]
# The course's `mlp_patch_sweep` gives the same numbers several times faster: it skips what a patch cannot change, the
# layers below it and (attention is causal) the positions before it, whose keys and values come from one clean pass.
#
# **Predict before you look:** over all layers and positions, what is the median change of the loss, in nats?

# %%
predict("03.median_change", None)

# %%
reveal("03.median_change", sweep.abs().median())
plot_head_scores(sweep, f"{MODEL}: MLP output from the first copy, one position at a time", vmax=None,
                 unit="change of the loss (nats)", diverging=True, columns="patched position, from the boundary")

# %% [markdown]
# Most entries are next to nothing, as the article found in GPT-2 small. Before any conclusion about MLPs, three
# questions.
#
# ### How much of a change is the patch?
#
# For the same token the MLP may have produced nearly the same vector: then we replaced a thing by itself. The
# yardstick is its output at the same position for *another* token. The relative change depends on the vectors'
# lengths, the cosine does not. (Vectors that share a large mean have a cosine near 1 whatever else they say, so the
# mean of its own copy is subtracted from each.)

# %%
def unlikeness(outputs):
    """‖new − old‖ / ‖old‖ and the cosine of new and old, each without its copy's mean: two numbers per sequence.

    Old is the output in the second copy; new is that for the same token in the first copy, or for another token.
    """
    first, second = outputs[:, 1:].chunk(2, dim=1)                      # each [batch, seq_len, d_model]
    said_first, said = (copy - copy.mean(dim=(0, 1)) for copy in (first, second))
    return {kind: (((new - second).norm(dim=-1) / second.norm(dim=-1)).mean(dim=1).cpu(),
                   F.cosine_similarity(centred, said, dim=-1).mean(dim=1).cpu())
            for kind, new, centred in (("first copy", first, said_first),
                                       ("another token", second.roll(1, dims=0), said.roll(1, dims=0)))}


_, cache = model.run_with_cache(tokens, names_filter=[mlp_out(layer) for layer in LAYERS])
for layer in LAYERS:
    found = unlikeness(cache[mlp_out(layer)])
    print(f"layer {layer:2}: " + "; ".join(f"{kind}: relative change {change.mean():5.2f}, cosine {cosine.mean():5.2f}"
                                          for kind, (change, cosine) in found.items()))
claim(f"MLP {LAYERS[-1]}: the first copy's output is more foreign here than another token's, whatever its length",
      found["first copy"][1], "<", found["another token"][1], unit="(cosine)")

# %% [markdown]
# Where the patch changes far less than another token's output would, a small change of the loss says nothing about
# the MLP. (Section 8 shows the worst case, the first layer of SmolLM2.) In `tiny` above layer 0 the copies differ more
# from each other than two tokens of one copy do, so the patch does change the output.
#
# ### How many tokens can one patch hurt?
#
# A patch at one position mostly hurts the one prediction made there: if that gets worse by $x$ nats, the mean moves
# by $x$ / `seq_len`. So patch *all* positions of the second copy at once, and compare.

# %%
def from_first_copy(activation, hook):
    activation[:, SEQ_LEN + 1:] = activation[:, 1:SEQ_LEN + 1]
    return activation


everywhere = {layer: losses((mlp_out(layer), from_first_copy)) - clean for layer in LAYERS}
for layer, row in zip(LAYERS, sweep):
    print(f"layer {layer:2}: mean of single patches {row.mean():7.4f} nats, × {SEQ_LEN} = {SEQ_LEN * row.mean():6.3f}; "
          f"all at once, same sequence {everywhere[layer][0]:6.3f}, all sequences {estimate(everywhere[layer])}")

# %% [markdown]
# In `tiny`'s last layer a twentieth of a nat per position looks small, but is nearly three nats of damage at each
# patched token, divided by fifty. In layers 1 and 2 all positions at once cost little, too: there the experiment was
# simply right.
#
# ### What is special about the first token?
#
# The article sees an effect only at "the first token". Its loop starts at position `seq_len`, the *last token of the
# first copy*, and patches it with the MLP output of position 0, BOS. `as_published=True` uses exactly that range.

# %%
published = mlp_patch_sweep(model, one, SEQ_LEN, layers=LAYERS, as_published=True)
for layer, theirs in zip(LAYERS, published):
    output = cache[mlp_out(layer)].norm(dim=-1)                         # [batch, pos]
    print(f"layer {layer:2}: column 0 {theirs[0]:6.3f} nats, column 1 {theirs[1]:6.3f}; "
          f"‖MLP output‖ at BOS {output[:, 0].mean():6.1f}, just after it {output[:, 1].mean():5.1f}, "
          f"later {output[:, 2:].mean():5.1f}")
assert torch.allclose(published[:, 1:], sweep[:, :-1], atol=1e-5)

# %% [markdown]
# So the article's first column does not belong to the second copy, and the MLP output of BOS is a vector unlike any
# other, often several times as long. From there on both ranges agree, shifted by one.
#
# "MLPs do not matter" does not follow from this experiment.
#
# ## 3 · What to put in its place
#
# To ask what a part contributes, put something *uninformative* in its place, at every position:
#
# - **zero**: nothing. Simple, but zero may be a value that the rest of the model never sees.
# - **mean**: the part's average output. All that depends on the input is lost.
# - **resample**: its output in another sequence. Each value is natural, but wrong here.
#
# BOS keeps its own activation in this course: many models park attention there and make its activations huge, so
# breaking it breaks everything. (A head that is set to zero keeps its value bias, which `load_model` has moved into
# the bias of the layer's output.)

# %%
@exercise("03.ablate")
def ablate(activation: Float[Tensor, "batch pos ..."], kind: str) -> Float[Tensor, "batch pos ..."]:
    """What takes an activation's place; position 0 (BOS) keeps its own.

    zero: zeros. mean: the mean over batch and positions 1 … last, the same everywhere. resample: the activation
    of the next sequence of the batch (the last gets the first's) at the same position.
    """
    raise NotImplementedError


# %% [markdown]
# **Predict:** the patch at all positions costs `tiny` more than two nats in the last layer. At what share of the
# positions is the right token still the most likely one?

# %%
predict("03.still_right", None, unit="(share)")

# %%
replacements = {"from the first copy": from_first_copy} | {
    kind: lambda out, hook, kind=kind: ablate(out, kind) for kind in ("mean", "resample", "zero")}
changes = {kind: {layer: losses((mlp_out(layer), new)) - clean for layer in LAYERS}
           for kind, new in replacements.items()}
measured("median change, one MLP position patched", sweep.abs().median(), unit="nats",
         published="near 0 (GPT-2 small, quoted)")
measured("worst mean ablation of an MLP", max(change.mean() for change in changes["mean"].values()), unit="nats")
plot_bars({kind: {f"MLP {layer}": estimate(change) for layer, change in by_layer.items()}
           for kind, by_layer in changes.items()}, "change of the loss (nats), 95 % interval",
          title=f"{MODEL}: the same MLPs, four things in their place")

# %% [markdown]
# All four single out the last MLP of `tiny` and find those of layers 1 and 2 dispensable *for this task*. But why does
# one vector cost fifteen times as much as another? Not only what it *says* counts: the final norm divides the whole
# stream by its size, so a long vector makes every other part quieter. Run everything again with the norm's divisor
# held at its clean value.

# %%
last = LAYERS[-1]
_, cache = model.run_with_cache(tokens, names_filter=["ln_final.hook_scale", mlp_out(last)])
divisor, own_output = cache["ln_final.hook_scale"], cache[mlp_out(last)]
own_length, held = own_output[:, SEQ_LEN + 1:-1].norm(dim=-1).mean(), {}
for kind, new in replacements.items():
    put_in = new(own_output.clone(), None)[:, SEQ_LEN + 1:-1].norm(dim=-1).mean()
    held[kind] = losses((mlp_out(last), new), ("ln_final.hook_scale", lambda scale, hook: divisor)) - clean
    with torch.no_grad():
        patched = model.run_with_hooks(tokens, fwd_hooks=[(mlp_out(last), new)])
    right = (patched[:, SEQ_LEN + 1:-1].argmax(dim=-1) == tokens[:, SEQ_LEN + 2:]).float().mean()
    if kind == "from the first copy":
        reveal("03.still_right", right)
    print(f"{kind:19}: length {put_in:5.0f} (own {own_length:.0f}), right token on top {right:.2f}; "
          f"{changes[kind][last].mean():5.2f} nats, with the divisor held {estimate(held[kind])}")
claim(f"MLP {last}: with the divisor held, the first copy's output does less harm", held["from the first copy"], "<",
      changes["from the first copy"][last], unit="nats")
claim(f"MLP {last}: even so, it does more harm than the mean", held["from the first copy"], ">", held["mean"],
      unit="nats")

# %% [markdown]
# In `tiny` most of the harm of the first copy's output and of the mean is length. In the first copy the last MLP writes
# vectors almost three times as long; the logits shrink, and confidence is lost, but hardly a single answer. With the
# divisor held, zero and mean cost the same, a tenth of a nat, and the two outputs from elsewhere two or three times
# that. A loss measures confidence *and* correctness: look at a second metric before you say what a part is for.
#
# ## 4 · Remove heads
#
# A head gathers values from where it looks: z, at `hook_z(layer)`, [batch, pos, head, d_head]. Then W_O writes it to
# the residual stream. To remove a head, replace *its* z, and no other. (A released evaluation library once ablated
# all heads of a layer where it meant one.)

# %%
@exercise("03.loss_without_head")
def loss_without_head(
    model: TransformerBridge, tokens: Int[Tensor, "batch 1+2*seq_len"], seq_len: int, layer: int, head: int,
    kind: str = "mean"
) -> Float[Tensor, ""]:
    """`second_copy_loss` (nats) when the z of one head is replaced by `ablate(z, kind)`."""
    raise NotImplementedError


# %%
previous = best_head(previous_token_scores(model, tokens))
induction_by_head = induction_scores(model, tokens, SEQ_LEN)
induction = best_head(induction_by_head)
for kind_of_head, (layer, head) in (("previous-token", previous), ("induction", induction)):
    loss = loss_without_head(model, tokens, SEQ_LEN, layer, head)
    print(f"without the best {kind_of_head} head, {layer}.{head}: {loss:.3f} nats, clean {clean_loss:.3f}")

# %% [markdown]
# `head_ablation_scores` does it for every head (each pass begins at the ablated layer).

# %%
layers = LAYERS if model.cfg.n_layers <= 6 else sorted({0, previous[0], induction[0]})
head_scores = head_ablation_scores(model, tokens, "mean", seq_len=SEQ_LEN, layers=layers)
plot_head_scores(head_scores, f"{MODEL}: mean ablation of each head (rows are layers {layers})", vmax=None,
                 unit="change of the loss (nats)", diverging=True)

# %% [markdown]
# In `tiny` two heads of layer 0 stand out: without either, the second copy is lost. One is the previous-token head.
# The other scores low on all of lesson 02's stripes: it looks at the token *itself* (lesson 04 shows it, lesson 05
# finds out what for). And any one induction head can go with almost no effect.
#
# But there are several. Remove more and more of them:

# %%
def without(*heads):
    """Hooks that replace the z of all these heads by its mean."""
    def remove(z, hook):
        own = [head for layer, head in heads if layer == hook.layer()]
        z[:, :, own] = ablate(z[:, :, own], "mean")
        return z

    return [(hook_z(layer), remove) for layer in sorted({layer for layer, _ in heads})]


strongest = [head for head, score in top_heads(induction_by_head, 4) if score > 0.3] or [induction]
for count in range(1, len(strongest) + 1):
    names = ", ".join(f"{layer}.{head}" for layer, head in strongest[:count])
    print(f"without {names}: {estimate(losses(*without(*strongest[:count])))} nats")
claim("one induction head alone is missed less than the previous-token head",
      losses(*without(induction)), "<", losses(*without(previous)), unit="nats")

# %% [markdown]
# Together they are missed more than the sum of what each is missed alone. Is that special to them? The control is all
# heads of the layers above, with the final norm's divisor free, and held.

# %%
above = [(layer, head) for layer in LAYERS if layer > induction[0] for head in range(model.cfg.n_heads)]
missed = {}
for group, members in (("induction heads", strongest), ("heads above them", above)):
    hooks, missed[group] = without(*members), losses(*without(*members)) - clean
    alone = sum(losses(*without(head)) - clean for head in members)
    fixed = losses(*hooks, ("ln_final.hook_scale", lambda scale, hook: divisor)) - clean
    with torch.no_grad():
        ablated = model.run_with_hooks(tokens, fwd_hooks=hooks)
    right = (ablated[:, second_copy].argmax(dim=-1) == tokens[:, SEQ_LEN + 2:]).float().mean()
    print(f"{len(members)} {group}: {estimate(missed[group])} nats together, {estimate(alone)} summed; with the divisor "
          f"held {estimate(fixed)}; right token on top {right:.2f}")
    claim(f"the {group} are missed more together than summed", missed[group], ">", alone, unit="nats")
claim("the induction heads are missed more than all heads above them", missed["induction heads"], ">",
      missed["heads above them"], unit="nats")

# %% [markdown]
# More than the sum is nothing special: in `tiny` the eight heads above do it, too. But most of their harm is the
# divisor's, and the right token stays on top. Without the four induction heads the answer itself is gone.
#
# The effect of an ablation says what the rest of the model *cannot make up for*; a small one may mean "useless" or
# "has a spare" (section 6).
#
# ## 5 · All patches from one gradient
#
# A sweep needs a pass per entry. **Attribution patching** estimates all entries from one forward and one backward
# pass: to first order, the loss changes by $(\text{new} - \text{old}) \cdot \text{gradient}$. `gradients(model,
# tokens, names, loss)` returns {hook name: (activation, gradient)}; `loss` is a function of the logits.

# %%
@exercise("03.mlp_attribution_sweep")
def mlp_attribution_sweep(
    model: TransformerBridge, tokens: Int[Tensor, "batch 1+2*seq_len"], seq_len: int
) -> Float[Tensor, "layer seq_len"]:
    """First-order estimate (nats) of the sweep of section 2, for all layers.

    The gradient is that of `second_copy_loss`, at every patched position; rows and components add up.
    """
    raise NotImplementedError


# %%
estimates = mlp_attribution_sweep(model, one, SEQ_LEN)[LAYERS]
print(f"largest exact change {sweep.abs().max():.3f} nats, largest estimate {estimates.abs().max():.4f}")
plot_scatter(sweep, estimates, "exact change of the loss (nats)", "estimate from the gradient (nats)",
             title=f"{MODEL}: one point per layer and position")

# %% [markdown]
# In `tiny` the estimates are all near zero, and for heads it is no better. To see why, move the z of the head that is
# missed most to its mean in small steps, and watch the loss, the logit of the right token, and the attention of the
# best induction head.

# %%
worst = best_head(head_scores)
layer, head = layers[worst[0]], worst[1]
slope_at_start = head_attribution_scores(model, tokens, "mean", seq_len=SEQ_LEN)[layer, head]
ways, path, seen = torch.linspace(0, 1, 11), [], {}
for way in ways:
    def move(z, hook):
        z[:, :, head] += way * (ablate(z[:, :, head], "mean") - z[:, :, head])
        return z

    def look(pattern, hook):
        seen["attention"] = pattern[:, induction[1]].diagonal(1 - SEQ_LEN, 1, 2)[:, 2:].mean()

    with torch.no_grad():
        moved = model.run_with_hooks(tokens, fwd_hooks=[
            (hook_z(layer), move), (f"blocks.{induction[0]}.attn.hook_pattern", look)])
    path.append(second_copy_loss(moved, tokens, SEQ_LEN).item())
    if round(10 * way.item()) in (0, 2, 4, 6, 8, 10):
        right = moved[:, SEQ_LEN + 1:-1].gather(2, tokens[:, SEQ_LEN + 2:, None]).mean()
        print(f"{way:.1f} of the way: loss {path[-1]:6.3f}, right logit {right:5.1f}, "
              f"attention of {induction[0]}.{induction[1]} {seen['attention']:.2f}")
plot_by_position({"exact": path, "what the gradient expects": path[0] + ways * slope_at_start.cpu()},
                 "loss of the second copy (nats)", x=ways, xlabel="share of the way to the mean",
                 title=f"{MODEL}: ablating head {layer}.{head} step by step")

# %% [markdown]
# A gradient is the slope where the model *is*, and there `tiny` is flat twice over. The model is confident, so the
# *output's* softmax is saturated; and even the logit before it does not move at first, because the softmax of the
# induction head's *attention* is saturated, too. A small step changes nothing, and a large one falls off an edge that
# the slope does not show.
#
# **Your experiment:** estimate what the ablation does from gradients at several points of the path, so well that it
# holds for this head. Which points, and how to combine the slopes, is up to you.

# %%
@exercise("03.estimate_on_path")
def estimate_on_path(
    model: TransformerBridge, tokens: Int[Tensor, "batch 1+2*seq_len"], seq_len: int, layer: int, head: int,
    points: int
) -> float:
    """Estimate (nats) of what mean ablation of one head adds to `second_copy_loss`, from `points` gradients.

    Each is taken with the head's z part of the way to `ablate(z, "mean")`. With more points the estimate comes
    closer to the exact change; with one it is a slope times the way. No difference of two losses, please.
    """
    raise NotImplementedError


# %%
few = tokens[:4]
tried = sorted(((layers[row], column) for row, column in head_scores.abs().gt(0.1).nonzero().tolist()),
               key=lambda each: -head_scores[layers.index(each[0]), each[1]])[:3] or [(layer, head)]
at_start = head_attribution_scores(model, few, "mean", seq_len=SEQ_LEN).cpu()
errors = {"start": [], "path": []}
for layer, head in tried:
    exact = (loss_without_head(model, few, SEQ_LEN, layer, head) - second_copy_loss(model(few), few, SEQ_LEN)).item()
    by_points = {points: estimate_on_path(model, few, SEQ_LEN, layer, head, points) for points in (1, 3, 10)}
    errors["start"].append(abs(at_start[layer, head].item() - exact))
    errors["path"].append(abs(by_points[10] - exact))
    print(f"{layer}.{head}: exact {exact:6.3f}; slope at the start {at_start[layer, head]:6.3f}; "
          + ", ".join(f"{points} point{'s' * (points > 1)} {found:6.3f}" for points, found in by_points.items()))
claim("ten slopes along the path miss less than one at its start (largest error)", max(errors["path"]), "<",
      max(errors["start"]), unit="nats")

# %% [markdown]
# Ten gradients, at the middles of ten equal pieces of the path, come within a few per cent, at ten times the price.
# (The method, *integrated gradients*, rests on the fundamental theorem of calculus: averaged over the path, the slopes
# give the whole change.) One gradient is for *ranking candidates* among thousands. Distrust it most for parts that act
# through another head's attention, and confirm what matters by points on the path or by the exact patch, for its
# misses are silent.
#
# ## 6 · What does a part say directly?
#
# The logits are a linear function of the last residual stream once its norm's scale is fixed, and the residual stream
# is a sum over the parts. **Direct logit attribution** asks how much each part adds to the logit of the actual next
# token.

# %%
@exercise("03.logit_contributions")
def logit_contributions(
    component: Float[Tensor, "batch pos d_model"], scale: Float[Tensor, "batch pos 1"],
    W_U: Float[Tensor, "d_model vocab"], tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos-1"]:
    """What a component adds to the logit of each actual next token.

    `scale` is what the final norm divides by. Entry j is about tokens[:, j + 1].
    """
    raise NotImplementedError


# %%
parts = direct_logit_attribution(model, tokens)
actual = logits[:, :-1].gather(2, tokens[:, 1:, None])[..., 0]
assert torch.allclose(capped(model, sum(parts.values())), actual, atol=1e-3)   # the parts sum to the logits
inner = {part: added[:, SEQ_LEN + 1:].mean(dim=1).cpu() for part, added in parts.items()}   # without the boundary
named = [f"{layer}.{head}" for layer, head in (previous, *tried) if f"{layer}.{head}" in inner]
largest = sorted(inner, key=lambda part: -abs(inner[part].mean()))[:9]
display(plot_bars({"direct": {part: estimate(inner[part]) for part in dict.fromkeys([*largest, *named])}},
                  "added to the right token's logit, 95 % interval", title=f"{MODEL}: who says it, in the second copy"))
name = "{0[0]}.{0[1]}".format
claim(f"the previous-token head {name(previous)} says less to the output than the induction head {name(induction)}",
      inner[name(previous)], "<", inner[name(induction)], unit="units of logit")

# %% [markdown]
# In `tiny` the induction heads and the last MLP say the right token aloud. The previous-token head, without which
# nothing works, says nothing: it talks to other heads, not to the output. Each induction head adds some three units
# to the right logit, though each can go almost without a loss. Either later parts *notice* and step in
# (**self-repair**), or the other heads already say enough (**redundancy**), or the head said nothing of use. Remove
# the best induction head and see who speaks louder.

# %%
with model.hooks(fwd_hooks=without(induction)):
    repaired = direct_logit_attribution(model, tokens)
change = {part: (repaired[part] - parts[part])[:, SEQ_LEN + 1:].mean(dim=1).cpu() for part in parts}


def summed(belongs):
    """The change of all these parts together, for each sequence."""
    chosen = [change[part] for part in change if belongs(part)]
    return sum(chosen, torch.zeros(len(tokens)))


its_layer, own = induction[0], name(induction)
later = {f"{layer}.{head}" for layer in range(its_layer + 1, model.cfg.n_layers) for head in range(model.cfg.n_heads)}
later |= {f"mlp {layer}" for layer in range(its_layer, model.cfg.n_layers)}
same_layer = {f"{its_layer}.{head}" for head in range(model.cfg.n_heads)} - {own}
print(f"right logit {estimate(actual[:, SEQ_LEN + 1:].mean(dim=1).detach().cpu())}, without {own} it changes by "
      f"{estimate(summed(lambda part: True))}")
print(f"of this, {own} itself {estimate(change[own])}; heads of its layer {estimate(summed(same_layer.__contains__))}; "
      f"later heads and MLPs {estimate(summed(later.__contains__))}")
claim(f"parts after {own} make up for less than a tenth of it when it is gone", summed(later.__contains__), "<",
      -0.1 * change[own].mean().item(), unit="units of logit")

# %% [markdown]
# The heads of the same layer cannot notice, since they read the stream before it: they contribute more only because
# the final norm now divides by less. The later parts could, but in `tiny` they even say less together. So this is
# redundancy: the right logit falls by three and still stays far ahead, as the loss of 0.06 shows. Direct attribution
# counts what is *said*, ablation what is *missed*. Neither replaces the other.
#
# ## 7 · Which question was it?
#
# | you want to know | ask | beware |
# |---|---|---|
# | does the model need this part? | mean or resample ablation | spares hide it; a norm spreads the harm |
# | does it matter what it read *here* rather than *there*? | patch from there | the two may be equal already |
# | which of thousands of places could matter? | attribution patching | saturation hides the largest |
# | what does it tell the output? | direct logit attribution | parts that talk to other parts are silent |
#
# ## 8 · Does it hold in a real language model?

# %%
real_model = load_real_model()

# %%
if real_model is not None:
    real_seq_len, real_layers = 25, some_layers(real_model)
    real_tokens = generate_repeated_tokens(real_model, real_seq_len, batch=4, seed=0)
    real_sweep = mlp_patch_sweep(real_model, real_tokens[:1], real_seq_len, layers=real_layers)
    names = [mlp_out(layer) for layer in real_layers]
    _, real_cache = real_model.run_with_cache(real_tokens, names_filter=names)
    real_mean = mlp_ablation_scores(real_model, real_tokens, "mean", seq_len=real_seq_len, layers=real_layers)
    real_found = {layer: unlikeness(real_cache[mlp_out(layer)]) for layer in real_layers}
    for layer, row, mean in zip(real_layers, real_sweep, real_mean):
        (by_copy, _), (by_token, _) = real_found[layer].values()
        print(f"MLP {layer:2}: relative change by the first copy {by_copy.mean():.2f}, by another token "
              f"{by_token.mean():.2f}; patched {row.mean():6.3f} nats (mean over positions), mean-ablated {mean:6.3f}")
    claim("SmolLM2, first MLP: the first copy's output changes less than another token's",
          real_found[0]["first copy"][0], "<", real_found[0]["another token"][0], unit="of the vector's length")
    text = sample_text(real_model, 4, 51)
    text_change = mlp_ablation_scores(real_model, text, "mean", layers=[0])[0]
    print(f"mean ablation of the first MLP, on a text that the model wrote itself: {text_change:.2f} nats")
    measured("SmolLM2: first MLP, mean change by patching", real_sweep[0].mean(), unit="nats", at_most=0.1)
    measured("SmolLM2: first MLP, change by mean ablation", real_mean[0], unit="nats", at_least=3)

# %% [markdown]
# Here the patch fails most clearly. The first MLP of SmolLM2 produces nearly the same vector in both copies (a tenth
# of its length differs, where another token changes all of it), so the patch does next to nothing, even times the 25
# positions. With the mean in its place, at all of them, the loss rises by more than ten nats. But in the control, text
# that the model wrote itself, it rises by more than five: what this MLP does is not special to *this task*.

# %%
if real_model is not None:
    previous_head = best_head(previous_token_scores(real_model, real_tokens))
    induction_head = best_head(induction_scores(real_model, real_tokens, real_seq_len))
    real_rows = sorted({previous_head[0], induction_head[0]})
    real_heads = head_ablation_scores(real_model, real_tokens, "mean", seq_len=real_seq_len, layers=real_rows)
    real_slopes = head_attribution_scores(real_model, real_tokens, "mean", seq_len=real_seq_len)[real_rows]
    for row, column in sorted(real_heads.abs().gt(0.5).nonzero().tolist(), key=lambda at: -real_heads[at[0], at[1]]):
        layer = real_rows[row]
        on_path = estimate_on_path(real_model, real_tokens, real_seq_len, layer, column, points=3)
        print(f"head {layer}.{column}: exact {real_heads[row, column]:5.2f} nats, slope at the start "
              f"{real_slopes[row, column]:5.2f}, three points of the path {on_path:5.2f}")
    print(f"previous-token head {name(previous_head)}, best induction head {name(induction_head)}; median of their "
          f"layers {real_heads.median():.2f}")
    measured("SmolLM2: best previous-token head ablated", real_heads.max(), unit="nats")

# %% [markdown]
# Without the previous-token head the second copy suffers badly, as in `tiny`. The best induction head is missed too,
# although lesson 02 found four more with scores above 0.5. SmolLM2 is far from confident here, and yet the gradient
# gives its most important head the wrong sign. (In `tiny` such a head acted through the attention of others; here that
# is a guess.) It ranks the two induction heads correctly. The middles of three pieces of the path set all three right.
#
# ## On your own
#
# Replaced by its mean, the first MLP of `tiny` is hardly missed *on repeated tokens* (section 3's plot). Is it dispensable
# for the text that the model was trained on (`sample_text(model, 10, 101)`)? Hand in a claim, a number with its
# interval, the control, what would have refuted you, and what it does not show.

# %% tags=["solution-only"]
stories = sample_text(model, 10, 2 * SEQ_LEN + 1)


@torch.no_grad()
def story_losses(*hooks):
    story_logits = model.run_with_hooks(stories, fwd_hooks=list(hooks))
    return F.cross_entropy(story_logits[:, :-1].mT, stories[:, 1:], reduction="none").mean(dim=1).cpu()


on_stories = story_losses((mlp_out(0), replacements["mean"])) - story_losses()
claim("mean ablation of MLP 0 costs more on ordinary text than on repeated tokens", on_stories, ">", changes["mean"][0],
      unit="nats")

# %% [markdown] tags=["solution-only"]
# *A model answer.* MLP 0 is needed for stories: without it `tiny` loses more than two nats a token, where the
# repeated tokens hardly notice. The control is the same ablation on the other text; equal changes would have refuted
# me. As section 3 teaches, I would next hold the final norm's divisor fixed. It does not show *what* the MLP does for
# stories, and the mean is that of stories here, so the two ablations use different vectors.

# %% [markdown]
# ## What this does not show
#
# - That a part matters says nothing about *what it does*, or which other part reads it (lessons 04 and 05).
# - Mean ablation over random tokens removes what depends on *these* inputs. For another task the mean and the verdict
#   differ.
# - The intervals are over sequences of one kind of text. Another text or another replacement changes a verdict more
#   than noise does.
#
# ## Summary
#
# - Logits at j are about token j + 1. Without the shift a loss measures something else.
# - Ask of every patch how different it is (compared with another token's output), how much of the mean one position
#   can move, and what its length alone does.
# - Zero, mean and resample ablation are three questions. BOS keeps its activations.
# - A small effect means useless *or* replaceable: ablate the spares together, and see whether others step in.
# - The softmaxes of output and attention hide the largest effects from a gradient. Points on the path find them.
# - Direct attribution sees who speaks to the output, not who speaks to other parts.
#
# Sources: Shuyang Xiang, "How to Interpret GPT2-Small" (2024), the patching experiment; Neel Nanda, [Attribution
# patching](https://www.neelnanda.io/mechanistic-interpretability/attribution-patching) (2023); Kramár et al.,
# [AtP\*](https://arxiv.org/abs/2403.00745) (2024), on what saturated attention hides from it; Sundararajan et al.,
# [Axiomatic Attribution](https://arxiv.org/abs/1703.01365) (2017), integrated gradients; Chan et al., "Causal
# Scrubbing" (2022), resample ablation; Wang et al., [Interpretability in the Wild](https://arxiv.org/abs/2211.00593)
# (2022), back-up heads; McGrath et al., [The Hydra Effect](https://arxiv.org/abs/2307.15771) (2023), self-repair;
# nostalgebraist, "interpreting GPT: the logit lens" (2020); the ablation of all heads instead of one: SAELens [pull
# request 163](https://github.com/jbloomAus/SAELens/pull/163).
#
# Next: **04 · Reading weights**.

# %% tags=["exercise-only"]
progress("03")

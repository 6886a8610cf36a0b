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
# **The question.** Lesson 02 found heads that *look* at the right place. Which parts of the model does the
# prediction *need*? An **ablation** answers by experiment: put something else in a part's place and see what
# the loss does.
#
# Everything hangs on the "something else". The article that we follow patches MLP outputs, sees hardly any
# change, and concludes that MLP layers may not matter much here. You will repeat that experiment exactly, find
# out why its numbers are small whatever the MLPs do, and ask again in better ways. On the way you meet the two
# shortcuts of the trade, attribution patching and direct logit attribution, and see where each misleads.
#
# **You need:** lessons 00 to 02.

# %%
import inspect
import os
import time

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from course_utils.ablation import (gradients, head_ablation_scores, head_attribution_scores, mlp_ablation_scores,
                                   mlp_patch_sweep, some_layers)
from course_utils.exercises import exercise, hint, predict, progress, reveal, solution
from course_utils.heads import best_head, induction_scores, previous_token_scores, top_heads
from course_utils.logit_attribution import capped, direct_logit_attribution
from course_utils.measured import measured
from course_utils.models import load_model, load_real_model
from course_utils.passes import CleanRun, hook_z, mlp_out
from course_utils.repeated_tokens import generate_repeated_tokens
from course_utils.viz import plot_bars, plot_by_position, plot_head_scores, plot_scatter

MODEL = os.environ.get("COURSE_MODEL", "tiny")      # or write a name here, such as "smollm2-135m"
model = load_model(MODEL)
SEQ_LEN, BATCH = (50, 10) if MODEL == "tiny" else (20, 4)
LAYERS = some_layers(model)                         # all of a small model's; four of a large one's
tokens = generate_repeated_tokens(model, SEQ_LEN, BATCH, seed=0)
print(f"{MODEL}: tokens {tuple(tokens.shape)}; layers to look into: {LAYERS}")

# %% [markdown]
# ## 1 · The number to watch
#
# All experiments of this lesson ask one question: how does the **loss of the second copy** change? It is the
# mean cross-entropy, in nats, of the second copy's tokens. (Its first token, the boundary, is counted, as in
# the article.)
#
# The article's code cuts logits and tokens at the same places, `[:, seq_len:max_len]`, and passes both to a
# loss function that it does not show. If that function does not shift them, it asks the logits at each
# position for the token that is *already there*.

# %%
@exercise("03.second_copy_loss")
def second_copy_loss(
    logits: Float[Tensor, "batch pos vocab"], tokens: Int[Tensor, "batch pos"], seq_len: int
) -> Float[Tensor, ""]:
    """Mean cross-entropy (nats) of the tokens of the second copy, its first token included.

    Tokens are BOS, then two equal copies of seq_len tokens. `F.cross_entropy` wants [N, vocab] and [N].
    """
    raise NotImplementedError


# %%
logits = model(tokens)
unshifted = F.cross_entropy(logits[:, SEQ_LEN:-1].flatten(0, 1), tokens[:, SEQ_LEN:-1].flatten())
clean_loss = second_copy_loss(logits, tokens, SEQ_LEN)
first = F.cross_entropy(logits[:, 1:SEQ_LEN].flatten(0, 1), tokens[:, 1:SEQ_LEN].flatten())
print(f"second copy: {clean_loss:.3f} nats; the same without the shift: {unshifted:.3f} nats "
      f"(in the first copy {first:.3f})")

# %% [markdown]
# A model that has understood repetition is sure of the *next* token, so it gives the present one almost no
# probability: without the shift the loss is worst where the model is best.
#
# ## 2 · The article's experiment
#
# For each layer and each position of the second copy: take the MLP's output *at the same token's first
# occurrence*, put it in place of the MLP's output here, and note how much the loss of the second copy rises.
# One number per layer and position. Your function makes one pass of the model for each.
#
# `mlp_out(layer)` is the hook's name, and a hook function gets `(activation, hook)`, may change the
# activation, and returns it.

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
# The course's `mlp_patch_sweep` gives the same numbers, several times faster, because it leaves out what a
# patch cannot change: the layers below it, and (attention is causal) the positions before it. It lets a
# remembered clean pass continue from the patched place. `CleanRun.continue_from` is the whole trick:

# %%
print(inspect.getsource(CleanRun.continue_from))

# %% [markdown]
# **Predict before you look:** of all entries, one per layer and position, what is the median change of the
# loss, in nats?

# %%
predict("03.median_change", None)

# %%
reveal("03.median_change", sweep.abs().median())
plot_head_scores(sweep, f"{MODEL}: MLP output from the first copy, one position at a time", vmax=None,
                 unit="change of the loss (nats)", diverging=True, columns="patched position, from the boundary")

# %%
for layer, row in zip(LAYERS, sweep):
    print(f"layer {layer:2}: mean change {row.mean():7.4f} nats, largest {row.abs().max():.4f}")

# %% [markdown]
# Most entries are next to nothing, as the article found in GPT-2 small. Before we conclude anything about
# MLPs, three questions about the experiment.
#
# ### How much of a change is the patch?
#
# The same token stood there before, so the MLP may well have put out nearly the same vector: then we replaced
# a thing by itself. Compare with what the MLP puts out at the same position for *another* token.

# %%
_, cache = model.run_with_cache(tokens, names_filter=[mlp_out(layer) for layer in LAYERS])
for layer in LAYERS:
    first, second = cache[mlp_out(layer)][:, 1:].chunk(2, dim=1)        # each [batch, seq_len, d_model]
    same = F.cosine_similarity(second, first, dim=-1).mean()
    other = F.cosine_similarity(second, second.roll(1, dims=0), dim=-1).mean()
    print(f"layer {layer:2}: cosine with the first copy {same:5.2f}, with another token {other:5.2f}")

# %% [markdown]
# Where the first number is close to 1 and the second is not, the patch is nearly a no-op, and a small change of
# the loss says nothing about the MLP. (In section 8 you will see it at its worst, in the first layer of
# SmolLM2.) `tiny` is different: its first MLP puts out much the same for *every* token, and in its later layers
# the copies differ more from each other than two tokens do. There the small numbers must have another reason.
#
# ### How many tokens can one patch hurt?
#
# The loss is a mean over the whole second copy, and a patch at one position mostly hurts the one prediction
# made there. A prediction that gets worse by x nats moves the mean by x / seq_len. So let us patch *all*
# positions of the second copy at once, and put the two beside each other.

# %%
def patch_all(activation, hook):
    activation[:, SEQ_LEN + 1:] = activation[:, 1:SEQ_LEN + 1]
    return activation


for layer, row in zip(LAYERS, sweep):
    patched = model.run_with_hooks(one, fwd_hooks=[(mlp_out(layer), patch_all)])
    everywhere = second_copy_loss(patched, one, SEQ_LEN) - second_copy_loss(model(one), one, SEQ_LEN)
    print(f"layer {layer:2}: mean of single patches {row.mean():7.4f} nats, all at once {everywhere:7.3f}")

# %% [markdown]
# In `tiny`, a twentieth of a nat per position in the last layer is a small number. It is nearly three nats of
# damage at each patched token, divided by fifty.
#
# ### What is special about the first token?
#
# The article sees an effect only at "the first token". Its loop starts at position seq_len, which is the *last
# token of the first copy*, and patches it with the output of position 0: the MLP output of BOS. (It never reaches
# the last token, which does no harm: nothing is predicted from there.) `as_published=True` uses exactly that range.

# %%
published = mlp_patch_sweep(model, one, SEQ_LEN, layers=LAYERS, as_published=True)
for layer, theirs, ours in zip(LAYERS, published, sweep):
    output = cache[mlp_out(layer)].norm(dim=-1)                         # [batch, pos]
    print(f"layer {layer:2}: column 0 {theirs[0]:6.3f} nats, column 1 {theirs[1]:6.3f}; "
          f"‖MLP output‖ at BOS {output[:, 0].mean():6.1f}, just after it {output[:, 1].mean():5.1f}, "
          f"later {output[:, 2:].mean():5.1f}")
assert torch.allclose(published[:, 1:], sweep[:, :-1], atol=1e-5)

# %% [markdown]
# The article's first column does not belong to the second copy. It gives the first copy's last token the MLP
# output of BOS, a vector unlike any other and several times as large. Whatever effect there is in that column
# is about BOS. From there on both ranges agree, shifted by one. (Column 1 is the boundary token. What `tiny` shows
# there in layer 0 is about the source again: the first token of all, just after BOS, has an MLP output that is
# unlike later ones, too.)
#
# So the experiment is right as an experiment, and "MLPs do not matter" does not follow from it.
#
# ## 3 · Something else to put there
#
# To ask what a part contributes, put something *uninformative* in its place, at every position:
#
# - **zero**: nothing. Simple, but zero may be a value that the rest of the model never sees.
# - **mean**: the part's average output. What is lost is all that depends on the input.
# - **resample**: its output in another sequence. Every single value is a natural one, but wrong here.
#
# BOS keeps its own activation in this course: many models park attention there and make its activations huge,
# so that breaking it breaks everything.

# %%
@exercise("03.ablate")
def ablate(activation: Float[Tensor, "batch pos ..."], kind: str) -> Float[Tensor, "batch pos ..."]:
    """What takes an activation's place; position 0 (BOS) keeps its own.

    zero: zeros. mean: the mean over batch and positions 1 … last, the same everywhere. resample: the activation
    of the next sequence of the batch (the last gets the first's) at the same position.
    """
    raise NotImplementedError


# %% [markdown]
# **Predict:** in which layer does mean ablation of the MLP do most harm, in `tiny` or in your model?

# %%
predict("03.worst_mlp", None, unit="(layer)")

# %%
by_kind = {kind: mlp_ablation_scores(model, tokens, kind, seq_len=SEQ_LEN, layers=LAYERS)
           for kind in ("zero", "mean", "resample")}
reveal("03.worst_mlp", LAYERS[by_kind["mean"].argmax()])
in_bars = {kind: {f"MLP {layer}": float(value) for layer, value in zip(LAYERS, values)}
           for kind, values in by_kind.items()}
patched = {f"MLP {layer}": float(row.mean()) for layer, row in zip(LAYERS, sweep)}
plot_bars({"patched, mean of positions": patched, **in_bars}, "change of the loss (nats)",
          title=f"{MODEL}: the same MLPs, four questions")

# %% [markdown]
# (The patches are those of one sequence, the ablations those of ten.) The three kinds do not agree with each other
# either, and they need not: they ask different questions. What they have in common is the verdict on `tiny`: its
# MLPs of layers 0 to 2 are dispensable *for this task*, the last one is not. Patching had pointed at the same
# layer, but with a number that is easy to dismiss.

# %%
measured("median change, one MLP position patched", sweep.abs().median(), unit="nats",
         published="near 0 (GPT-2 small, quoted)")
measured("worst mean ablation of an MLP", by_kind["mean"].max(), unit="nats",
         at_least=0.3 if MODEL == "tiny" else None)

# %% [markdown]
# ## 4 · Take heads away
#
# A head gathers values from where it looks: z, at `hook_z(layer)`, [batch, pos, head, d_head]. Then W_O writes
# it to the residual stream. To take a head away, replace *its* z, and nobody else's. (A released evaluation
# library once ablated all heads of a layer where it meant one.)

# %%
@exercise("03.loss_without_head")
def loss_without_head(
    model: TransformerBridge, tokens: Int[Tensor, "batch 1+2*seq_len"], seq_len: int, layer: int, head: int,
    kind: str = "mean"
) -> Float[Tensor, ""]:
    """`second_copy_loss` (nats) when the z of one head is replaced by `ablate(z, kind)`."""
    raise NotImplementedError


# %%
previous = previous_token_scores(model, tokens)
induction = induction_scores(model, tokens, SEQ_LEN)
for name, (layer, head) in (("previous-token", best_head(previous)), ("induction", best_head(induction))):
    loss = loss_without_head(model, tokens, SEQ_LEN, layer, head)
    print(f"without the best {name} head, {layer}.{head}: {loss:.3f} nats, clean {clean_loss:.3f}")

# %% [markdown]
# Is that what you expected? `head_ablation_scores` does it for every head, from the ablated layer on.

# %%
layers = LAYERS if model.cfg.n_layers <= 6 else sorted({0, best_head(previous)[0], best_head(induction)[0]})
head_scores = head_ablation_scores(model, tokens, "mean", seq_len=SEQ_LEN, layers=layers)
plot_head_scores(head_scores, f"{MODEL}: mean ablation of each head (rows are layers {layers})", vmax=None,
                 unit="change of the loss (nats)", diverging=True)

# %% [markdown]
# In `tiny` two heads of layer 0 stand out: without either, the second copy is lost. One is the previous-token
# head. The other scores low on all of lesson 02's stripes: it looks at the token *itself* (lesson 04 shows it,
# lesson 05 finds out what for). And the induction heads, without which there should be no induction? Each of
# them can go, and almost nothing happens.
#
# There are several of them. Take them away together, one after the other:

# %%
def loss_without(heads):
    """`second_copy_loss` when the z of all these heads is replaced by its mean."""
    def remove(z, hook):
        own = [head for layer, head in heads if layer == hook.layer()]
        z[:, :, own] = ablate(z[:, :, own], "mean")
        return z

    hooks = [(hook_z(layer), remove) for layer in {layer for layer, _ in heads}]
    return second_copy_loss(model.run_with_hooks(tokens, fwd_hooks=hooks), tokens, SEQ_LEN)


strongest = [head for head, score in top_heads(induction, 4) if score > 0.3]     # no head that is none
for count in range(1, len(strongest) + 1):
    names = ", ".join(f"{layer}.{head}" for layer, head in strongest[:count])
    print(f"without {names}: {loss_without(strongest[:count]):.3f} nats")

# %% [markdown]
# Any one is dispensable, because the others do the same. The effect of an ablation says what the rest of the
# model *cannot make up for*; a small number may mean "useless" or "has a spare".
#
# ## 5 · All patches from one gradient
#
# A sweep needs a pass per entry. **Attribution patching** estimates all entries at once: to first order, the
# loss changes by *(new − old) · gradient*. One forward and one backward pass, whatever the number of entries.
# `gradients(model, tokens, names, loss)` returns {hook name: (activation, gradient)}; `loss` is a function of
# the logits.

# %%
@exercise("03.mlp_attribution_sweep")
def mlp_attribution_sweep(
    model: TransformerBridge, tokens: Int[Tensor, "batch 1+2*seq_len"], seq_len: int
) -> Float[Tensor, "layer seq_len"]:
    """First-order estimate (nats) of the sweep of section 2, for all layers.

    (new − old) · gradient of `second_copy_loss`, at every patched position, summed over batch and d_model.
    """
    raise NotImplementedError


# %%
estimate = mlp_attribution_sweep(model, one, SEQ_LEN)[LAYERS]
print(f"largest exact change {sweep.abs().max():.3f} nats, largest estimate {estimate.abs().max():.4f}")
plot_scatter(sweep, estimate, "exact change of the loss (nats)", "estimate from the gradient (nats)",
             title=f"{MODEL}: one point per layer and position")

# %% [markdown]
# In `tiny` the estimates lie on the floor, and the estimates for heads do too:

# %%
head_estimates = head_attribution_scores(model, tokens, "mean", seq_len=SEQ_LEN)[layers]
worst = best_head(head_scores)
print(f"head {layers[worst[0]]}.{worst[1]}: exact {head_scores[worst]:.3f} nats, "
      f"estimate {head_estimates[worst]:.3f}")
plot_scatter(head_scores, head_estimates, "exact change of the loss (nats)",
             "estimate from the gradient (nats)", title=f"{MODEL}: mean ablation, one point per head")

# %% [markdown]
# Why? Go the way from the head's own z to its mean in small steps, and watch the loss.

# %%
layer, head = layers[worst[0]], worst[1]
ways = torch.linspace(0, 1, 11)


def loss_part_way(way):
    def move(z, hook):
        z[:, :, head] += way * (ablate(z[:, :, head], "mean") - z[:, :, head])
        return z
    return second_copy_loss(model.run_with_hooks(tokens, fwd_hooks=[(hook_z(layer), move)]), tokens, SEQ_LEN)


path = torch.stack([loss_part_way(way) for way in ways]).cpu()
plot_by_position({"exact": path, "what the gradient expects": path[0] + ways * head_estimates[worst]},
                 "loss of the second copy (nats)", x=ways, xlabel="share of the way to the mean",
                 title=f"{MODEL}: ablating head {layer}.{head} step by step")

# %% [markdown]
# A gradient knows the slope where the model *is*, and the estimate is the tangent there. A model that is sure
# of the next token sits on a flat piece: softmax is saturated, a small step changes nothing, and a large one
# falls off an edge that the slope does not show. Use attribution patching to *rank candidates* among thousands,
# on inputs where the model is unsure, and confirm those that matter by the exact patch. What it misses it
# misses silently.
#
# ## 6 · What does a part say directly?
#
# The logits are a linear function of the last residual stream once its norm's scale is fixed, and the residual
# stream is a sum over the parts. So each logit is a sum too: **direct logit attribution** asks how much each
# part adds to the logit of the token that came.

# %%
@exercise("03.logit_contributions")
def logit_contributions(
    component: Float[Tensor, "batch pos d_model"], scale: Float[Tensor, "batch pos 1"],
    W_U: Float[Tensor, "d_model vocab"], tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos-1"]:
    """What a component adds to the logit of each token that came next.

    `scale` is what the final norm divides by. Entry j is about tokens[:, j + 1].
    """
    raise NotImplementedError


# %%
parts = direct_logit_attribution(model, tokens)
came = logits[:, :-1].gather(2, tokens[:, 1:, None])[..., 0]
assert torch.allclose(capped(model, sum(parts.values())), came, atol=1e-3)     # the parts sum to the logits
inner = {part: float(added[:, SEQ_LEN + 1:].mean()) for part, added in parts.items()}   # without the boundary
largest = sorted(inner, key=lambda part: -abs(inner[part]))[:12]
plot_bars({"direct": {part: inner[part] for part in largest}}, "added to the right token's logit",
          title=f"{MODEL}: who says it, on average over the second copy")

# %% [markdown]
# In `tiny` the induction heads and the last MLP say the right token aloud; the previous-token head, without
# which nothing works, says nothing: it talks to other heads, not to the output. And each induction head adds
# some three units to the right logit, though each can go almost without a loss. Direct attribution counts what is
# *said*, ablation what is *missed*. Neither replaces the other.
#
# ## 7 · Which question was it?
#
# | you want to know | ask | beware |
# |---|---|---|
# | does the model need this part? | mean or resample ablation | spares hide it |
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
    for layer, row, mean in zip(real_layers, real_sweep, real_mean):
        first, second = real_cache[mlp_out(layer)][:, 1:].chunk(2, dim=1)
        print(f"MLP {layer:2}: cosine between copies {F.cosine_similarity(first, second, dim=-1).mean():.2f}, "
              f"patched {row.mean():6.3f} nats (mean over positions), mean-ablated {mean:6.3f}")
    measured("SmolLM2: first MLP, mean change by patching", real_sweep[0].mean(), unit="nats", at_most=0.1)
    measured("SmolLM2: first MLP, change by mean ablation", real_mean[0], unit="nats", at_least=3)

# %% [markdown]
# Here the experiment fails most clearly. The first MLP of SmolLM2 puts out nearly the same vector for the same
# token in both copies, so that patching one with the other does next to nothing; put the mean in its place, and
# the loss rises by more than ten nats. The experiment compared a thing with itself.

# %%
if real_model is not None:
    previous_head = best_head(previous_token_scores(real_model, real_tokens))
    induction_head = best_head(induction_scores(real_model, real_tokens, real_seq_len))
    real_rows = sorted({previous_head[0], induction_head[0]})
    real_heads = head_ablation_scores(real_model, real_tokens, "mean", seq_len=real_seq_len, layers=real_rows)
    for name, (layer, head) in (("previous-token", previous_head), ("induction", induction_head)):
        row = real_heads[real_rows.index(layer)]
        print(f"{name} head {layer}.{head}: {row[head]:6.3f} nats; median of its layer {row.median():.3f}")
    measured("SmolLM2: best previous-token head ablated", real_heads.max(), unit="nats")

# %% [markdown]
# Without the previous-token head the second copy suffers badly, as in `tiny`. The best induction head is missed
# too, although lesson 02 found four more with scores above 0.5.
#
# ## What this does not show
#
# - That a part matters says nothing about *what it does*, or which other part reads it. Lessons 04 and 05 open
#   the weights.
# - Mean ablation over random tokens removes what depends on *these* inputs. For another task the mean, and
#   with it the verdict, is another.
# - Everything here is about repeated random tokens. MLPs that can go here may be what stories need.
# - Differences of a few thousandths of a nat, on a handful of sequences, are noise. Look at the large ones.
#
# ## Summary
#
# - The logits at position j are about token j + 1. Without the shift a loss measures something else.
# - Ask of every patch: how different is what I put there? How much of the mean can one position move?
# - Zero, mean and resample ablation are three questions. BOS keeps its activations.
# - A small effect means useless *or* replaceable: ablate the spares together.
# - A gradient ranks candidates; saturation hides the largest effects from it.
# - Direct attribution sees who speaks to the output, not who speaks to other parts.
#
# Sources: Shuyang Xiang, "How to Interpret GPT2-Small" (2024), the patching experiment; Neel Nanda, "Attribution
# patching" (2023); Chan et al., "Causal Scrubbing" (2022), resample ablation; Wang et al., "Interpretability in
# the Wild" (2022), back-up heads; nostalgebraist, "interpreting GPT: the logit lens" (2020), for reading the
# residual stream through the unembedding; the ablation of all heads instead of one: SAELens pull request 163.
#
# Next: **04 · Reading weights**, where we read from a head's matrices what it looks for and what it copies.

# %% tags=["exercise-only"]
progress("03")

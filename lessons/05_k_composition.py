# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 05 · The K-composition circuit
#
# **The question.** A previous-token head and an induction head both score high, and both matter. Do they form *one*
# mechanism: does the second read, in its **keys**, what the first wrote?
#
# You will ask three times, each time with a stronger method. Do their matrices fit (composition scores)? Does the
# circuit made of both match the right tokens (top-1, against a control group)? And in the running model, does the
# effect really take this path (path patching)? The second question comes from the article that we follow, which
# reports a top-1 of 0.2283 for GPT-2 small's heads 4.11 and 5.5. You will see what that number leaves out, by
# switching each omission on.
#
# **You need:** lessons 00 to 04.

# %%
import os
import random
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import FactoredMatrix
from transformer_lens.model_bridge import TransformerBridge

from course_utils import circuits
from course_utils.circuits import composition_scores, effective_embedding, token_vectors, top_k_accuracy
from course_utils.exercises import exercise, hint, predict, progress, reveal, solution
from course_utils.heads import best_head, induction_scores, previous_token_scores, top_heads
from course_utils.measured import measured
from course_utils.models import load_model, load_real_model
from course_utils.passes import CleanRun, head_weights, traits_of
from course_utils.path_patching import path_patching
from course_utils.planted import INDUCTION_HEAD, PREVIOUS_TOKEN_HEAD, planted_induction_model
from course_utils.repeated_tokens import generate_repeated_tokens
from course_utils.viz import plot_bars, plot_head_scores

MODEL = os.environ.get("COURSE_MODEL", "tiny")      # or write a name here, such as "smollm2-135m"
model = load_model(MODEL)
SEQ_LEN, BATCH = (50, 10) if MODEL == "tiny" else (25, 4)
tokens = generate_repeated_tokens(model, SEQ_LEN, BATCH, seed=0)


def name(head):
    return f"{head[0]}.{head[1]}"


def find_pair(model, tokens, seq_len):
    """The best induction head that has a layer below it, and the best previous-token head below that."""
    induction = best_head(induction_scores(model, tokens, seq_len)[1:])
    induction = induction[0] + 1, induction[1]
    return best_head(previous_token_scores(model, tokens)[:induction[0]]), induction


previous, induction = find_pair(model, tokens, SEQ_LEN)
print(f"{MODEL}: previous-token head {name(previous)}, induction head {name(induction)}")

# %% [markdown]
# ## 1 · Do their matrices fit?
#
# What the previous-token head writes lies in the span of its W_V W_O. What the induction head's keys read is given
# by W_K W_Q^T. If the first writes along directions that the second reads, their product is large for its factors:
# the **composition score** ‖A B‖ / (‖A‖ ‖B‖), with Frobenius norms.

# %%
@exercise("05.composition_score")
def composition_score(first: FactoredMatrix, second: FactoredMatrix) -> float:
    """‖first second‖ / (‖first‖ ‖second‖), Frobenius norms: how much of what `first` writes, `second` reads."""
    raise NotImplementedError


# %%
writer, reader = head_weights(model, *previous), head_weights(model, *induction)
score = composition_score(FactoredMatrix(writer["V"], writer["O"]), FactoredMatrix(reader["K"], reader["Q"].T))
print(f"K-composition score of {name(previous)} and {name(induction)}: {score:.3f}")
rng = torch.Generator().manual_seed(0)
d_model, d_head = writer["V"].shape
by_chance = [composition_score(*(FactoredMatrix(torch.randn(d_model, d_head, generator=rng),
                                                torch.randn(d_head, d_model, generator=rng)) for _ in range(2)))
             for _ in range(5)]
print(f"random matrices of the same shape: {min(by_chance):.3f} to {max(by_chance):.3f}; "
      f"1/√d_model = {d_model ** -0.5:.3f}")

# %% [markdown]
# A score means something only beside that baseline, and beside the other heads. `composition_scores(model, "K")`
# has it for all pairs; here are all heads that could read the previous-token head, through their keys.

# %%
K_scores = composition_scores(model, "K")
plot_head_scores(K_scores[previous], f"{MODEL}: K-composition with {name(previous)}", vmax=None,
                 unit="composition score")

# %% [markdown]
# The induction heads stand out, but not by far: less than twice the chance level in `tiny`. The score weighs all
# directions alike, those that carry tokens and those that are never used. So ask about tokens.
#
# ## 2 · The circuit of two heads
#
# Where the query is token A, the induction head should look at a position whose *previous* token was A. Follow both
# sides of that score:
#
# - **query**: W_E W_Q of the induction head;
# - **key**: the token one position earlier goes through W_V and W_O of the previous-token head, and there W_K of
#   the induction head reads it: W_E W_V W_O W_K.
#
# Their product is the **K-composition full circuit**, [queries × keys]. The signature is the article's. (Its code
# takes W_E and W_Q from a global variable `gpt2_small` and the rest from its argument: call that with another
# model, and it mixes the two.)

# %%
@exercise("05.K_comp_full_circuit")
def K_comp_full_circuit(
    model: TransformerBridge, prev_token_layer_index: int, ind_layer_index: int, prev_token_head_index: int,
    ind_head_index: int
) -> FactoredMatrix:
    """(W_E W_Q)(W_E W_V W_O W_K)^T: rows are the query's token, columns the token before the key.

    Q and K of the induction head, V and O of the previous-token head.
    """
    raise NotImplementedError


# %%
planted = planted_induction_model(n_tokens=30, n_ctx=64)
(prev_layer, prev_head), (ind_layer, ind_head) = PREVIOUS_TOKEN_HEAD, INDUCTION_HEAD
circuit = K_comp_full_circuit(planted, prev_layer, ind_layer, prev_head, ind_head)
print(f"planted model: best key {top_k_accuracy(circuit):.3f}, "
      f"best query {top_k_accuracy(circuit, best='query'):.3f}")

# %% [markdown]
# In the planted model every token finds itself, in both directions, as it must. Now the model of this lesson.
#
# **Predict:** for what share of the vocabulary is a token's best key the token itself?

# %%
predict("05.top_1", None, unit="(share)")

# %%
vocab = model.cfg.d_vocab
subset = None if vocab < 5000 else torch.randperm(vocab, generator=rng)[:1000]
circuit = K_comp_full_circuit(model, previous[0], induction[0], previous[1], induction[1])
best_key, best_query = (top_k_accuracy(circuit, best=best, tokens=subset) for best in ("key", "query"))
reveal("05.top_1", best_key)
print(f"{name(previous)} → {name(induction)}: best key {best_key:.3f}, best query {best_query:.3f}, "
      f"chance {1 / vocab:.5f}")

# %% [markdown]
# Say which direction you mean. "Best key for each query" asks whether the head would look at the right place.
# "Best query for each key" asks whether a key is asked for by the right token. The article gives one number for
# GPT-2 small, 0.2283 (*quoted*), and does not say which.
#
# ## 3 · Compared with what?
#
# Chance is 1 / vocabulary, but is it the right comparison? *Any* two heads might match a token with itself to some
# degree, since both sides begin with the same W_E. A control group answers: random pairs of heads, without those
# that the claim is about. (`tiny` has just 40 such pairs, so these are all of them.) A harder control keeps the
# induction heads and changes the sender: the *other* heads of the previous-token head's layer.

# %%
@exercise("05.random_head_pairs")
def random_head_pairs(
    n_layers: int, n_heads: int, n_pairs: int, *, exclude: Sequence[tuple[int, int]] = (), seed: int = 0
) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Different pairs ((layer, head), (later layer, head)), none with an excluded head.

    Each such pair is equally likely. The same seed gives the same pairs, another seed others.
    """
    raise NotImplementedError


# %%
strong = {head for head, score in top_heads(induction_scores(model, tokens, SEQ_LEN), 9) if score > 0.3}
left_out = [previous, induction, *strong]
pairs = random_head_pairs(model.cfg.n_layers, model.cfg.n_heads, 40, exclude=left_out, seed=0)
some = None if vocab < 5000 else subset[:300]
control = torch.tensor([top_k_accuracy(K_comp_full_circuit(model, a[0], b[0], a[1], b[1]), tokens=some)
                        for a, b in pairs])
print(f"{len(pairs)} random pairs: median {control.median():.4f}, highest {control.max():.4f}")
senders = [(previous[0], head) for head in range(model.cfg.n_heads) if head != previous[1]]
harder = [top_k_accuracy(K_comp_full_circuit(model, a[0], b[0], a[1], b[1]), tokens=some)
          for a in senders for b in {induction, *strong} if a[0] < b[0]]
print(f"other heads of layer {previous[0]} into the induction heads: highest {max(harder, default=0):.4f}")
floor = max(control.median().item(), 1 / vocab)         # a median of 0 would make any ratio infinite
plot_bars({"best key": {f"{name(previous)} → {name(induction)}": best_key,
                        "highest of 40 random pairs": control.max().item(),
                        "median, or chance if that is more": floor}},
          "share of tokens whose best key is their own", title=MODEL)

# %%
measured("K-composition, best key", best_key, unit="share", published="0.2283 (GPT-2 small, quoted)",
         at_least=0.9 if MODEL == "tiny" else None)
measured("K-composition, best query", best_query, unit="share", at_least=0.9 if MODEL == "tiny" else None)
measured("K-composition over the median random pair", best_key / floor, unit="times",
         at_least=20 if MODEL == "tiny" else None)

# %% [markdown]
# ## 4 · What the circuit leaves out
#
# The plain circuit is made of four matrices and W_E. The model does more. Put the rest back, piece by piece:
#
# - **norm**: each head divides its input by a scale. With tokens alone we know that scale for the query's token
#   and for the token that the previous-token head reads. (The scale where the keys are read depends on everything
#   else at that position; it stays out.)
# - **b_Q**: the query's bias. It adds the *same* amount, b_Q · key, to every query's score with a key. So it can
#   change which key is best for a query, but never which query is best for a key. (b_K does the opposite.)
# - **W_pos**: the token's position is in the residual stream too.
# - **MLP 0**: the effective embedding of lesson 04.
# - **the head of layer 0 that looks at its own position**: lesson 04 found one in `tiny`, and wondered who
#   listens to it.
#
# **Predict:** in `tiny`, which of these changes "best key" most?

# %%
predict("05.largest_change", None, unit="")

# %%
_, cache = model.run_with_cache(tokens[:2], names_filter=["blocks.0.attn.hook_pattern"])
to_itself = cache["blocks.0.attn.hook_pattern"].diagonal(0, -2, -1)[..., 1:].mean(dim=(0, 2))     # [head]
own = int(to_itself.argmax())
print(f"the head of layer 0 that looks most at its own position: 0.{own} ({to_itself[own]:.2f})")
W_E = token_vectors(model)
normed = circuits.normalize(model, W_E)
variants = {"as published": {}, "norm on the query's side": {"query_embedding": normed},
            "norm on the key's side": {"key_embedding": normed}, "norm": {"layer_norm": True},
            "b_Q": {"query_bias": True}, "norm and b_Q": {"layer_norm": True, "query_bias": True}}
if traits_of(model).has_positions:
    there = W_E + circuits.position_vectors(model, 21)[20]
    variants["W_pos of position 20, norm"] = {
        "query_embedding": there, "key_embedding": there, "layer_norm": True}
effective = effective_embedding(model)
variants["MLP 0 on the query's side, norm"] = {"query_embedding": effective, "layer_norm": True}
variants["MLP 0 on both sides, norm"] = {
    "query_embedding": effective, "key_embedding": effective, "layer_norm": True}
variants[f"head 0.{own} on the query's side, norm"] = {
    "query_embedding": effective_embedding(model, heads=[own], mlp=False), "layer_norm": True}
variants[f"head 0.{own} and MLP 0 on the query's side, norm"] = {
    "query_embedding": effective_embedding(model, heads=[own]), "layer_norm": True}

# %%
found, pair = {"best key": {}, "best query": {}}, (previous[0], induction[0], previous[1], induction[1])
for label, options in variants.items():
    circuit = circuits.K_comp_full_circuit(model, *pair, **options)
    for direction in ("key", "query"):
        found[f"best {direction}"][label] = top_k_accuracy(circuit, best=direction, tokens=subset)
    print(f"{label:45} best key {found['best key'][label]:.3f}, best query {found['best query'][label]:.3f}")
changes = {label: abs(value - best_key) for label, value in found["best key"].items()}
reveal("05.largest_change", max(changes, key=changes.get))
plot_bars(found, "share of tokens",
          title=f"{MODEL}: {name(previous)} → {name(induction)}, what is put back")

# %% [markdown]
# Read the pairs of bars. b_Q moves the best key and leaves the best query exactly where it was. The norm on the
# query's side helps the best query: a long query no longer wins a column by its length alone. The norm on the
# key's side does the same for the best key. (Compare those that have more than a norm with the bar "norm".) And
# in `tiny` the first MLP ruins the circuit, as lesson 04 foretold: a vector that is never in the residual stream
# is not a stand-in for a token. With head 0.3 in front of it, it is harmless again, and head 0.3 alone is better
# than W_E: *this* is what the induction head's query reads.
#
# None of the versions is "the" circuit. Report which one you computed.
#
# ## 5 · Does the effect take this path?
#
# Everything so far is about weights. **Path patching** asks the running model: replace what the previous-token head
# wrote, but *only where the induction heads' keys read it*. Everything else, including what other heads read of it,
# stays as in the clean pass.
#
# What a head reads from a residual stream is one line:

# %%
@exercise("05.head_reading")
def head_reading(
    model: TransformerBridge, layer: int, head: int, name: str, residual: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "batch pos d_head"]:
    """The queries ("q"), keys ("k") or values ("v") that a head reads from a residual stream.

    `model.blocks[layer].ln1` is the norm before attention; `head_weights` has "Q", "b_Q" and so on.
    """
    raise NotImplementedError


# %%
layer, head = induction
clean = CleanRun(model, tokens, [f"blocks.{layer}.attn.hook_q"])
queries = head_reading(model, layer, head, "q", clean.residuals[layer])
assert torch.allclose(queries, clean.activations[f"blocks.{layer}.attn.hook_q"][:, :, head], atol=1e-4)

# %% [markdown]
# `path_patching` computes such readings from the clean residual stream with the sender's output replaced by its
# mean, puts them into the receivers, lets the model run on, and gives three losses: clean, with the path patched,
# and with the sender ablated altogether.

# %%
@exercise("05.share_of_effect")
def share_of_effect(clean: float, path: float, total: float) -> float:
    """How much of a sender's effect goes through one path, from the three losses: 0 none of it, 1 all of it.

    A path can do more than the whole, or the opposite: then it is above 1, or below 0.
    """
    raise NotImplementedError


# %%
planted_tokens = torch.cat([torch.zeros(1, 1, dtype=torch.long), *[torch.arange(1, 21)[None]] * 2], dim=1)
for into in "kqv":
    effect = path_patching(planted, planted_tokens, 20, PREVIOUS_TOKEN_HEAD, [INDUCTION_HEAD], into=into)
    share = share_of_effect(effect.clean, effect.path, effect.total)
    print(f"planted, into {into}: loss {effect.clean:.2f} → {effect.path:.2f}, "
          f"ablated {effect.total:.2f}: share {share:.3f}")

# %% [markdown]
# In the planted circuit all of the effect goes through the keys, as built. In the trained model the receivers are
# all its strong induction heads together (lesson 03: one alone is covered by the others).
#
# **Predict:** which share of the previous-token head's effect goes through their keys?

# %%
predict("05.share", None, unit="(share)")

# %%
receivers = sorted(head for head in strong | {induction} if head[0] > previous[0])
senders = {"previous-token head": previous}
if min(layer for layer, _ in receivers) > 0 and (0, own) != previous:
    senders["own-position head"] = (0, own)
shares = {f"through {words}": {} for words in ("keys", "queries", "values")}
for label, sender in senders.items():
    for into, words in (("k", "keys"), ("q", "queries"), ("v", "values")):
        effect = path_patching(model, tokens, SEQ_LEN, sender, receivers, into=into)
        share = share_of_effect(effect.clean, effect.path, effect.total)
        shares[f"through {words}"][f"{label} {name(sender)}"] = share
        print(f"{label} {name(sender)} through {words:7}: {effect.clean:.3f} → {effect.path:.3f} nats "
              f"(ablated {effect.total:.3f}), share {share:.2f}")
through_keys = shares["through keys"][f"previous-token head {name(previous)}"]
reveal("05.share", through_keys)
plot_bars(shares, "share of the head's effect", title=f"{MODEL}: into {', '.join(map(name, receivers))}")

# %%
measured("previous-token head's effect through induction keys", through_keys, unit="share",
         at_least=0.8 if MODEL == "tiny" else None)

# %% [markdown]
# In `tiny` nearly all of what the previous-token head does, it does through the induction heads' keys:
# K-composition, confirmed. And the riddle of head 0.3 is solved: the induction heads read the *present* token
# from it, in their queries (what to look for) and in their values (what to copy). That is Q- and V-composition.
# The textbook circuit has two heads; this one needs a third, and the shares of its two paths sum to more than 1,
# because breaking either alone does most of the harm.
#
# ## 6 · Does it hold in a real language model?

# %%
real_model = load_real_model()

# %%
if real_model is not None:
    real_tokens = generate_repeated_tokens(real_model, 25, batch=4, seed=0)
    real_previous, real_induction = find_pair(real_model, real_tokens, 25)
    indices = real_previous[0], real_induction[0], real_previous[1], real_induction[1]
    sample = torch.randperm(real_model.cfg.d_vocab, generator=rng)[:2000]
    effective = effective_embedding(real_model)
    real_variants = {"as published": {}, "norm": {"layer_norm": True}, "MLP 0, norm": {
        "layer_norm": True, "query_embedding": effective, "key_embedding": effective}}
    for label, options in real_variants.items():
        circuit = circuits.K_comp_full_circuit(real_model, *indices, **options)
        keys, queries = (top_k_accuracy(circuit, best=best, tokens=sample) for best in ("key", "query"))
        print(f"{name(real_previous)} → {name(real_induction)}, {label:12}: best key {keys:.4f}, "
              f"best query {queries:.4f}")
    real_pairs = random_head_pairs(30, 9, 20, exclude=[real_previous, real_induction], seed=0)
    real_control = [
        top_k_accuracy(circuits.K_comp_full_circuit(real_model, a[0], b[0], a[1], b[1]), tokens=sample[:300])
        for a, b in real_pairs]
    print(f"20 random pairs: highest {max(real_control):.4f}; chance {1 / real_model.cfg.d_vocab:.5f}")
    measured("SmolLM2: K-composition with MLP 0, best key", keys, unit="share", at_least=0.01)

# %% [markdown]
# In a real model of 30 layers the circuit made of bare embeddings still finds the right token about a hundred
# times more often than chance, and the first MLP, which spoiled it in `tiny`, makes it several times better: here
# it *is* part of the embedding. Yet nineteen tokens of twenty are missed. Sixteen layers lie between the
# embedding and the previous-token head, and no circuit of weights sees what they do. Path patching does not mind:

# %%
if real_model is not None:
    for into, words in (("k", "keys"), ("q", "queries"), ("v", "values")):
        effect = path_patching(real_model, real_tokens, 25, real_previous, [real_induction], into=into)
        share = share_of_effect(effect.clean, effect.path, effect.total)
        print(f"{name(real_previous)} through the {words} of {name(real_induction)}: "
              f"{effect.clean:.2f} → {effect.path:.2f} nats (ablated {effect.total:.2f}), share {share:.2f}")
        if into == "k":
            measured("SmolLM2: previous-token head's effect through induction keys", share, unit="share",
                     at_least=0.5)

# %% [markdown]
# Most of the effect goes through the keys of this one head and the two that share its keys (grouped-query
# attention: heads of a group cannot be patched one by one). The weights gave a hint of a few per cent; the
# running model says it plainly. Low top-1 accuracy did not mean that the circuit was not there.
#
# SmolLM2's positions are rotary: the circuit above is the score of a query and a key *at the same position*. With
# `distance=d` the query is turned as far as a key d positions back calls for:

# %%
if real_model is not None:
    for distance in (0, 1, 24):
        circuit = circuits.K_comp_full_circuit(real_model, *indices, layer_norm=True, query_embedding=effective,
                               key_embedding=effective, distance=distance)
        print(f"key {distance:2} positions back: best key {top_k_accuracy(circuit, tokens=sample):.4f}")

# %% [markdown]
# It makes next to no difference: this head matches tokens at any distance.
#
# ## What this does not show
#
# - The circuit tests *matching* (QK). That the right token is then copied is the OV circuit of lesson 04.
# - Path patching depends on what is put in place (here the mean) and on which receivers are taken together.
# - Random head pairs are one control. Heads chosen by another criterion would be a harder one.
# - Shares near 1 say that the path is sufficient to carry the effect, not that no other path could.
#
# ## Summary
#
# - Composition scores compare subspaces; hold them against random matrices and other heads.
# - The full circuit compares tokens: report both directions, the control group, and which embedding, norm and
#   bias you used.
# - b_Q changes the best key only; norms change both; the effective embedding helps or hurts, depending on the
#   model.
# - Weights say what could happen. Path patching says what does.
#
# Sources: Elhage et al., "A Mathematical Framework for Transformer Circuits" (2021): composition; Shuyang Xiang,
# "How to Interpret GPT2-Small" (2024): the full circuit and the quoted 0.2283; Wang et al., "Interpretability in
# the Wild" (2022) and Goldowsky-Dill et al., "Localizing Model Behavior with Path Patching" (2023).
#
# Next: **06 · Sparse autoencoders**, where we stop asking about heads and ask what is written in the residual
# stream.

# %% tags=["exercise-only"]
progress("05")

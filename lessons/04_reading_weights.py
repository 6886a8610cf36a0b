# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 04 · Reading weights
#
# **The question.** So far we watched the model run: patterns, scores, ablations. But all that a head can do is
# written in four matrices. Can you read from them, without running anything, *what it looks for* and *what it
# copies*?
#
# For the parts of the induction circuit the answer is a surprising yes. It needs some care: which norm is
# folded where, which keys belong to which head, which vector stands for a token.
#
# **You need:** lessons 00 to 03, and matrix products.

# %%
import functools
import os

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import FactoredMatrix
from transformer_lens.model_bridge import TransformerBridge

from course_utils import circuits
from course_utils.ablation import some_layers
from course_utils.circuits import score_by_distance, token_vectors
from course_utils.exercises import exercise, hint, predict, progress, reveal, solution
from course_utils.heads import best_head, induction_scores, previous_token_scores
from course_utils.measured import measured
from course_utils.models import TINY_FOLDER, checkpoint_steps, from_folder, load_model, load_real_model
from course_utils.passes import head_weights, output_scale, traits_of
from course_utils.repeated_tokens import generate_repeated_tokens
from course_utils.viz import plot_attention, plot_bars, plot_by_position, plot_head_scores

MODEL = os.environ.get("COURSE_MODEL", "tiny")      # or write a name here, such as "smollm2-135m"
model = load_model(MODEL)
SEQ_LEN = 50 if MODEL == "tiny" else 25
tokens = generate_repeated_tokens(model, SEQ_LEN, batch=4, seed=0)
previous = best_head(previous_token_scores(model, tokens))
induction = best_head(induction_scores(model, tokens, SEQ_LEN))
print(f"{MODEL}: best previous-token head {previous[0]}.{previous[1]}, "
      f"best induction head {induction[0]}.{induction[1]}")

# %% [markdown]
# ## 1 · The matrices of one head
#
# A head reads the residual stream three times. From the position that looks it makes a **query** (W_Q), from
# every position a **key** (W_K) and a **value** (W_V). Query · key is a score; the softmax of the scores says
# how much of each value is gathered; W_O writes what was gathered back.
#
# In many models several heads share keys and values: *grouped-query attention*. SmolLM2 has 9 query heads and
# 3 key heads in each layer, and heads 0, 1, 2 use key head 0, heads 3, 4, 5 use key head 1, and so on. Code that
# ignores this fails at best (TransformerLens issue 1553), and at worst reads the wrong head without a word (one
# case is described in its pull request 1768).

# %%
@exercise("04.key_value_head")
def key_value_head(head: int, n_heads: int, n_key_value_heads: int) -> int:
    """Which key and value head a query head reads: neighbouring query heads share one, group by group."""
    raise NotImplementedError


# %%
print("SmolLM2's heads 0 … 8 read key heads", [key_value_head(head, 9, 3) for head in range(9)])

# %% [markdown]
# `head_weights(model, layer, head)` does the choosing from now on:

# %%
weights = head_weights(model, *induction)
print({name: tuple(weight.shape) for name, weight in weights.items()})

# %% [markdown]
# ## 2 · What folding a norm does
#
# Before each attention layer stands a LayerNorm: centre the vector, divide it by its standard deviation, multiply
# by a gain and add a shift. The last two steps are linear, so they can be multiplied into the matrices that read
# the result. `load_model` has done that ("compatibility mode"), which is why we may read a matrix as *the*
# thing that acts on the residual stream, up to one division by a number.
#
# Write the folding. The vector x̂ that arrives is centred; therefore a constant added to a column of the matrix
# changes nothing, and the convention is to centre each column.

# %%
@exercise("04.fold_layer_norm")
def fold_layer_norm(
    W: Float[Tensor, "d_in d_out"], b: Float[Tensor, "d_out"], gain: Float[Tensor, "d_in"],
    shift: Float[Tensor, "d_in"]
) -> tuple[Float[Tensor, "d_in d_out"], Float[Tensor, "d_out"]]:
    """Weights that do a LayerNorm's elementwise part too: x̂ W' + b' = (x̂ * gain + shift) W + b for every x̂.

    x̂ is centred (its mean is 0). Each column of W' is centred as well.
    """
    raise NotImplementedError


# %% [markdown]
# Here are the raw weights of `tiny`, as they were trained, beside the folded ones that `load_model` gives. (GPT-2
# stores W_Q, W_K and W_V side by side in one matrix.)

# %%
raw = from_folder(TINY_FOLDER, f"step-{checkpoint_steps()[-1]:06}.safetensors")[0].transformer.h[1]
tiny = model if MODEL == "tiny" else load_model("tiny")
W, b = fold_layer_norm(raw.attn.c_attn.weight, raw.attn.c_attn.bias, raw.ln_1.weight, raw.ln_1.bias)
W_Q = W[:, :256].reshape(256, 4, 64)                                    # [d_model, head, d_head]
difference = (W_Q[:, 2] - head_weights(tiny, 1, 2)["Q"].cpu()).abs().max()
print(f"W_Q of head 1.2, folded by us and by the library: largest difference {difference.item():.1g}")
print(f"gains of that norm: from {raw.ln_1.weight.min():.2f} to {raw.ln_1.weight.max():.2f}")

# %% [markdown]
# If you read an *unfolded* matrix, you compare numbers that the gain has yet to rescale, differently for each
# direction. What folding cannot remove is the division by the standard deviation. It differs from position to
# position, and a circuit of weights alone leaves it out. Keep that in mind until lesson 05, where we switch it
# on.
#
# ## 3 · What does a head copy?
#
# Suppose the head looks at a token. What does that do to the output? Follow the vector: embedding, W_V, W_O,
# unembedding. The **full OV circuit** W_E W_V W_O W_U is a matrix over the vocabulary: row = token attended to,
# column = token whose logit is raised.
#
# With 50,000 tokens it would have 2.5 billion entries. It has at most d_head = 64 independent rows, though, and
# `FactoredMatrix(left, right)` keeps the two thin factors and never forms the product unless you ask (`.AB`).

# %%
@exercise("04.full_OV_circuit")
def full_OV_circuit(model: TransformerBridge, layer: int, head: int) -> FactoredMatrix:
    """W_E W_V W_O W_U: row = the token attended to, column = the token whose logit it raises. [vocab, vocab]"""
    raise NotImplementedError


# %%
OV = full_OV_circuit(model, *induction)
print(f"factors {tuple(OV.A.shape)} and {tuple(OV.B.shape)} for a circuit of shape {tuple(OV.shape)}")
generator = torch.Generator().manual_seed(0)
sample = torch.randint(1, model.cfg.d_vocab, (4,), generator=generator)
for token in sample:
    row = OV.A[token] @ OV.B                            # one row: what attending to `token` raises
    raised = [model.tokenizer.decode([other]) for other in row.topk(4).indices.tolist()]
    print(f"attending to {model.tokenizer.decode([token.item()])!r} raises {raised}")

# %% [markdown]
# A head that copies has its largest entries on the diagonal. So for every row ask: is the token's own entry
# among the k largest? You will ask the same of key-query circuits, in both directions:
#
# - `best="key"`: along each **row** (for each query, is the best key its own?);
# - `best="query"`: down each **column** (for each key, is the best query its own?).
#
# The two numbers differ, and papers do not always say which they give. Chance is k / vocabulary.

# %%
@exercise("04.top_k_accuracy")
def top_k_accuracy(matrix: FactoredMatrix, k: int = 1, *, best: str = "key") -> float:
    """Share of tokens whose own entry (the diagonal) is among the k largest of its row, or of its column.

    A tie does not count: the own entry must be larger than the k-th best of the others.
    """
    raise NotImplementedError


# %% [markdown]
# With 50,000 tokens the whole matrix would fill 10 GB. `circuits.top_k_accuracy` holds only a strip of rows at a
# time, and can ask for some tokens instead of all. For a large vocabulary the lesson uses that one.
#
# **Predict:** for what share of the vocabulary is a token's own logit the one that the best induction head raises
# most?

# %%
predict("04.copies", None, unit="(share)")

# %%
if model.cfg.d_vocab < 5000:
    own_on_top = top_k_accuracy
else:
    subset = torch.randperm(model.cfg.d_vocab, generator=generator)[:1000]
    own_on_top = functools.partial(circuits.top_k_accuracy, tokens=subset)
copied = own_on_top(OV)
reveal("04.copies", copied)
print(f"top 1: {copied:.3f}, top 5: {own_on_top(OV, 5):.3f}, "
      f"chance {1 / model.cfg.d_vocab:.5f}")
measured("induction head's OV circuit: own token on top", copied, unit="share",
         at_least=0.9 if MODEL == "tiny" else None)

# %% [markdown]
# Another way to see copying looks at directions instead of tokens. An **eigenvector** of the circuit is a mixture
# of tokens that comes out as a multiple of itself: with a positive eigenvalue it raises its own logits, with a
# negative one it lowers them. The *copying score* is the sum of all eigenvalues divided by the sum of their sizes:
# 1 if every direction copies, −1 if every direction does the opposite. (Eigenvalues can be complex; in the sum the
# imaginary parts cancel.)

# %%
@exercise("04.copying_score")
def copying_score(circuit: FactoredMatrix) -> float:
    """Sum of the circuit's eigenvalues divided by the sum of their sizes (absolute values).

    Only d_head eigenvalues are not zero: those of B A, a small matrix, where circuit = A B.
    """
    raise NotImplementedError


# %%
layers, n_heads = some_layers(model), model.cfg.n_heads                # all layers of a small model
scores = torch.tensor([[copying_score(full_OV_circuit(model, layer, head)) for head in range(n_heads)]
                       for layer in layers])
plot_head_scores(scores, f"{MODEL}: copying scores (rows are layers {layers})", unit="copying score",
                 diverging=True)

# %% [markdown]
# Many heads copy, and most of them are not induction heads. And in `tiny` some heads of the last layers have a
# score near −1: they *lower* the logit of whatever they look at. Copying is half of a description. The other half
# is where a head looks.
#
# ## 4 · What does a head look for?
#
# The **full QK circuit** W_E W_Q (W_E W_K)^T has, for each query token (row) and key token (column), the score of
# that pair, if nothing but the two embeddings were in the residual stream. We leave out 1/√d_head, as
# TransformerLens does, and the biases.

# %%
@exercise("04.full_QK_circuit")
def full_QK_circuit(model: TransformerBridge, layer: int, head: int) -> FactoredMatrix:
    """W_E W_Q (W_E W_K)^T: row = the query's token, column = the key's. Not divided by sqrt(d_head)."""
    raise NotImplementedError


# %%
matches = torch.tensor([[own_on_top(full_QK_circuit(model, layer, head))
                         for head in range(n_heads)] for layer in (layers if MODEL == "tiny" else [0])])
layer, head = best_head(matches)
plot_head_scores(matches, f"{MODEL}: is a token's best key the token itself?", unit="share of tokens")

# %% [markdown]
# In `tiny` one head stands out: head 0.3, the second of the two heads that lesson 03 could not take away. Read
# from its weights, it looks for *its own token*. Lesson 02 found no duplicate-token head; so where does it look?
# Its own position carries its own token, too:

# %%
block = f"blocks.{layer}."
names = [block + name for name in ("attn.hook_pattern", "attn.hook_z", "hook_resid_pre", "hook_attn_out")]
_, cache = model.run_with_cache(tokens, names_filter=lambda name: name in [*names, block + "ln1_post.hook_scale"])
pattern, z, stream, attention = (cache[name] for name in names)
pattern, written = pattern[:, head], z[:, :, head] @ head_weights(model, layer, head)["O"] / output_scale(cache, layer)
copies = own_on_top(full_OV_circuit(model, layer, head))
print(f"head {layer}.{head}: attention to the own position {pattern.diagonal(0, 1, 2)[:, 1:].mean():.3f}, "
      f"OV circuit copies {copies:.3f} of the tokens")
lengths = {"embeddings": token_vectors(model)[tokens], "what the head writes": written,
           "stream before the MLP": stream + attention}
print("mean length:", ", ".join(f"{name} {x[:, 1:].norm(dim=-1).mean():.1f}" for name, x in lengths.items()))

# %% [markdown]
# It looks at itself and copies what is there. That seems pointless: the token is in the residual stream already.
# But in `tiny` embeddings are short vectors, and what this head writes is five times as long. It *amplifies* the
# token, and lesson 05 will show who listens.
#
# And the best induction head? By the picture above its QK circuit matches nothing: it does not look for its own
# token in the key's *embedding*. What it looks for was put there by another head.
#
# ## 5 · Positions: the previous-token head
#
# A previous-token head must not care about tokens at all, only about positions. So give it positions alone. Let a
# vector x[p] stand for position p: W_pos[p] plus the mean of W_E, divided by the root mean square over all tokens t
# of W_E[t] + W_pos[p] (that is what the norm divides by, on average). Then do what attention does.
#
# The root mean square needs no loop: the mean over t of ‖W_E[t] + W_pos[p]‖² is ‖W_pos[p] + mean W_E‖² plus the
# summed (population) variance of W_E's columns. Divide by d_model and take the root.

# %%
@exercise("04.positional_pattern")
def positional_pattern(
    model: TransformerBridge, layer: int, head: int, n_positions: int
) -> Float[Tensor, "query key"]:
    """The attention pattern that position embeddings alone ask for: causal, rows sum to 1.

    W_pos is `model.pos_embed.weight`; biases and 1/sqrt(d_head) are counted.
    """
    raise NotImplementedError


# %%
has_positions = traits_of(model).has_positions      # models with rotary positions have no W_pos; see section 7
if has_positions:
    from_weights = positional_pattern(model, *previous, 2 * SEQ_LEN)
    one_back = from_weights.diagonal(-1).mean()
    print(f"head {previous[0]}.{previous[1]}: attention one back, from weights alone {one_back:.3f}, "
          f"measured {previous_token_scores(model, tokens)[previous]:.3f}")
    measured("previous-token score read from weights", one_back, at_least=0.85 if MODEL == "tiny" else None)
    first = positional_pattern(model, *previous, 20)
    display(plot_attention(first, [str(p) for p in range(20)], "what the position embeddings ask for"))

# %% [markdown]
# Nothing was run, and the pattern is there. For a head in a later layer (GPT-2 small's previous-token head is 4.11)
# the position embeddings pass through other layers first, and the picture is an approximation to hold against
# the real pattern.
#
# ## 6 · Which vector stands for a token?
#
# Every circuit above begins with W_E. But an induction head sits in a later layer: what it reads at a token's
# position is what the layers before have made of the token. For GPT-2 small it is common to use the **effective
# embedding**: W_E plus what the first MLP makes of it. (GPT-2's embedding is also its unembedding, and the first
# MLP does the rest of an embedding's work.)

# %%
@exercise("04.effective_embedding")
def effective_embedding(model: TransformerBridge) -> Float[Tensor, "vocab d_model"]:
    """W_E + MLP_0(norm(W_E)) for the whole vocabulary."""
    raise NotImplementedError


# %% [markdown]
# "Effective" is a claim, and it can be tested: how similar is such a vector to what is in the residual stream
# after layer 0, at positions with that token? We compare directions (cosine), after taking off the mean.
#
# **Predict** for `tiny`: is the effective embedding closer to the residual stream than W_E is?

# %%
predict("04.effective", None, unit="(yes or no)")

# %%
def likeness(model, embedding, tokens):
    """Mean cosine between a token's vector and the residual stream after layer 0, both without their mean."""
    _, cache = model.run_with_cache(tokens, names_filter=["blocks.1.hook_resid_pre"])
    stream = cache["blocks.1.hook_resid_pre"][:, 1:]
    vectors = embedding[tokens[:, 1:]] - embedding.mean(dim=0)
    return F.cosine_similarity(vectors, stream - stream.mean(dim=(0, 1)), dim=-1).mean().item()


candidates = {"W_E": model.W_E, "W_E and MLP 0": effective_embedding(model)}
if MODEL == "tiny":
    candidates["W_E and head 0.3"] = circuits.effective_embedding(model, heads=[3], mlp=False)
likenesses = {name: likeness(model, vectors, tokens) for name, vectors in candidates.items()}
reveal("04.effective", "yes" if likenesses["W_E and MLP 0"] > likenesses["W_E"] else "no")
plot_bars({"cosine": likenesses}, "mean cosine with the residual stream after layer 0", title=MODEL)

# %% [markdown]
# In `tiny` the recipe makes it worse. Its first MLP reads embeddings *after* attention has added much longer
# vectors to them; fed with bare embeddings it does something that it never does in the model. A better stand-in
# is W_E plus what the amplifying head 0.3 writes. The lesson is not that the recipe is bad (section 7 shows where
# it is good) but that it is a hypothesis about *this* model, and a few lines of code check it.
#
# ## 7 · Does it hold in a real language model?
#
# SmolLM2 has **rotary positions**: no position is ever added to the residual stream. Instead each query and key is
# *turned* by an angle that grows with its position, so that their product depends on the distance between them.
# A QK circuit without that turn is the score of a query and a key *at the same position*: a fiction, but a
# useful one for heads that care about tokens. For a head that cares about distance, take the mean query and the
# mean key, which know nothing of tokens any more, and turn the query by 0, 1, 2, … positions:

# %%
real_model = load_real_model()

# %%
if real_model is not None:
    real_tokens = generate_repeated_tokens(real_model, 25, batch=4, seed=0)
    real_previous = best_head(previous_token_scores(real_model, real_tokens))
    by_distance = score_by_distance(real_model, *real_previous, real_tokens, 12)
    best = by_distance.argmax().item()
    print(f"previous-token head {real_previous[0]}.{real_previous[1]}: best distance {best}")
    measured("SmolLM2: distance that its previous-token head prefers", best, at_least=1, at_most=1)
    display(plot_by_position({"mean query · mean key": by_distance}, "attention score",
                             xlabel="how far back the key is (positions)",
                             title="SmolLM2-135M: a previous-token head, read by distance"))

# %%
if real_model is not None:
    vectors = {"W_E": real_model.W_E, "W_E and MLP 0": effective_embedding(real_model)}
    found = {name: likeness(real_model, vector, real_tokens) for name, vector in vectors.items()}
    print({name: round(value, 3) for name, value in found.items()})
    measured("SmolLM2: cosine of W_E and MLP 0 with the residual stream", found["W_E and MLP 0"], at_least=0.6)

# %%
if real_model is not None:
    real_induction = best_head(induction_scores(real_model, real_tokens, 25))
    some = torch.randperm(real_model.cfg.d_vocab, generator=generator)[:1000]
    real_OV = full_OV_circuit(real_model, *real_induction)
    print(f"induction head {real_induction[0]}.{real_induction[1]}: copying score {copying_score(real_OV):.2f}; "
          f"own token on top for {circuits.top_k_accuracy(real_OV, tokens=some):.3f} of the tokens, "
          f"chance {1 / real_model.cfg.d_vocab:.5f}")

# %% [markdown]
# In SmolLM2 the first MLP *is* part of the embedding, as is said of GPT-2. Its best induction head has a
# clearly positive copying score, yet its OV circuit from W_E to W_U puts the own token on top for very few tokens
# (more than chance would, but few). It sits in layer 18 of 0 to 29: what it reads is not a bare embedding, and eleven
# more layers work on what it writes. A
# circuit of weights is a claim about a direct path; the longer the real path, the weaker the claim.
#
# ## What this does not show
#
# - A weight circuit says what a head *would* do with bare token vectors. It has not been run on anything.
# - Norm scales, biases and positions are left out of the plain circuits. Lesson 05 puts them back one by one.
# - A copying score near 1 does not make an induction head: most copying heads are something else.
# - Averages over the vocabulary hide exceptions. Tokens that the model never saw in training count like all others.
#
# ## Summary
#
# - Four matrices per head: QK says where it looks, OV what it writes. Under grouped-query attention mind the
#   groups.
# - A folded matrix acts on the centred residual stream; only a division by the norm's scale is left.
# - Keep circuits factored. Ask for the diagonal along rows *and* columns.
# - Copying score: eigenvalues. Positional pattern: position embeddings. Both without running the model.
# - The vector that stands for a token is a hypothesis. Test it against the residual stream.
#
# Sources: Elhage et al., "A Mathematical Framework for Transformer Circuits" (2021): QK and OV circuits,
# eigenvalues; Su et al., "RoFormer" (2021): rotary positions; Ainslie et al., "GQA" (2023); the grouped-query
# mistake: TransformerLens issue 1553 and pull request 1768.
#
# Next: **05 · The K-composition circuit**, where two heads are read as one.

# %% tags=["exercise-only"]
progress("04")

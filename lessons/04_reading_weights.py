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
# **The question.** So far we watched the model run. But what a head can do is written in its weights, four matrices
# and a few biases. Can you read from them, without running anything, *what it looks for* and *what it copies*?
#
# For the parts of the induction circuit the answer is a surprising yes, given some care: which norm is folded where,
# which keys belong to which head, which vector stands for a token. At the end you will say what each head of an
# unlabelled layer does.
#
# **You need:** lessons 00 to 03, and matrix products.

# %% tags=["parameters"]
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
from course_utils.circuits import full_QK_circuit, score_by_distance, token_vectors
from course_utils.claims import claim, estimate
from course_utils.exercises import exercise, hint, predict, progress, reveal, solution
from course_utils.heads import best_head, induction_scores, previous_token_scores
from course_utils.measured import measured
from course_utils.metrics import wilson_interval
from course_utils.models import TINY_FOLDER, checkpoint_steps, from_folder, load_model, load_real_model
from course_utils.passes import head_weights, hook_z, output_scale, traits_of
from course_utils.planted import unnamed_heads_model
from course_utils.repeated_tokens import generate_repeated_tokens
from course_utils.viz import plot_attention, plot_bars, plot_by_position, plot_head_scores

MODEL = os.environ.get("COURSE_MODEL", "tiny")      # or write a name here, such as "smollm2-135m"

# %%
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
# A head reads the residual stream three times. From the position that attends it makes a **query** (W_Q), from every
# position a **key** (W_K) and a **value** (W_V). Query · key is a score, the softmax of the scores says how much of
# each value is gathered, and W_O writes the result back.
#
# In many models several heads share keys and values: *grouped-query attention*. SmolLM2 has 9 query heads and 3 key
# heads in each layer; heads 0 to 2 use key head 0, heads 3 to 5 key head 1, and so on. Code that ignores this fails
# at best, and at worst silently reads the wrong head. (TransformerLens has had both.)

# %%
@exercise("04.key_value_head")
def key_value_head(head: int, n_heads: int, n_key_value_heads: int) -> int:
    """Which key and value head a query head reads: neighbouring query heads share one, group by group."""
    raise NotImplementedError


# %%
print("SmolLM2's heads 0 … 8 read key heads", [key_value_head(head, 9, 3) for head in range(9)])

# %% [markdown]
# From now on `head_weights(model, layer, head)` does the choosing:

# %%
weights = head_weights(model, *induction)
print({name: tuple(weight.shape) for name, weight in weights.items()})

# %% [markdown]
# ## 2 · What folding a norm does
#
# Before each attention layer a LayerNorm centres the vector, divides it by its standard deviation, multiplies by a
# gain and adds a shift. The last two steps are affine, so they can be multiplied into the matrices that read the
# result. `load_model` has done that ("compatibility mode"), so we may read a matrix as acting on the residual stream
# itself, up to one division by a number.
#
# Write the folding. The entries of the vector $\hat x$ that arrives sum to 0, so adding one number to a whole column
# of the matrix changes nothing, and by convention each column is centred.

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
# The raw weights of `tiny`, as trained, beside the folded ones that `load_model` gives. (GPT-2 stores W_Q, W_K and
# W_V side by side in one matrix.)

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
# direction. (Here the gains are close to 1, but nothing guarantees that.) Folding cannot remove the division by the
# standard deviation, which differs from position to position. A circuit of weights alone leaves it out; lesson 05
# puts it back.
#
# ## 3 · What does a head copy?
#
# If the head looks at token A, which token's logit does that raise? Follow the vector from A's embedding to the
# logits, as if nothing else were in the way. For all tokens this gives a matrix, the **full OV circuit**: row = token
# attended to, column = token whose logit is raised.
#
# With 50,000 tokens it would have 2.5 billion entries, but at most d_head = 64 independent rows.
# `FactoredMatrix(left, right)` keeps the two thin factors and never forms the product unless you ask (`.AB`).

# %%
@exercise("04.full_OV_circuit")
def full_OV_circuit(model: TransformerBridge, layer: int, head: int) -> FactoredMatrix:
    """What attending to each token (row) directly adds to the logit of each token (column). [vocab, vocab]

    Weights alone: no norms, no biases. `model.W_E`, `model.W_U` and `head_weights` have the matrices.
    """
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
# A head that copies has its largest entries on the diagonal. So ask of every row: is the token's own entry among the
# k largest? You will ask the same of key-query circuits, in both directions:
#
# - `best="key"`: along each **row** (for each query, is the best key its own?);
# - `best="query"`: down each **column** (for each key, is the best query its own?).
#
# The two numbers differ, and papers do not always say which they give. Chance is k / vocabulary.

# %%
@exercise("04.top_k_accuracy")
def top_k_accuracy(matrix: FactoredMatrix, k: int = 1, *, best: str = "key") -> float:
    """Share of tokens whose own entry (the diagonal) is among the k largest of its row, or of its column.

    A tie does not count: a token's own entry must be larger than the k-th best of the others.
    """
    raise NotImplementedError


# %% [markdown]
# With 50,000 tokens the whole matrix would fill 10 GB, so for a large vocabulary the lesson uses
# `circuits.copying_score` and `circuits.top_k_accuracy`, which holds a strip of rows at a time and can ask for some
# tokens only.
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

# %%
asked = model.cfg.d_vocab if model.cfg.d_vocab < 5000 else len(subset)
before = own_on_top(full_OV_circuit(model, *previous))
claim("the induction head's OV circuit copies more tokens than the previous-token head's",
      wilson_interval(copied, asked), ">", wilson_interval(before, asked), unit="share of tokens")
measured("induction head's OV circuit: own token on top", copied, unit="share",
         at_least=0.9 if MODEL == "tiny" else None)

# %% [markdown]
# Copying can also be seen in directions instead of tokens. An **eigenvector** of the circuit is a mixture of tokens
# that comes out as a multiple of itself: a positive eigenvalue raises its own logits, a negative one lowers them. The
# *copying score* is the sum of all eigenvalues divided by the sum of their sizes. (They can be complex; in the sum
# the imaginary parts cancel.)

# %%
@exercise("04.copying_score")
def copying_score(circuit: FactoredMatrix) -> float:
    """1 if every direction copies itself, −1 if every one does the opposite; a real number.

    Only d_head eigenvalues are not zero: those of B A, a small matrix, where circuit = A B.
    """
    raise NotImplementedError


# %%
layers, n_heads = some_layers(model), model.cfg.n_heads                # all layers of a small model
copying = copying_score if model.cfg.d_vocab < 5000 else circuits.copying_score
scores = torch.tensor([[copying(full_OV_circuit(model, layer, head)) for head in range(n_heads)]
                       for layer in layers])
plot_head_scores(scores, f"{MODEL}: copying scores (rows are layers {layers})", unit="copying score",
                 diverging=True)

# %% [markdown]
# Many heads copy, and most of them are not induction heads. In `tiny` some heads of the last layers have a score near
# −1: they would *lower* the logit of whatever they look at. So would the previous-token head 0.2 (−0.72), but lesson 03
# measured that it says next to nothing about the right token. A circuit says in which direction a head would push, not
# how hard, nor whether the logits are what it writes for.
#
# ## 4 · What does a head look for?
#
# The **full QK circuit** $W_E W_Q (W_E W_K)^\top$ has, for each query token (row) and key token (column), the score
# of that pair if nothing but the two embeddings were in the residual stream. We leave out $1/\sqrt{d_{head}}$, as
# TransformerLens does, and the biases. It is built like the OV circuit, so `full_QK_circuit` is given.

# %%
matches = torch.tensor([[own_on_top(full_QK_circuit(model, layer, head))
                         for head in range(n_heads)] for layer in (layers if MODEL == "tiny" else [0])])
layer, head = best_head(matches)
display(plot_head_scores(matches, f"{MODEL}: is a token's best key the token itself?", unit="share of tokens"))
first, second = (wilson_interval(share, asked) for share in matches.flatten().topk(2).values.tolist())
claim(f"head {layer}.{head} matches more tokens with themselves than any other head", first, ">", second,
      unit="share of tokens")

# %% [markdown]
# In `tiny` one head stands out: 0.3, the second of the two that lesson 03 could not remove. By its weights it looks
# for *its own token*. But lesson 02 found no duplicate-token head, so where does it look? Its own position carries
# its own token, too:

# %%
block = f"blocks.{layer}."
names = [block + name for name in ("attn.hook_pattern", "attn.hook_z", "hook_resid_pre", "hook_attn_out")]
_, cache = model.run_with_cache(tokens, names_filter=lambda name: name in [*names, block + "ln1_post.hook_scale"])
pattern, z, stream, attention = (cache[name] for name in names)
pattern, written = pattern[:, head], z[:, :, head] @ head_weights(model, layer, head)["O"] / output_scale(cache, layer)
copies = own_on_top(full_OV_circuit(model, layer, head))
print(f"head {layer}.{head}: attention to its own position {pattern.diagonal(0, 1, 2)[:, 1:].mean():.3f}, "
      f"OV circuit copies {copies:.3f} of the tokens")
lengths = {"embeddings": token_vectors(model)[tokens], "what the head writes": written,
           "stream before the MLP": stream + attention}
print("mean length:", ", ".join(f"{name} {x[:, 1:].norm(dim=-1).mean():.1f}" for name, x in lengths.items()))

# %% [markdown]
# It copies what the residual stream already has. But in `tiny` embeddings are short vectors, and what this head
# writes is five times as long. It *amplifies* the token (lesson 05 shows who listens).
#
# By the picture above, the best induction head's QK circuit matches nothing: what it looks for is not its own token
# in the key's *embedding*, but was put there by another head.
#
# ## 5 · Positions: the previous-token head
#
# A pure previous-token head need not look at tokens, so give it positions alone. Let a vector stand for position $p$:
# its position embedding and the *mean* token, divided by what the norm divides by on average,
#
# $$x_p = \frac{W_{pos}[p] + \overline{W_E}}{r_p}, \qquad
# r_p^2 = \frac{1}{d}\,\operatorname{mean}_t \lVert W_E[t] + W_{pos}[p] \rVert^2
#       = \frac{1}{d}\Big( \lVert W_{pos}[p] + \overline{W_E} \rVert^2 + \sum_i \operatorname{Var}_t W_E[t]_i \Big),$$
#
# where $\operatorname{Var}$ divides by the number of tokens and $d$ is `d_model`. Then do what attention does.
# (Position 0 is a poor fit: it always holds BOS, never a random token.)

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
has_positions = traits_of(model).has_positions      # models with rotary positions have no W_pos; see section 8
if has_positions:
    from_weights = positional_pattern(model, *previous, 2 * SEQ_LEN)
    one_back = from_weights.diagonal(-1).mean()
    print(f"head {previous[0]}.{previous[1]}: attention one back, from weights alone {one_back:.3f}, "
          f"measured {previous_token_scores(model, tokens)[previous]:.3f}")
    others = [positional_pattern(model, previous[0], head, 2 * SEQ_LEN).diagonal(-1).mean().item()
              for head in range(n_heads) if head != previous[1]]
    claim("the other heads of its layer look one back less, by their weights", max(others), "<", one_back.item())
    measured("previous-token score read from weights", one_back, at_least=0.85 if MODEL == "tiny" else None)
    first = positional_pattern(model, *previous, 20)
    display(plot_attention(first, [str(p) for p in range(20)], "what the position embeddings ask for"))

# %% [markdown]
# The pattern is there, and nothing was run. For a head in a later layer (GPT-2 small's is 4.11) the position
# embeddings pass through other layers first, and the picture is an approximation: compare it with the real pattern.
#
# ## 6 · Which vector stands for a token?
#
# Every circuit above begins with W_E. But an induction head sits in a later layer, and reads what the layers before
# have made of the token. For GPT-2 small it is common to use the **effective embedding**: W_E plus what the first MLP
# makes of it. (GPT-2's embedding is also its unembedding, and the first MLP does the rest of an embedding's work.)
#
# In TransformerLens the first MLP is `model.blocks[0].mlp`, the norm before it `model.blocks[0].ln2` (ln1 is before
# attention). Both want [batch, pos, d_model]. Give them a plain tensor, `model.W_E.detach()`: a module would keep a
# *parameter* as one of its own.

# %%
@exercise("04.effective_embedding")
def effective_embedding(model: TransformerBridge) -> Float[Tensor, "vocab d_model"]:
    """The embedding, plus what the first MLP (after its norm) makes of it, for the whole vocabulary."""
    raise NotImplementedError


# %% [markdown]
# "Effective" is a claim that can be tested: how similar is such a vector to the residual stream after layer 0, at
# positions with that token? We compare directions (cosine), after subtracting the mean.
#
# **Predict** for `tiny`: is the effective embedding closer to the residual stream than W_E is?

# %%
predict("04.effective", None, unit="(yes or no)")

# %%
def likeness(model, embedding, tokens):
    """Cosine between a token's vector and the residual stream after layer 0, both without their mean: [sequence]."""
    _, cache = model.run_with_cache(tokens, names_filter=["blocks.1.hook_resid_pre"])
    stream = cache["blocks.1.hook_resid_pre"][:, 1:]
    vectors = embedding[tokens[:, 1:]] - embedding.mean(dim=0)
    return F.cosine_similarity(vectors, stream - stream.mean(dim=(0, 1)), dim=-1).mean(dim=1).detach().cpu()


candidates = {"W_E": model.W_E.detach(), "W_E and MLP 0": effective_embedding(model)}
if MODEL == "tiny":
    candidates["W_E and head 0.3"] = circuits.effective_embedding(model, heads=[3], mlp=False)
likenesses = {name: likeness(model, vectors, tokens) for name, vectors in candidates.items()}
closer = likenesses["W_E and MLP 0"].mean() > likenesses["W_E"].mean()
reveal("04.effective", "yes" if closer else "no")
display(plot_bars({"cosine": {name: estimate(values) for name, values in likenesses.items()}},
                  "mean cosine with the residual stream after layer 0, 95 % interval", title=MODEL))

# %%
for name in list(candidates)[1:]:
    claim(f"{name} is {'more' if name == 'W_E and head 0.3' else 'less'} like the stream than W_E",
          likenesses[name], ">" if name == "W_E and head 0.3" else "<", likenesses["W_E"])

# %% [markdown]
# In `tiny` the recipe makes it worse. The first MLP never sees bare embeddings: it reads them *after* attention has
# added much longer vectors. W_E plus what the amplifying head 0.3 writes is better. The recipe is not wrong (section
# 8 shows where it works), but it is a hypothesis about *this* model, and a few lines of code test it.
#
# ## 7 · What is this head?
#
# Now without labels. `unnamed_heads_model(seed)` plants six heads into one layer, in a random basis, and returns the
# model and the truth. **Your experiment:** decide from the weights alone where a head looks and what it does to the
# logit of the token that it finds there. Choose measures and thresholds on a model whose truth you look at. Your
# function will be checked on others.

# %%
example, truth = unnamed_heads_model(seed=0)
print(f"{example.cfg.n_heads} heads, {example.cfg.d_vocab} tokens, {example.cfg.n_ctx} positions; head 0 is {truth[0]}")
kinds = {seed: sorted({kind[1] for kind in unnamed_heads_model(seed)[1]}) for seed in range(4)}
print("what they do:", "; ".join(f"seed {seed}: {', '.join(those)}" for seed, those in kinds.items()))


# %%
@exercise("04.kind_of_head")
def kind_of_head(model: TransformerBridge, layer: int, head: int) -> tuple[str, str]:
    """(where it looks, what it does to the logit of the token there), read from the weights.

    Where: "previous position" (whatever the tokens), "same token" (wherever it stands), or "something else".
    What: "copies", "suppresses" or "neither". The model has position embeddings, for 16 positions or more.
    """
    raise NotImplementedError


# %% [markdown]
# A reading of weights is a prediction. Compare yours, for this model's first layer, with what its heads do when it runs.
# ("Same token" may be its own position.)

# %%
if has_positions:
    one_back = previous_token_scores(model, tokens)[0]
    name = "blocks.0.attn.hook_pattern"
    _, cache = model.run_with_cache(tokens, names_filter=name)
    same = (tokens[:, None, :] == tokens[:, :, None])[:, None]                          # [batch, 1, query, key]
    on_same = (cache[name] * same)[:, :, 1:].sum(dim=-1).mean(dim=2).cpu()              # [batch, head]
    kinds = [kind_of_head(model, 0, head) for head in range(n_heads)]
    for head, kind in enumerate(kinds):
        print(f"0.{head}: {kind[0]:17} {kind[1]:10}; when run: previous token {one_back[head]:.2f}, same token "
              f"{on_same[:, head].mean():.2f}")
    called = [head for head, (where, _) in enumerate(kinds) if where == "same token"]
    rest = [head for head in range(n_heads) if head not in called]
    if called and rest:
        claim("heads called \"same token\" attend to it more, when run, than the other heads of the layer",
              on_same[:, called].amin(dim=1), ">", on_same[:, rest].amax(dim=1), unit="of the attention")

# %% [markdown]
# ## 8 · Does it hold in a real language model?
#
# SmolLM2 has **rotary positions**: no position is added to the residual stream, but each query and key is *rotated*
# by an angle that grows with its position, so their product depends on their distance. A QK circuit without that
# rotation is the score of a query and a key *at the same position*: a useful fiction for heads that care about
# tokens. For a head that cares about distance, take the mean query and the mean key, which know nothing of tokens,
# and rotate the query by 0, 1, 2, … positions:

# %%
real_model = load_real_model()

# %%
if real_model is not None:
    real_tokens = generate_repeated_tokens(real_model, 25, batch=4, seed=0)
    looks_back = previous_token_scores(real_model, real_tokens)                     # [layer, head]
    real_previous = best_head(looks_back)
    by_distance = score_by_distance(real_model, *real_previous, real_tokens, 12)
    best = by_distance.argmax().item()
    print(f"previous-token head {real_previous[0]}.{real_previous[1]}: best distance {best}")
    measured("SmolLM2: distance that its previous-token head prefers", best, at_least=1, at_most=1)
    display(plot_by_position({"mean query · mean key": by_distance}, "attention score",
                             xlabel="how far back the key is (positions)",
                             title="SmolLM2-135M: a previous-token head, read by distance"))

# %% [markdown]
# Distance 1 is a common preference. The control is the same reading of all other heads.

# %%
if real_model is not None:
    _, cache = real_model.run_with_cache(real_tokens, names_filter=lambda name: name.endswith((".hook_q", ".hook_k")))
    preferred = []
    for layer in range(real_model.cfg.n_layers):
        q, k = (cache[f"blocks.{layer}.attn.hook_{name}"][:, 1:].mean(dim=(0, 1)) for name in "qk")     # [head, d_head]
        k = k.repeat_interleave(len(q) // len(k), dim=0)                            # each key head for its whole group
        scores_at = [(circuits.rotate(real_model, q, d, layer) * k).sum(dim=-1) for d in range(13)]
        preferred.append(torch.stack(scores_at).argmax(dim=0).cpu())                # [head]
    one_back, called = torch.stack(preferred) == 1, looks_back.cpu() > 0.3
    these, others = (wilson_interval(one_back[heads].float().mean().item(), int(heads.sum()))
                     for heads in (called, ~called))
    claim("SmolLM2: heads that attend to the previous token prefer distance 1 more often than the others", these, ">",
          others, unit="share of heads")

# %%
if real_model is not None:
    vectors = {"W_E": real_model.W_E.detach(), "W_E and MLP 0": effective_embedding(real_model)}
    found = {name: likeness(real_model, vector, real_tokens) for name, vector in vectors.items()}
    claim("SmolLM2: W_E and MLP 0 is more like the stream than W_E", found["W_E and MLP 0"], ">", found["W_E"])
    measured("SmolLM2: cosine of W_E and MLP 0 with the residual stream", found["W_E and MLP 0"].mean(), at_least=0.6)

# %%
if real_model is not None:
    real_induction = best_head(induction_scores(real_model, real_tokens, 25))
    some = torch.randperm(real_model.cfg.d_vocab, generator=torch.Generator().manual_seed(1))[:6000]
    real_OV = circuits.full_OV_circuit(real_model, *real_induction)
    hits = circuits.top_k_accuracy(real_OV, tokens=some)
    print(f"induction head {real_induction[0]}.{real_induction[1]}: copying score "
          f"{circuits.copying_score(real_OV):.2f}; own token on top for {round(6000 * hits)} of 6000 tokens")
    claim("SmolLM2: its induction head's OV circuit copies more tokens than chance", wilson_interval(hits, 6000), ">",
          1 / real_model.cfg.d_vocab, unit="share of tokens")

# %% [markdown]
# In SmolLM2 the first MLP *is* part of the embedding. Its best induction head has a clearly positive copying score,
# yet by its OV circuit from W_E to W_U fewer than one token in a thousand raises its own logit most: more than chance,
# but not a description of the head. In layer 18 of 0 to 29 it does not read a bare embedding, and eleven more layers
# work on what it writes. A circuit of weights is a claim about a direct path; the longer the real path, the weaker the
# claim.
#
# ## On your own
#
# Does the head with the most negative copying score, when the model runs, lower the logit of the token that it looks
# at (BOS aside), and more than the previous-token head does? Hand in a claim, a number with its interval, the
# control, what would have refuted you, and what this does not show.

# %% tags=["solution-only"]
def pushed(layer, head):
    """What a head adds to the logit of the token it looks at, less the same for the next sequence's: [sequence]."""
    names = hook_z(layer), f"blocks.{layer}.attn.hook_pattern", "ln_final.hook_scale"
    _, cache = model.run_with_cache(tokens, names_filter=list(names))
    z, pattern, scale = (cache[name] for name in names)
    looked_at = tokens.gather(1, 1 + pattern[:, head, :, 1:].argmax(dim=-1))            # [batch, pos]
    added = z[:, :, head] @ head_weights(model, layer, head)["O"] / scale @ model.W_U   # [batch, pos, vocab]
    there, elsewhere = (added.gather(2, which[..., None])[:, 1:].mean(dim=(1, 2)).detach().cpu()
                        for which in (looked_at, looked_at.roll(1, dims=0)))
    return there - elsewhere


row, head = divmod(int(scores.argmin()), n_heads)
print(f"copying scores: {layers[row]}.{head} {scores.min():.2f}, {previous[0]}.{previous[1]} "
      f"{copying(full_OV_circuit(model, *previous)):.2f}")
claim(f"head {layers[row]}.{head} lowers the logit of the token it looks at less than {previous[0]}.{previous[1]} does",
      pushed(layers[row], head), ">", pushed(*previous), unit="units of logit")

# %% [markdown] tags=["solution-only"]
# *A model answer.* In `tiny` the head with the most negative score hardly touches that logit, while the
# previous-token head, whose score is less extreme, lowers it clearly. The control inside each number is the token
# looked at in *another* sequence; the reverse order of the two heads would have refuted me. So a score tells the
# sign of the eigenvalues, not how far a head pushes. It does not show why, nor what the head does on stories.

# %% [markdown]
# ## What this does not show
#
# - A weight circuit says what a head *would* do with bare token vectors. Nothing was run.
# - Norm scales, biases and positions are left out of the plain circuits. Lesson 05 puts them back one by one.
# - A copying score near 1 does not make an induction head.
# - Averages over the vocabulary hide exceptions, and count tokens that the model never saw in training.
#
# ## Summary
#
# - Four matrices per head: QK says where it looks, OV what it writes. Under grouped-query attention mind the groups.
# - A folded matrix acts on the centred residual stream; only a division by the norm's scale is left.
# - Keep circuits factored. Ask for the diagonal along rows *and* columns.
# - Copying scores (eigenvalues) and positional patterns (position embeddings) need no run. They are predictions: run
#   the model and see.
# - The vector that stands for a token is a hypothesis. Test it against the residual stream.
#
# Sources: Elhage et al., [A Mathematical Framework for Transformer
# Circuits](https://transformer-circuits.pub/2021/framework/index.html) (2021): QK and OV circuits, eigenvalues; Su et
# al., [RoFormer](https://arxiv.org/abs/2104.09864) (2021): rotary positions; Ainslie et al.,
# [GQA](https://arxiv.org/abs/2305.13245) (2023); the grouped-query mistake: TransformerLens [issue
# 1553](https://github.com/TransformerLensOrg/TransformerLens/issues/1553) and [pull request
# 1768](https://github.com/TransformerLensOrg/TransformerLens/pull/1768).
#
# Next: **05 · The K-composition circuit**, where two heads are read as one.

# %% tags=["exercise-only"]
progress("04")

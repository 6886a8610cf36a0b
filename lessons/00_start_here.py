# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 00 · Start here
#
# **The question.** What can you read off, and change inside, a language model while it runs?
#
# In about half an hour you will load a trained model, ask it for its predictions, look at what one
# attention head attends to, switch that head off, and measure how far the model is from a *known* truth.
# Everything else in the course is built from these four moves.
#
# **You need:** Python, PyTorch, and a rough idea of what a transformer is (tokens, attention, residual
# stream). No GPU, no network.
#
# **How the exercises work.** A cell that starts with `@exercise(...)` is yours to fill in. When you run it,
# your function is checked at once and a card says *passed*, *wrong* (and, if it is a known mistake, which
# one) or *not yet*. If you are stuck, `hint("00.next_token_probs")` gives a first hint, and a more explicit
# one each time you call it; `solution("00.next_token_probs")` shows how the course does it. You can leave
# an exercise open and read on: the notebook then continues with the course's own function, and the card says
# so.

# %%
import os
import textwrap

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from course_utils.exercises import exercise, hint, predict, progress, reveal, solution
from course_utils.language import StoryLanguage
from course_utils.measured import measured
from course_utils.models import MODELS, load_model, load_real_model
from course_utils.story_grammar import PLACES
from course_utils.viz import attention_patterns, plot_attention, plot_by_position, plot_next_tokens

MODEL = os.environ.get("COURSE_MODEL", "tiny")      # or write a name here; print(MODELS) lists them

# %% [markdown]
# ## 1 · A model
#
# The course's own model is called `tiny`: it has the architecture of GPT-2, but is small enough to run in
# milliseconds on a laptop. We trained it on two things: short stories in a little language of our own, and
# random tokens that repeat. `training/train_tiny.py` makes it again from nothing.
#
# The model arrives wrapped in TransformerLens's `TransformerBridge`, which gives every activation a name.
# Some changes have been made to the weights that alter no probability. Each LayerNorm's scale and shift are
# folded into the weights that follow it; the weights that write into the residual stream, and the
# unembedding, have had their mean removed; and the biases of the values are moved into the output's bias.

# %%
model = load_model(MODEL)
cfg = model.cfg
print(f"{MODEL}: {cfg.n_layers} layers of {cfg.n_heads} heads, residual stream of {cfg.d_model} numbers, "
      f"{cfg.d_vocab} tokens, context of {cfg.n_ctx} tokens")

# %% [markdown]
# ## 2 · Predictions
#
# A model reads tokens and gives *logits*: at every position, one number for each token that could come
# next. The softmax turns them into probabilities. `to_tokens` puts the beginning-of-sequence token (BOS) in
# front, as in training.

# %%
prompt = "One morning , Mary was in the"
tokens = model.to_tokens(prompt)                # [1, pos]
logits = model(tokens)                          # [1, pos, vocab]
print("tokens", tuple(tokens.shape), "→ logits", tuple(logits.shape))


# %%
@exercise("00.next_token_probs")
def next_token_probs(logits: Float[Tensor, "batch pos vocab"]) -> Float[Tensor, "batch vocab"]:
    """Probability of each token to come after the last position."""
    raise NotImplementedError


# %%
probs = next_token_probs(logits)
print(f"{probs.shape[1]} probabilities that sum to {probs.sum():.4f}; the largest is {probs.max():.4f}")

# %% [markdown]
# A vector of probabilities is hard to read. Write a function that names the best guesses. Useful:
# `model.to_tokens(text)`, `tensor.topk(k)`, and `model.tokenizer.decode([token_id])`.

# %%
@exercise("00.top_tokens")
def top_tokens(model: TransformerBridge, text: str, k: int = 5) -> list[tuple[str, float]]:
    """The k most likely next words after `text` (BOS in front), with their probabilities, best first."""
    raise NotImplementedError


# %%
for word, prob in top_tokens(model, prompt, k=5):
    print(f"{word!r:15} {prob:.4f}")
if MODEL == "tiny":
    print(f"the truth: one of {len(PLACES)} places, {1 / len(PLACES):.4f} each")

# %% [markdown]
# If you are on `tiny`: many places, all about equally likely. That is not the model being unsure of itself:
# the program that writes the stories draws this place by lot, as you will see below.
#
# ## 3 · Looking inside
#
# `run_with_cache` runs the model and keeps activations by name. Attention patterns are called
# `blocks.{layer}.attn.hook_pattern`: for each head, a row for every position that looks (the *query*) and a
# column for every position looked at (the *key*). Each row sums to 1, and nothing looks ahead.
#
# `names_filter` keeps only what you ask for. Make it a habit: without it, a large model's cache fills your
# memory.

# %%
names = ["hook_embed", "blocks.0.hook_resid_pre", "blocks.0.attn.hook_q", "blocks.0.attn.hook_pattern",
         "blocks.0.attn.hook_z", "blocks.0.hook_mlp_out", "blocks.0.hook_resid_post"]
_, cache = model.run_with_cache(tokens, names_filter=names)
for name in names:
    print(f"{name:28} {tuple(cache[name].shape)}")


# %%
@exercise("00.head_pattern")
def head_pattern(
    model: TransformerBridge, tokens: Int[Tensor, "1 pos"], layer: int, head: int
) -> Float[Tensor, "query key"]:
    """The attention pattern of one head on one sequence."""
    raise NotImplementedError


# %%
words = [model.tokenizer.decode([token]) for token in tokens[0].tolist()]
plot_attention(head_pattern(model, tokens, layer=0, head=0), words, "head 0.0: layer 0, head 0")

# %% [markdown]
# The same for all heads of the layer, as an interactive picture: move over a token to see what it looks at,
# click on a head to keep it. (It draws itself when you run the cell.)

# %%
patterns = [head_pattern(model, tokens, layer=0, head=head) for head in range(cfg.n_heads)]
attention_patterns(words, torch.stack(patterns))

# %% [markdown]
# ## 4 · Reaching inside
#
# Looking is not yet understanding: to know what a head does, take it away. A *hook* is a function that
# receives an activation while the model runs and returns the one to go on with. What each head writes,
# before it is mixed into the residual stream, is `blocks.{layer}.attn.hook_z`, of shape `[batch, pos, head,
# d_head]`.
#
# Use `model.run_with_hooks(tokens, fwd_hooks=[(name, function)])`. It removes the hooks afterwards. A hook
# that stays on changes every later run, silently. It is an easy mistake, and the check looks for it.

# %%
@exercise("00.without_head")
def without_head(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], layer: int, head: int
) -> Float[Tensor, "batch pos vocab"]:
    """Logits of the model with one head's output set to zero."""
    raise NotImplementedError


# %% [markdown]
# **Predict before you run.** We silence each head of layer 0 in turn. What is the largest change that this
# makes to the probability of any next word after the prompt? (Between 0 and 1.)

# %%
predict("00.largest_change", None, unit="(a change in probability)")

# %%
changes = [(next_token_probs(without_head(model, tokens, 0, head)) - probs).abs().max().item()
           for head in range(cfg.n_heads)]
for head, change in enumerate(changes):
    print(f"without head 0.{head}: largest change in a probability {change:.4f}")
reveal("00.largest_change", max(changes))

# %% [markdown]
# In `tiny` a change of 0.006 looks like nothing. But the likeliest word has a probability of only 0.017.
#
# ## 5 · A known truth
#
# For natural text nobody knows the true probability of the next word, so nobody can say how far a model is
# from it. For the course's language we do know. A story comes from a program that draws each word from a
# distribution that depends only on the words already on the page, and the program tells us that
# distribution.

# %%
language = StoryLanguage(seed=7)            # the stories that `tiny` was trained on had another seed
sample = language.sample(n=32, length=cfg.n_ctx if MODEL == "tiny" else 128)
print(textwrap.fill(language.decode(sample.tokens[0, 1:60]) + " …", 80))

# %% [markdown]
# Names come back, things are carried from place to place, `he` and `she` follow the person who acts, and
# `was` or `were` follows a subject that may be several words away. At one place in that story, compare what
# can truly come next with what the model expects. (Only `tiny` speaks this language, so this section always
# uses it.)

# %%
story_model = model if MODEL == "tiny" else load_model("tiny")
story_logits = story_model(sample.tokens.to(story_model.cfg.device)).cpu()
position = int((sample.entropy[0, :60] - 2.5).abs().argmin())      # where several words may come
plot_next_tokens(
    {"truth": sample.true_log_probs[0, position].exp(), "tiny": story_logits[0, position].softmax(-1)},
    language.vocabulary, title="… " + language.decode(sample.tokens[0, position - 7:position + 1]) + " …")

# %% [markdown]
# The distance from one distribution to another is measured by the Kullback–Leibler divergence,
#
# **KL(truth ‖ model) = Σ p(y) · (ln p(y) − ln q(y))**, summed over all tokens y,
#
# with p the truth and q the model, in *nats* because the logarithm is natural. It is never negative, and 0
# only if the two agree. Mind the words that cannot come: there p = 0 and ln p = −∞, and their term is 0.

# %%
@exercise("00.kl_from_truth")
def kl_from_truth(
    true_log_probs: Float[Tensor, "batch pos vocab"], logits: Float[Tensor, "batch pos vocab"]
) -> Float[Tensor, "batch pos"]:
    """KL(truth ‖ model) in nats at each position: Σ p (ln p − ln q) over tokens, where p = 0 adds nothing."""
    raise NotImplementedError


# %% [markdown]
# **Predict:** the entropy of the truth is the loss that nobody can go below. By how many nats per token is
# `tiny` above it, on stories that it has never seen?

# %%
predict("00.kl", None, unit="nats per token")

# %%
kl = kl_from_truth(sample.true_log_probs, story_logits)             # [story, pos]
floor, excess = sample.entropy.mean().item(), kl.mean().item()
print(f"the truth's own entropy: {floor:.3f} nats per token; KL(truth ‖ tiny): {excess:.3f} nats per token")
reveal("00.kl", excess)
measured("KL(truth ‖ tiny) on held-out stories", excess, unit="nats per token", at_most=0.10)

# %%
plot_by_position({"entropy of the truth (the floor)": sample.entropy.mean(0),
                  "cross-entropy of tiny (floor + KL)": (sample.entropy + kl).mean(0)},
                 ylabel="nats per token, mean over 32 rows", title="How close to the floor?")

# %% [markdown]
# The two lines all but coincide, except at the right edge. In training, rows were 128 tokens long, and the
# logits at the last position had no next token to be compared with: nobody ever taught the model to predict
# from there. That one position of 128 makes more than a third of the KL above:

# %%
print(f"KL at the last position {kl[:, -1].mean():.2f} nats; mean without it {kl[:, :-1].mean():.3f}")

# %% [markdown]
# A plot by position shows at once what a mean hides, and measures in later lessons leave the last position
# out. (`measured`, in some cells, shows nothing here: it notes a number for the table that `make course` prints.)

# %% [markdown]
# ## 6 · Does it hold in a real language model?
#
# Sections with this title repeat the lesson's main point on SmolLM2-135M, a language model that was trained
# on real text by others (the instruction-tuned version, with weights rounded to 4 bits). It needs one
# download, which you ask for yourself: `python -m course_utils fetch smollm2-135m`. Without it, these cells
# say so and do nothing.

# %%
real_model = load_real_model()

# %%
if real_model is not None:
    print(f"{real_model.cfg.n_layers} layers of {real_model.cfg.n_heads} heads, {real_model.cfg.d_vocab} tokens")
    for word, prob in top_tokens(real_model, "The capital of France is", k=3):
        print(f"{word!r:12} {prob:.4f}")

# %% [markdown]
# ## What this does not show
#
# - Silencing a head says that the model *uses* it here, not what it does; and a small change may mean that
#   another head stepped in. Lesson 03 takes this up.
# - An attention pattern says where a head looks, not what it carries away from there. Lesson 04 takes that
#   up.
# - A small KL on average can hide a large one at a few positions.
#
# ## Summary
#
# - Logits at a position are about the *next* token; the softmax over the vocabulary makes probabilities of
#   them.
# - `run_with_cache(names_filter=…)` reads activations by name; `run_with_hooks(fwd_hooks=…)` changes them
#   and cleans up.
# - The course's language has a known truth: its entropy is the floor, and KL(truth ‖ model) is the height
#   above it.
#
# Next: **01 · Repeated tokens**, where a model does something that no bigram table can do.

# %% tags=["exercise-only"]
progress("00")

# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 02 · Induction heads
#
# **The question.** In lesson 01 the model suddenly predicted tokens well when they came a second time.
# Which parts of it do that, and when in training did they appear?
#
# The usual suspects are two kinds of attention head that work together. A **previous-token head** writes,
# at every position, which token came just before. An **induction head** then asks, at a token A: "where is
# the position *whose previous token was A*?" and copies what it finds there. You will score every head for
# both jobs, check your scores on a circuit that we planted by hand, look at the heads that score best, and
# watch the circuit form in training.
#
# **You need:** lessons 00 and 01.

# %%
import inspect
import os

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from course_utils.exercises import exercise, hint, predict, progress, reveal, solution
from course_utils.heads import best_head, induction_scores_in_text, is_pattern, stripe_scores
from course_utils.house import bars_are_off
from course_utils.language import StoryLanguage
from course_utils.measured import measured
from course_utils.models import checkpoint_steps, load_model, load_real_model
from course_utils.planted import planted_induction_model
from course_utils.repeated_tokens import check_repeated, generate_repeated_tokens, repeated_token_report
from course_utils.viz import attention_patterns, plot_attention, plot_by_position, plot_head_scores

MODEL = os.environ.get("COURSE_MODEL", "tiny")      # or write a name here, such as "smollm2-135m"
SEQ_LEN, BATCH = 50, 10
model = load_model(MODEL)
tokens = generate_repeated_tokens(model, SEQ_LEN, BATCH, seed=0)
print(f"{MODEL}: {model.cfg.n_layers} layers of {model.cfg.n_heads} heads; tokens {tuple(tokens.shape)}")

# %% [markdown]
# ## 1 · Where should they look?
#
# Take `[BOS, A, B, C, A, B, C]`, with positions 0 to 6, and the second A, at position 4. Three kinds of
# head can be told apart by the one position that they look at from there:
#
# - a *previous-token* head looks at the token just before;
# - a *duplicate-token* head looks at the earlier A;
# - an *induction* head looks at the token **after** the earlier A: the B, which is what comes next.
#
# (The article that we follow describes in words what a duplicate-token head does and calls it induction.
# Its code measures the right thing. One position makes the difference.)

# %%
@exercise("02.where_heads_look")
def where_heads_look(query: int, seq_len: int) -> dict[str, int]:
    """The key position on which each kind of head puts its attention, for a query in the second copy.

    Keys of the dict: "previous", "duplicate", "induction".
    """
    raise NotImplementedError


# %%
print("from position 4 of [BOS, A, B, C, A, B, C]:", where_heads_look(query=4, seq_len=3))

# %% [markdown]
# For all queries at once, each kind is a *diagonal stripe* of the attention pattern `[query, key]`.
# `pattern.diagonal(offset, -2, -1)` takes the entries with key = query + offset.
#
# ## 2 · One function for all scores
#
# All three scores run the model once with a hook on every attention pattern, cut out a stripe, and average
# it. The course has a function for the common part. Read it: the hook looks at each pattern while the model
# makes it, so that nothing large is kept.

# %%
print(inspect.getsource(stripe_scores))

# %% [markdown]
# ## 3 · Previous-token heads
#
# You may use `stripe_scores`, or write hooks or a cache of your own: any way that gives the right numbers
# passes.

# %%
@exercise("02.previous_token_scores")
def previous_token_scores(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "layer head"]:
    """Mean attention to the token just before, over every position but the first."""
    raise NotImplementedError


# %% [markdown]
# How do you know that a score is right? Try it where the answer is known. `planted_induction_model` is a
# transformer whose weights we set by hand: head 0.0 (layer 0, head 0) looks at the previous token, always;
# head 1.0 is an induction head; the other two do nothing.

# %%
planted = planted_induction_model(n_tokens=30, n_ctx=64)
rng = torch.Generator().manual_seed(0)
half = torch.stack([1 + torch.randperm(29, generator=rng)[:20] for _ in range(4)])   # 20 different ones
planted_tokens = torch.cat([torch.zeros(4, 1, dtype=torch.long), half, half], dim=1)
print(previous_token_scores(planted, planted_tokens))

# %%
guesses = planted(planted_tokens)[:, 21:-1].argmax(dim=-1)         # logits at j are about token j + 1
print(f"right in the second copy, boundary left out: {(guesses == planted_tokens[:, 22:]).float().mean():.3f}")

# %% [markdown]
# Head 0.0 scores 1, and nothing else comes near. Now the model of this lesson.
#
# **Predict before you run:** in which layer will the best previous-token head be? It has to come *before*
# the induction head that reads what it wrote.

# %%
predict("02.previous_layer", None, unit="(layer)")

# %%
previous = previous_token_scores(model, tokens)
layer, head = best_head(previous)
print(f"best previous-token head: {layer}.{head}, score {previous.max():.3f}")
reveal("02.previous_layer", layer)
plot_head_scores(previous, f"{MODEL}: previous-token scores")

# %% [markdown]
# ## 4 · Induction heads
#
# For an induction head the stripe is at offset 1 − seq_len. Count its entries before you average: with 101
# positions and offset −49 the diagonal has 52 entries, but the second copy has 50 tokens. Two entries
# belong to queries of the *first* copy, which have nothing to look back at. The article averages all 52; we
# leave the two out, so that a perfect head scores 1.
#
# `check_repeated(tokens, seq_len)` complains if the tokens are not two copies; call it if you like.

# %%
@exercise("02.induction_scores")
def induction_scores(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], seq_len: int
) -> Float[Tensor, "layer head"]:
    """Mean attention from each token of the second copy to the token after its first occurrence."""
    raise NotImplementedError


# %%
print(induction_scores(planted, planted_tokens, 20))

# %%
induction = induction_scores(model, tokens, SEQ_LEN)
plot_head_scores(induction, f"{MODEL}: induction scores")

# %% [markdown]
# ## 5 · Duplicate-token heads
#
# The third stripe tells a head that finds *the same token* from one that finds *what followed it*. If you
# confuse the offsets, you report the wrong heads: in GPT-2 small with scores up to 0.7, as you will see below.
# (All three maps share one colour scale, so a dark one says: this model has no such head.)

# %%
@exercise("02.duplicate_token_scores")
def duplicate_token_scores(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], seq_len: int
) -> Float[Tensor, "layer head"]:
    """Mean attention from each token of the second copy to its own first occurrence."""
    raise NotImplementedError


# %%
duplicate = duplicate_token_scores(model, tokens, SEQ_LEN)
plot_head_scores(duplicate, f"{MODEL}: duplicate-token scores")


# %%
@exercise("02.top_heads")
def top_heads(scores: Float[Tensor, "layer head"], k: int = 5) -> list[tuple[tuple[int, int], float]]:
    """The k best heads: [((layer, head), score), …], best first."""
    raise NotImplementedError


# %%
def named(scores, k=5):
    return ", ".join(f"{layer}.{head} {score:.3f}" for (layer, head), score in top_heads(scores, k))


print("induction      ", named(induction))
print("previous token ", named(previous))
print("duplicate token", named(duplicate))

# %% [markdown]
# For GPT-2 small, the outputs stored in TransformerLens's exploratory demo (2 sequences of 100 + 100
# tokens) say, *quoted*: induction heads 5.1 .931, 6.9 .926, 5.5 .926, 7.10 .904, 7.2 .851; previous-token
# heads **4.11 .992**, 3.7 .529, 6.8 .499; duplicate-token heads 0.5 .703, 3.0 .678. The article picks 5.5
# (about 0.91) and 4.11, which are among them. Several induction heads in neighbouring layers, and a previous-token
# head below them: is that what you see above?

# %%
bound = MODEL == "tiny"                     # the course promises these bounds for its own model only
measured("best induction score", induction.max(), at_least=0.8 if bound else None,
         published="0.931 (GPT-2 small, quoted)")
measured("best previous-token score", previous.max(), at_least=0.8 if bound else None,
         published="0.992 (GPT-2 small, quoted)")

# %% [markdown]
# ## 6 · Look at them
#
# A score is a mean; look before you believe it. Here are both heads on a short repeat, and then all heads
# of the induction head's layer.

# %%
short = generate_repeated_tokens(model, seq_len=10, seed=3)
words = [model.tokenizer.decode([token]) for token in short[0].tolist()]
_, cache = model.run_with_cache(short, names_filter=is_pattern)
layer, head = best_head(previous)
pattern = cache[f"blocks.{layer}.attn.hook_pattern"][0, head]
plot_attention(pattern, words, f"previous-token head {layer}.{head}")

# %%
layer, head = best_head(induction)
pattern = cache[f"blocks.{layer}.attn.hook_pattern"][0, head]
plot_attention(pattern, words, f"induction head {layer}.{head}")

# %%
attention_patterns(words, cache[f"blocks.{layer}.attn.hook_pattern"][0])

# %% [markdown]
# In the induction head's picture, follow a row of the second copy to its bright cell: it lies one to the
# right of the same word's first occurrence. In the first copy there is nothing to find, and the head parks
# its attention: in many models on BOS, in `tiny` on the very first word. That is the hedge of lesson 01 at
# work: the word with which a repeat would begin.
#
# ## 7 · Induction in any text
#
# Stripes need a known period. For ordinary text the same idea is a *mask*: entry (query, key) counts if the
# token before the key is the query's token. On two copies of different tokens it marks the stripe from
# before.

# %%
@exercise("02.induction_targets")
def induction_targets(tokens: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch query key"]:
    """Where an induction head would look: True at (query, key) if the token before `key` is the query's token.

    Only keys that are not later than the query count, and the first key has no token before it.
    """
    raise NotImplementedError


# %%
print(induction_targets(torch.tensor([[0, 5, 6, 5, 6]]))[0].int())      # [BOS, a, b, a, b]

# %% [markdown]
# Do the same heads do it in stories? In the course's language words come back all the time: names, places,
# things, but also `the` and full stops, after which anything may come. (Only `tiny` speaks this language,
# so this part uses it.) `induction_scores_in_text` sums each head's attention over the marked keys and takes the
# mean over the queries that have one.
#
# **Predict:** the best head's mean attention on its induction targets in stories, as a share of its score
# on repeated tokens: the same, half, or a tenth?

# %%
predict("02.in_stories", None, unit="times")

# %%
story_model = model if MODEL == "tiny" else load_model("tiny")
story_tokens = StoryLanguage(seed=7).sample(16, 128, truth=False).tokens.to(story_model.cfg.device)
repeats = generate_repeated_tokens(story_model, SEQ_LEN, BATCH, seed=0)
in_stories = induction_scores_in_text(story_model, story_tokens)
in_repeats = induction_scores_in_text(story_model, repeats)
best = best_head(in_repeats)
print("repeated tokens:", named(in_repeats, 3))
print("stories:        ", named(in_stories, 3))
reveal("02.in_stories", (in_stories[best] / in_repeats[best]).item())

# %% [markdown]
# The same heads? One of them. The best head on repeats keeps little of its score in stories; another keeps more
# than a third of its own, and is the best there. A head's job description depends on what you feed it. (One
# reason may be that a token as frequent as `.` has been followed by many different words, and that looking at all
# of them would be of little use.)
#
# ## 8 · When did it form?
#
# `tiny` comes with checkpoints from its training. For each, we measure the behaviour (lesson 01's
# log-probability) and the two kinds of head.

# %%
steps, rows = checkpoint_steps("tiny"), []
for step in tqdm(steps, desc="checkpoints", disable=bars_are_off()):
    young = load_model("tiny", step=step)
    text = generate_repeated_tokens(young, SEQ_LEN, BATCH, seed=0)
    rows.append([repeated_token_report(young, SEQ_LEN, BATCH, seed=0).inner_log_prob,
                 induction_scores(young, text, SEQ_LEN).max().item(),
                 previous_token_scores(young, text).max().item()])
behaviour, induction_max, previous_max = torch.tensor(rows).T
for step, row in zip(steps, rows):
    print(f"step {step:5}: second copy {row[0]:7.3f} nats | best induction {row[1]:.3f}, previous token {row[2]:.3f}")

# %%
plot_by_position({"best induction score": induction_max, "best previous-token score": previous_max},
                 ylabel="mean attention probability", x=torch.tensor(steps), xlabel="training step",
                 title="Two kinds of head form")

# %%
plot_by_position({"second copy, boundary left out": behaviour}, ylabel="log-probability (nats)",
                 x=torch.tensor(steps), xlabel="training step", title="The behaviour arrives with them")


# %%
@exercise("02.formation_step")
def formation_step(steps: list[int], scores: Float[Tensor, "step"], threshold: float = 0.5) -> int | None:
    """The first training step at which a score has reached `threshold`; None if it never does."""
    raise NotImplementedError


# %%
print("induction score reaches 0.5 by step", formation_step(steps, induction_max))
print("log-probability reaches −1 by step ", formation_step(steps, behaviour, threshold=-1.0))
measured("best induction score before training", induction_max[0], at_most=0.1)

# %% [markdown]
# The behaviour does not creep in: for 800 steps it gets only a little better, without any induction head. (At
# step 400 the longest repeats of its training had 44 tokens, not 50.) Then, within 300 steps, the second copy goes from
# hopeless to easy, and induction scores rise in the same window. Olsson et al. saw this *phase change* in models
# of all sizes with more than one layer: the circuit needs two.
#
# The previous-token curve is a surprise: no single head scores high when induction is already there. Here is the
# head that will be the previous-token head, before and after:

# %%
layer, head = best_head(previous_token_scores(story_model, repeats))
for step in (1100, 2400, steps[-1]):
    _, cache = load_model("tiny", step=step).run_with_cache(repeats, names_filter=is_pattern)
    pattern = cache[f"blocks.{layer}.attn.hook_pattern"][:, head]       # [batch, query, key]
    near = [f"{pattern.diagonal(-back, 1, 2).mean():.2f}" for back in range(6)]
    print(f"step {step}, head {layer}.{head}: attention 0 to 5 positions back: {', '.join(near)}")

# %% [markdown]
# At step 1100 it looks at a *blur*: a quarter of its attention on its own position, a fifth on the one before, and
# less and less further back. Induction is there already, so for repeated sequences a blur seems to be enough. From
# step 1200 on, the training data also has pairs of tokens that come back in random order; there only the token
# just before helps, and the same head sharpens. A circuit's parts need not be as clean as their names.
#
# ## 9 · Does it hold in a real language model?

# %%
real_model = load_real_model()

# %%
if real_model is not None:
    real_tokens = generate_repeated_tokens(real_model, SEQ_LEN, batch=4, seed=0)
    real_induction = induction_scores(real_model, real_tokens, SEQ_LEN)
    real_previous = previous_token_scores(real_model, real_tokens)
    print("SmolLM2 induction     ", named(real_induction))
    print("SmolLM2 previous token", named(real_previous))
    measured("SmolLM2: best induction score", real_induction.max())
    measured("SmolLM2: best previous-token score", real_previous.max())

# %%
if real_model is not None:
    display(plot_head_scores(real_induction, "SmolLM2-135M: induction scores, 30 layers of 9 heads"))

# %% [markdown]
# It does. Five heads of layers 17 and 18 score above 0.5, and previous-token heads are spread wider. The best of
# those, 16.0, lies below the five, as it must if they are to read what it wrote; 19.3 lies above, and cannot serve
# them.
#
# ## What this does not show
#
# - An attention pattern says where a head looks. Whether the model *uses* what it finds is a causal
#   question: lesson 03 takes heads away.
# - We assume that the induction head finds its place *because* of what the previous-token head wrote. In
#   the planted model that is so by construction; in a trained one it is a claim about weights, and lessons
#   04 and 05 test it.
# - Two curves that rise together are not cause and effect.
# - The best of many heads has a high score partly by selection; compare it with the others, not with 0.
#
# ## Summary
#
# - Previous token: offset −1. Duplicate token: −seq_len. Induction: 1 − seq_len, without the first two
#   entries.
# - Check a measure where the answer is known: a planted circuit scores 1.
# - Heads are found by score, not by number: every model keeps them elsewhere.
# - Induction forms suddenly in training, together with the behaviour.
#
# Sources: Olsson et al., "In-context Learning and Induction Heads" (2022); Elhage et al., "A Mathematical
# Framework for Transformer Circuits" (2021); Shuyang Xiang, "How to Interpret GPT2-Small" (2024) for the
# scores' definition and the quoted heads; the outputs stored in TransformerLens's
# Exploratory_Analysis_Demo.
#
# Next: **03 · Ablations**, where we take heads and MLPs away.

# %% tags=["exercise-only"]
progress("02")

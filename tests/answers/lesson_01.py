"""Answers for lesson 01."""

import math

import torch

from answers import Answers, Wrong

# --- 01.generate_repeated_tokens: every answer is this text with something done differently -------------------------

GENERATE = """
def f(model, seq_len, batch=1, *, seed=None):
    rng = None if seed is None else torch.Generator().manual_seed(seed)
    bos = torch.full((batch, 1), model.tokenizer.bos_token_id)
    half = torch.randint(0, model.cfg.d_vocab, (batch, seq_len), generator=rng)
    return {result}
"""
AFRESH = GENERATE.format(
    result="torch.cat([bos, half, torch.randint(0, model.cfg.d_vocab, (batch, seq_len), generator=rng)], 1)"
)
BOS_LAST = GENERATE.format(result="torch.cat([half, half, bos], 1)")
SAME_ROWS = """
def f(model, seq_len, batch=1, *, seed=None):
    rng = None if seed is None else torch.Generator().manual_seed(seed)
    half = torch.randint(0, model.cfg.d_vocab, (1, seq_len), generator=rng).expand(batch, -1)
    return torch.cat([torch.zeros(batch, 1, dtype=torch.long), half, half], 1)
"""
TOO_FEW_TOKENS = """
def f(model, seq_len, batch=1, *, seed=None):
    rng = None if seed is None else torch.Generator().manual_seed(seed)
    half = torch.randint(10, 30, (batch, seq_len), generator=rng)
    return torch.cat([torch.zeros(batch, 1, dtype=torch.long), half, half], 1)
"""
SEED_IGNORED = """
def f(model, seq_len, batch=1, *, seed=None):
    f.calls = getattr(f, "calls", 0) + 1
    rng = torch.Generator().manual_seed(f.calls)
    half = torch.randint(0, model.cfg.d_vocab, (batch, seq_len), generator=rng)
    return torch.cat([torch.zeros(batch, 1, dtype=torch.long), half, half], 1)
"""
OUT_OF_RANGE = """
def f(model, seq_len, batch=1, *, seed=None):
    rng = None if seed is None else torch.Generator().manual_seed(seed)
    half = torch.randint(0, 50257, (batch, seq_len), generator=rng)
    return torch.cat([torch.zeros(batch, 1, dtype=torch.long), half, half], 1)
"""
GLOBAL_SEED = """
def f(model, seq_len, batch=1, *, seed=None):
    if seed is not None:
        torch.manual_seed(seed)
    half = torch.randint(model.cfg.d_vocab, (batch, seq_len))
    return torch.nn.functional.pad(half.repeat(1, 2), (1, 0), value=model.tokenizer.bos_token_id)
"""
FILLED_IN = """
def f(model, seq_len, batch=1, *, seed=None):
    rng = torch.default_generator if seed is None else torch.Generator()
    if seed is not None:
        rng.manual_seed(seed)
    tokens = torch.empty(batch, 1 + 2 * seq_len, dtype=torch.int64)
    tokens[:, 0] = model.tokenizer.bos_token_id
    for i in range(1, seq_len + 1):
        tokens[:, i] = torch.randint(0, model.cfg.d_vocab, (batch,), generator=rng)
        tokens[:, i + seq_len] = tokens[:, i]
    return tokens
"""
FORKED = """
def f(model, seq_len, batch=1, *, seed=None):
    if seed is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return f(model, seq_len, batch)
    half = torch.randint(model.cfg.d_vocab, (batch, seq_len))
    return torch.nn.functional.pad(half.repeat(1, 2), (1, 0), value=model.tokenizer.bos_token_id)
"""
WITH_RNG = """
def f(model, seq_len, batch=1, *, seed=None):
    import numpy as np
    rng = {rng}
    half = {half}
    bos = torch.full((batch, 1), model.tokenizer.bos_token_id)
    return torch.cat([bos, half, half], 1)
"""


def with_rng(rng, half="torch.randint(0, model.cfg.d_vocab, (batch, seq_len), generator=rng)"):
    return WITH_RNG.format(rng=rng, half=half)


SEEDED = "(None if seed is None else torch.Generator().manual_seed(seed))"

# --- 01.chance_log_prob ----------------------------------------------------------------------------------------------


def for_gpt2(d_vocab):
    return -math.log(50257)


def log_of_quotient(d_vocab):
    return math.log(1 / d_vocab)


def from_torch(d_vocab):
    return torch.zeros(d_vocab, dtype=torch.float64).log_softmax(0)[0].item()


# --- 01.correct_token_log_probs ---------------------------------------------------------------------------------------


def extra_axis(logits, tokens):
    return torch.gather(logits[:, :-1].log_softmax(-1), 2, tokens[:, 1:].unsqueeze(-1))


def full_length(logits, tokens):
    return torch.gather(logits.log_softmax(-1), 2, tokens.unsqueeze(-1)).squeeze(-1)


def one_number(logits, tokens):
    return torch.gather(logits[:, :-1].log_softmax(-1), 2, tokens[:, 1:].unsqueeze(-1)).mean()


def minus_cross_entropy(logits, tokens):
    flat = torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1), reduction="none"
    )
    return -flat.view(tokens.shape[0], -1)


def one_by_one(logits, tokens):
    batch, length = tokens.shape
    return torch.tensor(
        [
            [logits[b, j].double().log_softmax(0)[tokens[b, j + 1]].item() for j in range(length - 1)]
            for b in range(batch)
        ]
    )


def by_indexing(logits, tokens):
    log_probs = logits - logits.logsumexp(-1, keepdim=True)
    rows, columns = torch.arange(len(tokens))[:, None], torch.arange(tokens.shape[1] - 1)[None]
    return log_probs[rows, columns, tokens[:, 1:]]


# --- 01.split_halves --------------------------------------------------------------------------------------------------


def first_row(log_probs, seq_len):
    row = log_probs[0]
    return row[:seq_len].mean().item(), row[seq_len].item(), row[seq_len + 1 :].mean().item()


def two_numbers(log_probs, seq_len):
    return log_probs[:, :seq_len].mean().item(), log_probs[:, seq_len:].mean().item()


def with_split(log_probs, seq_len):
    first, boundary, inner = log_probs.split([seq_len, 1, log_probs.shape[1] - seq_len - 1], dim=1)
    return float(first.mean()), float(boundary.mean()), float(inner.mean())


def in_plain_python(log_probs, seq_len):
    by_position = log_probs.double().mean(0).tolist()
    inner = by_position[seq_len + 1 :]
    return sum(by_position[:seq_len]) / seq_len, by_position[seq_len], sum(inner) / len(inner)


# --- 01.with_boundary -------------------------------------------------------------------------------------------------


def just_added(inner, boundary, seq_len):
    return inner + boundary / seq_len


def not_divided(inner, boundary, seq_len):
    return boundary + (seq_len - 1) * inner


def as_a_list(inner, boundary, seq_len):
    values = [boundary] + [inner] * (seq_len - 1)
    return sum(values) / len(values)


def as_a_correction(inner, boundary, seq_len):
    return inner + (boundary - inner) / seq_len


# --- 01.order_gain: every answer is this text with something done differently -----------------------------------------

ORDER = """
def f(model, tokens, seq_len, *, seed=0):
    rng = torch.Generator().manual_seed(seed)
    mixed = tokens{copy}
    {change}
    def score(rows):
        log_probs = model(rows)[:, :-1].log_softmax(-1)
        return log_probs.gather(2, rows[:, 1:, None])[..., 0][:, {first}:]
    return {result}
"""
SHUFFLE = "mixed[:, seq_len + 1:] = tokens[:, 1 + torch.randperm(seq_len, generator=rng)]"
SHUFFLE_INNER = "mixed[:, seq_len + 2:] = tokens[:, 2 + torch.randperm(seq_len - 1, generator=rng)]"


def order(change=SHUFFLE, copy=".clone()", first="seq_len + 1", result="(score(tokens) - score(mixed)).mean(1)"):
    return ORDER.format(change=change, copy=copy, first=first, result=result)


ROW_BY_ROW = """
def f(model, tokens, seq_len, *, seed=0):
    rng, gains = torch.Generator().manual_seed(seed), []
    for row in tokens:
        copy = row[1:seq_len + 1]
        both = torch.stack([row, torch.cat([row[:seq_len + 1], copy[torch.randperm(seq_len, generator=rng)]])])
        p = torch.nn.functional.cross_entropy(model(both)[:, :-1].transpose(1, 2), both[:, 1:], reduction="none")
        gains.append(p[1, seq_len + 1:].mean() - p[0, seq_len + 1:].mean())
    return torch.stack(gains)
"""

ANSWERS = {
    "01.generate_repeated_tokens": Answers(
        reject=[
            Wrong(AFRESH, says="the second half differs"),
            Wrong(
                GENERATE.format(result="torch.cat([bos, half.repeat_interleave(2, 1)], 1)"),
                says="the second half differs",
            ),
            Wrong(
                GENERATE.format(result="torch.cat([bos, half, half], 1).tolist()"),
                says="a torch.Tensor was expected",
            ),
            Wrong(GENERATE.format(result="torch.cat([half, bos, half], 1)")),
            Wrong(BOS_LAST, says="BOS is at the end"),
            Wrong(GENERATE.format(result="torch.cat([half, half], 1)"), says="BOS is missing"),
            Wrong(SAME_ROWS, says="every row of the batch is the same"),
            Wrong(TOO_FEW_TOKENS, says="some tokens are never drawn"),
            Wrong(SEED_IGNORED, says="the same seed"),
            Wrong(OUT_OF_RANGE),
            Wrong(GLOBAL_SEED, says="seeds torch's global random numbers"),
            Wrong(with_rng("torch.Generator().manual_seed(seed) if seed else None"), says="seed=0 is taken for no"),
            Wrong(with_rng("torch.Generator().manual_seed(seed or 0)"), says="the same tokens every time"),
            Wrong(with_rng("torch.Generator() if seed is None else torch.Generator().manual_seed(seed)"),
                  says="the same tokens every time"),
            Wrong(with_rng("torch.Generator()\n    rng.seed() if seed is None else rng.manual_seed(seed)"),
                  says="does not draw from torch's global stream"),
            Wrong(with_rng("np.random.default_rng(seed)",
                           "torch.from_numpy(rng.integers(0, model.cfg.d_vocab, (batch, seq_len)))"),
                  says="does not draw from torch's global stream"),
            Wrong(with_rng(SEEDED, "torch.stack([torch.randperm(model.cfg.d_vocab, generator=rng)[:seq_len] "
                                   "for _ in range(batch)])"), says="no token ever occurs twice"),
            Wrong(with_rng("torch.Generator().manual_seed(7 if seed is not None else torch.randint(99, ()).item())"),
                  says="the seed is not used"),
            Wrong(with_rng(SEEDED).replace("model.tokenizer.bos_token_id", "0"), says="not this model's BOS"),
            Wrong(GENERATE.format(result="torch.cat([bos, half, half], 1).float()")),
            Wrong(GENERATE.format(result="torch.cat([bos, half, bos, half], 1)")),
        ],
        accept=[GENERATE.format(result="torch.cat([bos, half, half], 1)"), FORKED, FILLED_IN],
    ),
    "01.chance_log_prob": Answers(
        reject=[Wrong(for_gpt2)],
        accept=[log_of_quotient, from_torch],
    ),
    "01.correct_token_log_probs": Answers(
        reject=[
            Wrong(lambda logits, tokens: one_by_one(logits.sub_(1.0), tokens), says="it changes its input"),
            Wrong(extra_axis, says="the last axis is still there"),
            Wrong(full_length, says="one column too many"),
            Wrong(one_number, says="keep one number per token"),
        ],
        accept=[minus_cross_entropy, by_indexing],
    ),
    "01.split_halves": Answers(
        reject=[Wrong(first_row), Wrong(two_numbers)],
        accept=[with_split, in_plain_python],
    ),
    "01.with_boundary": Answers(
        reject=[Wrong(just_added), Wrong(not_divided)],
        accept=[as_a_list, as_a_correction],
    ),
    "01.order_gain": Answers(
        reject=[
            Wrong(order("mixed[:, seq_len + 1:] = torch.randint(0, 40, (len(tokens), seq_len), generator=rng)"),
                  says="only knows which tokens have come"),
            Wrong(order(first="seq_len"), says="the boundary token is counted"),
            Wrong(order("pass"), says="no difference for a model that copies"),
            Wrong(order(result="(score(mixed) - score(tokens)).mean(1)"), says="the sign is flipped"),
            Wrong(order("mixed[:, seq_len + 1:] = tokens[:, 1:seq_len + 1].roll(3, 1)"), says="too small"),
            Wrong(order(copy=""), says="changes its input"),
            Wrong(order(result="score(tokens).mean() - score(mixed).mean(1)"), says="the means of different sequences"),
            Wrong(order(first="seq_len + 2"), says="begin at entry seq_len + 1"),
            Wrong(order(SHUFFLE.replace(", generator=rng", "")), says="drawn with `seed`"),
            Wrong(order(SHUFFLE).replace("manual_seed(seed)", "manual_seed(3)"), says="drawn with `seed`"),
            Wrong(order(result="(score(tokens) - score(mixed)).mean()"), says="one number for each sequence"),
            Wrong(order(result="(score(tokens) - score(mixed)).sum(1)"), says="too large"),
            Wrong(order(result="score(tokens).mean(1)")),
            Wrong(order(result="(score(tokens) - score(mixed)).mean(1).tolist()"), says="torch.Tensor was expected"),
        ],
        accept=[order(), order(SHUFFLE_INNER), ROW_BY_ROW],
    ),
}

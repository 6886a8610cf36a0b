"""Answers for lesson 01."""

import math

import torch

from answers import Answers, Wrong

# --- 01.generate_repeated_tokens: every answer is this text with something done differently -------------------------

GENERATE = """
def f(model, seq_len, batch=1, *, seed=None):
    rng = None if seed is None else torch.Generator().manual_seed(seed)
    bos = torch.full((batch, 1), 0)
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
    rng = torch.Generator()
    rng.manual_seed(seed) if seed is not None else rng.seed()
    tokens = torch.empty(batch, 1 + 2 * seq_len, dtype=torch.int64)
    tokens[:, 0] = model.tokenizer.bos_token_id
    for i in range(1, seq_len + 1):
        tokens[:, i] = torch.randint(0, model.cfg.d_vocab, (batch,), generator=rng)
        tokens[:, i + seq_len] = tokens[:, i]
    return tokens
"""

# --- 01.chance_log_prob ----------------------------------------------------------------------------------------------


def in_bits(d_vocab):
    return math.log2(1 / d_vocab)


def for_gpt2(d_vocab):
    return -math.log(50257)


def log_of_quotient(d_vocab):
    return math.log(1 / d_vocab)


def from_torch(d_vocab):
    return torch.zeros(d_vocab, dtype=torch.float64).log_softmax(0)[0].item()


# --- 01.correct_token_log_probs ---------------------------------------------------------------------------------------


def losses(logits, tokens):
    return torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")


def extra_axis(logits, tokens):
    return torch.gather(logits[:, :-1].log_softmax(-1), 2, tokens[:, 1:].unsqueeze(-1))


def full_length(logits, tokens):
    return torch.gather(logits.log_softmax(-1), 2, tokens.unsqueeze(-1)).squeeze(-1)


def one_number(logits, tokens):
    return torch.gather(logits[:, :-1].log_softmax(-1), 2, tokens[:, 1:].unsqueeze(-1)).mean()


def softmax_over_positions(logits, tokens):
    return torch.gather(logits.log_softmax(1)[:, :-1], 2, tokens[:, 1:].unsqueeze(-1)).squeeze(-1)


def log_softmax_and_then_log(logits, tokens):
    return torch.gather((logits[:, :-1].softmax(-1) + 1e-2).log(), 2, tokens[:, 1:].unsqueeze(-1)).squeeze(-1)


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


# --- 01.top1_correct --------------------------------------------------------------------------------------------------


def accuracy(logits, tokens):
    return (logits[:, :-1].argmax(-1) == tokens[:, 1:]).float().mean()


def over_positions(logits, tokens):
    return (logits[:, :-1].argmax(1) == tokens[:, 1:]).float()


def least_likely(logits, tokens):
    return (logits[:, :-1].argmin(-1) == tokens[:, 1:]).float()


def probability_of_best(logits, tokens):
    return logits[:, :-1].softmax(-1).max(-1).values


def everything_wrong(logits, tokens):
    return (logits[:, :-1].argmax(-1) != tokens[:, 1:]).float()


def top1_by_sorting(logits, tokens):
    best = logits.sort(dim=-1, descending=True).indices[:, :-1, 0]
    return best.eq(tokens[:, 1:]).double()


def top1_by_comparing(logits, tokens):
    right = logits[:, :-1].gather(2, tokens[:, 1:, None])[..., 0]
    return torch.where(right >= logits[:, :-1].amax(-1), 1.0, 0.0)


# --- 01.split_halves --------------------------------------------------------------------------------------------------


def boundary_in_first(log_probs, seq_len):
    a, b = log_probs[:, : seq_len + 1], log_probs[:, seq_len + 1 :]
    return a.mean().item(), a[:, -1].mean().item(), b.mean().item()


def sums(log_probs, seq_len):
    return (
        log_probs[:, :seq_len].sum().item(),
        log_probs[:, seq_len].sum().item(),
        log_probs[:, seq_len + 1 :].sum().item(),
    )


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
            Wrong(GENERATE.format(result="torch.cat([bos, half, half], 1).float()")),
            Wrong(GENERATE.format(result="torch.cat([bos, half, bos, half], 1)")),
        ],
        accept=[GENERATE.format(result="torch.cat([bos, half, half], 1)"), GLOBAL_SEED, FILLED_IN],
    ),
    "01.chance_log_prob": Answers(
        reject=[
            Wrong(in_bits, says="in bits"),
            Wrong(for_gpt2),
        ],
        accept=[log_of_quotient, from_torch],
    ),
    "01.correct_token_log_probs": Answers(
        reject=[
            Wrong(lambda logits, tokens: one_by_one(logits, tokens).tolist(), says="a torch.Tensor was expected"),
            Wrong(lambda logits, tokens: one_by_one(logits.sub_(1.0), tokens), says="it changes its input"),
            Wrong(losses, says="this is the loss"),
            Wrong(extra_axis, says="the last axis is still there"),
            Wrong(full_length, says="one column too many"),
            Wrong(one_number, says="keep one number per token"),
            Wrong(softmax_over_positions),
            Wrong(log_softmax_and_then_log),
        ],
        accept=[minus_cross_entropy, one_by_one, by_indexing],
    ),
    "01.top1_correct": Answers(
        reject=[
            Wrong(lambda logits, tokens: logits[:, :-1].argmax(-1) == tokens[:, 1:], says="a float dtype was expected"),
            Wrong(accuracy, says="keep one number per token"),
            Wrong(probability_of_best, says="not whether they were right"),
            Wrong(over_positions),
            Wrong(least_likely),
            Wrong(everything_wrong),
        ],
        accept=[top1_by_sorting, top1_by_comparing],
    ),
    "01.split_halves": Answers(
        reject=[
            Wrong(boundary_in_first, says="counted in the first copy"),
            Wrong(sums),
            Wrong(first_row),
            Wrong(two_numbers),
        ],
        accept=[with_split, in_plain_python],
    ),
    "01.with_boundary": Answers(
        reject=[
            Wrong(just_added),
            Wrong(not_divided),
        ],
        accept=[as_a_list, as_a_correction],
    ),
}

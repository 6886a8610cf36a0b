"""Answers for lesson 09."""

import numpy as np
import torch

from answers import Answers, Wrong
from course_utils import splicing
from course_utils.latents import auc

# --- 09.circuit_score -----------------------------------------------------------------------------------------


def score(answer="gain(changed) / gain(clean)", gain="x[:, n + 1:].mean() - x[:, :n].mean()"):
    return f"""
def f(clean, changed):
    n = clean.shape[1] // 2
    def gain(x):
        return {gain}
    def first(x):
        return x[:, :n].mean()
    def second(x):
        return x[:, n + 1:].mean()
    return ({answer}).item()
"""


def rows_for_columns(clean, changed):
    n = clean.shape[1] // 2
    return ((changed[n + 1 :].mean() - changed[:n].mean()) / (clean[n + 1 :].mean() - clean[:n].mean())).item()


def score_in_place(clean, changed):
    clean.neg_()
    changed.neg_()
    return splicing.circuit_score(clean, changed)


def score_by_loops(clean, changed):
    gains = []
    for rows in (clean.double().tolist(), changed.double().tolist()):
        n = len(rows[0]) // 2
        first, second = [v for row in rows for v in row[:n]], [v for row in rows for v in row[n + 1 :]]
        gains.append(sum(second) / len(second) - sum(first) / len(first))
    return gains[1] / gains[0]


def score_in_numpy(clean, changed):
    """Sequences are equally long, so that means of their gains are means of everything."""
    def gain(x):
        first, second = np.split(x.double().numpy(), 2, axis=1)
        return (second[:, 1:].mean(axis=1) - first.mean(axis=1)).mean()
    return gain(changed) / gain(clean)


SCORE_EINOPS = """
def f(clean, changed):
    def loss_saved(x):
        first, second = einops.rearrange(x, "batch (copy pos) -> copy batch pos", copy=2)
        return first.mean() - second[:, 1:].mean()
    return loss_saved(changed) / loss_saved(clean)
"""

# --- 09.after_token -------------------------------------------------------------------------------------------


def after(answer):
    return f"def f(tokens, token):\n    return {answer}"


def zeros_are_tokens(tokens, token):
    before = torch.zeros_like(tokens)
    before[:, 1:] = tokens[:, :-1]
    return before == token


def of_the_tokens_dtype(tokens, token):
    out = torch.zeros_like(tokens)
    out[:, 1:] = tokens[:, :-1] == token
    return out


def first_is_true(tokens, token):
    out = torch.ones_like(tokens, dtype=torch.bool)
    out[:, 1:] = tokens[:, :-1] == token
    return out


def written_into_the_tokens(tokens, token):
    tokens[:, 1:] = tokens[:, :-1].clone()
    tokens[:, 0] = -1
    return tokens == token


def after_by_loops(tokens, token):
    return torch.tensor([[j > 0 and row[j - 1] == token for j in range(len(row))] for row in tokens.tolist()])


def after_by_roll(tokens, token):
    out = tokens.roll(1, dims=1) == token
    out[:, 0] = False
    return out


def after_in_numpy(tokens, token):
    return torch.from_numpy(np.insert(tokens.numpy()[:, :-1] == token, 0, False, axis=1))


def after_by_index(tokens, token):
    out = torch.zeros(tokens.shape, dtype=torch.bool)
    rows, positions = (tokens[:, :-1] == token).nonzero(as_tuple=True)
    out[rows, positions + 1] = True
    return out


# --- 09.same_token_auc ----------------------------------------------------------------------------------------


def grouped(weight="yes * no", own="auc(some, labels[here])", guard="not yes or not no", answer="total / weights",
            group="present"):
    return f"""
from course_utils.latents import auc

def f(latents, labels, present):
    total, weights = torch.zeros(latents.shape[1]), 0
    group = {group}
    for token in group.unique():
        here = group == token
        some, yes = latents[here], int(labels[here].sum())
        no = int(here.sum()) - yes
        if {guard}:
            continue
        weight = {weight}
        total += weight * {own}
        weights += weight
    return {answer}
"""


PAIRS = """
def f(latents, labels, present):
    yes, no = latents[labels][:, None], latents[~labels][None]
    same = (present[labels][:, None] == present[~labels])[..., None]
    return {answer}
"""


def pairs(answer="((((yes > no) + (yes == no) / 2) * same).sum((0, 1)) / same.sum())"):
    return PAIRS.format(answer=answer)


def own_pairs(latents, labels):
    yes, no = latents[labels][:, None], latents[~labels][None]
    return ((yes > no).float() + (yes == no).float() / 2).mean((0, 1))


def not_a_number(latents, labels, present):
    """The mean over no pairs is NaN, and NaN times 0 pairs still is."""
    total, number = 0, 0
    for token in present.unique():
        here = present == token
        pairs = int((labels & here).sum()) * int((~labels & here).sum())
        total, number = total + pairs * own_pairs(latents[here], labels[here]), number + pairs
    return total / number


def one_kind_is_a_half(latents, labels, present):
    each = []
    for token in present.unique():
        here = present == token
        both = labels[here].any() and not labels[here].all()
        each.append(auc(latents[here], labels[here]) if both else torch.full(latents.shape[1:], 0.5))
    return torch.stack(each).mean(0)


def means_taken_off(latents, labels, present):
    """Each token's mean is taken off its latents, and then all positions are compared."""
    centred = latents.clone()
    for token in present.unique():
        centred[present == token] -= latents[present == token].mean(0)
    return auc(centred, labels)


def sorted_in_place(latents, labels, present):
    out = splicing.same_token_auc(latents, labels, present)
    latents.copy_(latents.sort(dim=0).values)
    return out


def auc_pair_by_pair(latents, labels, present):
    won, number = np.zeros(latents.shape[1]), 0
    rows = list(zip(latents.double().numpy(), labels.tolist(), present.tolist()))
    for f, label, token in rows:
        for g, other, same in rows:
            if label and not other and token == same:
                won, number = won + (f > g) + 0.5 * (f == g), number + 1
    return torch.from_numpy(won / number)


def auc_with_a_caught_error(latents, labels, present):
    """Asks for every token, and goes on where there is nothing to tell apart."""
    each, number = [], []
    for token in sorted(set(present.tolist())):
        where = (present == token).nonzero()[:, 0]
        try:
            each.append(auc(latents[where], labels[where]))
        except ValueError:
            continue
        number.append(int(labels[where].sum()) * int((~labels[where]).sum()))
    weights = torch.tensor(number, dtype=torch.float64)
    return (torch.stack(each).double() * weights[:, None]).sum(0) / weights.sum()


def auc_by_mean_ranks(latents, labels, present):
    """As Mann and Whitney count: the labelled positions' ranks among those of their token, less what is least."""
    won, number = torch.zeros(latents.shape[1]), 0
    for token in present.unique().tolist():
        f, label = latents[present == token], labels[present == token]
        yes, no = int(label.sum()), int((~label).sum())
        ranks = (f[:, None] > f[None]).sum(1) + ((f[:, None] == f[None]).sum(1) + 1) / 2
        won, number = won + ranks[label].sum(0) - yes * (yes + 1) / 2, number + yes * no
    return won / number


SAME_EINSUM = """
def f(latents, labels, present):
    one_hot = torch.nn.functional.one_hot(present).float()
    pair = (one_hot[labels] @ one_hot[~labels].T).double()
    better = torch.sign(latents[labels][:, None] - latents[~labels][None]).double() / 2 + 0.5
    return einops.einsum(pair, better, "yes no, yes no latent -> latent") / pair.sum()
"""

# --- 09.remove_latents ----------------------------------------------------------------------------------------


def removed(answer):
    return f"""
def f(x, latents, W_dec, which):
    part = latents[..., which] @ W_dec[which]
    decoded = latents @ W_dec
    zeroed = latents.clone()
    zeroed[..., which] = 0
    return {answer}
"""


def removed_in_place(x, latents, W_dec, which):
    for i in which:
        x -= latents[..., i, None] * W_dec[i]
    return x


def zeroed_in_place(x, latents, W_dec, which):
    before = latents @ W_dec
    latents[..., which] = 0
    return x - before + latents @ W_dec


def rows_of_latents(x, latents, W_dec, which):
    """Takes positions in place of latents."""
    return x - latents[which] @ W_dec


def through_the_encoder(x, latents, W_dec, which):
    """As if the encoder were the decoder, transposed."""
    return x - (x @ W_dec[which].T).relu() @ W_dec[which]


def over_the_second_axis(x, latents, W_dec, which):
    return x - (latents[..., which, None] * W_dec[which]).sum(dim=1)


def removed_by_loops(x, latents, W_dec, which):
    for i in which:
        x = x - latents[..., i].unsqueeze(-1) * W_dec[i]
    return x


def removed_by_a_mask(x, latents, W_dec, which):
    mask = torch.zeros(latents.shape[-1])
    mask[which] = 1
    return x - (latents * mask) @ W_dec


def removed_in_numpy(x, latents, W_dec, which):
    x, latents, W_dec = (each.double().numpy() for each in (x, latents, W_dec))
    return torch.from_numpy(x - np.take(latents, which, axis=-1) @ np.take(W_dec, which, axis=0))


REMOVED_EINSUM = """
def f(x, latents, W_dec, which):
    return x - einops.einsum(latents[..., which], W_dec[which], "... some, some d -> ... d")
"""


ANSWERS = {
    "09.circuit_score": Answers(
        reject=[
            Wrong(score("(gain(changed) / gain(clean)).mean()", "x[:, n + 1:].mean(1) - x[:, :n].mean(1)"),
                  says="the mean of the sequences' ratios"),
            Wrong(score_in_place, says="changes its input"),
            Wrong(score("(gain(changed) / gain(clean)).abs()")),
            Wrong(score(gain="x[:, n + 1:].mean() / x[:, :n].mean()")),
            Wrong(score(gain="x[:, n:-1].mean() - x[:, :n].mean()")),
            Wrong(score(gain="x[:, n + 1:].mean().exp() - x[:, :n].mean().exp()")),
            Wrong(score("(gain(changed) / gain(clean)).median()", "x[:, n + 1:].mean(1) - x[:, :n].mean(1)")),
            Wrong(rows_for_columns, says="this is NaN"),
            Wrong(score(gain="x[:, 51:].mean() - x[:, :50].mean()"), says="this is NaN"),
        ],
        accept=[
            score(), score("(first(changed) - second(changed)) / (first(clean) - second(clean))"),
            score("1 - (gain(clean) - gain(changed)) / gain(clean)"), score_by_loops, score_in_numpy, SCORE_EINOPS,
        ],
    ),
    "09.after_token": Answers(
        reject=[
            Wrong(zeros_are_tokens, says="given the id 0"),
            Wrong(after("tokens[:, :-1] == token"), says="the first position is missing"),
            Wrong(written_into_the_tokens, says="changes its input"),
            Wrong(of_the_tokens_dtype, says="a bool dtype was expected"),
            Wrong(after("(tokens[:, :-1] == token).nonzero()")),
            Wrong(after("torch.nn.functional.pad(tokens[:, :-2] == token, (2, 0))")),
            Wrong(after("torch.nn.functional.pad(tokens[:, :-1] == token, (0, 1))")),
            Wrong(first_is_true),
        ],
        accept=[
            after("torch.nn.functional.pad(tokens[:, :-1] == token, (1, 0))"),
            after("torch.cat([torch.zeros(len(tokens), 1, dtype=torch.bool), tokens[:, :-1] == token], dim=1)"),
            after("torch.nn.functional.pad(tokens, (1, 0), value=-1)[:, :-1] == token"),
            after_by_loops, after_by_roll, after_by_index, after_in_numpy,
        ],
    ),
    "09.same_token_auc": Answers(
        reject=[
            Wrong(not_a_number, says="this is NaN"),
            Wrong(grouped(guard="False"), says="there is nothing to tell apart"),             # auc raises
            Wrong(pairs("((yes >= no) * same).sum((0, 1)) / same.sum()"), says="a tie counts ½"),
            Wrong(sorted_in_place, says="changes its input"),
            Wrong(one_kind_is_a_half),
            Wrong(means_taken_off),
            Wrong(grouped(group="present // 4")),
            Wrong(grouped(group="labels.long()", guard="False")),
            Wrong(grouped(own="auc((some > 0).float(), labels[here])")),
            Wrong(grouped(own="(some[labels[here]].mean(0) - some[~labels[here]].mean(0))")),
            Wrong(grouped(guard="no < 3 or not yes")),
            Wrong(grouped("(yes * no) ** 0.5")),
            Wrong(grouped(answer="total / len(group.unique())")),
            Wrong(grouped(answer="((total / weights) - 0.5).abs() + 0.5")),
            Wrong(grouped(answer="(total / weights).max()")),
        ],
        accept=[
            grouped(), grouped("yes * no / 7"), pairs(), auc_pair_by_pair, auc_with_a_caught_error, auc_by_mean_ranks,
            SAME_EINSUM,
        ],
    ),
    "09.remove_latents": Answers(
        reject=[
            Wrong(removed("zeroed @ W_dec"), says="the reconstruction's error is lost"),
            Wrong(removed_in_place, says="changes its input"),
            Wrong(zeroed_in_place, says="changes its input"),
            Wrong(removed("zeroed @ W_dec + 0.3")),                         # with a bias of the decoder
            Wrong(removed("x - part.sum(0)")),
            Wrong(removed("x - part.norm(dim=-1, keepdim=True)")),
            Wrong(removed("x - latents[..., which] @ torch.nn.functional.normalize(W_dec[which], dim=-1)")),
            Wrong(removed("zeroed")),
            Wrong(over_the_second_axis),
            Wrong(rows_of_latents),
            Wrong(through_the_encoder),
            Wrong(removed("x")),
        ],
        accept=[
            removed("x - part"), removed("x - decoded + zeroed @ W_dec"), removed("zeroed @ W_dec + (x - decoded)"),
            removed("x - (latents[..., which, None] * W_dec[which]).sum(-2)"), removed_by_loops, removed_by_a_mask,
            removed_in_numpy, REMOVED_EINSUM,
        ],
    ),
}

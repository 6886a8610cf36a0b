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

# --- 09.mixed_activations -------------------------------------------------------------------------------------


def mixture(answer, share="number // 2"):
    return f"""
def f(stories, repeats, number):
    half = {share}
    def some(x, n):
        return x[torch.randperm(len(x))[:n]]
    return {answer}
"""


def evenly_spaced(stories, repeats, number):
    """Every so many rows, of each kind as many."""
    def spaced(x, n):
        return x[torch.linspace(0, len(x) - 1, n).long()]
    return torch.cat([spaced(repeats, number // 3), spaced(stories, number - number // 3)])


def shuffled_in_numpy(stories, repeats, number):
    rng = np.random.default_rng(0)
    parts = [rng.permutation(each.numpy())[:size] for each, size in ((stories, number // 2),
                                                                     (repeats, number - number // 2))]
    return torch.from_numpy(rng.permutation(np.concatenate(parts)))


def shuffled_in_place(stories, repeats, number):
    stories[:] = stories[torch.randperm(len(stories))]
    repeats[:] = repeats[torch.randperm(len(repeats))]
    return torch.cat([stories[: number // 2], repeats[: number - number // 2]])


# --- 09.control -----------------------------------------------------------------------------------------------


def controlled(answer, seed=7):
    return f"""
def f(x, latent, direction):
    noise = torch.randn(direction.shape, generator=torch.Generator().manual_seed({seed}))
    across = noise - (noise @ direction) / (direction @ direction) * direction
    unit = across / across.norm()
    size = latent[..., None] * direction.norm()
    return {answer}
"""


def another_at_each_position(x, latent, direction):
    """As lesson 08's ε-random: a direction for each position, here at right angles to the latent's."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    unit = direction / direction.norm()
    noise = noise - torch.einsum("npd,d->np", noise, unit)[..., None] * unit
    distance = latent[..., None] * direction.norm()
    return x + distance * noise / noise.norm(dim=-1, keepdim=True)


def shuffled_direction(x, latent, direction):
    """The direction's own numbers, in another order: in part still along it."""
    order = torch.randperm(len(direction), generator=torch.Generator().manual_seed(0))
    return x - torch.einsum("np,d->npd", latent, direction[order])


def swapped_pairs(x, latent, direction):
    """Pairs of components change places, one of them with its sign flipped: a right angle without a random number."""
    pairs = direction.unflatten(0, (-1, 2))
    turned = torch.stack([pairs[:, 1], -pairs[:, 0]], dim=1).flatten()
    return x + torch.einsum("np,d->npd", latent, turned)


def control_in_place(x, latent, direction):
    x -= latent[..., None] * direction.flip(0)
    return x


# --- 09.effect_of ---------------------------------------------------------------------------------------------


def effect_with_context(model, hook_name, change, tokens, p_logits):
    """Hooks in a `with` block, the KL by hand."""
    layer, kept = hook_name.split(".")[1], {}

    def put(x, hook):
        new = change(x)
        new[:, 0] = x[:, 0]
        return new

    def read(pattern, hook):
        kept["pattern"] = pattern

    with model.hooks(fwd_hooks=[(hook_name, put), (f"blocks.{layer}.attn.hook_pattern", read)]):
        q = model(tokens).log_softmax(-1)
    p = p_logits.log_softmax(-1)
    return torch.einsum("nhqk->nqk", kept["pattern"]), (p.exp() * (p - q)).sum(-1)


def effect_row_by_row(model, hook_name, change, tokens, p_logits):
    """One text at a time, from a cache."""
    layer, attention, kls = int(hook_name.split(".")[1]), [], []
    for row, p in zip(tokens, p_logits):
        def put(x, hook):
            out = x.clone()
            out[:, 1:] = change(x)[:, 1:]
            return out
        with model.hooks(fwd_hooks=[(hook_name, put)]):
            logits, cache = model.run_with_cache(row[None])
        attention.append(sum(cache[f"blocks.{layer}.attn.hook_pattern"][0]))
        p, q = p.log_softmax(-1), logits[0].log_softmax(-1)
        kls.append(torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1))
    return [torch.stack(attention), torch.stack(kls)]


def effect_lost(model, hook_name, change, tokens, p_logits):
    """The attention that is lost, not what is there."""
    attention, kl = effect_row_by_row(model, hook_name, change, tokens, p_logits)
    return effect_row_by_row(model, hook_name, lambda x: x, tokens, p_logits)[0] - attention, kl


def effect_of_a_difference(model, hook_name, change, tokens, p_logits):
    """`change(x)` taken for what is to be added."""
    return effect_row_by_row(model, hook_name, lambda x: x + change(x), tokens, p_logits)


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
    if not weights:
        raise ValueError("no pairs")
    return {answer}
"""


PAIRS = """
def f(latents, labels, present):
    yes, no = latents[labels][:, None], latents[~labels][None]
    same = (present[labels][:, None] == present[~labels])[..., None]
    if not same.any():
        raise ValueError("no pairs")
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


def sorted_in_place(latents, labels, present):
    out = splicing.same_token_auc(latents, labels, present)
    latents.copy_(latents.sort(dim=0).values)
    return out


def nothing_to_divide_by(latents, labels, present):
    """Right, but without a word about no pairs: 0 / 0."""
    total, number = 0, 0
    for token in present.unique():
        here = present == token
        pairs = int((labels & here).sum()) * int((~labels & here).sum())
        if pairs:
            total, number = total + pairs * auc(latents[here], labels[here]), number + pairs
    return total / number


def half_without_pairs(latents, labels, present):
    try:
        return splicing.same_token_auc(latents, labels, present)
    except ValueError:
        return torch.full((latents.shape[1],), 0.5)


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
    if not number:
        raise ValueError("no token has a pair")
    weights = torch.tensor(number, dtype=torch.float64)
    return (torch.stack(each).double() * weights[:, None]).sum(0) / weights.sum()


ANSWERS = {
    "09.circuit_score": Answers(
        reject=[
            Wrong(score_in_place, says="changes its input"),
            Wrong(score("(gain(changed) / gain(clean)).abs()")),
            Wrong(rows_for_columns, says="this is NaN"),
        ],
        accept=[score_by_loops, score_in_numpy, SCORE_EINOPS],
    ),
    "09.mixed_activations": Answers(
        reject=[
            Wrong(mixture("torch.cat([stories, repeats])"), says="[number, d]"),
            Wrong(mixture("some(torch.cat([stories, repeats]), number).mean(0).expand(number, -1)"), says="made up"),
            Wrong(mixture("some(stories, number)"), says="hardly any of one kind"),
            Wrong(mixture("torch.cat([some(stories, number - half), some(repeats, half)])", "number // 10"),
                  says="hardly any of one kind"),
            Wrong(mixture("torch.cat([stories[torch.randint(len(stories), (number - half,))], some(repeats, half)])"),
                  says="some rows are there twice"),
            Wrong(mixture("torch.cat([stories[: number - half], repeats[:half]])"), says="the first rows"),
            Wrong(mixture("torch.cat([some(stories[: len(stories) // 2], number - half), some(repeats, half)])"),
                  says="the first rows"),
            Wrong(shuffled_in_place, says="changes its input"),
            Wrong(mixture("some(stories, half) + some(repeats, half)"), says="[number, d]"),
            Wrong(mixture("torch.cat([some(stories, half), some(repeats, half)])"), says="[number, d]"),   # 301 rows
        ],
        accept=[
            mixture("torch.cat([some(stories, number - half), some(repeats, half)])"),
            mixture("some(torch.cat([some(stories, number - half), some(repeats, half)]), number)", "number // 3"),
            evenly_spaced, shuffled_in_numpy,
        ],
    ),
    "09.same_token_auc": Answers(
        reject=[
            Wrong(not_a_number, says="this is NaN"),
            Wrong(grouped(guard="False"), says="there is nothing to tell apart"),             # auc raises
            Wrong(nothing_to_divide_by, says="raise a ValueError"),
            Wrong(half_without_pairs, says="raise a ValueError"),
            Wrong(sorted_in_place, says="changes its input"),
        ],
        accept=[grouped("yes * no / 7"), auc_with_a_caught_error],
    ),
    "09.control": Answers(
        reject=[
            Wrong(controlled("x"), says="nothing is changed"),
            Wrong(controlled("x - latent[..., None] * direction"), says="along the latent's own direction"),
            Wrong(controlled("x + latent[..., None] * direction"), says="along the latent's own direction"),
            Wrong(controlled("x - size * (unit + 2 * direction / direction.norm()) / 5 ** 0.5"),
                  says="along the latent's own direction"),
            Wrong(controlled("x - direction.norm() * unit"), says="where the latent is not active"),
            Wrong(controlled("x - latent[..., None] * unit"), says="the change is not as large"),
            Wrong(controlled("x - latent[..., None] * noise"), says="the change is not as large"),
            Wrong(controlled("x - latent.mean() * (latent > 0)[..., None] * direction.norm() * unit"),
                  says="the change is not as large"),
            Wrong(controlled("size * unit"), says="positions are changed where the latent is not active"),
            Wrong(controlled("(x - size * unit)[:, 1:]"), says="[n, pos, d]"),
            Wrong(controlled("(x - size * unit).double()"), says="keeps its dtype"),
            Wrong(control_in_place, says="changes its input"),
            Wrong(controlled("x - size * noise / noise.norm()"), says="a part of this lies along"),
            Wrong(shuffled_direction, says="a part of this lies along"),
        ],
        accept=[
            *(controlled("x - size * unit", seed) for seed in range(5)),        # none is the check's own direction
            controlled("x + size * unit"), another_at_each_position, swapped_pairs,
        ],
    ),
    "09.effect_of": Answers(
        reject=[Wrong(effect_lost), Wrong(effect_of_a_difference)],
        accept=[effect_with_context, effect_row_by_row],
    ),
}

"""Answers for lesson 11."""

import time

import torch

from answers import Answers, Wrong
from course_utils.latents import auc
from course_utils.metrics import kl_of_log_probs
from course_utils.probes import auc_by_text, hooked_logits, steering

# --- 11.difference_of_means -----------------------------------------------------------------------------------


def means_by_weights(x, labels):
    yes = labels.to(x)
    return yes @ x / yes.sum() - (1 - yes) @ x / (1 - yes).sum()


def means_in_a_loop(x, labels):
    rows = {True: [], False: []}
    for row, label in zip(x, labels.tolist()):
        rows[label].append(row)
    return sum(rows[True]) / len(rows[True]) - sum(rows[False]) / len(rows[False])


# --- 11.auc_by_text -------------------------------------------------------------------------------------------


def without_rows(values, labels, known):
    def of(rows):
        v, y, k = (each[rows] for each in (values, labels, known))
        return float(auc(v[k][:, None], y[k]))

    n = len(values)
    every = list(range(n))
    return torch.tensor([n * of(every) - (n - 1) * of([i for i in every if i != left]) for left in every])


def by_counting(values, labels, known):
    yes, no = values[labels & known], values[~labels & known]
    of_yes = torch.arange(len(values))[:, None].expand_as(labels)[labels & known]
    of_no = torch.arange(len(values))[:, None].expand_as(labels)[~labels & known]
    won = (yes[:, None] > no).double() + (yes[:, None] == no).double() / 2
    answers = []
    for text in range(len(values)):
        left = won[of_yes != text][:, of_no != text].mean()
        answers.append(len(values) * won.mean() - (len(values) - 1) * left)
    return torch.stack(answers).float()


def only_two_sided(values, labels, known):
    """Texts of one kind get ½."""
    share = (labels & known).sum(1) / known.sum(1)
    return torch.where((share > 0) & (share < 1), auc_by_text(values, labels, known), 0.5)


# --- 11.worse_examples ----------------------------------------------------------------------------------------

WORSE = """
import torch
def f(labels, texts, noise, rng):
    rows = {rows}
    seen = labels[rows]
    wrong = {wrong}
    return {answer}
"""


def worse(**changes):
    return WORSE.format(**{"rows": "torch.randperm(len(labels), generator=rng)[:texts]", "answer": "rows, seen ^ wrong",
                           "wrong": "torch.rand(seen.shape, generator=rng) < noise", **changes})


def by_bernoulli(labels, texts, noise, rng):
    rows = torch.rand(len(labels), generator=rng).topk(texts).indices
    wrong = torch.bernoulli(torch.full((texts, labels.shape[1]), noise), generator=rng).bool()
    return rows, torch.where(wrong, ~labels[rows], labels[rows])


def by_the_clock(labels, texts, noise, rng):
    return by_bernoulli(labels, texts, noise, torch.Generator().manual_seed(time.time_ns() % 2**31))


def of_positions(labels, texts, noise, rng):
    return by_bernoulli(labels.T, texts, noise, rng)


def in_place(labels, texts, noise, rng):
    labels ^= torch.rand(labels.shape, generator=rng) < noise
    rows = torch.randperm(len(labels), generator=rng)[:texts]
    return rows, labels[rows]


def exactly(labels, texts, noise, rng):
    """Exactly a share is wrong, so the labels are not independent."""
    rows = torch.randperm(len(labels), generator=rng)[:texts]
    flat = labels[rows].flatten()
    some = torch.randperm(len(flat), generator=rng)[:round(noise * len(flat))]
    flat[some] = ~flat[some]
    return rows, flat.reshape(texts, -1)


# --- 11.steered_logits ----------------------------------------------------------------------------------------


def one_text_at_a_time(model, tokens, hook_name, direction, strength, start):
    return torch.cat([hooked_logits(model, row[None], hook_name, steering(direction, amount.item(), start))
                      for row, amount in zip(tokens, strength)])


def with_a_mask(model, tokens, hook_name, direction, strength, start):
    here = (torch.arange(tokens.shape[1]) >= start).float()[None, :, None]
    push = strength[:, None, None] * here * torch.nn.functional.normalize(direction, dim=0)
    with model.hooks(fwd_hooks=[(hook_name, lambda x, hook: x + push)]):
        return model(tokens)[:, -1]


# --- 11.distance_from_truth -----------------------------------------------------------------------------------


def token_by_token(true_log_probs, logits, leave_out):
    found = []
    for truth, row in zip(true_log_probs.double(), logits.double()):
        p, q = truth.exp() * ~leave_out, row.exp() * ~leave_out
        p, q = p / p.sum(), q / q.sum()
        found.append(sum((a * (a / b).log() for a, b in zip(p, q) if a > 0), torch.zeros((), dtype=torch.float64)))
    return torch.stack(found).float()


def on_the_tokens_that_stay(true_log_probs, logits, leave_out):
    log_p, log_q = (each[:, ~leave_out].log_softmax(-1) for each in (true_log_probs, logits))
    return torch.nn.functional.kl_div(log_q, log_p.exp(), reduction="none").sum(-1)


def the_other_way(true_log_probs, logits, leave_out):
    log_p, log_q = (each[:, ~leave_out].log_softmax(-1) for each in (true_log_probs, logits))
    return kl_of_log_probs(log_q, log_p)


# --- 11.pure_latents ------------------------------------------------------------------------------------------


def latent_by_latent(active, labels, precision, at_least):
    found = []
    for column in active.T.tolist():
        hits = [label for on, label in zip(column, labels.tolist()) if on]
        found.append(len(hits) >= at_least and sum(hits) / len(hits) >= precision)
    return torch.tensor(found)


def by_a_product(active, labels, precision, at_least):
    times = active.float().sum(0)
    return (times >= at_least) & ((labels.float() @ active.float()) / times.clamp(min=1) >= precision)


ANSWERS = {
    "11.difference_of_means": Answers(
        reject=[
            Wrong(lambda x, labels: means_by_weights(x, labels)[None]),
            Wrong(lambda x, labels: x[labels].median(dim=0).values - x[~labels].median(dim=0).values),
        ],
        accept=[means_by_weights, means_in_a_loop],
    ),
    "11.auc_by_text": Answers(
        reject=[
            Wrong(lambda *args: auc_by_text(*args).mean(), says="one number for each text"),
            Wrong(only_two_sided, says="labelled all through"),
        ],
        accept=[without_rows, by_counting],
    ),
    "11.worse_examples": Answers(
        reject=[
            Wrong(worse(rows="torch.randint(len(labels), (texts,), generator=rng)"), says="seen twice"),
            Wrong(worse(rows="torch.arange(texts)"), says="which texts are seen does not depend on `rng`"),
            Wrong(worse(rows="torch.randperm(len(labels))[:texts]"), says="does not depend on `rng`"),
            Wrong(of_positions, says="positions are drawn"),
            Wrong(exactly, says="always the same number"),
            Wrong(worse(wrong="torch.rand(seen.shape) < noise")),
            Wrong(worse(wrong="(torch.rand(texts, 1, generator=rng) < noise).expand_as(seen)"), says="wrong together"),
            Wrong(worse(wrong="(torch.rand(seen.shape[1], generator=rng) < noise).expand_as(seen)")),
            Wrong(worse(wrong="(torch.rand(seen.shape, generator=rng) < 2 * noise) & seen"), says="both directions"),
            Wrong(worse(wrong="torch.rand(seen.shape, generator=rng) > noise")),
            Wrong(worse(answer="rows, labels[:texts] ^ wrong"), says="`labels[rows]`"),
            Wrong(worse(answer="seen ^ wrong"), says="two answers"),
            Wrong(worse(answer="rows, (seen ^ wrong).float()"), says="two answers"),
            Wrong(worse(answer="rows, seen"), says="a share `noise`"),
            Wrong(by_the_clock, says="do not come from `rng`"),
            Wrong(in_place, says="changes its input"),
        ],
        accept=[by_bernoulli, worse()],
    ),
    "11.steered_logits": Answers(
        reject=[Wrong(lambda model, tokens, *rest: model(tokens)[:, -1])],
        accept=[one_text_at_a_time, with_a_mask],
    ),
    "11.distance_from_truth": Answers(
        reject=[
            Wrong(the_other_way, says="the truth comes first"),
            Wrong(lambda *args: on_the_tokens_that_stay(*args).mean(), says="one for each text"),
            Wrong(lambda truth, logits, out: (truth[:, ~out].log_softmax(-1).exp() * (
                truth[:, ~out].log_softmax(-1) - logits[:, ~out].log_softmax(-1))).sum(-1), says="not a number"),
        ],
        accept=[token_by_token, on_the_tokens_that_stay],
    ),
    "11.pure_latents": Answers(
        reject=[
            Wrong(lambda active, labels, precision, at_least: by_a_product(active, labels, 1.0, at_least)),
            Wrong(lambda *args: by_a_product(*args).nonzero()[:, 0]),
        ],
        accept=[latent_by_latent, by_a_product],
    ),
}

"""Answers for lesson 07."""

import math

import numpy as np
import torch

from answers import Answers, Wrong
from course_utils import faithfulness

# --- 07.patched_logits: the hook is left open -----------------------------------------------------------------

PATCHED = """
def f(model, tokens, hook_name, reconstruct):
    def put(x, hook):
        {put}
    return {answer}
"""


def patched(put, answer="model.run_with_hooks(tokens, fwd_hooks=[(hook_name, put)])"):
    return PATCHED.format(put=put, answer=answer)


def hook_stays(model, tokens, hook_name, reconstruct):
    model.add_hook(hook_name, lambda x, hook: torch.cat([x[:, :1], reconstruct(x[:, 1:])], 1))
    return model(tokens)


def always_layer_0(model, tokens, hook_name, reconstruct):
    return with_a_context(model, tokens, "blocks.0.hook_resid_pre", reconstruct)


def with_a_context(model, tokens, hook_name, reconstruct):
    def put(x, hook):
        is_bos = (torch.arange(x.shape[1]) == 0)[None, :, None]
        return torch.where(is_bos, x, reconstruct(x))
    with torch.no_grad(), model.hooks(fwd_hooks=[(hook_name, put)]):
        return model(tokens)


def as_an_error_that_is_added(model, tokens, hook_name, reconstruct):
    def put(x, hook):
        error = reconstruct(x) - x
        error[:, 0] = 0
        return x + error
    model.add_hook(hook_name, put)
    try:
        return model(tokens)
    finally:
        model.reset_hooks()


def row_by_row(model, tokens, hook_name, reconstruct):
    def put(x, hook):
        return torch.stack([torch.stack([row[0], *(reconstruct(vector) for vector in row[1:])]) for row in x])
    return torch.cat([model.run_with_hooks(each[None], fwd_hooks=[(hook_name, put)]) for each in tokens])


# --- 07.delta_cross_entropy -----------------------------------------------------------------------------------

DELTA = """
def f(p_logits, q_logits, tokens):
    log_p, log_q = p_logits.log_softmax(-1), q_logits.log_softmax(-1)
    def at_tokens(log_probs, tokens):
        return log_probs[:, :tokens.shape[1]].gather(2, tokens.unsqueeze(-1)).squeeze(-1)
    def f(p_logits, q_logits, tokens):
        pass
    came = tokens[:, 1:]
    return {answer}
"""
BOTH = "at_tokens(log_p, came) - at_tokens(log_q, came)"


def delta(answer):
    return DELTA.format(answer=answer)


def delta_by_loops(p_logits, q_logits, tokens):
    batch, length = tokens.shape
    out = torch.empty(batch, length - 1, dtype=torch.float64)
    for i in range(batch):
        for j in range(length - 1):
            t = tokens[i, j + 1]
            p, q = p_logits[i, j].double().softmax(0)[t], q_logits[i, j].double().softmax(0)[t]
            out[i, j] = (p / q).log()
    return out


def delta_by_indexing(p_logits, q_logits, tokens):
    rows, positions = torch.arange(len(tokens))[:, None], torch.arange(tokens.shape[1] - 1)
    ratio = p_logits.log_softmax(-1) - q_logits.log_softmax(-1)
    return ratio[rows, positions, tokens[:, 1:]]


# --- 07.kl_divergence: the terms, from log-probabilities that are safe ----------------------------------------

KL = """
import torch.nn.functional as F

def f(p_logits, q_logits):
    p, q = p_logits.softmax(-1), q_logits.softmax(-1)
    log_p, log_q = p_logits.log_softmax(-1), q_logits.log_softmax(-1)
    return {answer}
"""


def kl(answer):
    return KL.format(answer=answer)


def as_in_saebench(p_logits, q_logits):
    p, q = torch.nn.functional.softmax(p_logits, dim=-1), torch.nn.functional.softmax(q_logits, dim=-1)
    return torch.sum(p * torch.log(p / q), dim=-1)


def log_of_softmax(p_logits, q_logits):
    p, q = p_logits.softmax(-1), q_logits.softmax(-1)
    return (p * (p.log() - q.log())).sum(-1)


def with_a_small_number(p_logits, q_logits):
    p, q = p_logits.softmax(-1), q_logits.softmax(-1)
    return (p * ((p + 1e-10).log() - (q + 1e-10).log())).sum(-1)


def by_distributions(p_logits, q_logits):
    p, q = (torch.distributions.Categorical(logits=logits) for logits in (p_logits, q_logits))
    return torch.distributions.kl_divergence(p, q)


def kl_by_loops_in_double(p_logits, q_logits):
    """−inf − (−inf) does not arise: tokens without probability are passed over."""
    out = []
    vocab = p_logits.shape[-1]
    for p_row, q_row in zip(p_logits.double().reshape(-1, vocab), q_logits.double().reshape(-1, vocab)):
        log_p, log_q = p_row - p_row.logsumexp(0), q_row - q_row.logsumexp(0)
        possible = [y for y in range(vocab) if log_p[y] > -torch.inf]
        out.append(sum(log_p[y].exp() * (log_p[y] - log_q[y]) for y in possible))
    return torch.stack(out).reshape(p_logits.shape[:-1])


KL_EINSUM = """
def f(p_logits, q_logits):
    log_p, log_q = p_logits.log_softmax(-1), q_logits.log_softmax(-1)
    ratio = (log_p - log_q).nan_to_num(nan=0.0)
    return einops.einsum(log_p.exp(), ratio, "... vocab, ... vocab -> ...").clamp(min=0)
"""

# --- 07.reconstruction_score ----------------------------------------------------------------------------------


def score(answer, condition="abs(ablated - clean) < 1e-6"):
    return f"""
def f(clean, patched, ablated):
    if {condition}:
        return float("nan")
    return {answer}
"""


RIGHT_SCORE = "(ablated - patched) / (ablated - clean)"


def divides_anyway(clean, patched, ablated):
    return (ablated - patched) / (ablated - clean)


def divides_tensors_anyway(clean, patched, ablated):
    clean, patched, ablated = torch.tensor([clean, patched, ablated])
    return (ablated - patched) / (ablated - clean)


def with_epsilon(clean, patched, ablated):
    return (ablated - patched) / (ablated - clean + 1e-9)


def zero_where_undefined(clean, patched, ablated):
    return 0.0 if abs(ablated - clean) < 1e-6 else (ablated - patched) / (ablated - clean)


def none_where_undefined(clean, patched, ablated):
    return None if abs(ablated - clean) < 1e-6 else (ablated - patched) / (ablated - clean)


def only_exact_zero(clean, patched, ablated):
    return math.nan if ablated == clean else (ablated - patched) / (ablated - clean)


def raises_where_undefined(clean, patched, ablated):
    assert abs(ablated - clean) >= 1e-6, "not defined"
    return (ablated - patched) / (ablated - clean)


def score_in_torch(clean, patched, ablated):
    clean, patched, ablated = (torch.tensor(loss, dtype=torch.float64) for loss in (clean, patched, ablated))
    cost = ablated - clean
    return torch.where(cost.abs() < 1e-6, torch.nan, (ablated - patched) / cost)


def score_in_numpy(clean, patched, ablated):
    cost = np.float64(ablated) - clean
    return np.nan if np.abs(cost) < 1e-6 else 1 - (patched - clean) / cost


def score_in_single_precision(clean, patched, ablated):
    clean, patched, ablated = torch.tensor([clean, patched, ablated])
    if (ablated - clean).abs() < 1e-6:
        return torch.tensor(float("nan"))
    return ((ablated - patched) / (ablated - clean)).item()


# --- 07.pooled_mean -------------------------------------------------------------------------------------------


def pooled(answer, before="if not any(m.any() for m in masks): raise ValueError('nothing is counted')"):
    return f"""
def f(values, masks):
    {before}
    pairs = list(zip(values, masks))
    return {answer}
"""


RIGHT_POOL = "torch.cat([v[m] for v, m in pairs]).mean().item()"


def weighted_means(values, masks):
    count = sum(mask.sum() for mask in masks)
    if not count:
        raise ValueError("nothing is counted")
    return float(sum(value[mask].mean() * mask.sum() for value, mask in zip(values, masks)) / count)


def pooled_by_running_sums(values, masks):
    total, count = torch.zeros((), dtype=torch.float64), 0
    for value, mask in zip(values, masks):
        total += torch.where(mask, value, 0.0).double().sum()
        count += int(mask.sum())
    if count == 0:
        raise ValueError("empty")
    return total / count


def pooled_by_nanmean(values, masks):
    chosen = torch.cat([value.masked_fill(~mask, torch.nan).flatten() for value, mask in zip(values, masks)])
    mean = chosen.nanmean()
    if mean.isnan():
        raise ValueError("nothing to average")
    return mean


# --- 07.bootstrap_interval ------------------------------------------------------------------------------------


def bootstrap(statistic="v[m].mean()", answer="means.quantile(0.025), means.quantile(0.975)"):
    return f"""
def f(values, mask, draws):
    means = []
    for row in draws:
        v, m = values[row], mask[row]
        means.append({statistic})
    means = torch.stack(means)
    return {answer}
"""


def bootstrap_by_counts(values, mask, draws):
    times = torch.stack([row.bincount(minlength=len(values)) for row in draws]).double()
    means = (times @ values.double().masked_fill(~mask, 0).sum(1)) / (times @ mask.double().sum(1))
    return tuple(torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)))


def bootstrap_at_once(values, mask, draws):
    v, m = values[draws], mask[draws]                       # [resample, n, pos]
    means = torch.einsum("rnp,rnp->r", v, m.float()) / m.sum(dim=(1, 2))
    low, high = np.percentile(means.numpy(), [2.5, 97.5])
    return low, high


def bootstrap_by_sorting(values, mask, draws):
    means = sorted(values[row][mask[row]].mean().item() for row in draws)
    return [means[int(0.025 * len(means))], means[int(0.975 * len(means))]]


# --- 07.paired_interval ---------------------------------------------------------------------------------------

PAIRED = """
def f(a, b, mask, draws):
    change = {change}
    means = torch.stack({means})
    return ({middle}).item(), ({low}).item(), means.quantile(0.975).item()
"""


def paired(change="a - b", means="[change[row][mask[row]].mean() for row in draws]", middle="change[mask].mean()",
           low="means.quantile(0.025)"):
    return PAIRED.format(change=change, means=means, middle=middle, low=low)


def paired_by_two_means(first, second, mask, draws):
    """The same sequences are drawn for both, and their means subtracted."""
    counts = mask.sum(1)[draws].sum(1)
    means = [(each * mask).double().sum(1)[draws].sum(1) / counts for each in (first, second)]
    low, high = (means[0] - means[1]).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    return first[mask].mean() - second[mask].mean(), low, high


# --- 07.known_cases -------------------------------------------------------------------------------------------

KNOWN = """
def f(x):
    m = x.mean(0)
    v = torch.ones_like(m) * ((x - m).pow(2).sum(1).mean() / len(m)).sqrt()
    return {answer}
"""


def cases_of(answer):
    return KNOWN.format(answer=answer)


def zeros_and_a_small_shift(x):
    """Zeros: all of the variance is missed, and the mean's square besides."""
    mean = x.mean(0, keepdim=True)
    spread = float(x.var(0, correction=0).sum())
    small = mean / mean.norm() * (spread / 4) ** 0.5
    return {"zeros": (torch.zeros_like(x), -float(mean.pow(2).sum()) / spread), "mean": (mean + 0 * x, 0.0),
            "a small shift": (x + small, 0.75), "nine tenths": (mean + 0.9 * (x - mean), 0.99)}


# --- 07.explained_variance: everything is left open but the names ---------------------------------------------


def variance(answer):
    return f"""
def f(x, x_hat):
    error, centred = x_hat - x, x - x.mean(dim=0)
    return ({answer}).item()
"""


def variance_from_moments(x, x_hat):
    spread = x.pow(2).sum(1).mean() - x.mean(0).pow(2).sum()
    return 1.0 - (x_hat - x).norm(dim=1).pow(2).mean() / spread


def variance_by_loops(x, x_hat):
    n, d = x.shape
    error = total = 0.0
    for j in range(d):
        mean = sum(x[i, j].item() for i in range(n)) / n
        for i in range(n):
            error += (x_hat[i, j] - x[i, j]).item() ** 2
            total += (x[i, j].item() - mean) ** 2
    return 1 - error / total


ANSWERS = {
    "07.patched_logits": Answers(
        reject=[Wrong(hook_stays, says="leaves a hook"), Wrong(always_layer_0)],
        accept=[as_an_error_that_is_added, row_by_row],
    ),
    "07.delta_cross_entropy": Answers(
        reject=[
            Wrong(delta("at_tokens(log_p.exp().log(), came) - at_tokens(log_q.exp().log(), came)"),
                  says="logits are far apart"),
            Wrong(delta("at_tokens((log_p.exp() + 1e-9).log(), came) - at_tokens((log_q.exp() + 1e-9).log(), came)")),
            Wrong(delta("at_tokens(log_p.clamp(min=-99), came) - at_tokens(log_q.clamp(min=-99), came)"),
                  says="a clamp"),
            Wrong(lambda p, q, tokens: delta_by_indexing(p, q, tokens) + 1e-3, says="was expected"),
        ],
        accept=[delta(BOTH), delta_by_loops],
    ),
    "07.kl_divergence": Answers(
        reject=[
            Wrong(kl("F.kl_div(log_q, log_p, reduction='none').sum(-1)"), says="NaNs everywhere"),
            Wrong(kl("F.kl_div(log_q, p, reduction='sum')"), says="this is one number"),
            Wrong(as_in_saebench, says="logits are far apart"),
            Wrong(log_of_softmax, says="logits are far apart"),
            Wrong(with_a_small_number, says="logits are far apart"),
            Wrong(by_distributions, says="logits are far apart"),
            Wrong(kl("(p * (log_p - q.clamp_min(1e-12).log())).sum(-1)"), says="logits are far apart"),
            Wrong(kl("(p * (log_p - log_q)).sum(-1)"), says="a token that both rule out"),
            Wrong(kl("F.kl_div(log_q, p, reduction='none').sum(-1)"), says="a token that both rule out"),
            Wrong(kl("F.kl_div(log_q, log_p, reduction='none', log_target=True).sum(-1)"),
                  says="both rule out"),
            Wrong(KL_EINSUM, says="q alone rules out"),                         # inf becomes 3e38
            Wrong(kl("torch.where((p * (log_p - log_q)).isfinite(), p * (log_p - log_q), 0).sum(-1)"),
                  says="q alone rules out"),
            Wrong(kl("torch.where(log_q > -torch.inf, p * (log_p - log_q), 0).sum(-1)"), says="q alone rules out"),
            Wrong(kl("(p * (log_p - log_q)).nan_to_num(0, 0, 0).sum(-1)"), says="q alone rules out"),
            Wrong(kl("(p * (log_p.clamp(min=-100) - log_q.clamp(min=-100))).sum(-1)"), says="a clamp"),
        ],
        accept=[kl_by_loops_in_double, KL_EINSUM.replace("nan=0.0", "nan=0.0, posinf=torch.inf")],
    ),
    "07.reconstruction_score": Answers(
        reject=[
            Wrong(score(RIGHT_SCORE, "ablated <= clean"), says="NaN where the ablation helps"),
            Wrong(divides_anyway, says="the score is not defined"),
            Wrong(divides_tensors_anyway, says="the score is not defined"),
            Wrong(with_epsilon, says="the score is not defined"),
            Wrong(zero_where_undefined, says="the score is not defined"),
            Wrong(none_where_undefined, says="the score is not defined"),
            Wrong(only_exact_zero, says="the score is not defined"),
            Wrong(score(RIGHT_SCORE, "abs(ablated - clean) < 1e-5"), says="NaN too early"),
            Wrong(score(RIGHT_SCORE, "abs(ablated - clean) < 5e-6")),
            Wrong(raises_where_undefined, says="AssertionError"),
        ],
        accept=[score_in_torch, score_in_numpy, score_in_single_precision],
    ),
    "07.pooled_mean": Answers(
        reject=[
            Wrong(pooled("(sum((v * m).sum() for v, m in pairs) / sum(m.sum() for m in masks)).item()"),
                  says="NaN times False"),
            Wrong(weighted_means, says="a batch in which nothing is counted"),
            Wrong(pooled(RIGHT_POOL, before="pass"), says="raise a ValueError"),
            Wrong(pooled("(sum(v[m].sum() for v, m in pairs) / sum(m.sum() for m in masks)).item()", "pass"),
                  says="raise a ValueError"),
            Wrong(pooled("sum(v[m].sum().item() for v, m in pairs) / int(sum(m.sum() for m in masks))", "pass"),
                  says="raise a ValueError"),
            Wrong(pooled(RIGHT_POOL, before="if not torch.cat(masks).any(): return 0.0"),
                  says="raise a ValueError"),
            Wrong(pooled(RIGHT_POOL, before="assert torch.cat(masks).any()"), says="raise a ValueError"),
            Wrong(pooled(RIGHT_POOL, before="if not all(m.any() for m in masks): raise ValueError"),
                  says="ValueError"),
        ],
        accept=[pooled(RIGHT_POOL), pooled_by_running_sums, pooled_by_nanmean],
    ),
    "07.bootstrap_interval": Answers(
        reject=[
            Wrong(bootstrap(answer="means.quantile(0.25), means.quantile(0.75)")),
            Wrong(bootstrap(answer="means.quantile(torch.tensor([0.025, 0.975]))"),
                  says="a tuple was expected"),
        ],
        accept=[
            bootstrap(), bootstrap_by_counts, bootstrap_at_once, bootstrap_by_sorting,
            faithfulness.bootstrap_interval,
        ],
    ),
    "07.paired_interval": Answers(
        reject=[Wrong(paired(low="means.quantile(0.05)"), says=None), Wrong(paired(change="(a - b) / a"))],
        accept=[paired_by_two_means, paired(means="[(change * mask)[row].sum() / mask[row].sum() for row in draws]")],
    ),
    "07.known_cases": Answers(
        reject=[
            Wrong(cases_of('{"identity": (x, 1.0), "mean": (m.expand_as(x), 0.0)}'), says="a wrong formula agrees"),
            Wrong(cases_of('{"mean": (m.expand_as(x), 0.0), "half": ((x + m) / 2, 0.75)}'), says="a wrong formula"),
            Wrong(cases_of('{"mean": (m.expand_as(x), 0.0), "shift": (x + v, 0.0)}').replace("0.0)}", "1.0)}"),
                  says="is not what you say"),
            Wrong(cases_of('{"mean": (m.expand_as(x), 0.0), "half": ((x + m) / 2, 0.5), "shift": (x + v, 0.0)}'),
                  says="is not what you say"),
            Wrong(cases_of('{"zeros": (0 * x, 0.0), "shift": (x + v, 0.0)}'), says="is not what you say"),
            Wrong(cases_of("{}"), says="a wrong formula agrees"),
            Wrong(cases_of("[m]")),
        ],
        accept=[cases_of('{"mean": (m.expand_as(x), 0.0), "half": ((x + m) / 2, 0.75), "shift": (x + v, 0.0)}'),
                cases_of('{"mean": (m.expand_as(x), 0), "far": (2 * x - m, 0.0), "off": (x - 2 * v, -3.0)}'),
                zeros_and_a_small_shift],
    ),
    "07.explained_variance": Answers(
        reject=[
            Wrong(variance("1 - error.norm() / centred.norm()")),
            Wrong(variance("1 - error.abs().sum() / centred.abs().sum()")),
            Wrong("def f(x, x_hat):\n    return 1 - (x_hat - x).pow(2).mean(0) / x.var(0)",
                  says="a number was expected"),
        ],
        accept=[variance_from_moments, variance_by_loops],
    ),
}

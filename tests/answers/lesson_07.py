"""Answers for lesson 07."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from answers import Answers, Wrong
from course_utils import faithfulness
from course_utils.passes import CleanRun, Site

# --- 07.patched_logits: the hook is left open -----------------------------------------------------------------

PATCHED = """
def f(model, tokens, hook_name, reconstruct):
    def put(x, hook):
        {put}
    return {answer}
"""


def patched(put, answer="model.run_with_hooks(tokens, fwd_hooks=[(hook_name, put)])"):
    return PATCHED.format(put=put, answer=answer)


ASSIGNED = "x = x.clone(); x[:, 1:] = reconstruct(x[:, 1:]); return x"
ONCE = "model.run_with_hooks(tokens, fwd_hooks=[(hook_name, put)])"


def every_layer_by_name(model, tokens, hook_name, reconstruct):
    """The filter takes every layer's hook of this name, those below as well."""
    point = hook_name.split(".", 2)[2]
    def put(x, hook):
        return torch.cat([x[:, :1], reconstruct(x[:, 1:])], dim=1)
    return model.run_with_hooks(tokens, fwd_hooks=[(lambda name: name.endswith(point), put)])


def straight_to_the_softmax(model, tokens, hook_name, reconstruct):
    """From the last layer to the softmax, without the final norm."""
    def put(x, hook):
        x[:, 1:] = reconstruct(x[:, 1:])
        return x
    with model.hooks(fwd_hooks=[(hook_name, put)]):
        _, cache = model.run_with_cache(tokens)
    return cache[f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"] @ model.W_U + getattr(model, "b_U", 0)


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


def from_the_cache(model, tokens, hook_name, reconstruct):
    """Two passes: the activation is taken from the first one."""
    _, cache = model.run_with_cache(tokens, names_filter=[hook_name])
    new = reconstruct(cache[hook_name].double()).float()
    new[:, 0] = cache[hook_name][:, 0]
    return model.run_with_hooks(tokens, fwd_hooks=[(hook_name, lambda x, hook: new)])


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


def continued_from_a_clean_run(model, tokens, hook_name, reconstruct):
    """As `evaluate_sae` does it: the layers below are not run again."""
    site = Site(model, hook_name)
    clean = CleanRun(model, tokens, site.recorded)
    x = site.read(clean)
    return clean.logits(site.continue_with(clean, torch.cat([x[:, :1], reconstruct(x[:, 1:])], dim=1)))


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


def q_is_not_normalised(p_logits, q_logits, tokens):
    came = tokens[:, 1:, None]
    return (p_logits.log_softmax(-1)[:, :-1].gather(2, came) - q_logits[:, :-1].gather(2, came))[..., 0]


def delta_by_loops(p_logits, q_logits, tokens):
    batch, length = tokens.shape
    out = torch.empty(batch, length - 1, dtype=torch.float64)
    for i in range(batch):
        for j in range(length - 1):
            t = tokens[i, j + 1]
            p, q = p_logits[i, j].double().softmax(0)[t], q_logits[i, j].double().softmax(0)[t]
            out[i, j] = (p / q).log()
    return out


def delta_by_cross_entropies(p_logits, q_logits, tokens):
    def losses(logits):
        return F.cross_entropy(logits[:, :-1].mT, tokens[:, 1:], reduction="none")
    return losses(q_logits) - losses(p_logits)


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


def kl_masked_first(p_logits, q_logits):
    possible = p_logits != -torch.inf
    log_p, log_q = (logits.log_softmax(-1).masked_fill(~possible, 0) for logits in (p_logits, q_logits))
    return F.kl_div(log_q, log_p, log_target=True, reduction="none").masked_fill(~possible, 0).sum(-1)


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


def pooled_by_loops(values, masks):
    total, count = 0.0, 0
    for value, mask in zip(values, masks):
        for v_row, m_row in zip(value.tolist(), mask.tolist()):
            for v, m in zip(v_row, m_row):
                if m:
                    total, count = total + v, count + 1
    if count == 0:
        raise ValueError("no position is counted")
    return total / count


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


def drawn_as_a_mask(values, mask, draws):
    """A sequence is in a resample or is not: how often is lost."""
    drawn = torch.zeros(len(draws), len(values)).scatter(1, draws, 1.0)
    means = drawn @ (values * mask).sum(1) / (drawn @ mask.sum(1).float())
    return means.quantile(0.025).item(), means.quantile(0.975).item()


def draws_again(values, mask, draws):
    """Does not use the draws it is given."""
    n = len(values)
    means = [values[i][mask[i]].mean() for i in torch.randint(0, n, (len(draws), n))]
    means = torch.stack(means)
    return means.quantile(0.025).item(), means.quantile(0.975).item()


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


def as_in_saebench_too(x, x_hat):
    """Its numbers: sums over components of a mean over all entries that has been squared."""
    total = x.pow(2).sum(dim=-1).mean() - ((x.pow(2).sum(dim=-1) / x.shape[1]).mean()).pow(2)
    return (1 - (x_hat - x).pow(2).sum(dim=-1).mean() / total).item()


def squared_correlation(x, x_hat):
    both = torch.stack([x.flatten(), x_hat.flatten()])
    return torch.corrcoef(both)[0, 1].nan_to_num() ** 2


def variance_in_double(x, x_hat):
    x, x_hat = x.double(), x_hat.double()
    fvu = (x - x_hat).square().mean() / x.var(dim=0, unbiased=False).mean()
    return 1 - fvu.item()


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


VARIANCE_EINOPS = """
def f(x, x_hat):
    mean = einops.reduce(x, "tokens d -> d", "mean")
    error = einops.einsum(x_hat - x, x_hat - x, "tokens d, tokens d ->")
    return 1 - error / einops.einsum(x - mean, x - mean, "tokens d, tokens d ->")
"""


ANSWERS = {
    "07.patched_logits": Answers(
        reject=[
            Wrong(patched("return torch.where((tokens == tokens[0, 0])[..., None], x, reconstruct(x))"),
                  says="every token that equals BOS is spared"),
            Wrong(straight_to_the_softmax, says="the final norm is left out"),
            Wrong(hook_stays, says="leaves a hook"),
            Wrong(every_layer_by_name),
            Wrong(always_layer_0),
            Wrong(patched("return torch.cat([0 * x[:, :1], reconstruct(x[:, 1:])], 1)")),
            Wrong(patched("return reconstruct(x[:, 1:])")),
            Wrong(patched("x = x.clone(); x[:, 2:] = reconstruct(x[:, 2:]); return x")),
            Wrong(patched("x = x.clone(); x[:, 1:-1] = reconstruct(x[:, 1:-1]); return x")),
            Wrong(patched("x = x.clone(); x[:, 1:] = reconstruct(x[:, :-1]); return x")),
            Wrong(patched("x = x.clone(); x[:, 1:] = reconstruct(reconstruct(x[:, 1:])); return x")),
            Wrong(patched(ASSIGNED, f"{ONCE}[:, 1:]"), says="has shape"),
        ],
        accept=[
            patched(ASSIGNED),
            patched("x[:, 1:] = reconstruct(x[:, 1:]); return x"),      # the activation is the run's own
            with_a_context, from_the_cache, as_an_error_that_is_added, row_by_row, continued_from_a_clean_run,
        ],
    ),
    "07.delta_cross_entropy": Answers(
        reject=[
            Wrong(delta("at_tokens(p_logits, came) - at_tokens(q_logits, came)"),
                  says="a difference of logits"),
            Wrong(q_is_not_normalised),
            Wrong(delta("at_tokens(log_p.exp().log(), came) - at_tokens(log_q.exp().log(), came)"),
                  says="logits are far apart"),
            Wrong(delta("at_tokens((log_p.exp() + 1e-9).log(), came) - at_tokens((log_q.exp() + 1e-9).log(), came)")),
            Wrong(delta("at_tokens(log_p.clamp(min=-99), came) - at_tokens(log_q.clamp(min=-99), came)"),
                  says="a clamp"),
            Wrong(lambda p, q, tokens: delta_by_indexing(p, q, tokens) + 1e-3, says="was expected"),
            Wrong(delta("(at_tokens(log_p, log_p.argmax(-1)) - at_tokens(log_q, log_q.argmax(-1)))[:, :-1]")),
            Wrong(delta(f"({BOTH})[:, 1:]"), says="has shape"),
            Wrong(delta(f"({BOTH}).T"), says="has shape"),
        ],
        accept=[delta(BOTH), delta_by_loops, delta_by_cross_entropies, delta_by_indexing],
    ),
    "07.kl_divergence": Answers(
        reject=[
            Wrong(kl("F.kl_div(log_p, q, reduction='none').sum(-1)"), says="the other direction"),
            Wrong(kl("F.kl_div(log_q, log_p, reduction='none').sum(-1)"), says="NaNs everywhere"),
            Wrong(kl("(p * (log_p - log_q)).sum(-1).mean()"), says="this is one number"),
            Wrong(kl("F.kl_div(log_q, p, reduction='sum')"), says="this is one number"),
            Wrong(kl("F.kl_div(log_q, p, reduction='batchmean')"), says="this is one number"),
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
            Wrong(kl("(p - q).abs().sum(-1)")),
            Wrong(kl("0 * p.sum(-1)")),
            Wrong(kl("(p * (log_p - log_q)).sum(-1).index_fill(-1, torch.tensor([0]), torch.nan)")),
            Wrong(kl("(p * (log_p - log_q).abs()).sum(-1)")),
            Wrong(kl("(p * (log_p - log_q)).nansum(0)")),
        ],
        accept=[
            faithfulness.kl_divergence, kl_by_loops_in_double, kl_masked_first,
            KL_EINSUM.replace("nan=0.0", "nan=0.0, posinf=torch.inf"),
            kl("(p * (log_p - log_q)).nansum(-1)"),
            kl("F.kl_div(log_q.double(), log_p.double(), reduction='none', log_target=True).nansum(-1)"),
            kl("torch.where(p == 0, 0.0, p * (log_p - log_q)).sum(-1)"),
        ],
    ),
    "07.reconstruction_score": Answers(
        reject=[
            Wrong(score("1 - patched / ablated"), says="divided by a loss"),
            Wrong(score(RIGHT_SCORE, "ablated - clean < 1e-6"), says="NaN where the ablation helps"),
            Wrong(score(RIGHT_SCORE, "ablated <= clean"), says="NaN where the ablation helps"),
            Wrong(divides_anyway, says="the score is not defined"),
            Wrong(divides_tensors_anyway, says="the score is not defined"),
            Wrong(with_epsilon, says="the score is not defined"),
            Wrong(zero_where_undefined, says="the score is not defined"),
            Wrong(none_where_undefined, says="the score is not defined"),
            Wrong(only_exact_zero, says="the score is not defined"),
            Wrong(score(f"max(0.0, {RIGHT_SCORE})"), says="clipped"),
            Wrong(score(f"min(1.0, {RIGHT_SCORE})"), says="clipped"),
            Wrong(score(RIGHT_SCORE, "abs(ablated - clean) < 0.1")),
            Wrong(score(RIGHT_SCORE, "abs(ablated - clean) < 1e-5"), says="NaN too early"),
            Wrong(score(RIGHT_SCORE, "abs(ablated - clean) < 5e-6")),
            Wrong(score(RIGHT_SCORE, "True")),
            Wrong(score("0.0")),
            Wrong(score("(ablated - patched) / (ablated + clean)")),
            Wrong(raises_where_undefined, says="AssertionError"),
        ],
        accept=[
            score(RIGHT_SCORE), score("1 - (patched - clean) / (ablated - clean)"), score_in_torch,
            score_in_numpy, score_in_single_precision, faithfulness.reconstruction_score,
        ],
    ),
    "07.pooled_mean": Answers(
        reject=[
            Wrong(pooled("torch.stack([r[c].mean() for v, m in pairs for r, c in zip(v, m)]).mean()"),
                  says="the sequences' means"),
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
            Wrong(pooled("torch.cat([v[m] for v, m in pairs]).median().item()")),
            Wrong(pooled("torch.cat([(v * m).sum(1) / m.sum(1) for v, m in pairs]).median().item()")),
        ],
        accept=[
            pooled(RIGHT_POOL), pooled_by_loops, pooled_by_running_sums, pooled_by_nanmean,
            pooled("torch.cat(values)[torch.cat(masks)].mean()"),
        ],
    ),
    "07.bootstrap_interval": Answers(
        reject=[
            Wrong(drawn_as_a_mask, says="here it counts once"),
            Wrong(bootstrap(answer="means.quantile(0.25), means.quantile(0.75)")),
            Wrong(bootstrap(answer="means.quantile(0.025), means.quantile(0.975), means.mean()"),
                  says="3 items"),
            Wrong(bootstrap(answer="means.quantile(torch.tensor([0.025, 0.975]))"),
                  says="a tuple was expected"),
            Wrong(bootstrap("v[m].median()")),
            Wrong(bootstrap("v[m].sum() / mask.sum()")),
            Wrong(bootstrap("(v * m).sum() / len(row)")),
            Wrong(bootstrap("((v * m).sum(0) / m.sum(0).clamp_min(1)).mean()")),
            Wrong(draws_again),
        ],
        accept=[
            bootstrap(), bootstrap("(v * m).sum() / m.sum()"), bootstrap_by_counts, bootstrap_at_once,
            bootstrap_by_sorting, faithfulness.bootstrap_interval,
        ],
    ),
    "07.paired_interval": Answers(
        reject=[
            Wrong(paired(low="means.quantile(0.05)"), says=None),
            Wrong(paired(change="(a - b) / a")),
            Wrong(paired(change="(a - b).pow(2)")),
            Wrong(paired(middle="change.mean()")),
            Wrong(paired(middle="means.mean()")),
            Wrong(paired(means="[change[row].mean() for row in draws]")),
            Wrong(paired(means="[change[mask][row].mean() for row in draws]")),
        ],
        accept=[paired(), paired_by_two_means, paired(change="-(b - a)"),
                paired(means="[(change * mask)[row].sum() / mask[row].sum() for row in draws]")],
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
            Wrong(as_in_saebench_too, says="SAEBench's denominator"),
            Wrong(squared_correlation),
            Wrong(variance("(1 - error.pow(2).sum() / centred.pow(2).sum()).clamp(0, 1)")),
            Wrong(variance("1 - error.norm() / centred.norm()")),
            Wrong(variance("1 - error.abs().sum() / centred.abs().sum()")),
            Wrong(variance("torch.cosine_similarity(x, x_hat).mean()")),
            Wrong("def f(x, x_hat):\n    return 1 - (x_hat - x).pow(2).mean(0) / x.var(0)",
                  says="a number was expected"),
        ],
        accept=[
            variance("1 - error.pow(2).sum() / centred.pow(2).sum()"),
            variance("1 - error.pow(2).mean() / x.var(0, unbiased=False).mean()"),
            variance("1 - (error.var(0, correction=0) + error.mean(0) ** 2).mean() / centred.pow(2).mean()"),
            variance_in_double, variance_from_moments, variance_by_loops, VARIANCE_EINOPS,
            faithfulness.explained_variance,
        ],
    ),
}

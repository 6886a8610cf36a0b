"""Answers for lesson 08."""

import numpy as np
import torch
import torch.nn.functional as F

from answers import Answers, Wrong

# --- 08.expected_delta_ce -------------------------------------------------------------------------------------


def expected(answer):
    return f"""
import torch.nn.functional as F

def f(true_log_probs, p_logits, q_logits):
    log_P, P = true_log_probs, true_log_probs.exp()
    log_p, log_q = p_logits.log_softmax(-1), q_logits.log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    def kl(log_a, log_b):
        return (log_a.exp() * (log_a - log_b)).sum(-1)
    def f(true_log_probs, p_logits, q_logits):
        pass
    return {answer}
"""


def log_of_softmax(true_log_probs, p_logits, q_logits):
    return (true_log_probs.exp() * (p_logits.softmax(-1).log() - q_logits.softmax(-1).log())).sum(-1)


def with_a_small_number(true_log_probs, p_logits, q_logits):
    p, q = p_logits.softmax(-1) + 1e-10, q_logits.softmax(-1) + 1e-10
    return (true_log_probs.exp() * (p / q).log()).sum(-1)


def three_axes_only(true_log_probs, p_logits, q_logits):
    return (true_log_probs.exp() * (p_logits.log_softmax(2) - q_logits.log_softmax(2))).sum(2)


def expected_by_cross_entropies(true_log_probs, p_logits, q_logits):
    """Cross-entropy with probabilities for targets, [n, vocab]."""
    vocab = p_logits.shape[-1]
    P = true_log_probs.exp().reshape(-1, vocab)
    clean, patched = (F.cross_entropy(x.reshape(-1, vocab), P, reduction="none") for x in (p_logits, q_logits))
    return (patched - clean).reshape(p_logits.shape[:-1])


def expected_in_numpy(true_log_probs, p_logits, q_logits):
    P, p, q = (x.double().numpy() for x in (true_log_probs, p_logits, q_logits))
    def log_softmax(x):
        x = x - x.max(-1, keepdims=True)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))
    return torch.from_numpy(np.asarray((np.exp(P) * (log_softmax(p) - log_softmax(q))).sum(-1)))

# --- 08.counter_example ---------------------------------------------------------------------------------------


def example(P, p, q):
    return f"def f():\n    return {P}, {p}, {q}"


def as_numpy():
    P, p = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    return P, p, 0.5 * (P + p)


def as_one_tensor():
    logits = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 2.0], [0.5, 0.0, 0.0, 0.5]], requires_grad=True)
    return logits.softmax(-1)


def found_by_search():
    rng = torch.Generator().manual_seed(0)
    while True:
        P, p, q = torch.rand(3, 3, generator=rng).clamp_min(0.05)
        P, p, q = P / P.sum(), p / p.sum(), q / q.sum()
        if (P * (p / q).log()).sum() < -0.02:
            return tuple(P.tolist()), tuple(p.tolist()), tuple(q.tolist())


def in_double():
    P = torch.tensor([0.9, 0.1], dtype=torch.float64)
    return [P, torch.full((2,), 0.5), P.float()]


# --- 08.tokens_needed -----------------------------------------------------------------------------------------


def needed(answer, logarithm="log_softmax(-1)"):
    return f"""
import math

def f(p_logits, q_logits, precision=0.1):
    log_p, log_q = (logits.{logarithm} for logits in (p_logits, q_logits))
    p, q, r = log_p.exp(), log_q.exp(), log_p - log_q
    kls = (p * r).sum(-1)
    variances = (p * (r - kls[:, None]) ** 2).sum(-1)
    kl, variance = kls.mean().item(), variances.mean().item()
    return {answer}
"""


RIGHT_NEEDED = "variance / (precision * kl) ** 2"


def needed_by_moments(p_logits, q_logits, precision=0.1):
    """E[r²] − E[r]², as a tensor."""
    p, r = p_logits.softmax(-1), p_logits.log_softmax(-1) - q_logits.log_softmax(-1)
    kl, square = torch.einsum("nv,nv->n", p, r), torch.einsum("nv,nv->n", p, r**2)
    return (square - kl**2).mean() / precision**2 / kl.mean() ** 2


def needed_in_numpy(p_logits, q_logits, precision=0.1):
    p, q = (x.double().softmax(-1).numpy() for x in (p_logits, q_logits))
    r = np.log(q) - np.log(p)                                           # the other sign: it is squared
    mean = (p * r).sum(1, keepdims=True)
    standard_deviation = np.sqrt((p * (r - mean) ** 2).sum(1).mean())
    return (standard_deviation / (precision * mean.mean())) ** 2


# --- 08.score_interval ----------------------------------------------------------------------------------------


def scores(statistic="(z.mean() - s.mean()) / (z.mean() - c.mean())", rows="row",
           answer="found.quantile(0.025).item(), found.quantile(0.975).item()"):
    return f"""
def f(ce_clean, ce_sae, ce_zero, draws):
    found = []
    for row in draws:
        rows = {rows}
        c, s, z = ce_clean[rows], ce_sae[rows], ce_zero[rows]
        found.append({statistic})
    found = torch.stack(found)
    return {answer}
"""


def own_draws(rows):
    """Each loss has its own draws: rows(draws, which)."""
    return f"""
def f(ce_clean, ce_sae, ce_zero, draws):
    n = len(ce_clean)
    rng = torch.Generator().manual_seed(3)
    clean, sae, zero = (losses[{rows}].mean(1) for which, losses in enumerate((ce_clean, ce_sae, ce_zero)))
    score = (zero - sae) / (zero - clean)
    return score.quantile(0.025).item(), score.quantile(0.975).item()
"""


def interval_by_counts(ce_clean, ce_sae, ce_zero, draws):
    times = torch.stack([row.bincount(minlength=len(ce_clean)) for row in draws]).double()
    score = 1 - times @ (ce_sae - ce_clean).double() / (times @ (ce_zero - ce_clean).double())
    return tuple(torch.quantile(score, torch.tensor([0.025, 0.975], dtype=torch.float64)))


def interval_in_numpy(ce_clean, ce_sae, ce_zero, draws):
    clean, sae, zero = (loss.double().numpy()[draws.numpy()].sum(axis=1) for loss in (ce_clean, ce_sae, ce_zero))
    return np.percentile((zero - sae) / (zero - clean), [2.5, 97.5]).tolist()


# --- 08.texts_needed ------------------------------------------------------------------------------------------


def texts(answer):
    return f"""
import math

def f(a, b, smallest):
    d, n = a - b, len(a)
    return {answer}
"""


RIGHT_TEXTS = "(2 * d.std() / smallest).item() ** 2"


def texts_by_loops(a, b, smallest):
    differences = [x - y for x, y in zip(a.double().tolist(), b.double().tolist())]
    mean = sum(differences) / len(differences)
    variance = sum((d - mean) ** 2 for d in differences) / (len(differences) - 1)
    return variance / (smallest / 2) ** 2


def texts_by_covariance(a, b, smallest):
    """Var(a) + Var(b) − 2 Cov(a, b), as a tensor."""
    c = torch.cov(torch.stack([a, b]).double())
    return 4 * (c[0, 0] + c[1, 1] - 2 * c[0, 1]) / smallest**2


def texts_in_numpy(a, b, smallest):
    return 4 * np.var(b.double().numpy() - a.double().numpy(), ddof=1) / smallest**2


# --- 08.epsilon_random ----------------------------------------------------------------------------------------


def epsilon(answer):
    return f"""
import torch.nn.functional as F

def f(x, x_hat, noise):
    error = x_hat - x
    distance = error.norm(dim=-1, keepdim=True)
    unit = noise / noise.norm(dim=-1, keepdim=True)
    return {answer}
"""


def epsilon_with_own_noise(x, x_hat, noise):
    noise = torch.randn_like(x)
    return x + (x_hat - x).norm(dim=-1, keepdim=True) * noise / noise.norm(dim=-1, keepdim=True)


def epsilon_in_place(x, x_hat, noise):
    noise /= noise.norm(dim=-1, keepdim=True)
    noise *= (x_hat - x).norm(dim=-1, keepdim=True)
    return noise + x


def epsilon_in_numpy(x, x_hat, noise):
    x, x_hat, noise = (v.double().numpy() for v in (x, x_hat, noise))
    scale = np.linalg.norm(x - x_hat, axis=-1, keepdims=True) / np.linalg.norm(noise, axis=-1, keepdims=True)
    return torch.from_numpy(x + scale * noise)

# --- 08.theta_random ------------------------------------------------------------------------------------------


def theta(answer):
    return f"""
def f(x, x_hat, noise):
    def length(v):
        return v.norm(dim=-1, keepdim=True)
    def part(v, of):
        return (v * of).sum(-1, keepdim=True) * of / length(of) ** 2
    def f(x, x_hat, noise):
        pass
    along = part(x_hat, x)
    rest, across = x_hat - along, noise - part(noise, x)
    unit = across / length(across)
    right = along + length(rest) * unit
    return {answer}
"""


def theta_by_loops(x, x_hat, noise):
    d, out = x.shape[-1], []
    for a, b, g in zip(*(v.double().reshape(-1, d) for v in (x, x_hat, noise))):
        basis, _ = torch.linalg.qr(torch.stack([a, g], dim=1))          # a's direction, and g's across it
        basis = basis * torch.sign(torch.stack([basis[:, 0] @ a, basis[:, 1] @ g]))
        first = basis[:, 0] @ b
        out.append(first * basis[:, 0] + (b @ b - first**2).sqrt() * basis[:, 1])
    return torch.stack(out).reshape(x.shape)


THETA_EINSUM = """
def f(x, x_hat, noise):
    unit = torch.nn.functional.normalize(x, dim=-1)
    along, off = (einops.einsum(v, unit, unit, "... d, ... d, ... e -> ... e") for v in (x_hat, noise))
    across = torch.nn.functional.normalize(noise - off, dim=-1)
    length = (x_hat.square().sum(-1) - along.square().sum(-1)).sqrt()
    return along + length[..., None] * across
"""

# --- 08.covariance_root ---------------------------------------------------------------------------------------


def root(answer, variances="variances.clamp_min(0)"):
    return f"""
import math

def f(covariance):
    variances, directions = torch.linalg.eigh(covariance)
    variances = {variances}
    d = len(covariance)
    return {answer}
"""


RIGHT_ROOT = "directions * variances.sqrt() @ directions.T"


def lower_cholesky(covariance):
    return torch.linalg.cholesky(covariance)


def upper_cholesky(covariance):
    return torch.linalg.cholesky(covariance, upper=True)


def cholesky_where_possible(covariance):
    """Upper Cholesky of the matrix with a little added to its diagonal."""
    return torch.linalg.cholesky(covariance + 1e-5 * torch.eye(len(covariance))).mT


def by_svd(covariance):
    _, variances, directions = torch.linalg.svd(covariance)
    return variances.sqrt()[:, None] * directions


def root_in_numpy(covariance):
    variances, directions = np.linalg.eigh(covariance.double().numpy())
    return torch.from_numpy(np.diag(np.sqrt(np.maximum(variances, 0))) @ directions.T)


def only_the_large(covariance):
    """Directions without variance are left out, and so are the rows."""
    variances, directions = torch.linalg.eigh(covariance)
    kept = variances > 1e-3
    return variances[kept].sqrt()[:, None] * directions.T[kept]


def complex_where_negative(covariance):
    variances, directions = torch.linalg.eigh(covariance)
    if (variances < 0).any():
        variances, directions = variances.to(torch.complex128), directions.to(torch.complex128)
    return variances.sqrt()[:, None] * directions.T


def always_in_integers(covariance):
    return covariance.round().long()


ANSWERS = {
    "08.expected_delta_ce": Answers(
        reject=[
            Wrong(expected("(P * (log_p - log_q)).sum()"), says="this is one number"),
            Wrong(expected("kl(log_P, log_q) - kl(log_P, log_p)"), says="where a token is impossible"),
            Wrong(expected("F.kl_div(log_q, log_P, reduction='none', log_target=True).sum(-1)"
                           " - F.kl_div(log_p, log_P, reduction='none', log_target=True).sum(-1)"),
                  says="where a token is impossible"),
            Wrong(expected("(P * (p / q).log()).sum(-1)"), says="logits are far apart"),
            Wrong(log_of_softmax, says="logits are far apart"),
            Wrong(with_a_small_number, says="logits are far apart"),
            Wrong(three_axes_only),
            Wrong(expected("(P * (log_p - log_q)).sum(0)")),
        ],
        accept=[expected_by_cross_entropies, expected_in_numpy],
    ),
    "08.counter_example": Answers(
        reject=[
            Wrong(example([0.7, 0.3], [0.6, 0.3], [0.7, 0.3]), says="must sum to 1"),
            Wrong(example([70, 30], [60, 40], [70, 30]), says="must sum to 1"),
            Wrong(example([1.0, 0.0], [0.6, 0.4], [0.9, 0.1]), says="must be above 0"),
            Wrong(example([0.7, 0.3], [0.6, 0.4], [1.2, -0.2]), says="must be above 0"),
            Wrong(example("torch.tensor([0.7, 0.3]).log()", "torch.tensor([0.6, 0.4]).log()",
                          "torch.tensor([0.7, 0.3]).log()"), says="are these logarithms?"),
            Wrong(example([0.7, 0.3], [0.6, 0.3, 0.1], [0.7, 0.3]), says="over the same tokens"),
            Wrong(example([1.0], [1.0], [1.0]), says="over the same tokens"),
            Wrong(example("list()", "list()", "list()"), says="over the same tokens"),
            Wrong(example(0.7, 0.6, 0.7), says="over the same tokens"),
            Wrong(example([[0.7, 0.3]], [[0.6, 0.4]], [[0.7, 0.3]]), says="over the same tokens"),
            Wrong("def f():\n    return [0.6, 0.4], [0.7, 0.3]", says="return three distributions"),
            Wrong("def f():\n    return 0.7", says="return three distributions"),
            Wrong(example([0.6, 0.4], [0.6, 0.4], [0.7, 0.3]), says="P equals p"),
            Wrong(example([0.7, 0.3], [0.6, 0.4], [0.6, 0.4]), says="q equals p"),
            Wrong(example([0.6, 0.4], [0.7, 0.3], [0.7, 0.3]), says="the order is P, p, q"),    # (p, P, q)
            Wrong(example([0.7, 0.3], [0.7, 0.3], [0.6, 0.4]), says="P equals p"),              # (P, q, p)
            Wrong(example([0.7, 0.3], [0.6, 0.4], [0.5, 0.5]), says="q is no nearer to P"),
            Wrong(example([0.8, 0.2], [0.7, 0.3], [0.5, 0.5]), says="are p and q swapped?"),
            Wrong(example([0.5, 0.3, 0.2], [0.3, 0.3, 0.4], [0.1, 0.1, 0.8]), says="from p towards P"),
            Wrong(example([0.7, 0.3], [0.65, 0.35], [0.7, 0.3]), says="but not by enough"),
            Wrong(example([0.7, 0.3], [0.6, 0.4], [0.61, 0.39]), says="but not by enough"),
            Wrong(example([0.7, 0.3], [0.6, 0.4], [float("nan")] * 2).replace("nan", "float('nan')")),
            Wrong(example(["'a'"] * 2, [0.6, 0.4], [0.7, 0.3])),
            Wrong("def f():\n    return {'P': [0.7, 0.3], 'p': [0.6, 0.4], 'q': [0.7, 0.3]}", says="has no order"),
            Wrong(example({0.7, 0.3}, {0.6, 0.4}, {0.2, 0.8}), says="has no order"),
            Wrong("def f():\n    raise ValueError('there is none')", says="ValueError"),
        ],
        accept=[
            example([0.7, 0.3], [0.6, 0.4], [0.7, 0.3]), example([0.2, 0.8], [0.6, 0.4], [0.4, 0.6]),
            example((0.98, 0.01, 0.01), (0.2, 0.4, 0.4), (0.3, 0.3, 0.4)), as_numpy, as_one_tensor, found_by_search,
            in_double, example([0.333, 0.333, 0.334], [0.1, 0.1, 0.8], [1 / 3] * 3),
            "def f():\n    P, p = [0.5, 0.5], [0.9, 0.1]\n    return [P, p, P]",
        ],
    ),
    "08.tokens_needed": Answers(
        reject=[
            Wrong(needed(f"int({RIGHT_NEEDED})"), says="rounded"),
            Wrong(needed(RIGHT_NEEDED, "softmax(-1).log()"), says="where logits are far apart"),
            Wrong(needed(RIGHT_NEEDED, "softmax(-1).add(1e-10).log()"), says="where logits are far apart"),
            Wrong(needed("variances / (precision * kls) ** 2"), says="a number was expected"),
        ],
        accept=[needed(RIGHT_NEEDED), needed_by_moments, needed_in_numpy],
    ),
    "08.texts_needed": Answers(
        reject=[
            Wrong(texts(f"round({RIGHT_TEXTS})"), says="rounded"),
            Wrong(texts("(1.96 * d.std() / smallest).item() ** 2")),
        ],
        accept=[texts("4 * d.var() / smallest ** 2"), texts_by_loops, texts_by_covariance, texts_in_numpy],
    ),
    "08.score_interval": Answers(
        reject=[
            Wrong(own_draws("draws[[*range(which, len(draws)), *range(which)]]"), says="far too wide"),
            Wrong(scores(rows="torch.randint(0, len(ce_clean), row.shape)")),
            Wrong(scores(answer="found.quantile(0.025), found.quantile(0.975), found.mean()"), says="3 items"),
            Wrong(scores(answer="found.quantile(torch.tensor([0.025, 0.5, 0.975]))"), says="a tuple was expected"),
        ],
        accept=[
            scores("(z - s).sum() / (z - c).sum()"), scores(answer="found.quantile(torch.tensor([0.025, 0.975]))"),
            interval_by_counts, interval_in_numpy,
        ],
    ),
    "08.epsilon_random": Answers(
        reject=[Wrong(epsilon_in_place, says="changes its input"), Wrong(epsilon_with_own_noise)],
        accept=[epsilon("x + distance * unit"), epsilon_in_numpy],
    ),
    "08.theta_random": Answers(
        reject=[
            Wrong(theta("along + length(rest) * torch.randn_like(x)")),
            Wrong(theta("along + rest.norm() * unit")),
        ],
        accept=[theta_by_loops, THETA_EINSUM],
    ),
    "08.covariance_root": Answers(
        reject=[
            Wrong(lower_cholesky, says="needs R.T @ R"),
            Wrong(root("covariance.sqrt()"), says="the root of each entry"),
            Wrong(root(RIGHT_ROOT, variances="variances"), says="slightly below 0"),
            Wrong(root("variances.sqrt()[:, None] * directions.T", variances="variances"), says="slightly below 0"),
            Wrong(upper_cholesky, says="a Cholesky factor"),
            Wrong(lambda covariance: lower_cholesky(covariance).T, says="a Cholesky factor"),
            Wrong(root("directions @ torch.diag((variances.log() / 2).exp()) @ directions.T", variances="variances"),
                  says="slightly below 0"),
            Wrong(root(RIGHT_ROOT, variances="variances.clamp_min(0.1)")),
            Wrong(root(RIGHT_ROOT, variances="variances.clamp_min(0)").replace("eigh(covariance)",
                                                                               "eigh(covariance.float())"),
                  says="noise of that dtype"),
            Wrong(only_the_large, says="the covariance's shape"),
            Wrong(complex_where_negative, says="R must always be real"),
            Wrong(always_in_integers, says="dtype"),
            Wrong(root(f"({RIGHT_ROOT}).numpy()"), says="a torch.Tensor was expected"),
            Wrong(root(f"({RIGHT_ROOT}).to(torch.complex64)"), says="dtype"),
            Wrong(root("(directions * variances.sqrt()).to(torch.complex64)"), says="dtype"),
        ],
        accept=[
            root("variances.sqrt()[:, None] * directions.T"),
            root("variances.sqrt().diag() @ directions.T"),
            root(f"-({RIGHT_ROOT})"),
            root("torch.linalg.qr(torch.ones(d, d).to(variances) + torch.eye(d).to(variances))[0] "
                 f"@ ({RIGHT_ROOT})"),
            cholesky_where_possible,
            by_svd,
            root_in_numpy,
        ],
    ),
}

"""Answers for lesson 06."""

import math

import torch
import torch.nn.functional as F

from answers import Answers, Wrong
from course_utils.latents import linear_direction

# --- 06.encode ------------------------------------------------------------------------------------------------

ENCODE = """
def f(x, W_enc, b_enc, b_dec):
    return {answer}
"""


def encoded(answer):
    return ENCODE.format(answer=answer)


def encoded_in_place(x, W_enc, b_enc, b_dec):
    x -= b_dec
    return torch.relu(x @ W_enc + b_enc)


def encoded_without_gradient(x, W_enc, b_enc, b_dec):
    with torch.no_grad():
        return F.relu((x - b_dec) @ W_enc + b_enc)


def encode_latent_by_latent(x, W_enc, b_enc, b_dec):
    columns = []
    for i in range(W_enc.shape[1]):
        pre = ((x - b_dec).double() * W_enc[:, i].double()).sum(-1) + b_enc[i]
        columns.append(torch.clamp(pre, min=0))
    return torch.stack(columns, dim=-1)


def encode_with_linear(x, W_enc, b_enc, b_dec):
    """b_dec is taken into the bias: (x − b_dec) W + b = x W + (b − b_dec W)."""
    pre = F.linear(x, W_enc.T, b_enc - b_dec @ W_enc)
    return torch.where(pre > 0, pre, 0.0)


# --- 06.sae_loss ----------------------------------------------------------------------------------------------

LOSS = """
def f(x, x_hat, latents, sparsity):
    e, f = x_hat - x, latents
    return {error} + sparsity * {penalty}
"""


def loss(error="e.pow(2).sum(1).mean()", penalty="f.abs().sum(1).mean()"):
    return LOSS.format(error=error, penalty=penalty)


def loss_error_changed_in_place(x, x_hat, latents, sparsity):
    x -= x_hat
    return x.pow(2).sum(1).mean() + sparsity * latents.abs().sum(1).mean()


def penalty_has_no_gradient(x, x_hat, latents, sparsity):
    return token_by_token(x, x_hat, latents.detach(), sparsity)


def token_by_token(x, x_hat, latents, sparsity):
    total = torch.zeros((), dtype=torch.float64)
    for token in range(len(x)):
        error = x_hat[token].double() - x[token].double()
        total = total + error @ error + sparsity * sum(value.abs() for value in latents[token])
    return total / len(x)


# --- 06.reconstruct_rescaled ----------------------------------------------------------------------------------

RESCALED = """
def f(x, autoencoder):
    n, d = x.shape
    norm = x.norm(dim=1, keepdim=True)
    scale = {scale}
    return {answer}
"""


def rescaled(answer="autoencoder(x / scale) * scale", scale="norm / d**0.5"):
    return RESCALED.format(answer=answer, scale=scale)


def rescaled_in_place(x, autoencoder):
    scale = x.norm(dim=1, keepdim=True) / x.shape[1] ** 0.5
    x /= scale
    return autoencoder(x) * scale


def rescaled_by_root_mean_square(x, autoencoder):
    """The norm is √d_in where the root mean square is 1; with a small number against a division by zero."""
    rms = (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    return rms * autoencoder(x / rms)


# --- 06.top_k -------------------------------------------------------------------------------------------------

TOP = """
def f(pre, k):
    values, indices = {found}
    return torch.zeros_like(pre).scatter(-1, indices, {kept})
"""


def top(found="pre.topk(k, dim=-1)", kept="values.relu()"):
    return TOP.format(found=found, kept=kept)


def one_too_many(pre, k):
    """Of sorted entries, k + 1 from the end has the index −k − 1."""
    return pre.relu() * (pre >= pre.sort(dim=-1).values[..., -k - 1].unsqueeze(-1))


def top_values_alone(pre, k):
    return pre.topk(k, dim=-1).values.relu()


def sorted_row(pre, k):
    values = pre.relu().sort(dim=-1, descending=True).values
    values[..., k:] = 0
    return values


def top_k_in_place(pre, k):
    rest = pre.argsort(dim=-1, descending=True)[..., k:]
    return pre.scatter_(-1, rest, 0.0).relu()


def top_k_row_by_row(pre, k):
    rows = pre.reshape(-1, pre.shape[-1])
    out = torch.zeros_like(rows, dtype=torch.float64)
    for i, row in enumerate(rows.tolist()):
        for j in sorted(range(len(row)), key=row.__getitem__)[-k:]:
            out[i, j] = max(row[j], 0.0)
    return out.reshape(pre.shape)


def top_k_by_ranks(pre, k):
    ranks = pre.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return torch.where((ranks < k) & (pre > 0), pre, 0.0)


# --- 06.topk_step -------------------------------------------------------------------------------------------

STEP = """
def f(sae, optimizer, x):
    latents = sae.encode(x)
    x_hat = {x_hat}
    loss = {loss}
    {update}
    {after}
    return {answer}
"""
UPDATE = "optimizer.zero_grad(); loss.backward(); optimizer.step()"
NORM_ONE = "sae.W_dec.data = sae.W_dec.data / sae.W_dec.data.norm(dim=1, keepdim=True)"


def step(x_hat="sae.decode(latents)", loss="(x_hat - x).pow(2).sum(1).mean()", update=UPDATE, after=NORM_ONE,
         answer="loss.item()"):
    return STEP.format(x_hat=x_hat, loss=loss, update=update, after=after, answer=answer)


def step_by_hand(sae, optimizer, x):
    """The gradients are asked for, and put where Adam looks for them."""
    weights = list(sae.parameters())
    pre = F.linear(x - sae.b_dec, sae.W_enc.T, sae.b_enc)
    ranks = pre.argsort(dim=1, descending=True).argsort(dim=1)
    x_hat = torch.where((ranks < sae.k) & (pre > 0), pre, 0.0) @ sae.W_dec + sae.b_dec
    loss = ((x - x_hat) ** 2).sum() / len(x)
    for weight, gradient in zip(weights, torch.autograd.grad(loss, weights)):
        weight.grad = gradient
    optimizer.step()
    with torch.no_grad():
        sae.W_dec.copy_(F.normalize(sae.W_dec, dim=1))
    return loss


# --- 06.gated -------------------------------------------------------------------------------------------------

GATED = """
def f(pre, b_gate, b_mag, r_mag):
    gate = {gate}
    magnitude = (pre * r_mag.exp() + b_mag).relu()
    return {answer}
"""


def behind_gate(gate="(pre + b_gate > 0).float()", answer="gate * magnitude"):
    return GATED.format(gate=gate, answer=answer)


def gated_in_place(pre, b_gate, b_mag, r_mag):
    gate = pre + b_gate > 0
    pre *= r_mag.exp()
    return gate * (pre + b_mag).relu()


def gated_latent_by_latent(pre, b_gate, b_mag, r_mag):
    out = torch.zeros_like(pre, dtype=torch.float64)
    for i in range(pre.shape[-1]):
        magnitude = math.exp(r_mag[i]) * pre[..., i] + b_mag[i]
        on = (pre[..., i] > -b_gate[i]) & (magnitude > 0)
        out[..., i][on] = magnitude[on].double()
    return out


# --- 06.dead_latents ------------------------------------------------------------------------------------------


def dead(answer):
    return f"\ndef f(latents, mask):\n    return {answer}\n"


def dead_in_place(latents, mask):
    latents[~mask] = 0
    return (latents == 0).all(dim=0).all(dim=0)


# --- 06.top_activations ---------------------------------------------------------------------------------------

STRONGEST = """
def f(latent, k):
    largest, positions = latent.max(dim=1)
    order = {order}
    {then}
    return torch.stack([order, positions[order]], dim=1)
"""


def strongest(order="largest.argsort(descending=True)", then="order = order[largest[order] > 0][:k]"):
    return STRONGEST.format(order=order, then=then)


FLAT = """
def f(latent, k):
    values, places = latent.flatten().topk(k)
    places = places[values > 0]
    return {answer}
"""


def flat(answer):
    return FLAT.format(answer=answer)


def one_in_each_position(latent, k):
    """The maximum along the wrong axis: at most one at each position."""
    largest, rows = latent.max(dim=0)
    order = largest.argsort(descending=True)
    order = order[largest[order] > 0][:k]
    return torch.stack([rows[order], order], dim=1)


def strongest_with_a_set(latent, k):
    """All places from the largest value down; a sequence that has been taken is passed over."""
    found, taken = [], set()
    for place in latent.flatten().argsort(descending=True).tolist():
        row, position = divmod(place, latent.shape[1])
        if row not in taken and latent[row, position] > 0 and len(found) < k:
            taken.add(row)
            found.append((row, position))
    return torch.tensor(found, dtype=torch.int32).reshape(-1, 2)


# --- 06.auc ---------------------------------------------------------------------------------------------------

PAIRS = """
def f(latents, labels):
    yes, no = latents[labels], latents[~labels]
    won, tied = yes[:, None] > no[None], yes[:, None] == no[None]
    return {answer}
"""


def pairs(answer="(won + tied / 2).mean(dim=(0, 1))"):
    return PAIRS.format(answer=answer)


def auc_in_place(latents, labels):
    """The means are taken off first: no rank changes, but the latents do."""
    latents -= latents.mean(dim=0)
    return area_under_the_curve(latents, labels)


def area_under_the_curve(latents, labels):
    """By trapezia: a tie is a slanted piece of the curve."""
    found = []
    for column in latents.T:
        thresholds = column.unique().flip(0)
        hits = torch.stack([(column[labels] >= t).double().mean() for t in thresholds])
        false_alarms = torch.stack([(column[~labels] >= t).double().mean() for t in thresholds])
        zero = torch.zeros(1, dtype=torch.float64)
        found.append(torch.trapezoid(torch.cat([zero, hits]), torch.cat([zero, false_alarms])))
    return torch.stack(found)


def by_mean_ranks(latents, labels):
    found = []
    for column in latents.T:
        _, which, counts = column.unique(return_inverse=True, return_counts=True)
        ranks = (counts.cumsum(0) - (counts - 1) / 2)[which]
        yes, no = int(labels.sum()), int((~labels).sum())
        found.append((ranks[labels].sum() - yes * (yes + 1) / 2) / (yes * no))
    return torch.stack(found)


# --- 06.luck --------------------------------------------------------------------------------------------------

LUCK = """
from course_utils.latents import auc as fast_auc

def f(latent, labels, known, draws, rng):
    n, pos = labels.shape
    found = []
    for _ in range(draws):
        {order}
        asked = {asked}
        auc = fast_auc(latent[asked][:, None], ({now})[asked])
        found.append({then})
    return {answer}
"""


def luck_of(order="order = torch.randperm(n, generator=rng)", asked="known[order]", now="labels[order]", then="auc",
            answer="torch.cat(found)"):
    if "order" not in asked + now:
        order = "pass"
    return LUCK.format(order=order, asked=asked, now=now, then=then, answer=answer)


def luck_text_by_text(latent, labels, known, draws, rng):
    """The latent goes to another text's labels; ranks count the pairs."""
    found = torch.empty(draws, dtype=torch.float64)
    for draw in range(draws):
        values, yes = [], []
        for own, other in enumerate(torch.randperm(len(labels), generator=rng).tolist()):
            values += latent[own, known[other]].tolist()
            yes += labels[other, known[other]].tolist()
        found[draw] = by_mean_ranks(torch.tensor(values)[:, None], torch.tensor(yes))[0]
    return found


# --- 06.sparse_probe ------------------------------------------------------------------------------------------

PROBE = """
from course_utils.latents import linear_direction

def f(latents, labels, k):
    apart = latents[labels].mean(0) - latents[~labels].mean(0)
    chosen = {chosen}
    probe = torch.zeros(latents.shape[1])
    probe[chosen] = {weights}
    return {answer}
"""


def probed(chosen="apart.abs().topk(k).indices", weights="linear_direction(latents[:, chosen], labels)",
           answer="probe"):
    return PROBE.format(chosen=chosen, weights=weights, answer=answer)


def largest_of_a_full_regression(latents, labels, k):
    weights = linear_direction(latents, labels)
    return torch.where(weights.abs() >= weights.abs().topk(k).values[-1], weights, 0)


def largest_by_spread(latents, labels, k):
    """The same, each weight times its latent's standard deviation: then units do not count."""
    chosen = (linear_direction(latents, labels) * latents.std(0)).abs().topk(k).indices
    return torch.zeros(latents.shape[1]).index_put((chosen,), linear_direction(latents[:, chosen], labels))


def probe_by_auc(latents, labels, k):
    """Chosen by AUC, at every twentieth position; weighed by least squares with a constant."""
    chosen = (area_under_the_curve(latents[::20], labels[::20]) - 0.5).abs().topk(k).indices
    x = torch.cat([latents[:, chosen], torch.ones(len(latents), 1)], dim=1)
    weights = torch.linalg.lstsq(x, labels.float()[:, None]).solution[:-1, 0]
    return torch.zeros(latents.shape[1]).index_put((chosen,), weights)


ANSWERS = {
    "06.encode": Answers(
        reject=[
            Wrong(encoded_in_place, says="it changes its input"),
            Wrong(encoded_without_gradient, says="lost its gradient"),
            Wrong(encoded("((x - b_dec.detach()) @ W_enc + b_enc).relu()"), says="lost its gradient"),
            Wrong(encoded("((x - b_dec) @ W_enc + b_enc.data).relu()"), says="lost its gradient"),
            Wrong(encoded("((x - b_dec) @ W_enc.detach() + b_enc).relu()"), says="lost its gradient"),
            Wrong(encoded("((x - b_dec) @ W_enc + b_enc).relu().float()"), says="leave the dtype as it is"),
            Wrong(encoded("((x - b_dec).float() @ W_enc.float() + b_enc.float()).relu()"), says="leave the dtype"),
        ],
        accept=[encode_latent_by_latent, encode_with_linear],
    ),
    "06.sae_loss": Answers(
        reject=[
            Wrong(loss_error_changed_in_place, says="it changes its input"),
            Wrong(penalty_has_no_gradient, says="lost its gradient"),
            Wrong(loss("e.detach().pow(2).sum(1).mean()"), says="lost its gradient"),
        ],
        accept=[loss(), token_by_token],
    ),
    "06.reconstruct_rescaled": Answers(
        reject=[
            Wrong(rescaled_in_place, says="it changes its input"),
            Wrong(rescaled("autoencoder(x / scale) / scale")),
        ],
        accept=[rescaled(), rescaled_by_root_mean_square],
    ),
    "06.top_k": Answers(
        reject=[
            Wrong(top_values_alone, says="the k values alone"),
            Wrong(top_k_in_place, says="it changes its input"),
            Wrong(one_too_many),
            Wrong(sorted_row),
            Wrong(top().replace("torch.zeros_like(pre)", "torch.zeros(pre.shape)"), says="leave the dtype as it is"),
            Wrong(lambda pre, k: top_k_by_ranks(pre, k).float(), says="leave the dtype as it is"),
            Wrong(top(kept="values.abs()")),
            Wrong("def f(pre, k):\n    return pre.relu()"),
        ],
        accept=[top_k_row_by_row, top_k_by_ranks],
    ),
    "06.topk_step": Answers(
        reject=[
            Wrong(step(after="sae.W_dec.data /= sae.W_dec.data.norm()")),
            Wrong(step(loss="(x_hat - x).pow(2).sum()")),
        ],
        accept=[step(), step_by_hand, step(after=f"with torch.no_grad(): {NORM_ONE}", answer="loss")],
    ),
    "06.gated": Answers(
        reject=[
            Wrong(gated_in_place, says="it changes its input"),
            Wrong(behind_gate("(pre * r_mag.exp() + b_gate > 0).float()")),
        ],
        accept=[behind_gate(), gated_latent_by_latent],
    ),
    "06.dead_latents": Answers(
        reject=[
            Wrong(dead("latents[mask].std(dim=0) == 0")),                   # the same value everywhere
            Wrong(dead("torch.isclose(latents[mask], torch.zeros(1)).all(0)")),
            Wrong(dead("((latents == 0) | ~mask[..., None]).all(1)"), says="an answer for each sequence"),
            Wrong(dead_in_place, says="it changes its input"),
            Wrong(dead("latents[mask].abs().mean(0) < 1e-3")),
            Wrong(dead("(latents[mask].round(decimals=2) == 0).all(0)")),
        ],
        accept=[dead("(latents[mask] == 0).all(dim=0)"), dead("latents[mask].amax(dim=0) <= 0")],
    ),
    "06.top_activations": Answers(
        reject=[
            Wrong(strongest(order="largest.topk(k).indices", then="pass")),     # k may be larger than n
            Wrong(strongest(then="pass")),                                  # more than k, and inactive ones
            Wrong(flat("places"), says="one number for each place"),
            Wrong(one_in_each_position),
            Wrong(strongest(then="order = order[largest[order] > 0][:k - 1]")),
            Wrong(strongest().replace("positions[order]]", "positions[order] + 1]")),
            Wrong(strongest().replace("positions[order]]", "positions[:len(order)]]")),
            Wrong(strongest(then="order = order[largest[order] > 0][:k]; latent[order] = 0"),
                  says="it changes its input"),
        ],
        accept=[strongest(), strongest_with_a_set],
    ),
    "06.luck": Answers(
        reject=[
            Wrong(luck_of("order = torch.arange(n)"), says="the latent's AUCs for its own text"),
            Wrong(luck_of(now="labels.flatten()[torch.randperm(n * pos)].reshape(n, pos)", asked="known"),
                  says="shuffled position by position"),
            Wrong(luck_of(now="labels[:, torch.randperm(pos)]"), says="the latent's AUCs for its own text"),
            Wrong(luck_of(asked="known"), says="but not its `known`"),
            Wrong(luck_of("order = torch.randperm(n)"), says="do not come from `rng`"),
            Wrong(luck_of(then="(auc - 0.5).abs() + 0.5"), says="below ½ is flipped"),
            Wrong(luck_of(answer="torch.cat(found).mean()"), says="one AUC for each draw"),
            Wrong(luck_of(answer="found"), says="one AUC for each draw"),
            Wrong(luck_of("order = torch.randint(0, n, (1,), generator=rng).expand(n)")),   # one text's for all
            Wrong(luck_of(asked="torch.ones_like(known)")),
        ],
        accept=[luck_of(), luck_text_by_text,
                luck_of("order = (torch.arange(n) + int(torch.randint(1, n, (1,), generator=rng))) % n"),
                luck_of("order = torch.randint(0, n, (n,), generator=rng)")],
    ),
    "06.sparse_probe": Answers(
        reject=[
            Wrong(probed(chosen="torch.arange(latents.shape[1])"), says="more than k"),
            Wrong(probed(chosen="apart.abs().topk(k + 1).indices"), says="more than k"),
            Wrong(probed(chosen="latents.mean(0).topk(k).indices"), says="differ most"),
            Wrong(probed(chosen="latents[labels].mean(0).topk(k).indices"), says="differ most"),
            Wrong(probed(chosen="apart.topk(k).indices"), says="differ most"),          # upwards only
            Wrong(probed(weights="1.0"), says="differ most"),                           # without a sign
            Wrong(largest_of_a_full_regression, says="faint ones get large weights"),
            Wrong(probed(chosen="linear_direction(latents, labels).abs().topk(k).indices"), says="faint ones"),
            Wrong(probed(weights="latents[:, chosen].mean(0)")),
            Wrong(probed(answer="probe[chosen]")),
        ],
        accept=[probed(), probed(weights="apart[chosen] / latents[:, chosen].var(0)"), probe_by_auc, largest_by_spread],
    ),
    "06.auc": Answers(
        reject=[
            Wrong(auc_in_place, says="it changes its input"),
            Wrong(pairs("won.sum((0, 1)) / (~tied).sum((0, 1))")),              # tied pairs are left out
        ],
        accept=[pairs(), pairs("(won.double() + 0.5 * tied).mean((0, 1))")],
    ),
}

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


ENCODE_EINOPS = encoded(
    "torch.relu(einops.einsum(x - b_dec, W_enc, '... d_in, d_in d_sae -> ... d_sae') + b_enc)")


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


def as_the_evaluator_did(x, x_hat, latents, sparsity):
    """`mean` over the batch, and then divided by its size once more."""
    batch_size = x.shape[0]
    mse_loss = (x_hat - x).pow(2).sum(dim=-1).mean() / batch_size
    return mse_loss + sparsity * latents.abs().sum(dim=-1).mean()


def loss_error_changed_in_place(x, x_hat, latents, sparsity):
    x -= x_hat
    return x.pow(2).sum(1).mean() + sparsity * latents.abs().sum(1).mean()


def loss_as_a_number(x, x_hat, latents, sparsity):
    return token_by_token(x, x_hat, latents, sparsity).item()


def loss_for_each_token(x, x_hat, latents, sparsity):
    return (x_hat - x).pow(2).sum(1) + sparsity * latents.abs().sum(1)


def penalty_has_no_gradient(x, x_hat, latents, sparsity):
    return token_by_token(x, x_hat, latents.detach(), sparsity)


def token_by_token(x, x_hat, latents, sparsity):
    total = torch.zeros((), dtype=torch.float64)
    for token in range(len(x)):
        error = x_hat[token].double() - x[token].double()
        total = total + error @ error + sparsity * sum(value.abs() for value in latents[token])
    return total / len(x)


LOSS_EINOPS = """
def f(x, x_hat, latents, sparsity):
    error = einops.einsum(x - x_hat, x - x_hat, "token d, token d -> token")
    penalty = einops.reduce(latents.abs(), "token d_sae -> token", "sum")
    return einops.reduce(error + sparsity * penalty, "token -> ", "mean")
"""


def loss_from_the_library(x, x_hat, latents, sparsity):
    error = F.mse_loss(x_hat, x, reduction="none").sum(-1).mean()
    return error + sparsity * latents.norm(p=1, dim=-1).mean()


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


def stretched(x, autoencoder):
    norm = x.norm(dim=-1, keepdim=True)
    x_hat = autoencoder(x * x.shape[-1] ** 0.5 / norm)
    return x_hat / x_hat.norm(dim=-1, keepdim=True) * norm


def rescaled_in_place(x, autoencoder):
    scale = x.norm(dim=1, keepdim=True) / x.shape[1] ** 0.5
    x /= scale
    return autoencoder(x) * scale


def rescaled_one_by_one(x, autoencoder):
    out = torch.empty_like(x)
    for i, vector in enumerate(x):
        factor = math.sqrt(len(vector)) / float(vector.double().norm())
        out[i] = autoencoder((factor * vector)[None])[0] / factor
    return out


def rescaled_by_root_mean_square(x, autoencoder):
    """The norm is √d_in where the root mean square is 1; with a small number against a division by zero."""
    rms = (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    return rms * autoencoder(x / rms)


RESCALED_EINOPS = """
def f(x, autoencoder):
    d_in = x.shape[-1]
    norm = einops.einsum(x, x, "token d, token d -> token").sqrt()
    y = autoencoder(torch.nn.functional.normalize(x, dim=-1) * d_in**0.5)
    return einops.einsum(y, norm, "token d, token -> token d") / d_in**0.5
"""


# --- 06.top_k -------------------------------------------------------------------------------------------------

TOP = """
def f(pre, k):
    values, indices = {found}
    return torch.zeros_like(pre).scatter(-1, indices, {kept})
"""


def top(found="pre.topk(k, dim=-1)", kept="values.relu()"):
    return TOP.format(found=found, kept=kept)


def batch_top_k(pre, k):
    """BatchTopK, another kind: k for each row on average."""
    rows = pre.numel() // pre.shape[-1]
    threshold = pre.flatten().topk(k * rows).values[-1]
    return torch.where(pre >= threshold, pre, 0.0).relu()


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


TOP_K_EINOPS = """
def f(pre, k):
    rows, shape = einops.pack([pre], "* d_sae")
    mask = torch.zeros_like(rows, dtype=torch.bool)
    mask[torch.arange(len(rows))[:, None], rows.topk(k, dim=1).indices] = True
    return einops.unpack((rows * mask).clamp(min=0), shape, "* d_sae")[0]
"""


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


GATED_EINOPS = """
def f(pre, b_gate, b_mag, r_mag):
    scaled = einops.einsum(pre, torch.exp(r_mag), "... latent, latent -> ... latent")
    return torch.relu(scaled + b_mag).masked_fill(pre + b_gate <= 0, 0)
"""


# --- 06.dead_latents ------------------------------------------------------------------------------------------


def dead(answer):
    return f"\ndef f(latents, mask):\n    return {answer}\n"


def dead_in_place(latents, mask):
    latents[~mask] = 0
    return (latents == 0).all(dim=0).all(dim=0)


def dead_one_by_one(latents, mask):
    n, pos, d_sae = latents.shape
    found = [True] * d_sae
    for row in range(n):
        for position in range(pos):
            if mask[row, position]:
                for i in latents[row, position].nonzero().flatten().tolist():
                    found[i] = False
    return torch.tensor(found)


DEAD_EINOPS = dead('einops.reduce((latents.abs() * mask[..., None]).double(), "n pos d -> d", "max") == 0')


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


def values_instead(latent, k):
    largest = latent.amax(dim=1)
    return largest[largest > 0].sort(descending=True).values[:k]


def one_in_each_position(latent, k):
    """The maximum along the wrong axis: at most one at each position."""
    largest, rows = latent.max(dim=0)
    order = largest.argsort(descending=True)
    order = order[largest[order] > 0][:k]
    return torch.stack([rows[order], order], dim=1)


def strongest_as_a_list(latent, k):
    return strongest_with_a_set(latent, k).tolist()


def strongest_with_a_set(latent, k):
    """All places from the largest value down; a sequence that has been taken is passed over."""
    found, taken = [], set()
    for place in latent.flatten().argsort(descending=True).tolist():
        row, position = divmod(place, latent.shape[1])
        if row not in taken and latent[row, position] > 0 and len(found) < k:
            taken.add(row)
            found.append((row, position))
    return torch.tensor(found, dtype=torch.int32).reshape(-1, 2)


def strongest_by_sorting(latent, k):
    rows = [(max(row), i, row.index(max(row))) for i, row in enumerate(latent.tolist()) if max(row) > 0]
    places = [[i, position] for _, i, position in sorted(rows, reverse=True)[:k]]
    return torch.tensor(places, dtype=torch.long).reshape(-1, 2)


def strongest_by_topk(latent, k):
    only = latent.relu() * F.one_hot(latent.argmax(dim=1), latent.shape[1])
    k = min(k, int(only.count_nonzero()))
    return torch.stack(torch.unravel_index(only.flatten().topk(k).indices, latent.shape), dim=-1)


# --- 06.auc ---------------------------------------------------------------------------------------------------

PAIRS = """
def f(latents, labels):
    yes, no = latents[labels], latents[~labels]
    won, tied = yes[:, None] > no[None], yes[:, None] == no[None]
    return {answer}
"""


def pairs(answer="(won + tied / 2).mean(dim=(0, 1))"):
    return PAIRS.format(answer=answer)


def only_active_or_not(latents, labels):
    hits = (latents[labels] > 0).float().mean(0)
    false_alarms = (latents[~labels] > 0).float().mean(0)
    return 0.5 + (hits - false_alarms) / 2                              # the AUC of a single threshold


def best_accuracy(latents, labels):
    best = torch.zeros(latents.shape[1])
    for threshold in latents.flatten().unique():
        best = torch.maximum(best, ((latents >= threshold) == labels[:, None]).float().mean(0))
    return best


def correlation(latents, labels):
    both = torch.cat([latents.T, labels[None].float()])
    return torch.corrcoef(both)[-1, :-1].nan_to_num() / 2 + 0.5


def auc_in_place(latents, labels):
    """The means are taken off first: no rank changes, but the latents do."""
    latents -= latents.mean(dim=0)
    return area_under_the_curve(latents, labels)


def auc_pair_by_pair(latents, labels):
    yes, no = latents[labels].tolist(), latents[~labels].tolist()
    found = []
    for i in range(latents.shape[1]):
        won = sum(1.0 if a[i] > b[i] else 0.5 if a[i] == b[i] else 0.0 for a in yes for b in no)
        found.append(won / len(yes) / len(no))
    return torch.tensor(found, dtype=torch.float64)


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


def by_the_sign(latents, labels):
    return torch.stack([
        (column[labels, None] - column[None, ~labels]).sign().mean() / 2 + 0.5 for column in latents.T])


AUC_EINOPS = """
def f(latents, labels):
    yes = einops.rearrange(latents[labels], "a d -> a 1 d")
    no = einops.rearrange(latents[~labels], "b d -> 1 b d")
    return einops.reduce(torch.heaviside(yes - no, torch.tensor(0.5)), "a b d -> d", "mean")
"""


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
            Wrong(encoded("((x - b_dec) @ W_enc + b_enc).abs()")),
            Wrong(encoded("((x - b_dec) @ W_enc - b_enc).relu()")),
            Wrong(encoded("torch.nn.functional.gelu((x - b_dec) @ W_enc + b_enc)")),
            Wrong(encoded("((x - b_dec) @ W_enc + b_enc > 0).float()")),
            Wrong(encoded("(x @ W_enc + b_enc - b_dec).relu()")),               # another width: a RuntimeError
            Wrong(encoded("((x - b_dec) @ W_enc.T + b_enc).relu()")),
        ],
        accept=[encoded("((x - b_dec) @ W_enc + b_enc).clamp_min(0)"), encode_latent_by_latent, ENCODE_EINOPS,
                encode_with_linear],
    ),
    "06.sae_loss": Answers(
        reject=[
            Wrong(as_the_evaluator_did, says="divided by the number of tokens twice"),
            Wrong(loss_error_changed_in_place, says="it changes its input"),
            Wrong(loss_as_a_number, says="a torch.Tensor was expected"),
            Wrong(penalty_has_no_gradient, says="lost its gradient"),
            Wrong(loss("e.detach().pow(2).sum(1).mean()"), says="lost its gradient"),
            Wrong(loss_for_each_token, says="has shape"),
            Wrong(loss("e.pow(2).sum(1).mean().sqrt()")),
            Wrong(loss("e.pow(2).sum(1).mean() / 2")),
            Wrong(loss(penalty="f.norm(dim=1).mean()")),
            Wrong(loss(penalty="f.relu().sum(1).mean()")),
            Wrong(loss(penalty="f.sum(1).abs().mean()")),
            Wrong(loss("e.pow(2).sum(0).mean()", "f.abs().sum(0).mean()")),
            Wrong(loss("e.sum(1).pow(2).mean()")),
        ],
        accept=[loss(), token_by_token, LOSS_EINOPS, loss_from_the_library],
    ),
    "06.reconstruct_rescaled": Answers(
        reject=[
            Wrong(stretched, says="stretched to the norm of x"),
            Wrong(rescaled_in_place, says="it changes its input"),
            Wrong(rescaled("autoencoder(x / scale) / scale")),
            Wrong(rescaled(scale="norm / d")),
            Wrong(rescaled(scale="norm / n ** 0.5"), says="whatever the number of tokens"),
            Wrong(rescaled(scale="x.std(dim=1, keepdim=True)")),
            Wrong(rescaled(scale="norm * d ** 0.5")),
            Wrong(rescaled("autoencoder(x / scale) * norm"), says="multiply by the number that you divided by"),
            Wrong(rescaled(scale="norm / 16"), says="this model's width"),
            Wrong(rescaled("x")),
        ],
        accept=[rescaled(), rescaled_one_by_one, rescaled_by_root_mean_square, RESCALED_EINOPS],
    ),
    "06.top_k": Answers(
        reject=[
            Wrong(batch_top_k, says="the largest of the whole tensor"),
            Wrong(top_values_alone, says="the k values alone"),
            Wrong(top_k_in_place, says="it changes its input"),
            Wrong(one_too_many),
            Wrong(lambda pre, k: top_k_by_ranks(pre, k).to_sparse(), says="sparse"),
            Wrong(lambda pre, k: top_k_by_ranks(pre, k).to("meta"), says="holds no values"),
            Wrong(lambda pre, k: top_k_by_ranks(pre, k).to(torch.complex64), says="complex64"),
            Wrong(lambda pre, k: top_k_by_ranks(pre, k).half() * 1.02),
            Wrong(sorted_row),
            Wrong(top().replace("torch.zeros_like(pre)", "torch.zeros(pre.shape)"), says="leave the dtype as it is"),
            Wrong(lambda pre, k: top_k_by_ranks(pre, k).float(), says="leave the dtype as it is"),
            Wrong(top(kept="values.abs()")),
            Wrong(top("pre.topk(k - 1, dim=-1)"), says="one too many or too few"),
            Wrong(top("pre.topk(1, dim=-1)")),
            Wrong("def f(pre, k):\n    return pre.relu()"),
        ],
        accept=[top(), top("pre.relu().topk(k, dim=-1)", kept="values"), top_k_row_by_row, top_k_by_ranks,
                TOP_K_EINOPS],
    ),
    "06.topk_step": Answers(
        reject=[
            Wrong(step(after="pass"), says="not scaled back to norm 1"),
            Wrong(step(after="sae.W_dec.data /= sae.W_dec.data.norm()")),
            Wrong(step(loss="(x_hat - x).pow(2).sum()")),
            Wrong(step(update=f"{UPDATE}; optimizer.step()")),
            Wrong(step("sae.decode(latents.detach())")),
            Wrong(step(answer="loss.item() / len(x)")),
            Wrong(step(after=f"{NORM_ONE}; sae.W_enc.data = sae.W_dec.data.T.clone()")),
        ],
        accept=[step(), step_by_hand, step(after=f"with torch.no_grad(): {NORM_ONE}", answer="loss")],
    ),
    "06.gated": Answers(
        reject=[
            Wrong(behind_gate("pre * r_mag.exp() + b_mag > 0"), says="no separate gate"),
            Wrong(gated_in_place, says="it changes its input"),
            Wrong(behind_gate("pre + b_gate > 0", answer="gate"), says="has dtype"),
            Wrong(behind_gate("(pre > 0).float()")),
            Wrong(behind_gate("(pre - b_gate > 0).float()"), says="b_gate is subtracted"),
            Wrong(behind_gate("(pre * r_mag.exp() + b_gate > 0).float()")),
            Wrong(behind_gate(answer="(gate * pre * r_mag.exp() + b_mag).relu()")),
            Wrong(behind_gate("torch.sign(pre + b_gate)")),
            Wrong(behind_gate(answer="magnitude[gate > 0]")),
        ],
        accept=[behind_gate(), behind_gate(answer="torch.where(gate.bool(), magnitude, 0)"),
                gated_latent_by_latent, GATED_EINOPS],
    ),
    "06.dead_latents": Answers(
        reject=[
            Wrong(dead("latents[mask].std(dim=0) == 0")),                   # the same value everywhere
            Wrong(dead("torch.isclose(latents[mask], torch.zeros(1)).all(0)")),
            Wrong(dead("((latents == 0) | ~mask[..., None]).all(1)"), says="an answer for each sequence"),
            Wrong(dead_in_place, says="it changes its input"),
            Wrong(dead("(latents[mask] == 0).all(0).float()"), says="has dtype"),
            Wrong(dead("latents[mask].abs().mean(0) < 1e-3")),
            Wrong(dead("(latents[mask].round(decimals=2) == 0).all(0)")),
            Wrong(dead("(latents[:, 1:] == 0).flatten(0, 1).all(0)")),
            Wrong(dead("(latents[0][mask[0]] == 0).all(0)")),
            Wrong(dead("(latents[mask] == 0).all(1)")),
            Wrong(dead("(latents[mask] == 0).all()")),
        ],
        accept=[dead("(latents[mask] == 0).all(dim=0)"), dead_one_by_one, DEAD_EINOPS,
                dead("torch.isin(torch.arange(latents.shape[-1]), latents[mask].nonzero()[:, 1], invert=True)"),
                dead("latents[mask].amax(dim=0) <= 0"), dead("(latents * mask[..., None]).sum(dim=(0, 1)) == 0"),
                dead("latents.double().masked_fill(~mask[..., None], 0).norm(dim=(0, 1)) == 0")],
    ),
    "06.top_activations": Answers(
        reject=[
            Wrong(flat("torch.stack(torch.unravel_index(places, latent.shape), 1)"),
                  says="several come from one sequence"),
            Wrong(strongest(then="order = order[:k]"), says="places where the latent is not active"),
            Wrong(strongest(order="largest.topk(k).indices", then="pass")),     # k may be larger than n
            Wrong(strongest().replace("latent.max(dim=1)", "latent.abs().max(dim=1)"), says="without the sign"),
            Wrong(strongest(then="pass")),                                  # more than k, and inactive ones
            Wrong(flat("places"), says="one number for each place"),
            Wrong(strongest().replace("return torch.stack([order, positions[order]], dim=1)", "return order"),
                  says="one number for each place"),
            Wrong(strongest_as_a_list, says="a torch.Tensor was expected"),
            Wrong(values_instead, says="one number for each place"),
            Wrong(one_in_each_position),
            Wrong(strongest(then="order = order[largest[order] > 0][:k - 1]")),
            Wrong(strongest().replace("positions[order]]", "positions[order] + 1]")),
            Wrong(strongest().replace("positions[order]]", "positions[:len(order)]]")),
            Wrong(strongest(then="order = order[largest[order] > 0][:k]; latent[order] = 0"),
                  says="it changes its input"),
        ],
        accept=[strongest(), strongest(then="order = order[:k]; order = order[largest[order] > 0]"),
                strongest_with_a_set, strongest_by_sorting, strongest_by_topk],
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
            Wrong(only_active_or_not, says="only whether the latent is active"),
            Wrong(auc_in_place, says="it changes its input"),
            Wrong(best_accuracy),
            Wrong(correlation),
            Wrong(pairs("won.sum((0, 1)) / (~tied).sum((0, 1))")),              # tied pairs are left out
            Wrong(pairs("(won + tied / 2).mean()")),
            Wrong(pairs("(won + tied / 2).mean(0)")),
            Wrong(pairs("2 * (won + tied / 2).mean((0, 1)) - 1")),
            Wrong(pairs("(won + tied / 2).mean((0, 1), keepdim=True)")),
        ],
        accept=[pairs(), pairs("(won.double() + 0.5 * tied).mean((0, 1))"), auc_pair_by_pair,
                area_under_the_curve, by_the_sign, AUC_EINOPS, by_mean_ranks],
    ),
}

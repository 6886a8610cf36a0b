"""Answers for lesson 03."""

import torch
import torch.nn.functional as F

from answers import Answers, Wrong
from course_utils.ablation import ablate, second_copy_loss
from course_utils.passes import hook_z, mlp_out

# --- 03.second_copy_loss ----------------------------------------------------------------------------------------------


def first_row_only(logits, tokens, seq_len):
    return F.cross_entropy(logits[0, seq_len:-1], tokens[0, seq_len + 1 :])


def mixed_up_reshape(logits, tokens, seq_len):
    return F.cross_entropy(logits[:, seq_len:-1].transpose(0, 1).flatten(0, 1), tokens[:, seq_len + 1 :].flatten())


def by_gather(logits, tokens, seq_len):
    log_probs = logits[:, :-1].log_softmax(-1)
    return -log_probs.gather(2, tokens[:, 1:, None])[:, -seq_len:, 0].mean()


def by_loops_in_double(logits, tokens, seq_len):
    total = torch.zeros((), dtype=torch.float64)
    for row, words in zip(logits.double(), tokens.tolist()):
        for j in range(seq_len, 2 * seq_len):
            total = total + row[j].logsumexp(0) - row[j, words[j + 1]]
    return total / seq_len / len(tokens)


def detached(logits, tokens, seq_len):
    return row_by_row(logits.detach(), tokens, seq_len)


def row_by_row(logits, tokens, seq_len):
    losses = [F.cross_entropy(row[seq_len : 2 * seq_len], words[1 : seq_len + 1]) for row, words in zip(logits, tokens)]
    return torch.stack(losses).mean()


# --- 03.mlp_patch_loop: one text, with the lines that matter left open ------------------------------------------------

LOOP = """
from course_utils.ablation import second_copy_loss

def f(model, tokens, seq_len, layers):
    names = ["blocks." + str(layer) + ".{hook}" for layer in layers]
    clean_logits, cache = model.run_with_cache(tokens)
    clean = second_copy_loss(clean_logits, tokens, seq_len)
    result = torch.zeros(len(names), seq_len)
    for row, name in enumerate(names):
        for i, position in enumerate(range({positions})):
            def patch(activation, hook):
                {patch}
                return activation
            logits = model.run_with_hooks(tokens, fwd_hooks=[(name, patch)])
            result[row, i] = {entry}
    return {answer}
"""


def loop(
    patch="activation[:, position] = cache[name][:, position - seq_len]", hook="hook_mlp_out",
    positions="seq_len + 1, 2 * seq_len + 1", entry="second_copy_loss(logits, tokens, seq_len) - clean",
    answer="result",
):
    return LOOP.format(patch=patch, hook=hook, positions=positions, entry=entry, answer=answer)


PILED_UP = """
from course_utils.ablation import mlp_out, second_copy_loss

def f(model, tokens, seq_len, layers):
    clean_logits, cache = model.run_with_cache(tokens)
    clean = second_copy_loss(clean_logits, tokens, seq_len)
    rows = []
    for layer in layers:
        row = []
        for i in range(seq_len):
            def patch(mlp, hook, i=i):
                mlp[:, seq_len + 1 + i] = cache[hook.name][:, 1 + i]
                return mlp
            model.add_hook(mlp_out(layer), patch)
            row.append(second_copy_loss(model(tokens), tokens, seq_len) - clean)
            {inner}
        rows.append(torch.stack(row))
        {outer}
    return torch.stack(rows)
"""


def all_patches_in_one_batch(model, tokens, seq_len, layers):
    """Every patch has a copy of the batch of its own; the mean loss of each copy is taken at the end."""
    batch, columns = len(tokens), torch.arange(seq_len)
    many = tokens.repeat(seq_len, 1)
    targets = tokens[:, seq_len + 1 :].expand(seq_len, batch, seq_len)

    def losses(logits):
        log_probs = logits.double().unflatten(0, (seq_len, batch))[:, :, seq_len:-1].log_softmax(-1)
        return -log_probs.gather(3, targets[..., None]).mean(dim=(1, 2, 3))

    def patch(mlp, hook):
        each = mlp.clone().unflatten(0, (seq_len, batch))
        each[columns, :, seq_len + 1 + columns] = each[columns, :, 1 + columns]
        return each.flatten(0, 1)

    clean = losses(model(many))
    return torch.stack([losses(model.run_with_hooks(many, fwd_hooks=[(mlp_out(x), patch)])) - clean for x in layers])


# --- 03.ablate --------------------------------------------------------------------------------------------------------


def bos_zeroed_too(activation, kind):
    return activation * 0 if kind == "zero" else by_assignment(activation, kind)


ABLATE = """
def f(activation, kind):
    new, rest = activation.clone(), activation[:, 1:]
    if kind == "zero":
        new[:, 1:] = 0
    elif kind == "mean":
        new[:, 1:] = {mean}
    elif kind == "resample":
        new[:, 1:] = {resample}
    return new
"""


def ablated(mean="rest.mean((0, 1))", resample="torch.cat([rest[1:], rest[:1]])"):
    return ABLATE.format(mean=mean, resample=resample)


def in_place(activation, kind):
    if kind == "zero":
        activation[:, 1:] = 0.0
    elif kind == "mean":
        activation[:, 1:] = activation[:, 1:].mean(dim=(0, 1))
    else:
        activation[:, 1:] = activation[:, 1:].roll(-1, 0)
    return activation


def by_assignment(activation, kind):
    new = activation.clone()
    if kind == "zero":
        new[:, 1:] = 0
    elif kind == "mean":
        new[:, 1:] = activation[:, 1:].mean(dim=(0, 1))
    else:
        new[:, 1:] = activation[[*range(1, len(activation)), 0], 1:]
    return new


def by_loops(activation, kind):
    batch, n = activation.shape[:2]
    total = sum(activation[b, p].double() for b in range(batch) for p in range(1, n))
    new = activation.double()
    for b in range(batch):
        for p in range(1, n):
            if kind == "zero":
                new[b, p] = torch.zeros_like(new[b, p])
            elif kind == "mean":
                new[b, p] = total / (batch * (n - 1))
            else:
                new[b, p] = activation[(b + 1) % batch, p]
    return new


def by_mask(activation, kind):
    is_bos = (torch.arange(activation.shape[1]) == 0).view(1, -1, *[1] * (activation.ndim - 2))
    count = activation.shape[0] * (activation.shape[1] - 1)
    mean = activation.masked_fill(is_bos, 0).sum(dim=(0, 1), keepdim=True) / count
    others = {"zero": torch.tensor(0.0), "mean": mean, "resample": activation.roll(-1, 0)}
    return torch.where(is_bos, activation, others[kind])


# --- 03.loss_without_head: the hook is left open ----------------------------------------------------------------------

WITHOUT = """
from course_utils.ablation import ablate, hook_z, second_copy_loss

def f(model, tokens, seq_len, layer, head, kind="mean"):
    def hook_fn(z, hook):
        {change}
        return z
    logits = model.run_with_hooks(tokens, fwd_hooks=[({name}, hook_fn)])
    return {answer}
"""


def without(change, name="hook_z(layer)", answer="second_copy_loss(logits, tokens, seq_len)"):
    return WITHOUT.format(change=change, name=name, answer=answer)


ONE_HEAD = "z[:, :, head] = ablate(z[:, :, head], kind)"
PREPARED = without("z[:, :, head] = ablate(z[:, :, head], kind)").replace('kind="mean"', "kind")
NO_LONGER_THE_MEAN = without(ONE_HEAD).replace('kind="mean"', 'kind="zero"')


def mean_of_all_heads(model, tokens, seq_len, layer, head, kind="mean"):
    def remove(z, hook):
        if kind == "mean":
            z[:, 1:, head] = z[:, 1:].mean(dim=(0, 1, 2))
        else:
            z[:, :, head] = ablate(z[:, :, head], kind)
        return z
    return second_copy_loss(model.run_with_hooks(tokens, fwd_hooks=[(hook_z(layer), remove)]), tokens, seq_len)


def hook_stays(model, tokens, seq_len, layer, head, kind="mean"):
    def remove(z, hook):
        z[:, :, head] = ablate(z[:, :, head], kind)
        return z
    model.add_hook(hook_z(layer), remove)
    return second_copy_loss(model(tokens), tokens, seq_len)


def writes_nothing(model, tokens, seq_len, layer, head, kind="mean"):
    """Without the head's W_O nothing arrives; but that is zero ablation, at BOS too, and in the model itself."""
    weight = model.blocks[layer].attn.o.weight
    size = model.cfg.d_model // model.cfg.n_heads
    with torch.no_grad():
        weight[:, head * size : (head + 1) * size] = 0
        weight[head * size : (head + 1) * size] = 0
    return second_copy_loss(model(tokens), tokens, seq_len)


def by_what_the_head_writes(model, tokens, seq_len, layer, head, kind="mean"):
    """The change of z, through the head's part of W_O, added to what attention puts out."""
    _, cache = model.run_with_cache(tokens, names_filter=hook_z(layer))
    z = cache[hook_z(layer)][:, :, head].double()
    change = ((ablate(z, kind) - z) @ model.blocks[layer].attn.W_O[head].double()).float()
    with model.hooks(fwd_hooks=[(f"blocks.{layer}.hook_attn_out", lambda out, hook: out + change)]):
        logits = model(tokens).double()
    targets = tokens[:, seq_len + 1 :]
    return F.cross_entropy(logits[:, seq_len:-1].mT, targets).item()


WITHOUT_EINOPS = without(
    "only = torch.nn.functional.one_hot(torch.tensor(head), z.shape[2]).to(z.dtype); "
    "z = z + einops.einsum(ablate(z, kind) - z, only, 'batch pos head d, head -> batch pos head d')"
)


# --- 03.mlp_attribution_sweep: one rule for each layer, left open -----------------------------------------------------

ATTRIBUTED = """
from course_utils.ablation import gradients, mlp_out, second_copy_loss

def f(model, tokens, seq_len):
    names = [mlp_out(layer) for layer in range(model.cfg.n_layers)]
    found = gradients(model, tokens, names, lambda logits: {loss})
    result = torch.zeros(len(names), seq_len)
    for layer, name in enumerate(names):
        act, grad = found[name]
        first, second = act[:, 1:seq_len + 1], act[:, seq_len + 1:]
        result[layer] = {rule}
    return result
"""


def attributed(rule, loss="second_copy_loss(logits, tokens, seq_len)"):
    return ATTRIBUTED.format(rule=rule, loss=loss)


def by_backward_hooks(model, tokens, seq_len):
    activations, slopes = {}, {}

    def keep(activation, hook):
        activations[hook.name] = activation.detach().clone()
        return activation if activation.requires_grad else activation.requires_grad_()

    def keep_slope(slope, hook):
        slopes[hook.name] = slope.detach().clone()

    names = [mlp_out(layer) for layer in range(model.cfg.n_layers)]
    hooks = {"fwd_hooks": [(name, keep) for name in ["hook_embed", *names]],
                 "bwd_hooks": [(name, keep_slope) for name in names]}
    with model.hooks(**hooks):
        second_copy_loss(model(tokens), tokens, seq_len).backward()
    result = torch.zeros(len(names), seq_len)
    for layer, name in enumerate(names):
        for i in range(seq_len):
            change = activations[name][:, 1 + i] - activations[name][:, seq_len + 1 + i]
            result[layer, i] = (change * slopes[name][:, seq_len + 1 + i]).sum()
    return result


def by_a_zero_that_is_added(model, tokens, seq_len):
    """The gradient at something added to each MLP's output is the gradient at the output."""
    shape = (model.cfg.n_layers, *tokens.shape, model.cfg.d_model)
    added = torch.zeros(shape, requires_grad=True)
    outputs = torch.zeros(shape)

    def add(output, hook):
        outputs[hook.layer()] = output.detach()
        return output + added[hook.layer()]

    logits = model.run_with_hooks(tokens, fwd_hooks=[(lambda name: name.endswith("hook_mlp_out"), add)])
    slope, = torch.autograd.grad(second_copy_loss(logits, tokens, seq_len), added)
    first, second = outputs[:, :, 1:].double().chunk(2, dim=2)
    return torch.einsum("lbpd,lbpd->lp", first - second, slope[:, :, -seq_len:].double())


def as_a_directional_derivative(model, tokens, seq_len):
    """One share per entry, all zero: the slope along each share is the estimate."""
    _, cache = model.run_with_cache(tokens)
    share = torch.zeros(model.cfg.n_layers, seq_len, requires_grad=True)

    def move(output, hook):
        clean = cache[hook.name]
        change = clean[:, 1 : seq_len + 1] - clean[:, seq_len + 1 :]
        moved = output[:, seq_len + 1 :] + share[hook.layer(), :, None] * change
        return torch.cat([output[:, : seq_len + 1], moved], dim=1)

    logits = model.run_with_hooks(tokens, fwd_hooks=[(mlp_out(layer), move) for layer in range(model.cfg.n_layers)])
    second_copy_loss(logits, tokens, seq_len).backward()
    return share.grad


def with_pytorch_hooks_and_grad(model, tokens, seq_len):
    outputs = []

    def keep(module, inputs, output):
        output = output.detach().requires_grad_() if not output.requires_grad else output
        output.retain_grad()
        outputs.append(output)
        return output

    handles = [block.mlp.register_forward_hook(keep) for block in model.blocks]
    loss = second_copy_loss(model(tokens), tokens, seq_len)
    for handle in handles:
        handle.remove()
    loss.backward()
    return torch.stack([((out[:, 1 : seq_len + 1] - out[:, seq_len + 1 :]) * out.grad[:, seq_len + 1 :]).sum((0, 2))
                        for out in outputs])


# --- 03.estimate_on_path: the rule for the points, and what is made of the slopes -------------------------------------

ON_PATH = """
from course_utils.ablation import ablate, hook_z, second_copy_loss

def f(model, tokens, seq_len, layer, head, points):
    slopes = []
    for way in {ways}:
        way = torch.as_tensor(way, dtype=torch.float32).clone().requires_grad_()
        def move(z, hook):
            new = z.clone()
            new[:, :, head] = (1 - way) * z[:, :, head] + way * ablate(z[:, :, head], "mean")
            return new
        logits = model.run_with_hooks(tokens, fwd_hooks=[(hook_z(layer), move)])
        slopes.append(torch.autograd.grad(second_copy_loss(logits, tokens, seq_len), way)[0])
    slopes = torch.stack(slopes)
    return {answer}
"""
TRAPEZIA = "slopes.mean() if points == 1 else torch.trapezoid(slopes, dx=1 / (points - 1)).item()"


def on_path(ways="torch.linspace(0, 1, points)", answer="slopes.mean().item()"):
    return ON_PATH.format(ways=ways, answer=answer)


def the_difference_itself(model, tokens, seq_len, layer, head, points):
    def remove(z, hook):
        z[:, :, head] = ablate(z[:, :, head], "mean")
        return z
    ablated = model.run_with_hooks(tokens, fwd_hooks=[(hook_z(layer), remove)])
    return (second_copy_loss(ablated, tokens, seq_len) - second_copy_loss(model(tokens), tokens, seq_len)).item()


# --- 03.logit_contributions -------------------------------------------------------------------------------------------


def scale_of_the_next(component, scale, W_U, tokens):
    return (component[:, :-1] / scale[:, 1:] * W_U.T[tokens[:, 1:]]).sum(-1)


def scaled_in_place(component, scale, W_U, tokens):
    component /= scale
    return (component[:, :-1] * W_U.T[tokens[:, 1:]]).sum(-1)


def logits_then_gather(component, scale, W_U, tokens):
    logits = (component.double() / scale.double()) @ W_U.double()
    return logits[:, :-1].gather(2, tokens[:, 1:].unsqueeze(-1)).squeeze(-1)


def contributions_by_loops(component, scale, W_U, tokens):
    batch, n = tokens.shape
    result = torch.zeros(batch, n - 1)
    for b in range(batch):
        for j in range(n - 1):
            result[b, j] = component[b, j] @ W_U[:, tokens[b, j + 1]] / scale[b, j, 0]
    return result


ANSWERS = {
    "03.second_copy_loss": Answers(
        reject=[Wrong(detached, says="lost its gradient"), Wrong(first_row_only), Wrong(mixed_up_reshape)],
        accept=[by_gather, by_loops_in_double],
    ),
    "03.mlp_patch_loop": Answers(
        reject=[
            Wrong(PILED_UP.format(inner="", outer=""), says="leaves a hook"),
            Wrong(loop("activation[:, position] = cache[name][:, position]"), says="a different position"),
            Wrong(loop("activation[:, position] = cache[name][:, 1 + i].mean(0)")),
        ],
        accept=[loop(), PILED_UP.format(inner="model.reset_hooks()", outer="pass"), all_patches_in_one_batch],
    ),
    "03.ablate": Answers(
        reject=[
            Wrong(bos_zeroed_too, says="position 0 is replaced too"),
            Wrong(ablated(resample="rest.flip(0)")),
            Wrong(ablated(resample="rest.roll(-1)")),
            Wrong(ablated(mean="rest.median()")),
            Wrong(in_place, says="it changes its input"),
        ],
        accept=[by_loops, by_mask],
    ),
    "03.loss_without_head": Answers(
        reject=[
            Wrong(hook_stays, says="leaves a hook"),
            Wrong(writes_nothing, says="changes the model's weights"),
            Wrong(mean_of_all_heads),
            Wrong(PREPARED),
            Wrong(NO_LONGER_THE_MEAN),
            Wrong(without(ONE_HEAD, name="f'blocks.{layer}.attn.hook_q'")),
        ],
        accept=[WITHOUT_EINOPS, by_what_the_head_writes],
    ),
    "03.mlp_attribution_sweep": Answers(
        reject=[
            Wrong(attributed("((first - second) * grad[:, seq_len:-1]).sum((0, 2))")),
            Wrong(attributed("((first - second)[0] * grad[0, seq_len + 1:]).sum(-1)")),
        ],
        accept=[
            attributed(
                "einops.einsum((first - second).double(), grad[:, -seq_len:].double(), 'b pos d, b pos d -> pos')"
            ),
            by_backward_hooks,
            by_a_zero_that_is_added,
            as_a_directional_derivative,
            with_pytorch_hooks_and_grad,
        ],
    ),
    "03.estimate_on_path": Answers(
        reject=[
            Wrong(the_difference_itself, says="is `points` used"),
            Wrong(on_path(ways="(torch.arange(20) + 0.5) / 20"), says="is `points` used"),
            Wrong(on_path(answer="((slopes[0] + slopes[-1]) / 2).item()")),
        ],
        accept=[
            on_path(answer=TRAPEZIA),
            on_path(ways="[i / points for i in range(points)]", answer="slopes.mean().detach()"),
        ],
    ),
    "03.logit_contributions": Answers(
        reject=[Wrong(scaled_in_place, says="it changes its input"), Wrong(scale_of_the_next)],
        accept=[logits_then_gather, contributions_by_loops],
    ),
}

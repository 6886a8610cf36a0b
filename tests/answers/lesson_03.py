"""Answers for lesson 03."""

import torch
import torch.nn.functional as F

from answers import Answers, Wrong
from course_utils.ablation import ablate, gradients, second_copy_loss
from course_utils.passes import hook_z, mlp_out

# --- 03.second_copy_loss ----------------------------------------------------------------------------------------------


def entropy(logits, targets):
    """The part of the answers below on which they agree."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def shifted_the_wrong_way(logits, tokens, seq_len):
    return entropy(logits[:, seq_len + 1 :], tokens[:, seq_len:-1])


def first_copy_counted_back(logits, tokens, seq_len):
    log_probs = logits.log_softmax(-1)
    return -log_probs[:, :-1].gather(2, tokens[:, 1:, None])[:, : -seq_len].mean()


def not_averaged(logits, tokens, seq_len):
    return F.cross_entropy(logits[:, seq_len:-1].mT, tokens[:, seq_len + 1 :], reduction="none")


def first_row_only(logits, tokens, seq_len):
    return F.cross_entropy(logits[0, seq_len:-1], tokens[0, seq_len + 1 :])


def in_bits(logits, tokens, seq_len):
    return entropy(logits[:, seq_len:-1], tokens[:, seq_len + 1 :]) / torch.tensor(2.0).log()


def log_softmax_forgotten(logits, tokens, seq_len):
    return F.nll_loss(logits[:, seq_len:-1].flatten(0, 1), tokens[:, seq_len + 1 :].flatten())


def log_of_mean_probability(logits, tokens, seq_len):
    probs = logits.softmax(-1)[:, seq_len:-1].gather(2, tokens[:, seq_len + 1 :, None])
    return -probs.mean().log()


def mixed_up_reshape(logits, tokens, seq_len):
    return F.cross_entropy(logits[:, seq_len:-1].transpose(0, 1).flatten(0, 1), tokens[:, seq_len + 1 :].flatten())


def log_softmax_twice(logits, tokens, seq_len):
    """Harmless: the log-probabilities already sum to one, and are what log_softmax makes of them."""
    log_probs = logits.log_softmax(dim=-1).log_softmax(dim=-1)
    return entropy(log_probs[:, seq_len:-1], tokens[:, seq_len + 1 :])


def by_gather(logits, tokens, seq_len):
    log_probs = logits[:, :-1].log_softmax(-1)
    return -log_probs.gather(2, tokens[:, 1:, None])[:, -seq_len:, 0].mean()


def by_loops_in_double(logits, tokens, seq_len):
    total = torch.zeros((), dtype=torch.float64)
    for row, words in zip(logits.double(), tokens.tolist()):
        for j in range(seq_len, 2 * seq_len):
            total = total + row[j].logsumexp(0) - row[j, words[j + 1]]
    return total / seq_len / len(tokens)


def no_gradient_flows(logits, tokens, seq_len):
    """Section 5 takes the gradient of this loss: a Python number has none."""
    return by_loops_in_double(logits, tokens, seq_len).item()


def detached(logits, tokens, seq_len):
    return row_by_row(logits.detach(), tokens, seq_len)


def row_by_row(logits, tokens, seq_len):
    losses = [F.cross_entropy(row[seq_len : 2 * seq_len], words[1 : seq_len + 1]) for row, words in zip(logits, tokens)]
    return torch.stack(losses).mean()


LOSS_EINOPS = """
def f(logits, tokens, seq_len):
    logits = einops.rearrange(logits[:, seq_len:-1], "batch pos vocab -> batch vocab pos")
    targets = einops.rearrange(tokens[:, 1:], "batch (copy pos) -> copy batch pos", copy=2)[1]
    return torch.nn.functional.cross_entropy(logits, targets)
"""


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


def loss_of_the_model(model, tokens, seq_len, layers):
    clean, cache = model(tokens, return_type="loss"), model.run_with_cache(tokens)[1]
    result = torch.zeros(len(layers), seq_len)
    for row, layer in enumerate(layers):
        for i in range(seq_len):
            def patch(mlp, hook):
                mlp[:, seq_len + 1 + i] = cache[hook.name][:, 1 + i]
                return mlp
            hooks = [(mlp_out(layer), patch)]
            result[row, i] = model.run_with_hooks(tokens, return_type="loss", fwd_hooks=hooks) - clean
    return result


def hooks_made_first(model, tokens, seq_len, layers):
    """Every hook sees the last i: a closure looks its variables up when it runs."""
    logits, cache = model.run_with_cache(tokens)
    clean, result = second_copy_loss(logits, tokens, seq_len), torch.zeros(len(layers), seq_len)
    for row, layer in enumerate(layers):
        hooks = []
        for i in range(seq_len):
            def patch(mlp, hook):
                mlp[:, seq_len + 1 + i] = cache[hook.name][:, 1 + i]
                return mlp
            hooks.append(patch)
        for column, hook in enumerate(hooks):
            logits = model.run_with_hooks(tokens, fwd_hooks=[(mlp_out(layer), hook)])
            result[row, column] = second_copy_loss(logits, tokens, seq_len) - clean
    return result


def returns_nothing(model, tokens, seq_len, layers):
    logits, cache = model.run_with_cache(tokens)
    clean, result = second_copy_loss(logits, tokens, seq_len), torch.zeros(len(layers), seq_len)
    for row, layer in enumerate(layers):
        for i in range(seq_len):
            def patch(mlp, hook):
                mlp = mlp.clone()
                mlp[:, seq_len + 1 + i] = cache[hook.name][:, 1 + i]
            logits = model.run_with_hooks(tokens, fwd_hooks=[(mlp_out(layer), patch)])
            result[row, i] = second_copy_loss(logits, tokens, seq_len) - clean
    return result


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


def with_the_context(model, tokens, seq_len, layers):
    """No cache: below the patched position nothing has changed, so that the source is in the activation itself."""
    clean = second_copy_loss(model(tokens), tokens, seq_len)

    def patched_loss(layer, i):
        def patch(mlp, hook):
            mlp = mlp.clone()
            mlp[:, seq_len + 1 + i] = mlp[:, 1 + i]
            return mlp
        with model.hooks(fwd_hooks=[(mlp_out(layer), patch)]):
            return second_copy_loss(model(tokens), tokens, seq_len)

    return torch.tensor([[patched_loss(layer, i) - clean for i in range(seq_len)] for layer in layers])


@torch.inference_mode()
def in_inference_mode(model, tokens, seq_len, layers):
    return with_the_context(model, tokens, seq_len, layers).clone()


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


def with_pytorch_hooks(model, tokens, seq_len, layers):
    clean = second_copy_loss(model(tokens), tokens, seq_len).item()
    result = torch.empty(len(layers), seq_len)
    for row, layer in enumerate(layers):
        for i in range(seq_len):
            def patch(module, inputs, output):
                output = output.clone()
                output[:, seq_len + 1 + i] = output[:, 1 + i]
                return output
            handle = model.blocks[layer].mlp.register_forward_hook(patch)
            try:
                result[row, i] = second_copy_loss(model(tokens), tokens, seq_len).item() - clean
            finally:
                handle.remove()
    return result


# --- 03.ablate --------------------------------------------------------------------------------------------------------


def bos_too(activation, kind):
    if kind == "zero":
        return torch.zeros_like(activation)
    if kind == "mean":
        return activation.mean(dim=(0, 1), keepdim=True).expand_as(activation)
    return activation.roll(-1, dims=0)


def bos_zeroed_too(activation, kind):
    return activation * 0 if kind == "zero" else by_assignment(activation, kind)


def bos_too_but_not_in_the_mean(activation, kind):
    rest = activation[:, 1:]
    if kind == "zero":
        return torch.zeros_like(activation)
    if kind == "mean":
        return rest.mean(dim=(0, 1)).expand_as(activation)
    return torch.cat([activation[1:], activation[:1]])


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


def only_the_rest(activation, kind):
    return by_assignment(activation, kind)[:, 1:]


def batch_is_position(activation, kind):
    """Keeps the first row, not the first position."""
    rest = activation[1:]
    other = {"zero": torch.zeros_like(rest), "mean": rest.mean((0, 1)).expand_as(rest), "resample": rest.roll(-1, 0)}
    return torch.cat([activation[:1], other[kind]])


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


ABLATE_EINOPS = """
def f(activation, kind):
    bos, rest = activation[:, :1], activation[:, 1:]
    batch, pos = rest.shape[:2]
    if kind == "mean":
        mean = einops.reduce(rest, "batch pos ... -> ...", "mean")
        rest = einops.repeat(mean, "... -> batch pos ...", batch=batch, pos=pos)
    elif kind == "resample":
        rest = rest.roll(-1, dims=0)
    else:
        rest = 0 * rest
    return torch.cat((bos, rest), 1)
"""


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


def from_the_cache(model, tokens, seq_len, layer, head, kind="mean"):
    _, cache = model.run_with_cache(tokens, names_filter=hook_z(layer))
    new = cache[hook_z(layer)].clone()
    rest = new[:, 1:, head]
    new[:, 1:, head] = {"zero": 0 * rest, "mean": rest.mean((0, 1)).expand_as(rest), "resample": rest.roll(-1, 0)}[kind]
    logits = model.run_with_hooks(tokens, fwd_hooks=[(hook_z(layer), lambda z, hook: new)])
    return second_copy_loss(logits, tokens, seq_len)


def by_what_the_head_writes(model, tokens, seq_len, layer, head, kind="mean"):
    """The change of z, through the head's part of W_O, added to what attention puts out."""
    _, cache = model.run_with_cache(tokens, names_filter=hook_z(layer))
    z = cache[hook_z(layer)][:, :, head].double()
    change = ((ablate(z, kind) - z) @ model.blocks[layer].attn.W_O[head].double()).float()
    with model.hooks(fwd_hooks=[(f"blocks.{layer}.hook_attn_out", lambda out, hook: out + change)]):
        logits = model(tokens).double()
    targets = tokens[:, seq_len + 1 :]
    return F.cross_entropy(logits[:, seq_len:-1].mT, targets).item()


def with_a_pytorch_hook(model, tokens, seq_len, layer, head, kind="mean"):
    def before_output(module, inputs):
        z = inputs[0].clone()                                           # [batch, pos, d_model]: the heads side by side
        each = z.unflatten(-1, (model.cfg.n_heads, -1))
        each[:, :, head] = ablate(each[:, :, head], kind)
        return (each.flatten(2), *inputs[1:])
    handle = model.blocks[layer].attn.o.register_forward_pre_hook(before_output)
    loss = second_copy_loss(model(tokens), tokens, seq_len)
    handle.remove()
    return loss


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


def moved_by_another_hook(model, tokens, seq_len, layer, head, points):
    """The course's `gradients`, at an activation that a hook has moved before."""
    name, total = hook_z(layer), 0.0
    z = model.run_with_cache(tokens, names_filter=name)[1][name]
    change = ablate(z[:, :, head], "mean") - z[:, :, head]
    for i in range(points):
        def move(activation, hook):
            moved = z.clone()
            moved[:, :, head] += (i + 0.5) / points * change
            return moved
        with model.hooks(fwd_hooks=[(name, move)]):
            found = gradients(model, tokens, [name], lambda logits: second_copy_loss(logits, tokens, seq_len))
        total += (found[name][1][:, :, head] * change).sum().item() / points
    return total


def the_difference_itself(model, tokens, seq_len, layer, head, points):
    def remove(z, hook):
        z[:, :, head] = ablate(z[:, :, head], "mean")
        return z
    ablated = model.run_with_hooks(tokens, fwd_hooks=[(hook_z(layer), remove)])
    return (second_copy_loss(ablated, tokens, seq_len) - second_copy_loss(model(tokens), tokens, seq_len)).item()


# --- 03.logit_contributions -------------------------------------------------------------------------------------------


def last_position_kept(component, scale, W_U, tokens):
    logits = (component / scale) @ W_U
    return logits.gather(2, tokens.roll(-1, dims=1)[..., None])[..., 0]


def scale_of_the_next(component, scale, W_U, tokens):
    return (component[:, :-1] / scale[:, 1:] * W_U.T[tokens[:, 1:]]).sum(-1)


def rows_of_W_U(component, scale, W_U, tokens):
    return (component[:, :-1] / scale[:, :-1] * W_U[tokens[:, 1:]]).sum(-1)


def norm_taken_anew(component, scale, W_U, tokens):
    own = component.pow(2).mean(-1, keepdim=True).sqrt()
    return (component[:, :-1] / own[:, :-1] * W_U.T[tokens[:, 1:]]).sum(-1)


def mean_over_d_model(component, scale, W_U, tokens):
    return (component[:, :-1] / scale[:, :-1] * W_U.T[tokens[:, 1:]]).mean(-1)


def log_probabilities(component, scale, W_U, tokens):
    return ((component / scale) @ W_U).log_softmax(-1)[:, :-1].gather(2, tokens[:, 1:, None])[..., 0]


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


def diagonal_of_all_pairs(component, scale, W_U, tokens):
    pairs = component @ W_U.T[tokens].mT / scale                        # [batch, pos, the token of another pos]
    return pairs.diagonal(1, dim1=1, dim2=2)


CONTRIBUTIONS_EINOPS = """
def f(component, scale, W_U, tokens):
    directions = W_U[:, tokens[:, 1:]]
    added = einops.einsum(component[:, :-1], directions, "batch pos d, d batch pos -> batch pos")
    return added / einops.rearrange(scale[:, :-1], "batch pos 1 -> batch pos")
"""


ANSWERS = {
    "03.second_copy_loss": Answers(
        reject=[
            Wrong(first_copy_counted_back, says="the first copy's loss"),
            Wrong(no_gradient_flows, says="a torch.Tensor was expected"),
            Wrong(detached, says="lost its gradient"),
            Wrong(not_averaged),
            Wrong(shifted_the_wrong_way),
            Wrong(first_row_only),
            Wrong(in_bits),
            Wrong(log_softmax_forgotten),
            Wrong(log_of_mean_probability),
            Wrong(mixed_up_reshape),
        ],
        accept=[log_softmax_twice, by_gather, by_loops_in_double, row_by_row, LOSS_EINOPS],
    ),
    "03.mlp_patch_loop": Answers(
        reject=[
            Wrong(loss_of_the_model, says="the loss of all tokens"),
            Wrong(PILED_UP.format(inner="", outer="model.reset_hooks()"), says="patches pile up"),
            Wrong(PILED_UP.format(inner="", outer=""), says="leaves a hook"),
            Wrong(returns_nothing, says="nothing changes"),
            Wrong(hooks_made_first, says="nothing changes"),
            Wrong(loop("activation[:, position] = cache[name][:, position]"), says="a different position"),
            Wrong(loop("activation[:, position] = 0")),
            Wrong(loop("activation[:, position] = cache[name][:, 1 + i].mean(0)")),
            Wrong(loop(answer="result[:, :-1]")),
            Wrong(loop(answer="result.abs()")),
            Wrong(loop(entry="(second_copy_loss(logits, tokens, seq_len) - clean) / seq_len")),
            Wrong(loop(hook="hook_mlp_in")),
        ],
        accept=[
            loop(),
            loop(hook="mlp.hook_post"),  # W_out acts on each position alone
            loop(positions="seq_len + 1, 2 * seq_len"),  # the last token predicts nothing: its entry is 0 anyway
            PILED_UP.format(inner="model.reset_hooks()", outer="pass"),
            with_the_context,
            in_inference_mode,
            all_patches_in_one_batch,
            with_pytorch_hooks,
        ],
    ),
    "03.ablate": Answers(
        reject=[
            Wrong(bos_too, says="position 0 is replaced too"),
            Wrong(bos_zeroed_too, says="position 0 is replaced too"),
            Wrong(bos_too_but_not_in_the_mean, says="position 0 is replaced too"),
            Wrong(ablated(resample="rest.flip(0)")),
            Wrong(ablated(resample="rest[torch.randperm(len(rest))]")),
            Wrong(ablated(resample="rest.roll(-1)")),
            Wrong(ablated(mean="rest.median()")),
            Wrong(in_place, says="it changes its input"),
            Wrong(only_the_rest, says="has shape"),
            Wrong(batch_is_position),
        ],
        accept=[by_assignment, by_loops, by_mask, ABLATE_EINOPS, ablated()],
    ),
    "03.loss_without_head": Answers(
        reject=[
            Wrong(
                without('x = z[:, :, head]; z[:, :, head] = {"zero": 0 * x, "resample": x.roll(-1, 0), '
                        '"mean": x.mean((0, 1)).expand_as(x)}[kind]'),
                says="position 0 is replaced too",
            ),
            Wrong(hook_stays, says="leaves a hook"),
            Wrong(writes_nothing, says="changes the model's weights"),
            Wrong(mean_of_all_heads),
            Wrong(PREPARED),
            Wrong(NO_LONGER_THE_MEAN),
            Wrong(without("z[:, :, layer] = ablate(z[:, :, layer], kind)", name="hook_z(head)")),
            Wrong(without(ONE_HEAD, name="f'blocks.{layer}.attn.hook_q'")),
            Wrong(without(ONE_HEAD, answer="-second_copy_loss(logits, tokens, seq_len)")),
        ],
        accept=[
            without(ONE_HEAD), WITHOUT_EINOPS, from_the_cache, by_what_the_head_writes, with_a_pytorch_hook,
        ],
    ),
    "03.mlp_attribution_sweep": Answers(
        reject=[
            Wrong(attributed("((first - second) * grad[:, seq_len:-1]).sum((0, 2))")),
            Wrong(attributed("((first - second) * grad[:, seq_len + 1:]).abs().sum((0, 2))")),
            Wrong(attributed("((first - second)[0] * grad[0, seq_len + 1:]).sum(-1)")),
            Wrong(attributed("((first - second) * (grad[:, seq_len + 1:] - grad[:, 1:seq_len + 1])).sum((0, 2))")),
            Wrong(attributed("((first - second) * grad[:, seq_len + 1:]).sum((0, 2))", loss="logits.sum()")),
            Wrong(
                attributed(
                    "((first - second) * grad[:, seq_len + 1:]).sum((0, 2))",
                    loss="torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())",
                ),
                says="the loss of all tokens",
            ),
            Wrong(attributed("(first - second).norm(dim=-1).sum(0) * grad[:, seq_len + 1:].norm(dim=-1).sum(0)")),
            Wrong(attributed("((first - second) * grad[:, seq_len + 1:]).sum(0)")),
        ],
        accept=[
            attributed("torch.stack([((first - second) * grad[:, seq_len + 1:])[:, i].sum() for i in range(seq_len)])"),
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
        accept=[on_path(answer=TRAPEZIA), moved_by_another_hook,
                on_path(ways="[i / points for i in range(points)]", answer="slopes.mean().detach()")],
    ),
    "03.logit_contributions": Answers(
        reject=[
            Wrong(scaled_in_place, says="it changes its input"),
            Wrong(last_position_kept, says="has shape"),
            Wrong(scale_of_the_next),
            Wrong(rows_of_W_U),
            Wrong(norm_taken_anew),
            Wrong(mean_over_d_model),
            Wrong(log_probabilities, says="these are log-probabilities"),
        ],
        accept=[logits_then_gather, contributions_by_loops, diagonal_of_all_pairs, CONTRIBUTIONS_EINOPS],
    ),
}

"""Slow passes for path patching and for autoencoders in the model's way; see plain_passes.py."""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache

import torch
from plain_model import OnlyRefusal, Plain, is_norm
from plain_passes import instead, mlp_output, multipliers, put, put_head
from torch import Tensor, nn

# --- what single heads read -------------------------------------------------------------------------------------------


@lru_cache
def columns(p: Plain, layer: int) -> dict[tuple[str, int], tuple[nn.Module, list[int]]]:
    """{("q", head): (module, its output's columns that are this head's queries), …}, found column by column."""
    attention, found = p.attention[layer], {}
    for module in attention.modules():
        wide = is_norm(module) and any(len(weight) > p.d_head for weight in module.parameters())    # over all heads
        if module is p.out[layer] or not wide and getattr(getattr(module, "weight", None), "ndim", 0) != 2:
            continue
        width = p.value_of(torch.zeros(1, 2, dtype=torch.long), module, "out").shape[-1]
        for name, where, side in (("q", 1, "scores"), ("k", 0, "scores"), ("v", 0, "z")):
            moved = _moved(p, layer, module, width, where, side)                            # [column, head]
            for head in range(p.n_heads):
                own = moved[:, head].nonzero()[:, 0].tolist()
                if own and (len(own) <= p.d_head or (name, head) not in found):
                    found[name, head] = module, own
    return found


def _moved(p: Plain, layer: int, module: nn.Module, width: int, where: int, side: str) -> Tensor:
    """Whether a column of a module's output that alone is not 0, at one of two positions, moves each head."""
    nudge = torch.cat([torch.zeros(1, width), 0.5 * torch.eye(width)])                      # the first: nothing
    tokens = torch.zeros(len(nudge), 2, dtype=torch.long)
    x = torch.randn(1, 2, p.d_model, generator=torch.Generator().manual_seed(1)).repeat(len(nudge), 1, 1)

    def alone(out: Tensor) -> Tensor:
        out = out.clone()
        out[:, where] = nudge
        return out

    changes = (p.attention[layer], "in", lambda _: x), (module, "out", alone)
    if side == "z":
        values = p.z(tokens, layer, *changes)[:, 0]                                     # position 0 sees itself alone
    else:
        values = p.softmaxes(tokens, *changes).scores[layer][:, :, 1, 0, None]
    return (values[1:] - values[:1]).abs().amax(-1) > 1e-6


def readings(
    p: Plain, tokens: Tensor, receivers: list[tuple[int, int]], into: str, streams: dict[int, Tensor]
) -> list[tuple]:
    """Changes that give these heads the queries, keys or values that they would read from other streams."""
    wanted: dict[nn.Module, tuple[int, set[int]]] = {}
    for layer, head in receivers:
        for name in into:
            module, own = columns(p, layer)[name, head]
            wanted.setdefault(module, (layer, set()))[1].update(own)
    changes = []
    for module, (layer, own) in wanted.items():
        new = p.value_of(tokens, module, "out", put(p.layers[layer], "in", streams[layer]))

        def change(old: Tensor, new: Tensor = new, own: list[int] = sorted(own)) -> Tensor:
            old = old.clone()
            old[..., own] = new[..., own]
            return old

        changes.append((module, "out", change))
    return changes


def path_patching(
    p: Plain, tokens: Tensor, n: int, sender: tuple[int, int], receivers: list[tuple[int, int]], into: str, kind: str
) -> dict[str, Tensor]:
    layer, head = sender
    streams, mlp = p.streams(tokens), mlp_output(p, tokens, layer)
    for lower in range(p.n_layers):
        multipliers(p, lower)                                                                     # else nothing adds up
    ablated = put_head(p, layer, head, instead(p.z(tokens, layer)[:, :, head], kind, p.value_bias(layer)[head]))
    frozen = put(p.mlp_writer[layer][-1], "out", mlp)
    change = p.value_of(tokens, p.layers[layer], "out", ablated, frozen) - streams[layer + 1]
    patches = readings(p, tokens, receivers, into, {later: streams[later] + change for later, _ in receivers})
    clean = p.loss(tokens, start=n)
    return {"clean": clean, "by path": p.loss(tokens, *patches, start=n) - clean,
            "in all": p.loss(tokens, ablated, start=n) - clean}


# --- autoencoders -----------------------------------------------------------------------------------------------------


class Autoencoder:
    """Random weights; blind to the mean over the width, which a LayerNorm takes away and wrapping may."""

    normalize = "none"

    def __init__(self, width: int, hook_name: str) -> None:
        rng = torch.Generator().manual_seed(width)
        encoder = torch.randn(width, 12, generator=rng) / width ** 0.5
        self.W_enc, self.W_dec = encoder - encoder.mean(0), torch.randn(12, width, generator=rng) / 3
        self.d_in, self.hook_name, self.b_enc = width, hook_name, torch.randn(12, generator=rng) / 3

    def encode(self, x: Tensor) -> Tensor:
        return (x @ self.W_enc + self.b_enc).relu()

    def decode(self, latents: Tensor) -> Tensor:
        return latents @ self.W_dec

    def __call__(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


class Place:
    """A hook of the course, in the plain model: the module, and what a head's value bias takes from it.

    `mean`: of a stream that is read through LayerNorms alone, which mean over the width it is given ("none", "all", or
    that of its "positions"). No prediction depends on it, but the length of the activation does.
    """

    def __init__(self, p: Plain, layer: int, point: str, head: int | None = None) -> None:
        self.p, self.layer, self.point, self.head = p, layer, point, head
        self.module, self.side = {
            "hook_resid_pre": (p.layers[layer], "in"), "hook_resid_post": (p.layers[layer], "out"),
            "hook_attn_out": (p.attention_writer[layer][-1], "out"), "hook_mlp_out": (p.mlp_writer[layer][-1], "out"),
            "attn.hook_z": (p.out[layer], "in"),
        }[point]
        self.width, self.times, self.mean = p.d_model, 1.0, "none"
        if point in ("hook_attn_out", "hook_mlp_out"):              # the activation is what is added to the stream
            with suppress(OnlyRefusal):
                self.times = multipliers(p, layer)[point == "hook_mlp_out"]
        if point == "attn.hook_z":
            self.width = p.d_head * (p.n_heads if head is None else 1)

    def read(self, tokens: Tensor) -> Tensor:
        if self.point != "attn.hook_z":
            x = self.times * self.p.value_of(tokens, self.module, self.side)
            mean = {"none": x[:1, :, :1] * 0, "all": x.mean(-1, keepdim=True),
                    "positions": self.p.position_vectors(x.shape[1]).mean(-1, keepdim=True)}[self.mean]
            return self.p.centred(x) + (mean if self.p.centres else 0)
        z = self.p.z(tokens, self.layer) - self.p.value_bias(self.layer)
        return z.flatten(2) if self.head is None else z[:, :, self.head]

    def put(self, new: Tensor) -> tuple:
        if self.point != "attn.hook_z":
            return put(self.module, self.side, new / self.times)
        bias = self.p.value_bias(self.layer)
        if self.head is None:
            return put(self.module, self.side, new + bias.flatten())
        return put_head(self.p, self.layer, self.head, new + bias[self.head])


def kept_first(new: Tensor, x: Tensor) -> Tensor:
    return torch.cat([x[:, :1], new[:, 1:]], dim=1)


def harm(p: Plain, tokens: Tensor, place: Place, new: Tensor) -> dict[str, Tensor]:
    """KL(p‖q), ΔCE and q's cross-entropy with a vector in the activation's place, positions 1 to the last but one."""
    x = place.read(tokens)
    clean, patched = (p.log_probs(tokens, *changes)[:, 1:-1] for changes in ([], [place.put(kept_first(new, x))]))
    came = tokens[:, 2:, None]
    ce_clean, ce = (-each.gather(2, came).mean() for each in (clean, patched))
    return {"kl": (clean.exp() * (clean - patched)).sum(-1).mean(), "delta_ce": ce - ce_clean, "ce": ce}


def evaluated(p: Plain, tokens: Tensor, place: Place, sae: Autoencoder) -> dict[str, Tensor]:
    x = place.read(tokens)
    own, zero = harm(p, tokens, place, sae(x)), harm(p, tokens, place, torch.zeros_like(x))
    mean = harm(p, tokens, place, x[:, 1:-1].mean((0, 1)).expand_as(x))
    return {"kl": own["kl"], "delta_ce": own["delta_ce"], "ce_sae": own["ce"], "ce_clean": own["ce"] - own["delta_ce"],
            "ce_zero": zero["ce"], "kl_zero": zero["kl"], "ce_mean": mean["ce"]}


def floor(p: Plain, tokens: Tensor, place: Place, sae: Autoencoder, mean: str) -> dict[str, Tensor]:
    place.mean = mean
    x = place.read(tokens)
    own, longer = sae(x), sae(x).norm(dim=-1, keepdim=True) / x.norm(dim=-1, keepdim=True)
    vectors = {"sae": own, "norm_only": x * longer, "norm_corrected": own / longer, "zero": torch.zeros_like(x),
               "mean": x[:, 1:-1].mean((0, 1)).expand_as(x)}
    return {f"{kind} {name}": value for kind, new in vectors.items()
            for name, value in harm(p, tokens, place, new).items() if name != "ce"}


def without_latents(p: Plain, tokens: Tensor, place: Place, sae: Autoencoder, which: list[int]) -> Tensor:
    x = p.value_of(tokens, place.module, place.side)
    rest = x - sae.encode(x)[..., which] @ sae.W_dec[which]
    return p.log_probs(tokens, place.put(kept_first(rest, x)))


def spliced(p: Plain, tokens: Tensor, place: Place, sae: Autoencoder) -> Tensor:
    x = place.read(tokens)
    return p.log_probs(tokens, place.put(kept_first(sae(x), x)))


def reading_spliced(
    p: Plain, tokens: Tensor, place: Place, sae: Autoencoder, heads: list[tuple[int, int]], into: str
) -> Tensor:
    """Log-probabilities of the tokens that came when only these heads read from the spliced model's stream."""
    x = place.read(tokens)
    there = place.put(kept_first(sae(x), x))
    streams = {layer: p.value_of(tokens, p.layers[layer], "in", there) for layer, _ in heads}
    log_probs = p.log_probs(tokens, *readings(p, tokens, heads, into, streams))
    return log_probs[:, :-1].gather(2, tokens[:, 1:, None])[..., 0]

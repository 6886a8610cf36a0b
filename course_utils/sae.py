"""Sparse autoencoders of four kinds, written out.

    f = act((x − b_dec) W_enc + b_enc)        the latents: not negative, most of them 0
    x̂ = f W_dec + b_dec                       the reconstruction

The kinds differ in `act`, and in what keeps the latents few:

    relu        max(0, ·)                             an L1 penalty (Bricken et al. 2023)
    topk        the k largest, if positive            nothing: k is the number (Gao et al. 2024)
    jumprelu    what exceeds a learned threshold      a penalty on their number (Rajamanoharan et al. 2024, 2407.14435)
    gated       a magnitude, behind a gate            an L1 penalty on the gate (Rajamanoharan et al. 2024, 2404.16014)

`save` and `load` use the form of SAELens on disk, cfg.json and sae_weights.safetensors (`sae_formats`).
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import Self

from course_utils.passes import largest
from course_utils.sae_formats import fold_decoder_norm, read_folder, write_sae

KINDS = ("relu", "topk", "jumprelu", "gated")
NORMS = ("none", "constant_norm_rescale", "layer_norm")
EPSILON = 1e-5  # keeps the norms from dividing by zero
BANDWIDTH = 0.05  # width of the window around a threshold in which it gets a gradient


class SparseAutoencoder(nn.Module):
    """A sparse autoencoder; the module's docstring has the formulas.

    Attributes:
        W_enc [d_in, d_sae], b_enc [d_sae], W_dec [d_sae, d_in], b_dec [d_in]. jumprelu adds threshold [d_sae]; gated
        has b_gate, b_mag and r_mag (the logarithm of a scale) in the place of b_enc, each [d_sae].
    """

    def __init__(
        self, d_in: int, d_sae: int, kind: str = "relu", *, k: int | None = None, normalize: str = "none",
        hook_name: str | None = None, model_name: str | None = None, head: int | None = None,
        subtract_b_dec: bool = True, seed: int = 0,
    ) -> None:
        """
        Args:
            d_in, d_sae: width of the activations, number of latents.
            kind: relu, topk, jumprelu or gated.
            k: number of active latents; topk needs it, the others have none.
            normalize: what is done to each activation first, and undone at the end. none: nothing;
                constant_norm_rescale: its norm becomes sqrt(d_in); layer_norm: its mean becomes 0 and its standard
                deviation 1.
            hook_name, head, model_name: where the activations come from.
            subtract_b_dec: False leaves x − b_dec out of the first formula: the encoder sees x.
        Raises:
            ValueError: for an unknown kind or norm, sizes that are not positive, or a k that does not fit.
        """
        super().__init__()
        _check(d_in, d_sae, kind, k, normalize)
        self.kind, self.k, self.normalize, self.subtract_b_dec = kind, k, normalize, subtract_b_dec
        self.hook_name, self.head, self.model_name = hook_name, head, model_name
        rng = torch.Generator().manual_seed(seed)
        directions = torch.randn(d_sae, d_in, dtype=torch.float64, generator=rng)      # in float32 machines differ
        directions = (directions / directions.norm(dim=1, keepdim=True)).float()
        self.W_dec = nn.Parameter(directions)                       # one unit direction for each latent
        self.W_enc = nn.Parameter(directions.T.contiguous())        # the encoder starts as the decoder, transposed
        self.b_dec = nn.Parameter(torch.zeros(d_in))
        for name in ("b_gate", "b_mag", "r_mag") if kind == "gated" else ("b_enc",):
            setattr(self, name, nn.Parameter(torch.zeros(d_sae)))
        if kind == "jumprelu":
            self.threshold = nn.Parameter(torch.full((d_sae,), 0.1))

    @property
    def d_in(self) -> int:
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        return self.W_dec.shape[0]

    def extra_repr(self) -> str:
        k = f", k={self.k}" if self.kind == "topk" else ""
        return f"{self.d_in} -> {self.d_sae}, {self.kind}{k}, normalize={self.normalize}, hook_name={self.hook_name}"

    def encode(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_sae"]:
        """The latents of an activation.

        Raises:
            ValueError: if the activation's width is not d_in.
        """
        if x.shape[-1] != self.d_in:
            raise ValueError(f"activations have width {x.shape[-1]}; this autoencoder was made for {self.d_in}")
        return self.activate(self.pre_activations(self.normalized(x)))

    def decode(
        self, latents: Float[Tensor, "... d_sae"], x: Float[Tensor, "... d_in"] | None = None
    ) -> Float[Tensor, "... d_in"]:
        """The activation that the latents describe.

        `x` is what they were made from: an autoencoder that normalizes has to know what the norm removed.
        Raises:
            ValueError: if it normalizes and x is missing.
        """
        return self.undo_norm(self.write(latents, x), x)

    def forward(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_in"]:
        """The reconstruction of an activation."""
        return self.decode(self.encode(x), x)

    # --- the steps -------------------------------------------------------------------------------------------------

    def mean_and_scale(self, x: Float[Tensor, "... d_in"]) -> tuple[Float[Tensor, "... 1"], Float[Tensor, "... 1"]]:
        """The mean and the scale that the norm removes from an activation."""
        if self.normalize == "layer_norm":
            return x.mean(dim=-1, keepdim=True), x.std(dim=-1, keepdim=True)
        return torch.zeros_like(x[..., :1]), (x.norm(dim=-1, keepdim=True) / self.d_in**0.5).clamp_min(EPSILON)

    def normalized(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_in"]:
        """The activation as the weights see it."""
        if self.normalize == "none":
            return x
        mean, scale = self.mean_and_scale(x)
        return (x - mean) / (scale + EPSILON if self.normalize == "layer_norm" else scale)     # as SAELens does

    def undo_norm(
        self, out: Float[Tensor, "... d_in"], x: Float[Tensor, "... d_in"] | None
    ) -> Float[Tensor, "... d_in"]:
        """Give a reconstruction the mean and the scale of the activation x."""
        if self.normalize == "none":
            return out
        if x is None:
            raise ValueError(f"this autoencoder normalizes its input ({self.normalize}): decode(latents, x) needs x")
        mean, scale = self.mean_and_scale(x)
        return out * scale + mean

    def pre_activations(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_sae"]:
        """(x − b_dec) W_enc + b_enc; without b_enc if gated."""
        pre = (x - self.b_dec if self.subtract_b_dec else x) @ self.W_enc
        return pre if self.kind == "gated" else pre + self.b_enc

    def write(
        self, latents: Float[Tensor, "... d_sae"], x: Float[Tensor, "... d_in"] | None
    ) -> Float[Tensor, "... d_in"]:
        """f W_dec + b_dec."""
        return latents @ self.W_dec + self.b_dec

    def activate(self, pre: Float[Tensor, "... d_sae"]) -> Float[Tensor, "... d_sae"]:
        """Latents from pre-activations."""
        if self.kind == "gated":
            return self.gate(pre) * self.magnitude(pre)
        if self.kind == "topk":
            return top_k(pre, self.k)           # type: ignore[arg-type]   # `_check`: topk has its k
        if self.kind == "jumprelu":
            return JumpReLU.apply(pre, self.threshold)
        return pre.relu()

    def gate(self, pre: Float[Tensor, "... d_sae"]) -> Float[Tensor, "... d_sae"]:
        """Which latents of a gated autoencoder are on: 1 or 0."""
        return (pre + self.b_gate > 0).to(pre.dtype)

    def magnitude(self, pre: Float[Tensor, "... d_sae"]) -> Float[Tensor, "... d_sae"]:
        """How large the latents are where their gate is on."""
        return (pre * self.r_mag.exp() + self.b_mag).relu()

    # --- on disk ---------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write cfg.json and sae_weights.safetensors into `folder`, in the form that SAELens loads."""
        write_sae(self, Path(folder))

    _read_files = staticmethod(read_folder)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what `save`, or SAELens, or another library of `sae_formats` wrote.

        Raises:
            ValueError: if a file is missing, damaged or a pickle, or asks for what this class does not do.
        """
        (settings, weights, fold), weight_file, settings_file = cls._read_files(Path(folder))
        try:
            sae = cls(**settings)
        except ValueError as error:
            raise ValueError(f"{settings_file}: {error}") from error
        try:
            widest = functools.reduce(torch.promote_types, (value.dtype for value in weights.values()))
            sae.to(widest).load_state_dict(weights)                         # no number is rounded
        except RuntimeError as error:
            raise ValueError(f"{weight_file} does not fit {settings_file}: {error}") from error
        if fold:
            sae.load_state_dict(fold_decoder_norm(sae.state_dict()))
        return sae.requires_grad_(False).eval()


def top_k(pre: Float[Tensor, "... d_sae"], k: int) -> Float[Tensor, "... d_sae"]:
    """Those of the k largest entries that are positive; 0 elsewhere."""
    values, indices = largest(pre, k)
    return torch.zeros_like(pre).scatter_(-1, indices, values.relu())


class JumpReLU(torch.autograd.Function):
    """x where x exceeds the threshold and 0, else 0.

    Moving a threshold a little changes the output only where x is exactly at it, so its true gradient is 0 almost
    everywhere. The straight-through estimate lets each x within half a bandwidth count: −threshold / bandwidth
    (arXiv 2407.14435, eq. 11). There x is the pre-activation as it is: after a relu every negative one would lie at 0,
    within the window of any threshold below half a bandwidth.
    """

    @staticmethod
    def forward(ctx, x: Float[Tensor, "... d_sae"], threshold: Float[Tensor, "d_sae"]) -> Float[Tensor, "... d_sae"]:
        ctx.save_for_backward(x, threshold)
        return x.relu() * (x > threshold)

    @staticmethod
    def backward(ctx, slope: Float[Tensor, "... d_sae"]) -> tuple[Tensor, Tensor]:
        x, threshold = ctx.saved_tensors
        near, on = (x - threshold).abs() < BANDWIDTH / 2, (x > threshold) & (x > 0)
        return slope * on, -(threshold / BANDWIDTH * near * slope).reshape(-1, x.shape[-1]).sum(dim=0)


class Step(torch.autograd.Function):
    """1 where x exceeds the threshold, else 0; the same estimate: −1 / bandwidth (arXiv 2407.14435, eq. 12)."""

    @staticmethod
    def forward(ctx, x: Float[Tensor, "... d_sae"], threshold: Float[Tensor, "d_sae"]) -> Float[Tensor, "... d_sae"]:
        ctx.save_for_backward(x, threshold)
        return (x > threshold).to(x.dtype)

    @staticmethod
    def backward(ctx, slope: Float[Tensor, "... d_sae"]) -> tuple[None, Tensor]:
        x, threshold = ctx.saved_tensors
        near = (x - threshold).abs() < BANDWIDTH / 2
        return None, -(near * slope / BANDWIDTH).reshape(-1, x.shape[-1]).sum(dim=0)


def _check(d_in: int, d_sae: int, kind: str, k: int | None, normalize: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(KINDS)}")
    if normalize not in NORMS:
        raise ValueError(f"normalize is {repr(normalize)[:80]}; it must be one of {', '.join(NORMS)}")
    if d_in < 1 or d_sae < 1:
        raise ValueError(f"d_in is {d_in} and d_sae is {d_sae}; both must be positive")
    if kind == "topk" and (k is None or not 1 <= k <= d_sae):
        raise ValueError(f"topk needs k, the number of active latents, from 1 to d_sae = {d_sae}; k is {k}")
    if kind != "topk" and k is not None:
        raise ValueError(f"k is for topk; {kind} decides for itself how many latents are active")

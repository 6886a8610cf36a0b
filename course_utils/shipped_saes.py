"""The autoencoders that come with the course, and a small one for any other model.

training/train_saes.py made them. A name is the kind and the layer whose residual stream it reads: "topk-2" reads
blocks.2.hook_resid_pre, and "relu-normalized-2" the same with every activation rescaled to the same norm first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from course_utils.sae import SparseAutoencoder
from course_utils.sae_training import TrainingConfig, train_sae
from course_utils.text import SAES_FOLDER, sample_text

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def shipped_saes(model_name: str) -> list[str]:
    """Names of the autoencoders that come with the course for this model; none for most models."""
    return sorted(file.parent.name for file in (SAES_FOLDER / model_name).glob("*/cfg.json"))


def load_shipped_sae(model_name: str, name: str) -> SparseAutoencoder:
    """One of them.

    Raises:
        ValueError: if there is none of this name.
    """
    if name not in shipped_saes(model_name):
        raise ValueError(f"no autoencoder {name!r} is shipped for {model_name}; there are: "
                         f"{', '.join(shipped_saes(model_name)) or 'none'}")
    return SparseAutoencoder.load(SAES_FOLDER / model_name / name)


def middle_layer(model: TransformerBridge) -> int:
    """The layer at whose entrance the lessons put their autoencoders."""
    return model.cfg.n_layers // 2


def small_config(d_model: int) -> TrainingConfig:
    """Enough training to have something to look at, within a minute for a large model."""
    return TrainingConfig(d_sae=2 * d_model, kind="topk", k=24, steps=150, batch=512, warm_up=30, dead_after=50)


def topk_sae_for(model: TransformerBridge) -> SparseAutoencoder:
    """The shipped TopK autoencoder of the middle layer; for a model without one, a small one that is trained now."""
    layer, name = middle_layer(model), model.cfg.model_name
    if f"topk-{layer}" in shipped_saes(name):
        return load_shipped_sae(name, f"topk-{layer}").to(model.cfg.device)
    print(f"no autoencoder is shipped for {name}: training a small one (about a minute)")
    tokens = sample_text(model, n=32, length=min(64, model.cfg.n_ctx), seed=1)
    return train_sae(model, f"blocks.{layer}.hook_resid_pre", tokens, small_config(model.cfg.d_model))

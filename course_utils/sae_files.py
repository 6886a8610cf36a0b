"""Autoencoders ready to use: those that come with the course, those on the hub, a small one for any model.

training/train_saes.py made those of the course. A name is the kind and the layer whose residual stream it reads:
"topk-2" reads blocks.2.hook_resid_pre, and "relu-normalized-2" the same with every activation rescaled to the same norm
first.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from course_utils.house import WEIGHTS as SHIPPED
from course_utils.house import ModelUnavailable, first_line
from course_utils.sae import SparseAutoencoder
from course_utils.sae_formats import CONFIG, FORMATS, WEIGHTS, refuse_unread
from course_utils.sae_training import TrainingConfig, train_sae
from course_utils.text import sample_text

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

SAES_FOLDER = SHIPPED / "saes"
RELEASES = {"gpt2-small-res-jb": "jbloom/GPT2-Small-SAEs-Reformatted"}  # SAELens's names, and the repository of each


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


def load_pretrained_sae(release: str, sae_id: str) -> SparseAutoencoder:
    """A published autoencoder in the form of any library in FORMATS, from the Hugging Face hub or its local cache.

    Args:
        release: a name in RELEASES, or the repository itself ("owner/name").
        sae_id: the folder in it, such as "blocks.8.hook_resid_pre".
    Raises:
        ModelUnavailable: if it is not in the cache and the hub does not answer, or has no such files there.
        ValueError: if the release is neither known nor a repository, or as `SparseAutoencoder.load` does.
    """
    repo = RELEASES.get(release, release)
    if "/" not in repo:
        raise ValueError(f"there is no release {release!r}; known are {', '.join(RELEASES)}, and any repository "
                         f"of the hub in the form of {', '.join(each.library for each in FORMATS)} as owner/name")
    sae = SparseAutoencoder.load(_downloaded(repo, sae_id, f"{release}, {sae_id}"))
    sae.hook_name = sae.hook_name or (sae_id if "hook_" in sae_id else None)
    return sae


def _downloaded(repo: str, sae_id: str, named: str) -> Path:
    """The folder with all files of one format, the first that the hub or its cache has. Raises as its caller does."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    errors: list[Exception] = []
    silent = False
    for each in FORMATS:
        try:
            files = [hf_hub_download(repo, f"{sae_id}/{name}", local_files_only=silent) for name in each.files]
            return Path(files[0]).parent
        except EntryNotFoundError as error:                                 # the next format's files may be there
            errors.append(error)
            silent = isinstance(error, LocalEntryNotFoundError)             # no hub: from now on ask only its cache
        except (OSError, ValueError) as error:
            errors, silent = [error], True
            break
    if not silent:
        refuse_unread(_names_there(repo, sae_id), f"{repo}/{sae_id}")
    others = ", or ".join(each.files[-1] for each in FORMATS[1:])
    raise ModelUnavailable(
        f"the autoencoder {named} is not on this machine and could not be downloaded.\n"
        f"  needed:  {CONFIG} and {WEIGHTS} in {repo}/{sae_id}, or {others}\n"
        f"  tried:   the local Hugging Face cache {constants.HF_HUB_CACHE}: not there\n"
        f"           the Hugging Face hub: {first_line(errors[0])}\n"
        f"  works now: the autoencoders that the course ships, see shipped_saes(model_name)"
    ) from errors[0]


def _names_there(repo: str, sae_id: str) -> list[str]:
    """The names of the files in a folder of the hub; none if it does not answer."""
    from huggingface_hub import list_repo_tree

    try:
        return [entry.path for entry in list_repo_tree(repo, sae_id)]
    except (OSError, ValueError):
        return []

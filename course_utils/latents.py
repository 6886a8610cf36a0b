"""What a latent represents: where it is active, and which fact it tracks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from course_utils.faithfulness import latents_of, site_of
from course_utils.language import Sample, StoryLanguage
from course_utils.passes import activations_in_batches, checked_mask

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from course_utils.faithfulness import HasEncodeDecode


@torch.no_grad()
def latent_activations(
    model: TransformerBridge, sae: HasEncodeDecode, tokens: Int[Tensor, "n pos"], *, batch_size: int = 32,
    mask: Bool[Tensor, "n pos"] | None = None,
) -> Float[Tensor, "n pos d_sae"]:
    """Every latent at every position; 0 at the first (BOS), which an autoencoder of this course never sees.

    Args:
        mask: the positions to read instead of all but the first; 0 outside. Padded text needs one: see
            `passes.without_padding`.
    Raises:
        ValueError: if the autoencoder does not fit the model, or as `passes.checked_mask` does.
    """
    site, mask = site_of(model, sae), checked_mask(model, tokens, mask)
    latents = torch.cat([latents_of(sae, x, site).cpu()
                         for x in activations_in_batches(model, site, tokens, batch_size)])
    latents[~mask.cpu()] = 0
    return latents


def dead_latents(latents: Float[Tensor, "n pos d_sae"], mask: Bool[Tensor, "n pos"]) -> Bool[Tensor, "d_sae"]:
    """True for each latent that is 0 at every position that the mask counts."""
    return ~((latents != 0) & mask[..., None]).any(dim=1).any(dim=0)


def top_activations(latent: Float[Tensor, "n pos"], k: int) -> Int[Tensor, "k 2"]:
    """The (sequence, position) of a latent's k largest values, largest first, at most one in each sequence.

    Fewer than k where it is active in fewer sequences.
    """
    largest, positions = latent.max(dim=1)                          # each [n]
    sequences = largest.argsort(descending=True, stable=True)[:k]
    sequences = sequences[largest[sequences] > 0]
    return torch.stack([sequences, positions[sequences]], dim=1)


def auc(latents: Float[Tensor, "m d_sae"], labels: Bool[Tensor, "m"]) -> Float[Tensor, "d_sae"]:
    """How well each latent tells labelled positions from others: P(f₊ > f₋) + ½ P(f₊ = f₋), for a random pair.

    1: larger at every labelled position; ½: knows nothing; 0: smaller at every one. (The area under the ROC curve,
    as Mann and Whitney count it.)
    Raises:
        ValueError: if all positions, or none, are labelled.
    """
    if labels.all() or not labels.any():
        raise ValueError(f"{int(labels.sum())} of {len(labels)} positions are labelled: there is nothing to tell apart")
    labelled, others = latents[labels].T.contiguous(), latents[~labels].T.contiguous()
    others = others.sort(dim=1).values                                  # [d_sae, others]
    smaller = torch.searchsorted(others, labelled)                      # how many of the others are smaller
    not_larger = torch.searchsorted(others, labelled, right=True)       # how many are smaller or equal
    return ((smaller + not_larger).double().mean(dim=1) / (2 * others.shape[1])).float()


def best_latents(
    latents: Float[Tensor, "m d_sae"], labels: dict[str, Bool[Tensor, "m"]], *,
    known: dict[str, Bool[Tensor, "m"]] | None = None,
) -> pd.DataFrame:
    """For each label the latent whose AUC is farthest from ½, in either direction.

    Args:
        known: for each label the positions where it has a value; all, if the label is not in it.
    """
    rows = []
    for name, label in labels.items():
        where = (known or {}).get(name, torch.ones_like(label))
        scores = auc(latents[where], label[where])
        best = int((scores - 0.5).abs().argmax())
        active, yes = (latents[where][:, best] != 0).float(), label[where]
        rows.append({"label": name, "share": yes.float().mean().item(), "latent": best, "AUC": scores[best].item(),
                     "active if so": active[yes].mean().item(), "active if not": active[~yes].mean().item()})
    return pd.DataFrame(rows).set_index("label")


def linear_direction(x: Float[Tensor, "m d"], labels: Bool[Tensor, "m"]) -> Float[Tensor, "d"]:
    """The direction on which labelled activations differ most from the others, relative to the spread within.

    Linear regression of the label on the activation, with a slight ridge penalty for directions that hardly vary.
    """
    centred = x - x.mean(dim=0)
    wanted = labels.float() - labels.float().mean()
    covariance = centred.T @ centred / len(x) + 1e-2 * torch.eye(x.shape[1], device=x.device)
    return torch.linalg.solve(covariance, centred.T @ wanted / len(x))


def story_labels(sample: Sample) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Yes-or-no questions about stories, answered at every position; and where each has an answer.

    From the labels of the sample (`course_utils.language.LABELS`), and three from its words.
    """
    labels, words, ids = sample.labels, sample.tokens, StoryLanguage().ids
    anyone = labels["woman"] >= 0
    yes = {
        "the word is 'She'": words == ids["She"],
        "the word before was 'and'": words.roll(1, dims=1) == ids["and"],
        "the actor is Ben": labels["actor"] == ids["Ben"],
        "a woman acts": labels["woman"] == 1, "inside a quotation": labels["in_quote"] == 1,
        "the subject is plural": labels["plural"] == 1, "first sentence of a story": labels["sentence"] == 0,
        "first word of a sentence": labels["position"] == 1, "two people or more": labels["people"] >= 2,
        "the actor holds something": labels["holding"] >= 1, "something lies somewhere": labels["lying"] >= 1,
        "we know where the actor is": labels["place"] >= 0, "what was named lies somewhere": labels["topic_place"] >= 0,
    }
    return yes, {"the actor is Ben": anyone, "a woman acts": anyone, "the actor holds something": anyone}


def token_labels(model: TransformerBridge, tokens: Int[Tensor, "n pos"]) -> dict[str, Bool[Tensor, "n pos"]]:
    """Questions for any text, answered from the tokens alone, on the CPU; none that has the same answer everywhere."""
    words = {token: model.tokenizer.decode([token]) for token in tokens.unique().tolist()}
    questions = {
        "begins a word": lambda word: word.startswith(" "),
        "a capital": lambda word: word.strip()[:1].isupper(),
        "a number": lambda word: word.strip().isdigit(),
        "punctuation": lambda word: word.strip() and not any(map(str.isalnum, word)),
        "a line break": lambda word: "\n" in word,
    }
    answers = {name: torch.tensor([bool(test(words[t])) for t in tokens.flatten().tolist()]).reshape(tokens.shape)
               for name, test in questions.items()}
    answers = {name: answer for name, answer in answers.items() if 0 < answer.float().mean() < 1}
    if answers:
        return answers
    return {"an id in the lower half": (tokens < tokens.float().median()).cpu()}       # these tokens are not words

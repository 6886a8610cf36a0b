"""The record of a model, and the one question that functions ask it: does all that I rest on hold?

The record is measured on a few tokens when a model is loaded, not guessed from its name. A function that needs what
does not hold refuses in words instead of giving a wrong number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from course_utils.house import NotForThisModel
from course_utils.passes.record import NEEDS, Traits
from course_utils.passes.trial import try_out

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def traits_of(model: TransformerBridge) -> Traits:
    """The record that `load_model` made; for a bridge from elsewhere it is made now, in a few passes on short text.

    With hooks on it, a model is not what it will be without them: such a record is not kept.
    """
    if hasattr(model, "course_traits"):
        return model.course_traits
    traits = try_out(model)
    if all(handle.is_permanent for point in model.hook_dict.values() for handle in point.fwd_hooks):
        model.course_traits = traits
    return traits


def require(model: TransformerBridge, what: str, *needs: str) -> Traits:
    """The model's record, if it has all that `what` rests on.

    Args:
        what: the thing that was asked for, the beginning of the message.
        needs: keys of NEEDS.
    Raises:
        NotForThisModel: naming the first assumption that does not hold, and what was seen instead.
    """
    traits = traits_of(model)
    for need in needs:
        if need in traits.lacks:
            raise NotForThisModel(f"{what} is not for this model ({model.cfg.model_name}): it needs {NEEDS[need]}. "
                                  f"When the model was tried: {traits.lacks[need]}.")
    return traits


def require_plain_blocks(model: TransformerBridge, what: str, *needs: str) -> None:
    """As `require`, and each block adds what its heads and its MLP write as it is, each read through a norm of its own.

    Raises:
        NotForThisModel: for other blocks, too: one norm for both, or outputs that are normed before they are added.
    """
    require(model, what, *needs, "parts", "writes", "reads", "mlps")
    if any(hasattr(block, norm) for block in model.blocks for norm in ("ln1_post", "ln2_post")):
        raise NotForThisModel(f"{what} is not for this model ({model.cfg.model_name}): it needs blocks that add what "
                              "heads and MLP write as it is, and here a norm stands between them and the stream")

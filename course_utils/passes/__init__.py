"""How passes through a model are taken apart, patched and made cheap; and what a model can be asked."""

from course_utils.passes.clean_run import CleanRun, read_activation, see_patterns
from course_utils.passes.keeping import Keeper, in_short, over_batches, what_is_run
from course_utils.passes.padding import (
    all_but_first,
    check_unpadded,
    checked_mask,
    counted_positions,
    followed,
    looks_like_padding,
    special_tokens,
    without_padding,
)
from course_utils.passes.parts import (
    Head,
    after_block_0,
    centred,
    check_head,
    gain_of,
    head_weights,
    key_value_head,
    normalize,
    normed_reading,
    output_scale,
)
from course_utils.passes.pooling import Pooled, put_back
from course_utils.passes.products import largest, wide_product
from course_utils.passes.record import NEEDS, Traits, Turn
from course_utils.passes.resumed import Enough, Residual, after_unembedding, output_factor
from course_utils.passes.sites import Site, activations_in_batches, collect_activations, hook_z, in_float64, mlp_out
from course_utils.passes.traits import require, require_plain_blocks, traits_of
from course_utils.passes.trial import check_causal, check_same, trial_tokens, try_out

__all__ = [
    "NEEDS", "CleanRun", "Enough", "Head", "Keeper", "Pooled", "Residual", "Site", "Traits", "Turn",
    "activations_in_batches", "after_block_0", "after_unembedding", "all_but_first", "centred", "check_causal",
    "check_head", "check_same", "check_unpadded", "checked_mask", "collect_activations", "counted_positions",
    "followed", "gain_of", "head_weights", "hook_z", "in_float64", "in_short", "key_value_head", "largest",
    "looks_like_padding", "mlp_out", "normalize", "normed_reading", "output_factor", "output_scale", "over_batches",
    "put_back", "read_activation", "require", "require_plain_blocks", "see_patterns", "special_tokens", "traits_of",
    "trial_tokens", "try_out", "what_is_run", "wide_product", "without_padding",
]

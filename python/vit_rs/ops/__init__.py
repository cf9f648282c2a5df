"""Patchify, unpatchify, the resampling of position embeddings and patch kernels: Rust on the CPU, torch elsewhere.

Each is a `torch.library` operator (`torch.ops.vit_rs.*`) with a fake kernel and a gradient, or made of such: it works
eagerly, under autograd, under `torch.compile(fullgraph=True)` and in exports. The functions here check arguments and
give defaults; the operators behind them do the work. No result shares memory with an argument. Nothing may write to an
argument during a call.
"""

from vit_rs.ops.patches import patchify, unpatchify
from vit_rs.ops.resampling import interpolation_matrix, resample_abs_pos_embed, resample_patch_embed

__all__ = ["interpolation_matrix", "patchify", "resample_abs_pos_embed", "resample_patch_embed", "unpatchify"]

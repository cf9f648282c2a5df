"""The patch embedding: a linear map of the flattened patch (arXiv 2010.11929, equation 1).

Letters: B batch, C channels, P x Q patch, N patches (gh x gw of them), D width.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_rs.ops import patchify, resample_patch_embed

__all__ = ["PatchEmbed"]


class PatchEmbed(nn.Module):
    """Embed images or patches: (B, C, height, width) or (B, N, P*Q*C) -> (B, N, D).

    Args:
        image_hw: The image's (height, width) in pixels; multiples of the patch's.
        patch_hw: The patch's (height, width) in pixels.
        in_chans: Channels C.
        embed_dim: Width D.
        dynamic_img_size: Whether images of any size that the patch divides are taken.
    """

    def __init__(
        self,
        image_hw: tuple[int, int],
        patch_hw: tuple[int, int],
        *,
        in_chans: int,
        embed_dim: int,
        dynamic_img_size: bool = False,
    ) -> None:
        super().__init__()
        self.dynamic_img_size = dynamic_img_size
        self.proj = _PatchProjection(in_chans, patch_hw, embed_dim)
        self.set_input_size(image_hw, patch_hw)

    def set_input_size(self, image_hw: tuple[int, int], patch_hw: tuple[int, int]) -> None:
        """Take images and patches of other sizes; a kernel of another size is resized by FlexiViT's method.

        Args:
            image_hw: The image's (height, width) in pixels; multiples of the patch's.
            patch_hw: The patch's (height, width) in pixels.
        """
        weight = self.proj.weight
        if tuple(weight.shape[2:]) != patch_hw:
            resized = resample_patch_embed(weight.detach(), patch_hw)
            self.proj.weight = nn.Parameter(resized, requires_grad=weight.requires_grad)
        self.img_size = image_hw
        self.patch_size = patch_hw
        self.grid_size = (image_hw[0] // patch_hw[0], image_hw[1] // patch_hw[1])
        self.num_patches = self.grid_size[0] * self.grid_size[1]

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return the embedded patches, row by row, without position, and their grid (rows, columns)."""
        if not x.is_floating_point():
            raise TypeError(f"expected floating-point images or patches, got {x.dtype}: scale them first")
        (height, width), (P, Q), C = self.img_size, self.patch_size, self.proj.weight.shape[1]
        grid = self.grid_size
        if x.ndim == 3 and x.shape[1:] == (self.num_patches, C * P * Q):
            return cast("Tensor", self.proj(x)), grid
        if x.ndim != 4 or x.shape[1] != C:
            raise ValueError(self._expected(x))
        if self.dynamic_img_size:  # a size is not compared with the model's own: exported graphs have symbols for it
            if x.shape[2] % P or x.shape[3] % Q or 0 in x.shape[2:]:
                raise ValueError(self._expected(x))
            grid = (x.shape[2] // P, x.shape[3] // Q)
        elif x.shape[2] != height or x.shape[3] != width:
            raise ValueError(self._expected(x))
        return cast("Tensor", self.proj(patchify(x, self.patch_size, order="cpq"))), grid  # (B, N, D)

    def _expected(self, x: Tensor) -> str:
        (height, width), (P, Q), C = self.img_size, self.patch_size, self.proj.weight.shape[1]
        image = f"{C}, {height}, {width}"
        if self.dynamic_img_size:
            image = f"{C}, height, width) with height a multiple of {P} and width of {Q}"
            return f"expected images (B, {image}, or patches of {height}x{width}, got {tuple(x.shape)}"
        hint = "; dynamic_img_size=True takes other sizes" if x.ndim == 4 and x.shape[1] == C else ""
        patches = f"{self.num_patches}, {C * P * Q}"
        return f"expected images (B, {image}) or patches (B, {patches}) in order 'cpq', got {tuple(x.shape)}{hint}"


class _PatchProjection(nn.Module):
    """The linear map E of a flattened patch; the weight has a convolution's shape (D, C, P, Q), as timm's."""

    def __init__(self, in_chans: int, patch_hw: tuple[int, int], embed_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(embed_dim, in_chans, *patch_hw))
        self.bias = nn.Parameter(torch.empty(embed_dim))

    def forward(self, patches: Tensor) -> Tensor:
        """(B, N, C*P*Q) -> (B, N, D)."""
        return F.linear(patches, self.weight.flatten(1), self.bias)

"""Published ViTs that are more than a size and a patch, under timm's names: DeiT, DeiT-3, DINOv2, SigLIP, DINOv3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["PRESETS", "SIZES", "size"]

# Width, depth, heads, MLP ratio. B, L and H: the paper's table 1; Ti and S: DeiT (arXiv 2012.12877); So400m:
# arXiv 2305.13035; g and G ("giant", "gigantic"): arXiv 2106.04560.
SIZES: Final[Mapping[str, tuple[int, int, int, float]]] = {
    "tiny": (192, 12, 3, 4.0),
    "small": (384, 12, 6, 4.0),
    "base": (768, 12, 12, 4.0),
    "large": (1024, 24, 16, 4.0),
    "so400m": (1152, 27, 16, 4304 / 1152),
    "huge": (1280, 32, 16, 4.0),
    "giant": (1408, 40, 16, 6144 / 1408),
    "gigantic": (1664, 48, 16, 8192 / 1664),
}


def size(name: str) -> dict[str, Any]:
    """Return the fields that a size of `SIZES` stands for."""
    return _size(*SIZES[name])


def _size(embed_dim: int, depth: int, num_heads: int, mlp_ratio: float = 4.0) -> dict[str, Any]:
    return {"embed_dim": embed_dim, "depth": depth, "num_heads": num_heads, "mlp_ratio": mlp_ratio}


def _deit() -> Iterator[tuple[str, dict[str, Any]]]:
    """DeiT (arXiv 2012.12877), without and with the distillation token."""
    for name, img_size in (("tiny", 224), ("small", 224), ("base", 224), ("base", 384)):
        fields = {**size(name), "patch_size": 16, "img_size": img_size}
        yield f"deit_{name}_patch16_{img_size}", fields
        yield f"deit_{name}_distilled_patch16_{img_size}", {**fields, "distilled": True}


def _deit3() -> Iterator[tuple[str, dict[str, Any]]]:
    """DeiT-3 (arXiv 2204.07118): layer scale, and a class token without a position."""
    common = {"no_embed_class": True, "init_values": 1e-6}
    for name in ("small", "medium", "base", "large"):
        fields = {**(_size(512, 12, 8) if name == "medium" else size(name)), **common, "patch_size": 16}
        for img_size in (224,) if name == "medium" else (224, 384):
            yield f"deit3_{name}_patch16_{img_size}", {**fields, "img_size": img_size}
    yield "deit3_huge_patch14_224", {**size("huge"), **common, "patch_size": 14, "img_size": 224}


def _dinov2() -> Iterator[tuple[str, dict[str, Any]]]:
    """DINOv2 (arXiv 2304.07193), and with registers (arXiv 2309.16588); features, no head."""
    sizes = {name: size(name) for name in ("small", "base", "large")}
    sizes["giant"] = {**_size(1536, 40, 24, 2 * 4096 / 1536), "mlp": "swiglu"}
    for name, fields in sizes.items():
        common = {**fields, "patch_size": 14, "img_size": 518, "num_classes": 0, "init_values": 1e-5}
        yield f"vit_{name}_patch14_dinov2", common
        yield f"vit_{name}_patch14_reg4_dinov2", {**common, "reg_tokens": 4, "no_embed_class": True}


def _siglip() -> Iterator[tuple[str, dict[str, Any]]]:
    """SigLIP's image towers (arXiv 2303.15343): no class token, a MAP head, or in "gap" the average; no head."""
    for name, patch, img_size in (
        ("base", 16, 224),
        ("base", 16, 384),
        ("large", 16, 384),
        ("so400m", 14, 224),
        ("so400m", 14, 384),
    ):
        # 384 is no multiple of 14: those models see 378 pixels, the rest was always cut off.
        seen = img_size - img_size % patch
        common = {**size(name), "patch_size": patch, "img_size": seen, "num_classes": 0, "class_token": False}
        yield f"vit_{name}_patch{patch}_siglip_{img_size}", {**common, "global_pool": "map"}
        yield f"vit_{name}_patch{patch}_siglip_gap_{img_size}", {**common, "global_pool": "avg", "fc_norm": False}


def _dinov3() -> Iterator[tuple[str, dict[str, Any]]]:
    """DINOv3 (arXiv 2508.10104): rotary positions, registers, layer scale; features, no head.

    timm has one of these names for weights without qkv biases, and with "_qkvb" one for those that have them, as
    Hugging Face's have.
    """
    sizes = {name: size(name) for name in ("small", "base", "large")}
    # The gated MLP's ratio counts gate and value together.
    sizes["small_plus"] = {**_size(384, 12, 6, 8.0), "mlp": "swiglu"}
    sizes["huge_plus"] = {**_size(1280, 32, 20, 8.0), "mlp": "swiglu"}
    sizes["7b"] = {**_size(4096, 40, 32, 4.0), "mlp": "swiglu"}
    common = {
        "patch_size": 16,
        "img_size": 256,
        "num_classes": 0,
        "pos_embed": "none",
        "rope": True,
        "reg_tokens": 4,
        "init_values": 1e-5,
        "norm_eps": 1e-5,
        "dynamic_img_size": True,
    }
    for name, fields in sizes.items():
        yield f"vit_{name}_patch16_dinov3", {**fields, **common, "qkv_bias": False}
        if name != "7b":
            yield f"vit_{name}_patch16_dinov3_qkvb", {**fields, **common}


PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {
    name: fields for family in (_deit, _deit3, _dinov2, _siglip, _dinov3) for name, fields in family()
}
"""Name -> the fields of `ViTConfig` that differ from its defaults."""

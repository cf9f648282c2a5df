"""BiT: pre-activation ResNets with group norm and standardised kernels, the paper's baselines; blocks of its hybrids.

Big Transfer, arXiv 1912.11370; section 4.1 of arXiv 2010.11929 compares a ViT with these. State-dict names and graph
are those of timm's ResNetV2 ("resnetv2_50x1_bit").

Letters: B batch, C channels, H x W positions of a feature map, F features, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vit_rs.exceptions import ConfigError
from vit_rs.models import _values as values
from vit_rs.models.encoder import DropPath
from vit_rs.models.initialisation import lecun_normal

if TYPE_CHECKING:
    from collections.abc import Callable


__all__ = [
    "STANDARDIZATIONS",
    "BiTResNet",
    "Bottleneck",
    "ConvConfig",
    "GroupNormReLU",
    "PreActBottleneck",
    "ResNetConfig",
    "Stage",
    "Standardization",
    "StdConv2d",
    "Stem",
    "check_images",
    "init_resnet",
    "make_stages",
    "num_features",
    "stage_depths",
]

Padding = Literal["fixed", "same"]
Standardization = Literal["timm", "bit", "flax"]

# Width of the stem, and of the first stage's output, before the width factor; each further stage doubles its output.
_STEM_WIDTH, _STAGE_WIDTH = 64, 256
_MAX_STAGES = 4
_GROUPS = 32
# What keeps a kernel's deviation from 0: (added to the variance under the root, added to the deviation). On kernels of
# deviation 0.01 or less they differ by up to a thousandth. The norms' epsilon needs no such choice: flax's 1e-6 and
# all others' 1e-5 differ by 1e-6 of the logits, because activations behind such kernels have large variances.
STANDARDIZATIONS = {"timm": (1e-8, 0.0), "bit": (1e-10, 0.0), "flax": (1e-20, 1e-5)}


@dataclass(frozen=True)
class ResNetConfig(values.Configuration):
    """Configure a `BiTResNet`; the default is BiT's R50x1.

    Attributes:
        layers: Blocks of each stage, 1 to 4 stages: (3, 4, 6, 3) is the 50, (3, 4, 23, 3) the 101,
            (3, 8, 36, 3) the 152, (3, 24, 36, 3) the 200.
        width_factor: What multiplies all channels: the x2 of R50x2.
        in_chans: Image channels.
        num_classes: Outputs of the head; 0 builds no head, and the logits are the pooled features.
        padding: "fixed", kernel // 2 zeros on all sides whatever the image's size (BiT), or "same", TensorFlow's
            padding, one-sided where a stride meets an even size (vision_transformer's hybrids).
        standardization: How kernels are standardised, which shows in the fourth digit: "timm" (timm's models of these
            weights), "bit" (bit_pytorch and big_vision, where BiT's weights come from), "flax" (vision_transformer).
        drop_rate: Dropout before the head.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0 in the first.

    Raises:
        ConfigError: A value is out of its range.
    """

    layers: tuple[int, ...] = (3, 4, 6, 3)
    width_factor: int = 1
    in_chans: int = 3
    num_classes: int = 1000
    padding: Padding = "fixed"
    standardization: Standardization = "timm"
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", stage_depths("layers", self.layers, least_stages=1))
        for name, least in (("width_factor", 1), ("in_chans", 1), ("num_classes", 0)):
            object.__setattr__(self, name, values.integer(name, getattr(self, name), least))
        for name in ("drop_rate", "drop_path_rate"):
            object.__setattr__(self, name, values.rate(name, getattr(self, name)))
        values.choice("padding", self.padding, ("fixed", "same"))
        values.choice("standardization", self.standardization, tuple(STANDARDIZATIONS))

    @property
    def num_features(self) -> int:
        """Channels of the last feature map, F."""
        return num_features(self.layers, self.width_factor)


def stage_depths(name: str, value: object, least_stages: int) -> tuple[int, ...]:
    """Return the blocks of each stage as a tuple, or raise a ConfigError."""
    if not isinstance(value, (tuple, list)) or not least_stages <= len(value) <= _MAX_STAGES:
        raise ConfigError(
            f"{name} must be the numbers of blocks of {least_stages} to {_MAX_STAGES} stages, got {value!r}"
        )
    return tuple(values.integer(f"{name}[{index}]", depth, 1) for index, depth in enumerate(value))


def num_features(layers: tuple[int, ...], width_factor: int) -> int:
    """Return the channels after the last stage; after the stem, where there is none."""
    return width_factor * (_STAGE_WIDTH << (len(layers) - 1) if layers else _STEM_WIDTH)


class BiTResNet(nn.Module):
    """Classify images by a pre-activation ResNet.

    Input: images (B, C, height, width) of any size, floating point, normalised. Output: logits (B, K).
    `torch.channels_last` images and weights are as right, and faster on most devices.

    Source: arXiv 1912.11370; graph and names of timm's ResNetV2 as its BiT models configure it.

    Args:
        config: Sizes and options.
    """

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        self.num_classes = config.num_classes
        self.num_features = config.num_features
        convolutions = ConvConfig(config.padding, config.standardization)
        self.stem = Stem(config.in_chans, config.width_factor, convolutions)
        self.stages = make_stages(
            PreActBottleneck, config.layers, config.width_factor, convolutions, drop_path_rate=config.drop_path_rate
        )
        self.norm = GroupNormReLU(self.num_features)
        self.head = _Head(self.num_features, config.num_classes, config.drop_rate)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw fresh weights as big_vision does: kernels LeCun normal, the head zero; see `init_resnet`."""
        init_resnet(self)
        self.head.reset_parameters()

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters that are never decayed: none by name (norms and biases are vectors)."""
        return set()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass, not keeping its activations: less memory, more time."""
        for stage in self.stages:
            cast("Stage", stage).grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """Return the linear head, a 1x1 convolution; the identity without classes."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a fresh head of zeros on, of other classes, on the old weights' device and of their dtype.

        Args:
            num_classes: Outputs of the new head; 0 leaves none.
            global_pool: None or "avg": there is no other pool.

        Raises:
            ConfigError: The number is negative, or another pool is asked for.
        """
        if global_pool is not None:
            values.choice("global_pool", global_pool, ("avg",))
        self.config = replace(self.config, num_classes=num_classes)
        self.num_classes = self.config.num_classes
        head = _Head(self.num_features, self.num_classes, self.config.drop_rate)
        head.reset_parameters()
        self.head = head.to(self.norm.weight).train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits.

        Args:
            x: Images (B, C, height, width); floating point.

        Returns:
            Logits (B, K); with `num_classes=0` the pooled features (B, F).

        Raises:
            ValueError: The shape is another.
            TypeError: The values are integers: scale and normalise them first.
        """
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last feature map after its norm and ReLU, (B, F, H, W). Input and errors as in `forward`."""
        check_images(x, self.config.in_chans)
        x = self.stem(x)  # (B, 64 * width, height / 4, width / 4)
        for stage in self.stages:
            x = stage(x)
        return cast("Tensor", self.norm(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits of the feature map (B, F, H, W) that `forward_features` gave.

        Args:
            x: Feature map.
            pre_logits: Stop before the linear head.

        Returns:
            Logits (B, K), or the average over positions (B, F).
        """
        return cast("Tensor", self.head(x, pre_logits))


def init_resnet(model: nn.Module) -> None:
    """Draw the kernels and norms of a ResNet's parts; the random numbers come from torch's global generator.

    Kernels LeCun normal (their scale is standardised away; it sets how fast they turn under an optimiser), norms one
    and zero, but zero the last scale of a `Bottleneck`, which starts as its shortcut.

    Source: flax's default and google-research/vision_transformer, vit_jax/models_resnet.py.
    """
    for module in model.modules():
        if isinstance(module, (StdConv2d, nn.GroupNorm)):
            module.reset_parameters()
    for module in model.modules():
        if isinstance(module, Bottleneck):
            nn.init.zeros_(module.norm3.weight)


def check_images(x: Tensor, in_chans: int) -> None:
    """Raise unless x is a batch of floating-point images (B, in_chans, height, width) of one pixel or more."""
    if not x.is_floating_point():
        raise TypeError(f"expected floating-point images, got {x.dtype}: scale them first")
    if x.ndim != 4 or x.shape[1] != in_chans or 0 in x.shape[2:]:
        raise ValueError(f"expected images (B, {in_chans}, height, width), got {tuple(x.shape)}")


class ConvConfig(NamedTuple):
    """What all convolutions of a ResNet share; fields mean what `ResNetConfig`'s of the same name do."""

    padding: Padding
    standardization: Standardization


class StdConv2d(nn.Module):
    """Convolve with kernels of mean 0 and variance 1 (weight standardisation, arXiv 1903.10520); no bias.

    (B, in, H, W) -> (B, out, H / stride, W / stride), rounded up.

    Args:
        in_chans: Channels of the input.
        out_chans: Channels of the output.
        kernel_size: Side of the kernel; odd.
        config: Padding and standardisation.
        stride: Stride.
    """

    def __init__(self, in_chans: int, out_chans: int, kernel_size: int, config: ConvConfig, *, stride: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_chans, in_chans, kernel_size, kernel_size))
        self.stride = stride
        # At stride 1 both kinds of padding are the same.
        self.pads_same = config.padding == "same" and stride > 1 and kernel_size > 1
        self.eps_in_root, self.eps = STANDARDIZATIONS[config.standardization]

    def reset_parameters(self) -> None:
        """Draw a fresh kernel."""
        lecun_normal(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature map."""
        # A layer norm of each output channel's kernel is its standardisation: one fused, exportable operator.
        weight = F.layer_norm(self.weight, self.weight.shape[1:], eps=self.eps_in_root)
        if self.eps:
            variance = self.weight.var((1, 2, 3), correction=0, keepdim=True)
            deviation = (variance + self.eps_in_root).sqrt()
            weight = weight * (deviation / (deviation + self.eps))
        size = weight.shape[-1]
        if self.pads_same:
            x = F.pad(x, (*_same(x.shape[3], size, self.stride), *_same(x.shape[2], size, self.stride)))
            return F.conv2d(x, weight, stride=self.stride)
        return F.conv2d(x, weight, stride=self.stride, padding=size // 2)

    def extra_repr(self) -> str:
        """Show shape and stride in the module's repr."""
        return f"{tuple(self.weight.shape)}, stride={self.stride}" + (", same" if self.pads_same else "")


def _same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return TensorFlow's padding (before, after) that makes ceil(size / stride) outputs; the odd one comes after."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class GroupNormReLU(nn.GroupNorm):
    """Norm 32 groups of channels, then ReLU. (B, C, H, W) -> (B, C, H, W).

    Args:
        channels: Channels C; a multiple of 32.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(_GROUPS, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normed values, cut at 0."""
        return F.relu_(super().forward(x))


class Stem(nn.Module):
    """Shrink images fourfold: a 7x7 convolution, then max-pooling, each of stride 2.

    (B, C, height, width) -> (B, 64 * width_factor, height / 4, width / 4).

    Args:
        in_chans: Channels C.
        width_factor: What multiplies the channels.
        config: Padding, of the pooling too, and standardisation.
        normed: Whether norm and ReLU follow the convolution (hybrids); a pre-activation net leaves them to its blocks.
    """

    def __init__(self, in_chans: int, width_factor: int, config: ConvConfig, *, normed: bool = False) -> None:
        super().__init__()
        self.padding = config.padding
        self.conv = StdConv2d(in_chans, _STEM_WIDTH * width_factor, 7, config, stride=2)
        self.norm = GroupNormReLU(_STEM_WIDTH * width_factor) if normed else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return the first feature map."""
        x = self.norm(self.conv(x))
        if self.padding == "fixed":
            # Zeros, which win over negative values; max_pool2d's own padding never wins. BiT was trained with these.
            return F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2)
        # TensorFlow's padding of a 3x3 window at stride 2: one cell after an even size, which `ceil_mode` reads as
        # missing; one cell on each side of an odd size.
        return F.max_pool2d(x, 3, 2, padding=(x.shape[2] % 2, x.shape[3] % 2), ceil_mode=True)


class PreActBottleneck(nn.Module):
    """Add an update of three convolutions, each after norm and ReLU (arXiv 1603.05027; the stride on the 3x3).

    (B, in, H, W) -> (B, out, H / stride, W / stride).

    Args:
        in_chans: Channels of the input.
        out_chans: Channels of the output; the convolutions between have a quarter.
        stride: Stride.
        config: Padding and standardisation.
        drop_path: Probability with which a sample skips the update in training.
    """

    def __init__(self, in_chans: int, out_chans: int, stride: int, config: ConvConfig, drop_path: float) -> None:
        super().__init__()
        mid = out_chans // 4
        projects = stride != 1 or in_chans != out_chans
        self.downsample = _Projection(in_chans, out_chans, stride, config) if projects else None
        self.norm1 = GroupNormReLU(in_chans)
        self.conv1 = StdConv2d(in_chans, mid, 1, config)
        self.norm2 = GroupNormReLU(mid)
        self.conv2 = StdConv2d(mid, mid, 3, config, stride=stride)
        self.norm3 = GroupNormReLU(mid)
        self.conv3 = StdConv2d(mid, out_chans, 1, config)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature map with the update added."""
        y = self.norm1(x)
        shortcut = x if self.downsample is None else self.downsample(y)
        y = self.conv2(self.norm2(self.conv1(y)))
        y = self.conv3(self.norm3(y))
        return cast("Tensor", self.drop_path(y) + shortcut)


class Bottleneck(nn.Module):
    """Add an update of three convolutions, each before its norm, then ReLU (ResNet v1.5): the hybrids' block.

    (B, in, H, W) -> (B, out, H / stride, W / stride).

    Source: google-research/vision_transformer, vit_jax/models_resnet.py.

    Args:
        in_chans: Channels of the input.
        out_chans: Channels of the output; the convolutions between have a quarter.
        stride: Stride.
        config: Padding and standardisation.
        drop_path: Probability with which a sample skips the update in training.
    """

    def __init__(self, in_chans: int, out_chans: int, stride: int, config: ConvConfig, drop_path: float) -> None:
        super().__init__()
        mid = out_chans // 4
        projects = stride != 1 or in_chans != out_chans
        self.downsample = _Projection(in_chans, out_chans, stride, config, normed=True) if projects else None
        self.conv1 = StdConv2d(in_chans, mid, 1, config)
        self.norm1 = GroupNormReLU(mid)
        self.conv2 = StdConv2d(mid, mid, 3, config, stride=stride)
        self.norm2 = GroupNormReLU(mid)
        self.conv3 = StdConv2d(mid, out_chans, 1, config)
        self.norm3 = nn.GroupNorm(_GROUPS, out_chans)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature map with the update added, cut at 0."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.norm2(self.conv2(self.norm1(self.conv1(x))))
        y = self.norm3(self.conv3(y))
        return F.relu_(self.drop_path(y) + shortcut)


class _Projection(nn.Module):
    """A shortcut of other channels or another size: a 1x1 convolution, and a norm in the hybrids."""

    def __init__(self, in_chans: int, out_chans: int, stride: int, config: ConvConfig, *, normed: bool = False) -> None:
        super().__init__()
        self.conv = StdConv2d(in_chans, out_chans, 1, config, stride=stride)
        self.norm = nn.GroupNorm(_GROUPS, out_chans) if normed else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H / stride, W / stride)."""
        return cast("Tensor", self.norm(self.conv(x)))


class Stage(nn.Module):
    """Blocks of one resolution, in order; the first may shrink the map and change its channels.

    Args:
        blocks: The blocks.
    """

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """Return the last block's feature map."""
        for block in self.blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = cast("Tensor", checkpoint(block, x, use_reentrant=False))
            else:
                x = block(x)
        return x


def make_stages(
    make_block: Callable[..., nn.Module],
    layers: tuple[int, ...],
    width_factor: int,
    config: ConvConfig,
    *,
    drop_path_rate: float = 0.0,
) -> nn.ModuleList:
    """Build the stages after a stem; each but the first halves the map's sides, and its first block doubles channels.

    Args:
        make_block: `PreActBottleneck` or `Bottleneck`.
        layers: Blocks of each stage.
        width_factor: What multiplies the channels.
        config: Padding and standardisation.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0 in the first.
    """
    count = sum(layers)
    rates = iter([drop_path_rate * index / max(count - 1, 1) for index in range(count)])
    stages, in_chans = nn.ModuleList(), num_features((), width_factor)
    for index, depth in enumerate(layers):
        out_chans, blocks = num_features(layers[: index + 1], width_factor), []
        for place, rate in enumerate(islice(rates, depth)):
            stride = 2 if index and not place else 1
            blocks.append(make_block(in_chans, out_chans, stride, config, rate))
            in_chans = out_chans
        stages.append(Stage(*blocks))
    return stages


class _Head(nn.Module):
    """Average over positions, then one linear layer, kept as a 1x1 convolution (K, F, 1, 1) as in timm."""

    def __init__(self, features: int, classes: int, drop_rate: float) -> None:
        super().__init__()
        self.drop = nn.Dropout(drop_rate)
        self.fc = nn.Conv2d(features, classes, 1) if classes else nn.Identity()

    def reset_parameters(self) -> None:
        """Set all to zero: all classes start equal."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, F, H, W) -> (B, K), or (B, F)."""
        x = self.drop(x.mean((2, 3), keepdim=True))  # (B, F, 1, 1)
        return (x if pre_logits else cast("Tensor", self.fc(x))).flatten(1)

"""The graphs of vision_transformer and big_vision, transcribed in NumPy from their definitions, beside our model."""

import math

import numpy as np
import pytest
import torch

from vit_rs.models import VisionTransformer, ViTConfig

TINY = ViTConfig(img_size=(12, 20), patch_size=4, num_classes=5, embed_dim=24, depth=2, num_heads=3, act="gelu_tanh")
IMAGES = np.random.default_rng(0).standard_normal((2, 12, 20, 3))  # NHWC, as in JAX


class Weights:
    """Weights under flax's names and in its shapes: dense kernels (in, out), the patch's (P, Q, C, D)."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.state = {name: value.double().numpy() for name, value in model.state_dict().items()}

    def dense(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        return scaled * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def mlp(self, x: np.ndarray, name: str) -> np.ndarray:
        x = self.dense(x, f"{name}.fc1")
        x = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))  # flax's nn.gelu
        return self.dense(x, f"{name}.fc2")


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int) -> np.ndarray:
    """(B, Q, D), (B, T, D), (B, T, D) -> (B, Q, D), head by head."""
    width = q.shape[2] // heads
    outputs = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        logits = q[..., part] @ k[..., part].transpose(0, 2, 1) / math.sqrt(width)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        outputs.append(weights / weights.sum(-1, keepdims=True) @ v[..., part])
    return np.concatenate(outputs, axis=-1)


def embedded(w: Weights) -> np.ndarray:
    """Return the embedded patches in raster order, (B, N, D): a sum over the patch's rows, columns and channels."""
    kernel = w.state["patch_embed.proj.weight"].transpose(2, 3, 1, 0)  # (P, Q, C, D)
    P, Q = kernel.shape[:2]
    tokens = [
        np.einsum("bpqc,pqcd->bd", IMAGES[:, top : top + P, left : left + Q], kernel)
        for top in range(0, 12, P)
        for left in range(0, 20, Q)
    ]
    return np.stack(tokens, axis=1) + w.state["patch_embed.proj.bias"]


def encoded(w: Weights, x: np.ndarray, heads: int, depth: int) -> np.ndarray:
    for layer in range(depth):
        y = w.norm(x, f"blocks.{layer}.norm1")
        q, k, v = np.split(w.dense(y, f"blocks.{layer}.attn.qkv"), 3, axis=-1)
        x = x + w.dense(attention(q, k, v, heads), f"blocks.{layer}.attn.proj")
        x = x + w.mlp(w.norm(x, f"blocks.{layer}.norm2"), f"blocks.{layer}.mlp")
    return w.norm(x, "norm")


def token_graph(w: Weights) -> np.ndarray:
    """vision_transformer: the class token first, then positions for it and the patches; pre_logits with tanh."""
    x = np.concatenate([np.broadcast_to(w.state["cls_token"], (2, 1, 24)), embedded(w)], axis=1) + w.state["pos_embed"]
    return np.tanh(w.dense(encoded(w, x, 3, 2)[:, 0], "pre_logits.fc"))


def average_graph(w: Weights) -> np.ndarray:
    """vision_transformer's "gap": no class token, the mean of all tokens after the norm."""
    return encoded(w, embedded(w) + w.state["pos_embed"], 3, 2).mean(axis=1)


def separate_token_graph(w: Weights) -> np.ndarray:
    """big_vision's "tok": positions are added to the patches only, the class token is put before them after that."""
    x = embedded(w) + w.state["pos_embed"]
    return encoded(w, np.concatenate([np.broadcast_to(w.state["cls_token"], (2, 1, 24)), x], axis=1), 3, 2)[:, 0]


def map_graph(w: Weights) -> np.ndarray:
    """big_vision's MAPHead: a probe attends to all tokens; then x + MLP(LN(x))."""
    x = encoded(w, embedded(w) + w.state["pos_embed"], 3, 2)
    q = w.dense(np.broadcast_to(w.state["attn_pool.latent"], (2, 1, 24)), "attn_pool.q")
    k, v = np.split(w.dense(x, "attn_pool.kv"), 2, axis=-1)
    x = w.dense(attention(q, k, v, 3), "attn_pool.proj")
    return (x + w.mlp(w.norm(x, "attn_pool.norm"), "attn_pool.mlp"))[:, 0]


GRAPHS = {
    "token, representation": (token_graph, {"representation_size": 7}),
    "average": (average_graph, {"class_token": False, "global_pool": "avg", "fc_norm": False}),
    "separate class token": (separate_token_graph, {"no_embed_class": True}),
    "map": (map_graph, {"class_token": False, "global_pool": "map"}),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_are_those_of_jax(filled, name):
    graph, changes = GRAPHS[name]
    model = filled(VisionTransformer(ViTConfig.from_dict({**TINY.to_dict(), **changes}))).double()
    images = torch.from_numpy(IMAGES).permute(0, 3, 1, 2)
    with torch.inference_mode():
        logits, pooled = model(images), model.forward_head(model.forward_features(images), pre_logits=True)
    weights = Weights(model)
    expected = graph(weights)
    np.testing.assert_allclose(pooled.numpy(), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(logits.numpy(), weights.dense(expected, "head"), rtol=0, atol=1e-12)


def test_the_two_averages_are_two_graphs(filled):
    changes = {**TINY.to_dict(), "class_token": False, "global_pool": "avg"}
    images = torch.from_numpy(IMAGES).permute(0, 3, 1, 2).float()
    before, after = (filled(VisionTransformer(ViTConfig(**{**changes, "fc_norm": norm}))) for norm in (False, True))
    assert list(before.state_dict()) != list(after.state_dict())
    after.load_state_dict(
        {
            name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: value
            for name, value in before.state_dict().items()
        }
    )
    assert (before(images) - after(images)).abs().max() > 0.01

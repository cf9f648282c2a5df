"""A ViT's forward pass in jax.numpy, from the definitions of arXiv 2010.11929 and 2106.04560 alone.

A script of its own, because jax warns of every fork of the process that has imported it:
`python flax_vit.py FOLDER` writes for every model.npz there, with flax's names of today, the logits of images.npy
(B, H, W, C) as model.npy.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np


def logits(weights, images):
    """Return the logits (B, K); what the model is follows from the weights."""

    def dense(x, name):
        return x @ weights[f"{name}/kernel"] + weights[f"{name}/bias"]

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        scale = jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        return centred * scale * weights[f"{name}/scale"] + weights[f"{name}/bias"]

    def attention(queries, tokens, name):
        def heads(x, part):
            return jnp.einsum("btd,dhk->bthk", x, weights[f"{name}/{part}/kernel"]) + weights[f"{name}/{part}/bias"]

        q, k, v = heads(queries, "query"), heads(tokens, "key"), heads(tokens, "value")
        share = jax.nn.softmax(jnp.einsum("bqhk,bthk->bhqt", q, k) / k.shape[-1] ** 0.5)
        gathered = jnp.einsum("bhqt,bthk->bqhk", share, v)
        return jnp.einsum("bqhk,hkd->bqd", gathered, weights[f"{name}/out/kernel"]) + weights[f"{name}/out/bias"]

    def mlp(x, name):
        return dense(jax.nn.gelu(dense(x, f"{name}/Dense_0"), approximate=True), f"{name}/Dense_1")

    kernel = weights["embedding/kernel"]
    x = jax.lax.conv_general_dilated(
        images, kernel, kernel.shape[:2], "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = x.reshape(len(x), -1, x.shape[-1]) + weights["embedding/bias"]
    table = weights["pos_embedding"]
    if table.shape[1] == x.shape[1]:
        x = x + table
    if "cls" in weights:
        x = jnp.concatenate([jnp.broadcast_to(weights["cls"], (len(x), 1, x.shape[-1])), x], axis=1)
    if table.shape[1] != x.shape[1] - ("cls" in weights):
        x = x + table
    depth = sum(key.endswith("LayerNorm_1/scale") for key in weights)
    for name in (f"Transformer/encoderblock_{index}" for index in range(depth)):
        y = norm(x, f"{name}/LayerNorm_0")
        x = x + attention(y, y, f"{name}/MultiHeadDotProductAttention_0")
        x = x + mlp(norm(x, f"{name}/LayerNorm_1"), f"{name}/MlpBlock_0")
    x = norm(x, "Transformer/encoder_norm")
    if "MAPHead_0/probe" in weights:
        probe = jnp.broadcast_to(weights["MAPHead_0/probe"], (len(x), 1, x.shape[-1]))
        x = attention(probe, x, "MAPHead_0/MultiHeadDotProductAttention_0")
        x = (x + mlp(norm(x, "MAPHead_0/LayerNorm_0"), "MAPHead_0/MlpBlock_0"))[:, 0]
    else:
        x = x[:, 0] if "cls" in weights else x.mean(axis=1)
    if "pre_logits/kernel" in weights:
        x = jnp.tanh(dense(x, "pre_logits"))
    return dense(x, "head")


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    folder = Path(sys.argv[1])
    pixels = np.load(folder / "images.npy")
    for path in folder.glob("*.npz"):
        with np.load(path) as file:
            arrays = {key: np.asarray(value, np.float64) for key, value in file.items()}
        np.save(path.with_suffix(".npy"), np.asarray(logits(arrays, pixels)))

"""Vision transformers as torchvision has them (Dosovitskiy et al., 2021): class token, pre-norm."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from si_jax.checks import check_counts
from si_jax.models import family

Tokens = Float[Array, "batch tokens width"]

layer_norm = partial(nn.LayerNorm, epsilon=1e-6, use_fast_variance=False)  # torchvision's epsilon


class Attention(nn.Module):
    """Multi-head self-attention; queries, keys and values come from one linear layer."""

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        """Attend."""
        batch, tokens, width = x.shape
        qkv = nn.Dense(3 * width, dtype=self.dtype, name="in_proj")(x)
        qkv = qkv.reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = (qkv[:, :, i] for i in range(3))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(q.shape[-1]).astype(q.dtype)
        out = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, axis=-1), v)
        out = out.reshape(batch, tokens, width)
        return nn.Dense(width, dtype=self.dtype, name="out_proj")(out)


class EncoderLayer(nn.Module):
    """Attention and a two-layer perceptron with GELU, each behind a LayerNorm, beside shortcuts."""

    heads: int
    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        """Apply the layer."""
        norm, dense = partial(layer_norm, dtype=self.dtype), partial(nn.Dense, dtype=self.dtype)
        x = x + Attention(self.heads, self.dtype, name="attention")(norm(name="ln_1")(x))
        out = dense(self.hidden, name="mlp_1")(norm(name="ln_2")(x))
        return x + dense(x.shape[-1], name="mlp_2")(nn.gelu(out, approximate=False))


class VisionTransformer(nn.Module):
    """ViT; B/16 has patches of 16 pixels, 12 layers of width 768 and 12 heads."""

    num_classes: int
    patch: int = 16  # side of a patch, in pixels
    layers: int = 12  # of the encoder
    width: int = 768  # channels of a token
    hidden: int = 3072  # width between a perceptron's layers
    heads: int = 12
    dtype: Any = jnp.float32  # of the computation; the weights stay float32

    @nn.compact
    def __call__(self, x: family.Images, train: bool = False) -> family.Logits:
        """Logits of normalised images; `train` changes nothing, as there is no dropout."""
        check_counts("layers", (self.layers,), most=family.MAX_BLOCKS)
        check_counts("width", (self.width,), most=family.MAX_WIDTH)
        check_counts("hidden", (self.hidden,), most=family.MAX_WIDTH)
        check_counts("patch", (self.patch,), most=min(x.shape[1:3]))
        check_counts("heads", (self.heads,), most=self.width)
        if self.width % self.heads:
            raise ValueError(f"width (={self.width}) must be a multiple of heads (={self.heads})")
        size = (self.patch, self.patch)
        conv = partial(nn.Conv, padding="VALID", dtype=self.dtype, name="conv_proj")
        x = conv(self.width, size, size)(x).reshape(x.shape[0], -1, self.width)
        token = self.param("class_token", nn.initializers.zeros, (1, 1, self.width))
        x = jnp.concatenate([jnp.tile(token, (x.shape[0], 1, 1)).astype(x.dtype), x], axis=1)
        init = nn.initializers.normal(0.02)
        x = x + self.param("pos_embedding", init, (1, x.shape[1], self.width)).astype(x.dtype)
        for index in range(self.layers):
            x = EncoderLayer(self.heads, self.hidden, self.dtype, name=f"layer_{index:02d}")(x)
        x = layer_norm(dtype=self.dtype, name="ln")(x)[:, 0]
        return nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x)


def _taps(module: VisionTransformer) -> Mapping[str, Sequence[str]]:
    """Every LayerNorm of the encoder, and what enters its GELUs; there is no ReLU."""
    norms = ("layer_*/ln_?", "ln")
    half = (*(f"layer_{i:02d}/ln_?" for i in range(module.layers // 2, module.layers)),)
    return {
        "si-z": norms,
        "gaia-z": norms,
        "inner": half,
        "outer": ("(features)",),
        "si-c": ("layer_*/mlp_1",),
        "si-c-inner": half,
    }


def _infer(shapes: family.Shapes) -> dict[str, Any]:
    """Patch, layers and widths; the number of heads is assumed to be one for 64 channels."""
    layers = family.numbers(shapes, r"encoder\.layers\.encoder_layer_(\d+)\.")
    conv = shapes.get("conv_proj.weight", ())
    hidden = shapes.get("encoder.layers.encoder_layer_0.mlp.0.weight", ())
    if not layers or len(conv) != 4 or len(hidden) != 2:
        return {}
    width = conv[0]
    return {
        "patch": conv[-1],
        "layers": max(layers) + 1,
        "width": width,
        "hidden": hidden[0],
        "heads": max(1, width // 64),
    }


_LAYOUT = family.Layout(
    block=r"encoder\.layers\.encoder_layer_\d+\.",
    modules=(
        (r"^layer_0*(\d+)/", r"encoder.layers.encoder_layer_\1."),
        (r"attention/(\w+)$", r"self_attention.\1"),
        (r"mlp_1$", "mlp.0"),
        (r"mlp_2$", "mlp.3"),
        (r"^ln$", "encoder.ln"),
        (r"^head$", "heads.head"),
    ),
    head="heads.head.weight",
    infer=_infer,
    special={
        "params/class_token": "class_token",
        "params/pos_embedding": "encoder.pos_embedding",
    },
    aliases=(
        (r"\.in_proj_(weight|bias)$", r".in_proj.\1"),
        (r"\.mlp\.linear_1\.", ".mlp.0."),
        (r"\.mlp\.linear_2\.", ".mlp.3."),
    ),
    assumed=lambda o: [f"{o['heads']} heads of {o['width'] // o['heads']} channels"],
)
FAMILY = family.Family(
    "Vision Transformer", VisionTransformer, "head", _taps, lambda module: (), (_LAYOUT,)
)

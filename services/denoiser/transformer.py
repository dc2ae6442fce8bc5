"""One expert's forward pass, arranged so that nothing is computed twice in a run.

The weights and their names are diffusers' `WanTransformer3DModel`; the mathematics is Wan's `wan/modules/model.py`.
Against the module's own `forward`: keys and values of the text are computed once a run and the modulation of all blocks
once a step; positive and negative prompt share everything before the first cross-attention; normalisation and
modulation are one kernel. Norms, modulation and residuals are float32 whatever the weights are, as in the reference.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, TypeAlias

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttention, WanTransformerBlock
from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own abbreviation)

from services.denoiser.adapters import Adapter, LowRank
from services.denoiser.attention import Attend
from services.denoiser.offload import HostedBlocks
from services.denoiser.shapes import LatentShape
from services.denoiser.step_cache import FirstBlockCache

Updates: TypeAlias = Mapping[nn.Module, Sequence[tuple[LowRank, float]]]
_NO_UPDATES: Final[Updates] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What a run of one expert reuses at every step.

    `keys` and `values`: one a block, [B, heads, text length, head_dim]. `rotation`: [tokens, 1, head_dim / 2], complex.
    `updates`: what adapters add to a linear layer's output, by layer.
    """

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]
    rotation: torch.Tensor
    updates: Updates

    def first(self) -> "Context":
        """The context of the first text alone."""
        if self.keys[0].shape[0] == 1:
            return self
        return replace(self, keys=tuple(k[:1] for k in self.keys), values=tuple(v[:1] for v in self.values))


class Transformer:
    """A velocity network v(x, t, text) over the weights of one `WanTransformer3DModel`."""

    def __init__(self, module: WanTransformer3DModel, *, hosted: HostedBlocks | None = None) -> None:
        """`hosted` are the module's blocks where they stay in host memory."""
        self.module = module
        self._hosted = hosted
        self._compiled: Callable[..., torch.Tensor] | None = None
        self.attend: Attend = F.scaled_dot_product_attention
        self.dtype: torch.dtype = module.patch_embedding.weight.dtype
        self.device: torch.device = module.patch_embedding.weight.device
        self._heads: int = module.config.num_attention_heads
        tables = torch.cat([block.scale_shift_table.float() for block in module.blocks])
        # Rows 1 and 4 are scales, used as 1 + scale.
        tables[:, [1, 4]] += 1
        self._tables = tables.to(self.device)
        head = module.scale_shift_table.float().clone()
        head[:, 1] += 1
        self._head_table = head

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compile one block for all of them, at its first use with each shape; runs with adapters stay as they are."""
        self._compiled = torch.compile(self._block, dynamic=False, backend=backend)

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return int(self.module.config.in_channels)

    @property
    def max_positions(self) -> int:
        """The longest axis, in patches, that the rotary embedding covers."""
        return int(self.module.config.rope_max_seq_len)

    @property
    def text_dim(self) -> int:
        """Width of a text embedding."""
        return int(self.module.config.text_dim)

    def bring_in(self) -> None:
        """Have the weights on the device; they always are, unless a subclass says otherwise."""

    @torch.inference_mode()
    def read(self, text: torch.Tensor, shape: LatentShape, adapters: Sequence[tuple[Adapter, float]] = ()) -> Context:
        """Prepare a run with `text`, [B, padded length, text_dim], on latents of `shape`, with weighted adapters.

        Padding is attended, as in the reference: pad with zeros to the length that the model was trained with.
        """
        hidden = self.module.condition_embedder.text_embedder(text.to(self.device, self.dtype))
        updates: dict[nn.Module, list[tuple[LowRank, float]]] = {}
        for adapter, weight in adapters:
            for name, low_rank in adapter.items():
                updates.setdefault(self.module.get_submodule(name), []).append((low_rank, weight))
        keys, values = [], []
        for block in self._walk():
            keys.append(self._split(block.attn2.norm_k(_linear(block.attn2.to_k, hidden, updates))))
            values.append(self._split(_linear(block.attn2.to_v, hidden, updates)))
        return Context(keys=tuple(keys), values=tuple(values), rotation=self._rotation(shape), updates=updates)

    @torch.inference_mode()
    def __call__(
        self, x: torch.Tensor, timestep: float, context: Context, cache: FirstBlockCache | None = None
    ) -> torch.Tensor:
        """v at x, [1, C, T, H, W], for each text of the context: [B, C, T, H, W] float32.

        A `cache` may answer for all blocks after the first.
        """
        shape = LatentShape(channels=x.shape[1], frames=x.shape[2], height=x.shape[3], width=x.shape[4])
        hidden = self._patches(x.to(self.device, self.dtype), shape)
        modulations, head = self._modulation(timestep)
        if cache is None:
            for i, block in enumerate(self._walk()):
                hidden = self._one(i, block, hidden, modulations, context)
        else:
            hidden = self._cached_blocks(hidden, modulations, context, cache)
        hidden = _norm(hidden, head[1], head[0], self.module.norm_out.eps)
        return self._unpatched(self.module.proj_out(hidden), shape).float()

    def _walk(self, first: int = 0) -> Iterable[WanTransformerBlock]:
        if self._hosted is not None:
            return self._hosted.walk(first)
        return self.module.blocks[first:]

    def _one(
        self, i: int, block: WanTransformerBlock, x: torch.Tensor, modulations: torch.Tensor, context: Context
    ) -> torch.Tensor:
        text = (context.keys[i], context.values[i])
        if self._compiled is None or context.updates:
            return self._block(block, x, modulations[i], *text, context.rotation, context.updates)
        # Complex numbers are not compiled.
        rotation = torch.view_as_real(context.rotation)
        return self._compiled(block, x, modulations[i], *text, rotation, _NO_UPDATES)

    def _cached_blocks(
        self, x: torch.Tensor, modulations: torch.Tensor, context: Context, cache: FirstBlockCache
    ) -> torch.Tensor:
        walk = iter(self._walk())
        begun = self._one(0, next(walk), x, modulations, context)
        residual = begun - x
        rest = cache.rest(residual)
        if rest is None:
            hidden = begun
            for i, block in enumerate(walk, 1):
                hidden = self._one(i, block, hidden, modulations, context)
            rest = hidden - begun
            cache.keep(residual, rest)
        return begun + rest

    def _block(  # noqa: PLR0917  (what one block reads, in the order of its use)
        self,
        block: WanTransformerBlock,
        x: torch.Tensor,
        modulation: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        rotation: torch.Tensor,
        updates: Updates,
    ) -> torch.Tensor:
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = modulation
        attended = self._self_attention(block.attn1, _norm(x, scale, shift, block.norm1.eps), rotation, updates)
        x = _gated(x, attended, gate)
        queried = block.norm2(x.float()).type_as(x)
        x = x + self._cross_attention(block.attn2, queried, keys, values, updates)
        expand, _, contract = block.ffn.net
        # In place: the widest tensor of the block is not allocated a second time.
        wide = _linear(expand.proj, _norm(x, ffn_scale, ffn_shift, block.norm3.eps), updates)
        wide = torch.ops.aten.gelu_(wide, approximate="tanh")
        return _gated(x, _linear(contract, wide, updates), ffn_gate)

    def _self_attention(
        self, attn: WanAttention, x: torch.Tensor, rotation: torch.Tensor, updates: Updates
    ) -> torch.Tensor:
        query = self._rotated(attn.norm_q(_linear(attn.to_q, x, updates)), rotation)
        key = self._rotated(attn.norm_k(_linear(attn.to_k, x, updates)), rotation)
        value = self._split(_linear(attn.to_v, x, updates))
        return self._merged(attn, self.attend(query, key, value), updates)

    def _cross_attention(
        self, attn: WanAttention, x: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, updates: Updates
    ) -> torch.Tensor:
        query = self._split(attn.norm_q(_linear(attn.to_q, x, updates)))
        mixed = F.scaled_dot_product_attention(query.expand(keys.shape[0], -1, -1, -1), keys, values)
        return self._merged(attn, mixed, updates)

    def _merged(self, attn: WanAttention, mixed: torch.Tensor, updates: Updates) -> torch.Tensor:
        """[B, heads, L, head_dim] through the output projection to [B, L, D]."""
        return _linear(attn.to_out[0], mixed.transpose(1, 2).flatten(2), updates)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        """[B, L, D] to [B, heads, L, head_dim]."""
        return x.unflatten(2, (self._heads, -1)).transpose(1, 2)

    def _rotated(self, x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
        """Pairs of channels turned by their token's angles (RoPE); [B, L, D] to [B, heads, L, head_dim].

        `rotation` is complex, or real with cosine and sine last.
        """
        pairs = x.float().unflatten(2, (self._heads, -1, 2))
        if not rotation.is_complex():
            cos, sin = rotation.unbind(-1)
            even, odd = pairs.unbind(-1)
            turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
            return turned.flatten(3).transpose(1, 2).type_as(x)
        pairs = torch.view_as_complex(pairs)
        return torch.view_as_real(pairs * rotation).flatten(3).transpose(1, 2).type_as(x)

    def _rotation(self, shape: LatentShape) -> torch.Tensor:
        """e^(i angle) of every token: the angles of its frame, height and width side by side."""
        rope = self.module.rope
        cos, sin = rope.freqs_cos[:, 0::2], rope.freqs_sin[:, 0::2]
        angles = torch.complex(cos.float(), sin.float())
        frames, height, width = shape.grid
        parts = angles.split([rope.t_dim // 2, rope.h_dim // 2, rope.w_dim // 2], dim=1)
        grid = (frames, height, width, -1)
        return (
            torch.cat(
                [
                    parts[0][:frames].view(frames, 1, 1, -1).expand(grid),
                    parts[1][:height].view(1, height, 1, -1).expand(grid),
                    parts[2][:width].view(1, 1, width, -1).expand(grid),
                ],
                dim=-1,
            )
            .reshape(shape.tokens, 1, -1)
            .to(self.device)
        )

    def _modulation(self, timestep: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Shift, 1 + scale and gate of every block, [blocks, 6, D], and shift and 1 + scale of the head, [2, D]."""
        embedder = self.module.condition_embedder
        frequencies = embedder.timesteps_proj(torch.tensor([timestep], device=self.device))
        embedding = embedder.time_embedder(frequencies.to(embedder.time_embedder.linear_1.weight.dtype)).float()
        projection = embedder.time_proj
        projected = F.linear(F.silu(embedding), projection.weight.float(), projection.bias.float())
        return self._tables + projected.view(1, 6, -1), (self._head_table + embedding.unsqueeze(1))[0]

    def _patches(self, x: torch.Tensor, shape: LatentShape) -> torch.Tensor:
        """[1, C, T, H, W] to tokens, [1, L, D]: a convolution whose stride is its kernel is a matrix product."""
        frames, height, width = shape.grid
        embedding = self.module.patch_embedding
        patches = x.view(shape.channels, frames, height, 2, width, 2).permute(1, 2, 4, 0, 3, 5)
        return F.linear(patches.reshape(1, shape.tokens, -1), embedding.weight.flatten(1), embedding.bias)

    def _unpatched(self, tokens: torch.Tensor, shape: LatentShape) -> torch.Tensor:
        frames, height, width = shape.grid
        cells = tokens.view(-1, frames, height, width, 2, 2, shape.channels)
        return cells.permute(0, 6, 1, 2, 4, 3, 5).reshape(-1, *shape.batch[1:])


def _linear(layer: nn.Module, x: torch.Tensor, updates: Updates) -> torch.Tensor:
    """The layer's output plus what adapters add to it; exactly the layer's own where there is none."""
    y = layer(x)
    if not updates:
        return y
    for low_rank, weight in updates.get(layer, ()):
        y = torch.add(y, F.linear(F.linear(x, low_rank.down), low_rank.up), alpha=weight)
    return y


def _norm(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, eps: float) -> torch.Tensor:
    """Layer norm and modulation in one: norm(x) * scale + shift, in float32, in the type of x."""
    return F.layer_norm(x.float(), scale.shape, scale, shift, eps).type_as(x)


def _gated(x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """x + gate * y, in float32, in the type of x."""
    return torch.addcmul(x.float(), y.float(), gate).type_as(x)

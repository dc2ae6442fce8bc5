"""One expert's forward pass, arranged so that nothing is computed twice in a run.

The weights and their names are diffusers' `WanTransformer3DModel`; the mathematics is Wan's `wan/modules/model.py`.
Against the module's own `forward`: keys and values of the text are computed once a run and the modulation of all blocks
once a step; positive and negative prompt share everything before the first cross-attention; normalisation and
modulation are one kernel. Norms, modulation, the stream between the blocks and the head are float32 whatever the
weights are, as in the reference; the module's own `forward` rounds the last two to the weights' type.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from typing import Final

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttention, WanTransformerBlock
from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own abbreviation)

from services.denoiser.adapters import Adapter, Update
from services.denoiser.attention import Attend
from services.denoiser.offload import HostedBlocks
from services.denoiser.overlay import NO_UPDATES, Updates, added, linear, norm, shifted
from services.denoiser.shapes import LatentShape
from services.denoiser.step_cache import FirstBlockCache

_MOST_COMPILED: Final = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What a run of one expert reuses at every step.

    `keys` and `values`: one a block, [B, heads, text length, head_dim]. `rotation`: [tokens, 1, head_dim / 2], complex.
    `updates`: what adapters change, by layer; `tables`: the modulations of the blocks, [blocks, 6, D], and of the head,
    [1, 2, D], where they do, scales as 1 + scale.
    """

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]
    rotation: torch.Tensor
    updates: Updates
    tables: tuple[torch.Tensor, torch.Tensor] | None = None

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
        self._head = module.proj_out if self.dtype == torch.float32 else copy.deepcopy(module.proj_out).float()

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compile one block for all of them, at its first use with each shape; runs with adapters stay as they are."""
        # By default torch gives up after eight shapes. A size may have three: of one text, of two, and from one to two.
        torch._dynamo.config.recompile_limit = _MOST_COMPILED
        self._compiled = torch.compile(self._block, dynamic=False, backend=backend)

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return int(self.module.config.in_channels)

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self._heads * int(self.module.config.attention_head_dim)

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
        updates: dict[nn.Module, list[tuple[Update, float]]] = {}
        for adapter, weight in adapters:
            for name, update in adapter.items():
                updates.setdefault(self.module.get_submodule(name), []).append((update, weight))
        embedder = self.module.condition_embedder.text_embedder
        hidden = linear(embedder.linear_1, text.to(self.device, self.dtype), updates)
        hidden = linear(embedder.linear_2, embedder.act_1(hidden), updates)
        keys, values = [], []
        with self._walk() as blocks:
            for block in blocks:
                keys.append(self._split(norm(block.attn2.norm_k, linear(block.attn2.to_k, hidden, updates), updates)))
                values.append(self._split(linear(block.attn2.to_v, hidden, updates)))
        return Context(
            keys=tuple(keys),
            values=tuple(values),
            rotation=self._rotation(shape),
            updates=updates,
            tables=self._shifted_tables(updates),
        )

    @torch.inference_mode()
    def __call__(
        self, x: torch.Tensor, timestep: float, context: Context, cache: FirstBlockCache | None = None
    ) -> torch.Tensor:
        """v at x, [1, C, T, H, W], for each text of the context: [B, C, T, H, W] float32.

        A `cache` may answer for all blocks after the first.
        """
        shape = LatentShape(channels=x.shape[1], frames=x.shape[2], height=x.shape[3], width=x.shape[4])
        hidden = self._patches(x.to(self.device, self.dtype), shape, context.updates)
        modulations, head = self._modulation(timestep, context)
        with self._walk() as blocks:
            if cache is None:
                for i, block in enumerate(blocks):
                    hidden = self._one(i, block, hidden, modulations, context)
            else:
                hidden = self._cached_blocks(blocks, hidden, modulations, context, cache)
        normal = F.layer_norm(hidden, head[1].shape, head[1], head[0], self.module.norm_out.eps)
        tokens = added(self.module.proj_out, self._head(normal), normal, context.updates)
        return self._unpatched(tokens, shape)

    def _walk(self) -> AbstractContextManager[Iterator[WanTransformerBlock]]:
        """The blocks, each of them on the device when its turn comes; whatever fails leaves none of them behind."""
        return nullcontext(iter(self.module.blocks)) if self._hosted is None else closing(self._hosted.walk())

    def _one(
        self, i: int, block: WanTransformerBlock, x: torch.Tensor, modulations: torch.Tensor, context: Context
    ) -> torch.Tensor:
        text = (context.keys[i], context.values[i])
        if self._compiled is None or context.updates:
            return self._block(block, x, modulations[i], *text, context.rotation, context.updates)
        # Complex numbers are not compiled.
        rotation = torch.view_as_real(context.rotation)
        return self._compiled(block, x, modulations[i], *text, rotation, NO_UPDATES)

    def _cached_blocks(
        self,
        blocks: Iterator[WanTransformerBlock],
        x: torch.Tensor,
        modulations: torch.Tensor,
        context: Context,
        cache: FirstBlockCache,
    ) -> torch.Tensor:
        begun = self._one(0, next(blocks), x, modulations, context)
        # Kept in the weights' type: it stays from step to step.
        residual = (begun - x).to(self.dtype)
        rest = cache.rest(residual)
        if rest is None:
            hidden = begun
            for i, block in enumerate(blocks, 1):
                hidden = self._one(i, block, hidden, modulations, context)
            rest = (hidden - begun).to(self.dtype)
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
        """`x` is [B, L, D] float32, before and after."""
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = modulation
        attended = self._self_attention(block.attn1, self._norm(x, scale, shift, block.norm1.eps), rotation, updates)
        x = torch.addcmul(x, attended.float(), gate)
        queried = norm(block.norm2, x, updates).to(self.dtype)
        x = x + self._cross_attention(block.attn2, queried, keys, values, updates)
        expand, _, contract = block.ffn.net
        # In place: the widest tensor of the block is not allocated a second time.
        wide = linear(expand.proj, self._norm(x, ffn_scale, ffn_shift, block.norm3.eps), updates)
        wide = torch.ops.aten.gelu_(wide, approximate="tanh")
        return torch.addcmul(x, linear(contract, wide, updates).float(), ffn_gate)

    def _norm(self, x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, eps: float) -> torch.Tensor:
        """Layer norm and modulation in one: norm(x) * scale + shift, of float32, in the weights' type."""
        return F.layer_norm(x, scale.shape, scale, shift, eps).to(self.dtype)

    def _self_attention(
        self, attn: WanAttention, x: torch.Tensor, rotation: torch.Tensor, updates: Updates
    ) -> torch.Tensor:
        query = self._rotated(norm(attn.norm_q, linear(attn.to_q, x, updates), updates), rotation)
        key = self._rotated(norm(attn.norm_k, linear(attn.to_k, x, updates), updates), rotation)
        value = self._split(linear(attn.to_v, x, updates))
        return self._merged(attn, self.attend(query, key, value), updates)

    def _cross_attention(
        self, attn: WanAttention, x: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, updates: Updates
    ) -> torch.Tensor:
        query = self._split(norm(attn.norm_q, linear(attn.to_q, x, updates), updates))
        mixed = F.scaled_dot_product_attention(query.expand(keys.shape[0], -1, -1, -1), keys, values)
        return self._merged(attn, mixed, updates)

    def _merged(self, attn: WanAttention, mixed: torch.Tensor, updates: Updates) -> torch.Tensor:
        """[B, heads, L, head_dim] through the output projection to [B, L, D]."""
        return linear(attn.to_out[0], mixed.transpose(1, 2).flatten(2), updates)

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

    def _modulation(self, timestep: float, context: Context) -> tuple[torch.Tensor, torch.Tensor]:
        """Shift, 1 + scale and gate of every block, [blocks, 6, D], and shift and 1 + scale of the head, [2, D]."""
        embedder, updates = self.module.condition_embedder, context.updates
        tables, head = context.tables or (self._tables, self._head_table)
        time = embedder.time_embedder
        frequencies = embedder.timesteps_proj(torch.tensor([timestep], device=self.device))
        hidden = linear(time.linear_1, frequencies.to(time.linear_1.weight.dtype), updates)
        embedding = linear(time.linear_2, time.act(hidden), updates).float()
        activated = F.silu(embedding)
        projected = F.linear(activated, embedder.time_proj.weight.float(), embedder.time_proj.bias.float())
        projected = added(embedder.time_proj, projected, activated, updates)
        return tables + projected.view(1, 6, -1), (head + embedding.unsqueeze(1))[0]

    def _shifted_tables(self, updates: Updates) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The tables of the modulations where adapters change any of them."""
        blocks = list(self.module.blocks)
        if not any(owner in updates for owner in (*blocks, self.module)):
            return None
        tables = [shifted(table, block, updates) for table, block in zip(self._tables.split(1), blocks, strict=True)]
        return torch.cat(tables), shifted(self._head_table, self.module, updates)

    def _patches(self, x: torch.Tensor, shape: LatentShape, updates: Updates = NO_UPDATES) -> torch.Tensor:
        """[1, C, T, H, W] to tokens, [1, L, D] float32: a convolution of stride like kernel is a matrix product."""
        frames, height, width = shape.grid
        embedding = self.module.patch_embedding
        patches = x.view(shape.channels, frames, height, 2, width, 2).permute(1, 2, 4, 0, 3, 5)
        patches = patches.reshape(1, shape.tokens, -1)
        tokens = F.linear(patches, embedding.weight.flatten(1), embedding.bias)
        return added(embedding, tokens, patches, updates).float()

    def _unpatched(self, tokens: torch.Tensor, shape: LatentShape) -> torch.Tensor:
        frames, height, width = shape.grid
        cells = tokens.view(-1, frames, height, width, 2, 2, shape.channels)
        return cells.permute(0, 6, 1, 2, 4, 3, 5).reshape(-1, *shape.batch[1:])

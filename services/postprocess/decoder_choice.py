"""The decoder of a process, with the tiles that its configuration and its device's memory ask for."""

from typing import Final

import torch
from diffusers import AutoencoderKLWan

from services.postprocess.config import PostprocessConfig
from services.postprocess.decode import WanDecoder, appetite_of
from services.postprocess.tiling import FittingTiles, FixedTiles

_USABLE: Final = 0.9
"""Of the memory that is free at start: allocators lose some between their blocks."""
_GIBIBYTE: Final = 2**30


def choose_decoder(vae: AutoencoderKLWan, config: PostprocessConfig) -> WanDecoder:
    """The decoder with the tiles that `config` asks for; `auto` measures what it takes where memory is counted."""
    decoder = WanDecoder(vae)
    overlap = config.tile_overlap // decoder.scale
    if config.tile_size != "auto":
        return WanDecoder(vae, FixedTiles(size=config.tile_size // decoder.scale, overlap=overlap))
    available = config.decode_memory_bytes
    if available is None and decoder.device.type == "cuda":
        torch.cuda.empty_cache()
        free = _USABLE * torch.cuda.mem_get_info(decoder.device)[0]
        # In steps of a gibibyte: equal cards must decode alike, whatever a few megabytes do.
        available = max(1, int(free) // _GIBIBYTE) * _GIBIBYTE
    if available is None:
        return decoder
    return WanDecoder(
        vae, FittingTiles(appetite=appetite_of(decoder), available=available // config.slots, overlap=overlap)
    )

"""Latents to a finished clip, one chunk at a time: decode, then every stage of the chain, then the encoder."""

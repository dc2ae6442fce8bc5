"""Prompts to the text embeddings that condition the denoiser."""

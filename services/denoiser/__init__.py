"""Noise to latents: the denoising loop of Wan2.2's two experts, served."""

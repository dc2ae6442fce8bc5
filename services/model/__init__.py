"""What every process that holds weights is built on: model folder, weights, device, torch tensors on the wire.

Entry bar: the encoder, the denoiser and the postprocess service all need it, and it knows nothing of any one stage.
"""

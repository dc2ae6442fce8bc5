"""What every service is bolted to: configuration, lifecycle, errors, admission, telemetry, tensor bundles on the wire.

The entry bar. Code belongs here when every service needs it, it knows nothing of video and never imports torch, and
replacing it would not change an answer. Whatever fails one of the three belongs to a room of its own.
"""

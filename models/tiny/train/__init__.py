"""Training of the embedded model's parts, each one command that resumes from its last checkpoint."""

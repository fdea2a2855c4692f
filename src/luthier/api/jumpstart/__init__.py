"""What JumpStart's clients read of a model: the spec of SDK v2, the hub content document of SDK v3."""

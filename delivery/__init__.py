"""Act on git: release, promote and revert, and explain what happened."""

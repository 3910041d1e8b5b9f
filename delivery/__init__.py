"""What acts on git: a release, its promotion, the way back, and what git tells of them."""

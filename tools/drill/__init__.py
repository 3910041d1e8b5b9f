"""The whole loop for real: the demo that a person watches, and the drill of every scenario, good and bad."""

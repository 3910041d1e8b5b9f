"""What the workflows on GitHub do beside `make` and `delivery`: each step is a command that runs here, too."""

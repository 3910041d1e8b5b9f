"""Steps of the workflows on GitHub that are neither `make` nor `delivery`; each command also runs locally."""

"""Trains the classifier, judges it, registers it, and writes the folder that the service reads."""

"""Train, evaluate, gate and register the classifier, and export the model folder that the service loads."""

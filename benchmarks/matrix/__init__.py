"""A matrix of models, recipes and devices: built, measured and told of, on one machine or on a fleet."""

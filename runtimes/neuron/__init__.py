"""neuron: graphs for AWS Inferentia2 and Trainium, run by their chip or told by XLA on the CPU."""

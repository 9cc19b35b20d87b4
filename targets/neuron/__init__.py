"""neuron: AWS Inferentia2 and Trainium, as far as the closed compiler: HLO modules, weights by rank, the command."""

"""How much the loss would change without a head, a neuron or a block."""

"""What RLlib trained, as policies of ours: options, and the network in JAX. RLlib itself is not imported here."""

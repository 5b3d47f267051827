"""Evolution of network weights; random search so far."""

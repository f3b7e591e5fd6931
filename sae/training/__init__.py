"""Training of sparse autoencoders."""

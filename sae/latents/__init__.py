"""What each latent of an autoencoder stands for: `python -m sae latents`.

Read the modules in this order: `settings`, `kept_rows` (of each latent, the rows of
smallest keys), `latent_pass` (what one pass over the rows keeps), `examples` (the rows that are
shown), `saved_pass` (its file, for resuming and parts), `run`, `contexts` (tokens around
those rows), `lens`, `results` (JSON Lines), `page`.
"""

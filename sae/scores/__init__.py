"""How latents differ between two groups of rows.

Read `latent_sums` (what is added up over rows), `figures` (what follows from the sums), `labels`
(which group a row is of), then `run`, which does all of it for `python -m sae score`.
"""

"""Samples to activations: the plan of units, the mesh, the compiled programs, the loop.

Read `plan`, `programs`, `engine` in this order; then `pretrained`, `hosts`, `memory`, `self_check`.
"""

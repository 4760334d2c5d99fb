"""How a step's passes are made fast; equal to rl/plain.py.

fast    the scorer
blocks  how a batch is cut
prefix  log-probabilities behind a prompt that a group shares
"""

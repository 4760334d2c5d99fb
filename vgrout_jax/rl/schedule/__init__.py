"""How a step's passes are made fast; equal to rl/plain.py.

fast              the scorer
blocks            how a batch is cut
prefix            the prefix cache: log-probabilities after a prompt that a group shares
prompt_gradients  the probe's backward pass through such prompts
"""

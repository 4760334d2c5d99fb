"""How a policy starts.

fit         fitting all parameters to prompts with completions
toy_policy  the toy world's base policy: its shape, its training, what it does
"""

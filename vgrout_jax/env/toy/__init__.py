"""The toy world: small Python problems that a small policy can solve, and cheat at.

operations  operations, functions and tasks, split into sets
answers     honest answers, sloppy ones, exploits, and the corpus of them
tokenizer   its vocabulary
"""

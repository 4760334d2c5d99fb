"""Data that ships with the package, and the scripts that write it.

make_smoke      the smoke scale's problems and completions
make_tokenizer  its tokenizer
make_toy_pairs  the toy world's pairs
"""

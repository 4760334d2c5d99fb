"""What everybody needs.

command_line        flags and one-line errors of small commands
files               strict JSON, atomic writes
packaged            where packaged data lies
tokenizer           Hugging Face tokenizers behind the few calls that are made
xla                 XLA's options for a device
background_compile  programs compiled ahead of their use
"""

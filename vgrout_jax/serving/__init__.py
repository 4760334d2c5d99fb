"""What is done with a finished run.

exports       a plain LoRA, or a whole model
model_card    the text that goes with it
side_by_side  both policies' answers to one question, as they grow
columns       texts side by side on a terminal
"""

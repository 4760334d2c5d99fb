"""How good a policy is.

evaluate  completions of held-out problems, graded, under both policies
rates     rates with intervals, AUROC
"""

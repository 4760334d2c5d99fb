"""Where the direction comes from.

pair_file   the format of contrastive pairs
pairs       selecting pairs and encoding them
probe       the c-probe: a rollout's gradient in rank space
extraction  reads the pairs on the current adapter
direction   from the pairs' gradients to a direction, its bands and scores
gate        from scores to labels, from labels to masks
"""

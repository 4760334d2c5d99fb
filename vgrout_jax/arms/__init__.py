"""What differs between arms: who flags a rollout, and what happens to the flagged.

base        what an arm is, what it may look at, and what it decides
advantages  how rewards become advantages

Sources of flags:
nobody      none
probe       the probe's gradient against the pairs' direction (routeV)
placebos    the probe without its information
monitor     verdicts
residual    the residual stream against the pairs' difference

Uses of flags:
route       into the quarantine
absorb      both blocks train on everything
penalise    less reward
modulate    less reward, by how hack-like the score is

compose     from a configuration to its arm
__main__    lists every arm
"""

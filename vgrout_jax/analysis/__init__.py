"""What many runs say.

arms          runs sorted into arms, with seeds as replicates
replicates    intervals and tests over seeds
claims        the preregistered claims, as data
verdicts      whether the runs bear them out
observations  scores and examples from completions
figures       the report's figures
plotting      how every figure looks
wording       numbers and verdicts in words
pages         puts the report together
document      HTML and Markdown from blocks
output        writes them
replaying     the gate again over stored gradients
replay_pages  what that shows
pair_checks   what a set of pairs holds besides the exploit
pair_pages    what that shows
"""

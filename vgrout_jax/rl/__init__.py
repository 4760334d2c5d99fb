"""What one step is. Read step, then plain; the rest is what they call.

step          the method on one screen
scorer        what a step asks of whoever reads log-probabilities
plain         the passes over whole rollouts
schedule      the same passes, fast
grpo          losses of log-probabilities
old_logprobs  where log pi_old comes from
features      activations, for sources that read them
optim         AdamW, warm-up, cosine decay
state         what a step reads and changes
rollout       collects a step's rollouts
divergence    what stops a run that diverges
collapse      warnings of a policy that does less than it could
"""

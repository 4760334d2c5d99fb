"""What the policy is.

qwen3             the decoder
lora2r            the adapter: two blocks, their masks and the probe's scale
attention         attention over whole sequences
packed_attention  attention of completions that stand end to end
norms             RMSNorm and rotation
head              hidden states to token log-probabilities
logprobs          log-probabilities of completions
residuals         means of the residual stream
policy            weights as they are passed around
parameters        shapes, axes and published names
padding           padded lengths
sharding          logical axes to devices
"""

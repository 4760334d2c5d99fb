"""How completions are drawn.

generator        a run's sampler, from prompts to texts
sampler          runs the decode loop, part by part
decode           its programs
decode_layer     a layer for one new token
cache_attention  its attention
heads            its queries, keys and values
fused_linear     its linear maps
draw_token       temperature, top-k, top-p
keys             random keys by row and token
kernels          on NVIDIA GPUs
"""

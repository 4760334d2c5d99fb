"""Kernels for NVIDIA GPUs.

flash_decoding  attention of one token to a long cache
"""

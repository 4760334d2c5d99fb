"""How weights come in and go out.

hub          published weights in
safetensors  their files
store        weights out
checkpoint   the adapter artefact
as_lora      the adapter as a plain LoRA
peft         that as PEFT's files
"""

"""What `features.py` measures: single files beside safetensors' own functions, and samples from process to process."""

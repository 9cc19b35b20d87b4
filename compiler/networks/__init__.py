"""Re-authored networks for static accelerators: fixed shapes, few operators, one weight name for each Hugging Face tensor."""

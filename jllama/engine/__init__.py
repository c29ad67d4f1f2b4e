"""Token ids in, token ids out: prefill, the decode loop and its state."""

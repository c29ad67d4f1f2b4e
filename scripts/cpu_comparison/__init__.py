"""What `compare_cpu.py` compares with: files for both sides, and each side's own process."""

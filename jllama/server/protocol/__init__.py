"""What clients send and get, as types, and its translation into prompts and settings. No event loop here."""

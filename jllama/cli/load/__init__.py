"""A client that asks a server of OpenAI's API many things at once, and keeps when what came back."""

"""An OpenAI-compatible HTTP server on an `Engine`: requests in, answers or Server-Sent Events out."""

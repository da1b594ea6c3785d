"""Conversations over the network: OpenAI's Realtime events, Moshi's protocol, HTTP, a page."""

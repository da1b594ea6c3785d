"""How many callers a server holds: scripted ones, over real connections, in real time."""

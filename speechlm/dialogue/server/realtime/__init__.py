"""OpenAI's Realtime protocol: what clients send, what they get, and the connection between.

``formats`` turns bytes to sound and back, ``client_events`` checks what comes in,
``configuration`` is the session object, ``dialect`` the older names of it all, ``conversation``
the state behind the events, ``outbox`` and ``inbox`` the bounded queues, ``connection`` the socket.
"""

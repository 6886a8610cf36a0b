"""Something to measure in a process of its own. It imports nothing, so that it starts at once."""


def prepare(megabytes: str, before: str):
    """Hold some memory, and return a callable that takes more and gives it back before it ends."""
    held = bytearray(b"1") * (int(before) * 10**6)

    def allocate():
        block = bytearray(b"1") * (int(megabytes) * 10**6)
        return len(block) + len(held)

    return allocate

"""Published results for ``egd report``, one CSV a source; each says where its numbers are from."""

"""Keep the protocol: take a ref from put to claim, settlement and expiry."""

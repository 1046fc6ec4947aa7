"""The protocol: how a ref goes from put to claim, settlement and expiry."""

//! Where volumes live: the driver contract and the built-in drivers.

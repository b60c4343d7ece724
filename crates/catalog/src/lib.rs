//! The catalogue: what exists, who holds what, what was in flight.

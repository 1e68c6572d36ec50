//! diff(desired, observed, owned) to ordered idempotent steps; gate, retry and status per key; no IO.

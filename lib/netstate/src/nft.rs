//! nftables rulesets as values.

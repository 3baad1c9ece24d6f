//! What the tests share: the oracle, random worlds, the packet builder.

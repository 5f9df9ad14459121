//! The specs that other crates own, under one name each.

/// `kind: Node`.
pub type NodeSpec = serde_json::Value;
/// `kind: HotplugRule`.
pub type RuleSpec = serde_json::Value;
/// `kind: SecurityProfile`.
pub type ProfileSpec = serde_json::Value;

//! The CNI plugin: one exec per Pod, veth into cbr0 with IPAM and host ports inside.
//!
//! One process serves one verb and ends. It blocks, has one thread, and executes no other program.
//!
//! | room | what it is | may use |
//! |---|---|---|
//! | [`protocol`] | what the runtime says and is answered; pure | nothing of ours |
//! | [`plan`] | facts in, ordered steps out; pure | `protocol` |
//! | [`state`] | files under locks: records, reservations | `protocol`, `plan` |
//! | [`apply`] | steps into the kernel, and their undo | `plan`, `protocol` |
//! | [`reclaim`] | what nobody deleted, and what the predecessor's chain left | `state`, `apply` |
//! | [`roles`] | one plugin name per module: its verbs gather facts, plan, apply, return a result | all of them |
//! | [`call`] | one execution: version gates, the role's verb, the answer | `roles` |

pub mod apply;
pub mod call;
pub mod plan;
pub mod protocol;
pub mod reclaim;
pub mod roles;
pub mod state;
